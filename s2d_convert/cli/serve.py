"""`s2d serve`: an exported folder behind a server. The servers belong to the runtime, and each to an extra of its own."""

from __future__ import annotations

import importlib
from dataclasses import Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from click.core import ParameterSource
from s2d_runtime.serving.options import HttpOptions, OptionError, RayOptions, flag

from s2d_convert.cli.options import FOLDER, PATH, options
from s2d_convert.errors import UsageError


def _option(spec: Field[Any]) -> Any:
    """Return an option of the server as click has it."""
    meta, shown = spec.metadata, spec.default is not None
    return click.option(
        flag(spec.name), spec.name, type=meta["kind"], default=spec.default, show_default=shown, help=meta["help"]
    )


# The two servers share most options; what only one of them has is refused beside the other.
SPECS = {spec.name: spec for kind in (HttpOptions, RayOptions) for spec in fields(kind)}


@click.command()
@FOLDER
@click.option("--ray", is_flag=True, help="A Ray Serve application with one deployment per stage, for many machines.")
@click.option("--config", type=PATH, help="With --ray: only write the file that `serve deploy` takes.")
@options(*map(_option, SPECS.values()))
@click.pass_context
def serve(context: click.Context, /, folder: Path, ray: bool, config: Path | None, **given: Any) -> None:
    """Answer HTTP requests with OUT: V2 protocol (KServe), health, metrics; on loopback unless --host says otherwise."""
    kind = RayOptions if ray else HttpOptions
    own = {spec.name for spec in fields(kind)} | ({"config"} if ray else set())
    for name in (*given, "config"):
        if name not in own and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"{flag(name)}: means nothing {'beside' if ray else 'without'} --ray; leave it out")
    asked = {name: given[name] for name in own & set(given)}
    try:
        if not ray:
            with_extra("s2d_runtime.serving.http", "http").serve(folder, HttpOptions(**asked), say=click.echo)
            return
        server = with_extra("s2d_runtime.serving.ray", "ray")
        if config is None:
            server.run(folder, RayOptions(**asked), say=click.echo)
        else:
            server.write_config(folder, RayOptions(**asked), config)
    except OptionError as error:
        raise UsageError(str(error)) from error


def with_extra(module: str, extra: str) -> ModuleType:
    """Return a module of the runtime that needs an extra. Raises UsageError that tells how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"s2d serve: {error.name} is missing; pip install 's2d-runtime[{extra}]'") from error

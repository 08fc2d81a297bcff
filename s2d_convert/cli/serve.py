"""The command `s2d serve`: an exported folder behind a server. The servers are in the runtime, each with its own extra."""

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
    """Return a server's option as a click option."""
    meta, shown = spec.metadata, spec.default is not None
    return click.option(
        flag(spec.name), spec.name, type=meta["kind"], default=spec.default, show_default=shown, help=meta["help"]
    )


# The two servers share most options. An option of only one of them is rejected with the other.
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
    names = {spec.name for spec in fields(kind)} | ({"config"} if ray else set())
    for name in (*given, "config"):
        if name not in names and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"{flag(name)}: means nothing {'beside' if ray else 'without'} --ray; leave it out")
    asked = {name: given[name] for name in names & set(given)}
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
    """Import a module of the runtime that needs an extra. Raises UsageError that says how to install the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"s2d serve: {error.name} is missing; pip install 's2d-runtime[{extra}]'") from error

"""`s2d serve`: an exported folder behind a server. The servers belong to the runtime, and each to an extra of its own."""

from __future__ import annotations

import importlib
from dataclasses import Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from s2d_runtime.serving.options import HttpOptions, OptionError, flag

from s2d_convert.cli_options import FOLDER, F, options
from s2d_convert.errors import UsageError


def _option(spec: Field[Any]) -> Any:
    """An option of the server as click has it."""
    meta, shown = spec.metadata, spec.default is not None
    return click.option(
        flag(spec.name), spec.name, type=meta["kind"], default=spec.default, show_default=shown, help=meta["help"]
    )


def _listening(function: F) -> F:
    return options(*(_option(spec) for spec in fields(HttpOptions)))(function)


@click.command()
@FOLDER
@_listening
def serve(folder: Path, **listening: Any) -> None:
    """Answer HTTP requests with OUT: V2 protocol (KServe), health, metrics; on loopback unless --host says otherwise."""
    http = with_extra("s2d_runtime.serving.http", "http")
    try:
        http.serve(folder, HttpOptions(**listening), say=click.echo)
    except OptionError as error:
        raise UsageError(str(error)) from error


def with_extra(module: str, extra: str) -> ModuleType:
    """A module of the runtime that needs an extra. Raises UsageError that tells how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"s2d serve: {error.name} is missing; pip install 's2d-runtime[{extra}]'") from error

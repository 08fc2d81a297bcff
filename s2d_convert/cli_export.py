"""The command `s2d export`: what else can be made of an exported folder. One option chooses what is made, and one function
below makes it; the options that belong to it stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from s2d_convert.cli_options import FOLDER, PATH
from s2d_convert.errors import UsageError
from s2d_convert.options import check_running
from s2d_convert.single import THRESHOLDS, write_single

Options = Mapping[str, Any]


@click.command()
@FOLDER
@click.option(
    "--single", type=PATH, metavar="FILE", help="Write one ONNX file with all stages and per-row exits in it."
)
@click.option("--bake", type=float, help="With --single: fix the thresholds of this budget in the file.")
def export(folder: Path, **options: Any) -> None:
    """Make something else of OUT, for where the dispatcher does not run. Give one of --single FILE."""
    asked = [name for name in TARGETS if options[name] is not None]
    if len(asked) != 1:
        raise UsageError(f"export: give exactly one of {', '.join(f'--{name}' for name in TARGETS)}")
    make, own = TARGETS[asked[0]]
    given = {name for name, value in options.items() if value is not None} - {asked[0], *own}
    if given:
        raise UsageError(f"--{min(given)}: means nothing beside --{asked[0]}; leave it out")
    make(folder, options)


def single(folder: Path, options: Options) -> None:
    """`--single FILE`."""
    check_running(threads=1, batch=1, budget=options["bake"])
    made = write_single(folder, options["single"], bake=options["bake"])
    click.echo(f"{made.path}: {made.stages} stages, {made.file_bytes / 1e6:.1f} MB")
    limits = ", ".join(f"{t:.6g}" for t in made.policy.thresholds)
    if made.baked:
        click.echo(f"the thresholds of budget {made.policy.budget:g} are fixed in it: {limits}")
    elif limits:
        click.echo(f"feed '{THRESHOLDS}', float32 [{made.stages - 1}]; for budget {made.policy.budget:g}: [{limits}]")


# Option -> what makes it, and the further options that it takes.
TARGETS: Mapping[str, tuple[Callable[[Path, Options], None], frozenset[str]]] = MappingProxyType(
    {"single": (single, frozenset({"bake"}))}
)

"""Commands on a model file: `s2d inspect` and `s2d split`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from s2d_convert.cli.inspect_view import InspectView
from s2d_convert.cli.options import DEFAULTS, MODEL, OUT, OUTPUT, SIZE, WEIGHTS, default_out, named_options
from s2d_convert.conversion.prepare import read_analysed
from s2d_convert.errors import UsageError
from s2d_convert.workflows.inspect import describe
from s2d_convert.workflows.split_model import split_model


@click.command()
@MODEL
@OUTPUT
@SIZE
@click.option("--all", "everything", is_flag=True, help="Show all channel classes and opaque nodes of a large model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all there is, instead of tables.")
def inspect(model: Path, output: str | None, size: tuple[int, int] | None, everything: bool, as_json: bool) -> None:
    """Show what MODEL offers: channel classes, opaque nodes and what they cost, a picture of the candidate taps."""
    analysed = read_analysed(model, size=size, output=output, strict=False)
    about = describe(analysed)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    console = Console(highlight=False)
    show = InspectView(console.width, everything, console.options.ascii_only)
    for index, part in enumerate(show(about)):
        console.print(*([""] if index else []), part, sep="\n")


@click.command()
@MODEL
@click.option(
    "--stages", default=DEFAULTS["stages"], show_default=True, help="Number of stages for `depth` and `width`."
)
@click.option(
    "--plan", default="depth", show_default=True, metavar="identity|depth|width|PLAN.json", help="How to cut."
)
@OUT
@WEIGHTS
@OUTPUT
@SIZE
def split(
    model: Path,
    stages: int,
    plan: str,
    out: Path | None,
    weights: str,
    output: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Cut MODEL into stages without any training; exit heads start from the classifier."""
    if "stages" in named_options() and (plan == "identity" or Path(plan).is_file()):
        raise UsageError(f"--stages: --plan {plan} has stages of its own; leave it out")
    target = out or default_out(model)
    manifest = split_model(model, plan=plan, stages=stages, out=target, output=output, size=size, weights=weights)
    for stage in manifest["stages"]:
        click.echo(f"{target / stage['file']}: {stage['macs']} MACs, {stage['parameters']} parameters")

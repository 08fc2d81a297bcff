"""Commands on a model file: `s2d inspect` and `s2d split`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from s2d_convert.base.text import plain
from s2d_convert.cli.inspect_view import InspectView
from s2d_convert.cli.options import (
    CLASSES,
    DEFAULTS,
    FORCE,
    LABELS,
    MODEL,
    OUT,
    OUTPUT,
    PATH,
    PREPROCESSING,
    SIZE,
    WEIGHTS,
    default_out,
    flag,
    named_options,
)
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.prepare import preprocess_of, read_analysed
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.workflows.inspect import describe
from s2d_convert.workflows.pictures import Seen, in_letters, look_at, save_pictures
from s2d_convert.workflows.split_model import SplitOptions, split_model


@click.command()
@MODEL
@OUTPUT
@LABELS
@SIZE
@click.option("--all", "everything", is_flag=True, help="Show all channel classes and opaque nodes of a large model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all there is, instead of tables.")
@click.option(
    "--data", type=PATH, help="Show three pictures of this folder, or rows of this .npz, as the model sees them."
)
@click.option("--pictures", type=PATH, metavar="FOLDER", help="With --data: write the three as PNG files into FOLDER.")
@PREPROCESSING
def inspect(
    model: Path,
    output: str | None,
    labels: str | None,
    size: tuple[int, int] | None,
    everything: bool,
    as_json: bool,
    data: Path | None,
    pictures: Path | None,
    **pixels: Any,
) -> None:
    """Show what MODEL offers: channel classes, opaque nodes and what they cost, a picture of the candidate taps.

    With --data it shows instead what the model gets of some pictures.
    """
    if data is None:
        for name in ("pictures", *pixels):
            if name in named_options():
                raise UsageError(f"{flag(name)}: means nothing without --data; give both, or leave it out")
    analysed = read_analysed(model, size=size, output=output, labels=labels, strict=False)
    if data is not None:
        options = ConvertOptions(model=model, out=default_out(model), **pixels)
        show_pictures(analysed.graph, data, options, pictures=pictures, as_json=as_json)
        return
    about = describe(analysed)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    console = Console(highlight=False)
    show = InspectView(console.width, everything, console.options.ascii_only)
    for index, part in enumerate(show(about)):
        console.print(*([""] if index else []), part, sep="\n")


def show_pictures(graph: Graph, data: Path, options: ConvertOptions, *, pictures: Path | None, as_json: bool) -> None:
    """Print some pictures as the model sees them, and write them as files if a folder is given."""
    preprocess = preprocess_of(graph, options)
    seen = look_at(data, preprocess, space=LabelSpace(graph.classes, graph.task.several))
    files = save_pictures(seen, pictures) if pictures is not None else []
    if as_json:
        click.echo(json.dumps({"preprocess": preprocess.to_json(), "pictures": [s.to_json() for s in seen]}, indent=1))
        return
    for line in picture_lines(seen, preprocess, letters=not files):
        click.echo(line)
    for file in files:
        click.echo(file)


def picture_lines(seen: Sequence[Seen], preprocess: Preprocess, *, letters: bool) -> Iterator[str]:
    """Yield what the model gets of some pictures, in lines. letters: whether to draw them."""
    made = preprocess.to_json()
    yield f"resize: {made['resize']}"
    yield f"values: {made['formula']}; channels {preprocess.order}, {preprocess.layout}"
    for one in seen:
        height, width = preprocess.size
        size = "" if one.source is None else f": {one.source[0]}x{one.source[1]} pixels to {width}x{height}"
        lost = f", {100 * one.cut_away:.0f} % cropped away" if one.cut_away else ""
        values = "; ".join(f"{low:.3g} to {high:.3g}, mean {mean:.3g}" for low, mean, high in one.channels)
        yield plain(f"{one.name}{size}{lost}; channel by channel {values}")
        if one.pixels is not None and letters:
            yield from (f"  {line}" for line in in_letters(one.pixels))


@click.command()
@MODEL
@click.option(
    "--stages", default=DEFAULTS["stages"], show_default=True, help="Number of stages for `depth` and `width`."
)
@click.option(
    "--plan", default="depth", show_default=True, metavar="identity|depth|width|PLAN.json", help="How to cut."
)
@OUT
@FORCE
@WEIGHTS
@OUTPUT
@LABELS
@CLASSES
@SIZE
def split(model: Path, stages: int, plan: str, out: Path | None, **options: Any) -> None:
    """Cut MODEL into stages without any training; exit heads start from the classifier."""
    if "stages" in named_options() and (plan == "identity" or Path(plan).is_file()):
        raise UsageError(f"--stages: --plan {plan} has stages of its own; leave it out")
    target = out or default_out(model)
    manifest = split_model(SplitOptions(model, plan, stages, target, **options))
    for stage in manifest.stages:
        click.echo(f"{target / stage.file}: {stage.macs} MACs, {stage.parameters} parameters")

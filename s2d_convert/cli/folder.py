"""Commands that measure an exported folder: `s2d evaluate` and `s2d bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from s2d_convert.base.sessions import Running
from s2d_convert.cli.options import FOLDER, IMAGES, PATH, RUNNING, STATIC, STRICT
from s2d_convert.cli.progress import say_warning
from s2d_convert.cli.terminal import bench_table, class_table, measured_table
from s2d_convert.errors import UsageError
from s2d_convert.exporting.timing import bench
from s2d_convert.workflows.evaluate import EvaluateOptions, evaluate_folder
from s2d_convert.workflows.split_model import open_export


@click.command()
@FOLDER
@click.option("--data", type=PATH, required=True, help=f"Images: {IMAGES}.")
@click.option("--budget", type=float, help="Another of the calibrated budgets. [default: the one converted for]")
@STRICT
@STATIC
@RUNNING
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(folder: Path, as_json: bool, **options: Any) -> None:
    """Measure OUT on images: accuracy, exits and latency, beside the static model in the same run."""
    measured = evaluate_folder(EvaluateOptions(folder, **options), warn=say_warning)
    if as_json:
        click.echo(json.dumps(measured.to_json(), indent=1))
        return
    console = Console()
    console.print(measured_table(measured, title=f"{folder} on {measured.images} images of {options['data']}"))
    if (classes := class_table(measured)) is not None:
        console.print(classes)


@click.command(name="bench")
@FOLDER
@STATIC
@RUNNING
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench_command(
    folder: Path, static: Path | None, threads: int, batch: int, provider: str, seconds: float, as_json: bool
) -> None:
    """Time every way out of OUT and the static model, interleaved in one run: medians, ratios and spread."""
    running = Running(threads, batch, provider)
    if not 0 < seconds <= 3600:
        raise UsageError(f"--seconds {seconds:g}: above 0 and at most 3600 is allowed")
    with open_export(folder, static=static, running=running) as (runner, reference):
        results = bench(runner, reference, batch=batch, seconds=seconds)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        Console().print(bench_table(results, title=f"{folder}: batch {batch}, {threads} threads"))

"""Commands on an exported folder: `s2d evaluate`, `s2d bench` and `s2d run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from s2d_runtime import Dispatcher
from s2d_runtime.pictures import IMAGE_SUFFIXES, UNREADABLE, quiet_decoders, read_image, reason_of

from s2d_convert.base.sessions import Running
from s2d_convert.calibration.task import task_of
from s2d_convert.cli.options import DEFAULTS, FOLDER, IMAGES, PATH, RUNNING, STATIC, STRICT
from s2d_convert.cli.progress import say_warning
from s2d_convert.cli.terminal import bench_table, class_table, measured_table
from s2d_convert.conversion.options import check_budget
from s2d_convert.data.arrays import UNREADABLE_ARRAY
from s2d_convert.errors import DataError, UsageError
from s2d_convert.exporting.provenance import recorded_preprocess
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


@click.command()
@FOLDER
@click.argument("image", metavar="IMAGE|NPY", type=PATH)
@click.option("--budget", type=float, help="Another of the calibrated budgets. [default: the one converted for]")
@click.option("--threads", default=DEFAULTS["threads"], show_default=True, help="Threads of onnxruntime.")
def run(folder: Path, image: Path, budget: float | None, threads: int) -> None:
    """Answer for one image file, or for an .npy of model input: class or labels, confidence and the stage that answered."""
    if budget is not None:
        check_budget("budget", budget)
    with Running(threads).dispatcher(folder) as runner:
        answer = runner(read_input(image, runner), budget=budget)
    spec = runner.manifest.output
    several = task_of(spec.kind).several
    for row, (scores, stage, confidence) in enumerate(zip(answer.output, answer.stage, answer.confidence, strict=True)):
        said = ", ".join(map(str, spec.said(scores)))
        named = f"labels {said or 'none'}" if several else f"class {said}"
        click.echo(f"{row}: {named}, confidence {confidence:.4f}, stage {stage}")


def read_input(path: Path, runner: Dispatcher) -> np.ndarray[Any, Any]:
    """Read model input from an image file, preprocessed as the manifest says, or from an .npy file. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give an image or an .npy")
    shape = tuple(runner.manifest.input.shape)[1:]
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except UNREADABLE_ARRAY as error:
            raise DataError(f"{path}: not a readable .npy array ({error}); save it with numpy.save") from error
        batch = array[None] if array.shape == shape else array
        kind = runner.manifest.input.dtype
        if batch.ndim != len(shape) + 1 or batch.shape[1:] != shape or batch.dtype != kind:
            raise DataError(
                f"{path}: got {array.dtype} of shape {array.shape}; {kind} of shape {shape} or (N, ...) is expected"
            )
        return np.ascontiguousarray(batch)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}) or an .npy")
    preprocess = recorded_preprocess(runner.manifest)
    preprocess.check_known(path)
    try:
        with quiet_decoders():
            return preprocess(read_image(path, preprocess)[None])
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as an image ({reason_of(error)}); give another file") from error

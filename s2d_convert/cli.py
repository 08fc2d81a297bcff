"""The command line: `s2d` and its short form `s2d-convert`. Three layers: click here, steps in `pipeline`, functions below."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from rich.console import Console
from s2d_runtime import Dispatcher, DispatcherError

from s2d_convert.data import load_all
from s2d_convert.describe import describe
from s2d_convert.errors import (
    EXIT_BUDGET_NOT_REACHED,
    EXIT_INTERRUPTED,
    DataError,
    ModelError,
    OutputError,
    S2DError,
    UsageError,
)
from s2d_convert.folders import open_export, preprocess_in, split_model
from s2d_convert.inspect_view import InspectView
from s2d_convert.measure import bench, measure
from s2d_convert.options import DEVICES, EFFORTS, FLOATS, ConvertOptions, check_running
from s2d_convert.pipeline import convert as run_convert
from s2d_convert.prepare import read_graph
from s2d_convert.preprocess import IMAGE_SUFFIXES, PRESETS, UNREADABLE, read_image
from s2d_convert.terminal import TerminalReporter, bench_table, measured_table, policy_table

DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(ConvertOptions)}
F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[tuple[int, int]]):
    """A spatial size, HxW or one number for a square."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) not in (1, 2) or not all(p.isascii() and p.isdecimal() and 0 < int(p) <= 65536 for p in parts):
            self.fail(f"{value!r} is not a size; give HxW such as 224x224, or one number", param, ctx)
        return int(parts[0]), int(parts[-1])


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers separated by commas, such as 0.485,0.456,0.406", param, ctx)


def _options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


MOST_THREADS = 1024
PATH = click.Path(path_type=Path)
MODEL = click.argument("model", type=PATH)
FOLDER = click.argument("folder", metavar="OUT", type=PATH)
OUTPUT = click.option("--output", metavar="NAME", help="Which of several outputs holds the logits.")
SIZE = click.option("--size", type=_Size(), help="Height and width, for a model whose input size is dynamic.")
SEED = click.option("--seed", default=DEFAULTS["seed"], show_default=True, help="Same seed, same machine: same result.")
STAGES = click.option("--stages", default=DEFAULTS["stages"], show_default=True, help="Most stages to use, 2 to 4.")
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(FLOATS),
    default=DEFAULTS["weights"],
    show_default=True,
    help="How weights are stored in the stage files; float16 takes half the space, and is cast back at load.",
)
OUT = click.option("--out", type=PATH, help="The folder to write. [default: MODEL without .onnx, plus .s2d]")
RUNNING = _options(
    click.option("--threads", default=DEFAULTS["threads"], show_default=True, help="Threads of onnxruntime."),
    click.option(
        "--batch", default=DEFAULTS["batch"], show_default=True, help="Images per call when latency is measured."
    ),
    click.option(
        "--provider", default=DEFAULTS["provider"], show_default=True, help="Execution provider of onnxruntime."
    ),
)
PREPROCESSING = _options(
    click.option(
        "--preprocess", type=click.Choice(list(PRESETS)), help="How pixels become model input. [default: imagenet]"
    ),
    click.option("--mean", type=_Numbers(), help="Mean per channel, in 0..1 units; overrides the preset's."),
    click.option(
        "--std", type=_Numbers(), help="Standard deviation per channel, in 0..1 units; overrides the preset's."
    ),
)
STATIC = click.option("--model", "static", type=PATH, help="The static model. [default: where the conversion found it]")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="s2d-convert")
def s2d() -> None:
    """Make a CNN cheaper on the inputs that are easy: stages in ONNX that stop at the first confident answer."""


@s2d.command()
@MODEL
@click.option(
    "--budget",
    default=DEFAULTS["budget"],
    show_default=True,
    help="Mean latency allowed, as a share of the static model's.",
)
@click.option(
    "--data", type=PATH, help="Folder of class folders, folder of images, or .npz. Without it images are made up."
)
@OUT
@STAGES
@click.option(
    "--effort",
    type=click.Choice(list(EFFORTS)),
    default=DEFAULTS["effort"],
    show_default=True,
    help="How long to train and search.",
)
@RUNNING
@click.option(
    "--device", type=click.Choice(DEVICES), default=DEFAULTS["device"], show_default=True, help="Where to train."
)
@SEED
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options.")
@click.option(
    "--flip/--no-flip",
    default=DEFAULTS["flip"],
    show_default=True,
    help="Mirror training images (not for digits or text).",
)
@WEIGHTS
@OUTPUT
@SIZE
@PREPROCESSING
def convert(model: Path, out: Path | None, **options: Any) -> None:
    """Convert MODEL to a folder of stages whose mean latency is at most BUDGET of the static model's.

    Ends with exit code 3 when the budget could not be reached; the best effort is exported all the same.
    """
    asked = ConvertOptions(model=model, out=out or default_out(model), **options)
    result = run_convert(asked, TerminalReporter())
    console = Console()
    target = result.manifest["provenance"]["target"]
    console.print(policy_table(result.manifest["policies"], target=target))
    data = result.manifest["measured"]["data"]
    console.print(
        measured_table(
            result.manifest["measured"], title=f"{result.out} on {result.measured.images} unseen images ({data})"
        )
    )
    if data == "made-up":
        console.print(
            "All numbers above come from made-up images: expect other shares, accuracy and latency on real ones."
        )
    if not result.reached:
        click.echo(
            f"budget {asked.budget:g} was not reached: expected latency {_expected(result.manifest, asked.budget):.3f}; "
            "the best effort was exported",
            err=True,
        )
        sys.exit(EXIT_BUDGET_NOT_REACHED)


def _expected(manifest: Any, budget: float) -> float:
    return float(next(p["expected_latency"] for p in manifest["policies"] if p["budget"] == budget))


def default_out(model: Path) -> Path:
    """Where an export goes without --out: beside the working directory's other files, named after the model."""
    return Path(f"{model.stem}.s2d")


@s2d.command()
@MODEL
@OUTPUT
@SIZE
@click.option("--all", "everything", is_flag=True, help="Show all channel classes and opaque nodes of a large model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all there is, instead of tables.")
def inspect(model: Path, output: str | None, size: tuple[int, int] | None, everything: bool, as_json: bool) -> None:
    """Show what MODEL offers: channel classes, opaque nodes and what they cost, a picture of the candidate taps."""
    graph, channels = read_graph(model, size=size, output=output, strict=False)
    about = describe(graph, channels)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    console = Console(highlight=False)
    show = InspectView(console.width, everything, console.options.ascii_only)
    for index, part in enumerate(show(about)):
        console.print(*([""] if index else []), part, sep="\n")


@s2d.command()
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
    target = out or default_out(model)
    manifest = split_model(model, plan=plan, stages=stages, out=target, output=output, size=size, weights=weights)
    for stage in manifest["stages"]:
        click.echo(f"{target / stage['file']}: {stage['macs']} MACs, {stage['parameters']} parameters")


@s2d.command()
@FOLDER
@click.option("--data", type=PATH, required=True, help="Folder of class folders, folder of images, or .npz.")
@click.option("--budget", type=float, help="Another of the calibrated budgets. [default: the one converted for]")
@STATIC
@RUNNING
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    folder: Path,
    data: Path,
    budget: float | None,
    static: Path | None,
    threads: int,
    batch: int,
    provider: str,
    as_json: bool,
) -> None:
    """Measure OUT on images: accuracy, exits and latency, beside the static model in the same run."""
    check_running(threads=threads, batch=batch, budget=budget)
    with open_export(folder, static=static, threads=threads, provider=provider) as (runner, reference):
        preprocess = preprocess_in(runner.manifest, reference.graph)
        images = load_all(data, preprocess=preprocess, classes=reference.graph.classes)
        if not len(images):
            raise DataError(f"{data}: no images found; give a folder or an .npz with at least one")
        measured = measure(runner, reference, images, threads=threads, batch=batch, budget=budget)
    if as_json:
        click.echo(json.dumps(measured.to_json(), indent=1))
    else:
        Console().print(measured_table(measured.to_json(), title=f"{folder} on {measured.images} images of {data}"))


@s2d.command(name="bench")
@FOLDER
@STATIC
@RUNNING
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench_command(
    folder: Path, static: Path | None, threads: int, batch: int, provider: str, seconds: float, as_json: bool
) -> None:
    """Time every way out of OUT and the static model, interleaved in one run: medians, ratios and spread."""
    check_running(threads=threads, batch=batch)
    if not 0 < seconds <= 3600:
        raise UsageError(f"--seconds {seconds:g}: above 0 and at most 3600 is allowed")
    with open_export(folder, static=static, threads=threads, provider=provider) as (runner, reference):
        found = bench(runner, reference, batch=batch, seconds=seconds)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        Console().print(bench_table(found, title=f"{folder}: batch {batch}, {threads} threads"))


@s2d.command()
@FOLDER
@click.argument("image", metavar="IMAGE|NPY", type=PATH)
@click.option("--budget", type=float, help="Another of the calibrated budgets. [default: the one converted for]")
@click.option("--threads", default=DEFAULTS["threads"], show_default=True, help="Threads of onnxruntime.")
def run(folder: Path, image: Path, budget: float | None, threads: int) -> None:
    """Answer for one image file, or for an .npy of model input: class, confidence and the stage that answered."""
    check_running(threads=threads, batch=1, budget=budget)
    with Dispatcher(folder, threads=threads) as runner:
        answer = runner(read_input(image, runner), budget=budget)
    flat = answer.output.reshape(len(answer.output), -1)
    for row, (scores, stage, confidence) in enumerate(zip(flat, answer.stage, answer.confidence, strict=True)):
        click.echo(f"{row}: class {int(scores.argmax())}, confidence {confidence:.4f}, stage {stage}")


def read_input(path: Path, runner: Dispatcher) -> np.ndarray[Any, Any]:
    """Model input from an image file (preprocessed as the manifest says) or from an .npy. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give an image or an .npy")
    shape = tuple(runner.manifest.input.shape)[1:]
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable .npy array ({error}); save it with numpy.save") from error
        batch = array[None] if array.shape == shape else array
        if batch.ndim != len(shape) + 1 or batch.shape[1:] != shape or batch.dtype != np.float32:
            raise DataError(
                f"{path}: got {array.dtype} of shape {array.shape}; float32 of shape {shape} or (N, ...) is expected"
            )
        return np.ascontiguousarray(batch)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}) or an .npy")
    preprocess = preprocess_in(runner.manifest)
    try:
        return preprocess(read_image(path, preprocess)[None])
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); give another file") from error


def _guarded(command: click.Command, args: Sequence[str] | None) -> None:
    """Run a command; every expected failure becomes one sentence on stderr and a documented exit code."""
    # onnx and onnxruntime share the cores with torch; an explicit OMP_NUM_THREADS is respected.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isascii() and threads.isdecimal() and 0 < int(threads) <= MOST_THREADS:
        torch.set_num_threads(int(threads))
    try:
        command.main(args=None if args is None else list(args), standalone_mode=False)
    except S2DError as error:
        _fail(str(error), error.exit_code)
    except DispatcherError as error:
        _fail(str(error), OutputError.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; a conversion goes on with the same command and --resume", EXIT_INTERRUPTED)
    except MemoryError:
        _fail("not enough memory; use a smaller image (--size) or a machine with more", ModelError.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d` and of `python -m s2d_convert`."""
    _guarded(s2d, args)


def convert_main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d-convert`, the same as `s2d convert`."""
    _guarded(convert, args)

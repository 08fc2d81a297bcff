"""The command `s2d convert`, which is also `s2d-convert`."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import click
from rich.console import Console
from s2d_runtime import Manifest

from s2d_convert import conversion
from s2d_convert.base.clock import Clock
from s2d_convert.base.text import next_commands, promise_cost, promise_text
from s2d_convert.calibration.verdict import points
from s2d_convert.cli.options import (
    CLASSES,
    DEFAULTS,
    FIRST,
    IMAGES,
    LABELS,
    OUT,
    OUTPUT,
    PATH,
    PREPROCESSING,
    PROMISE,
    QUANTIZE,
    RUNNING,
    SEED,
    SIZE,
    STAGES,
    STRICT,
    WEIGHTS,
    WORDS,
    Duration,
    default_out,
    named_options,
    refuse_pointless,
)
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.cli.terminal import class_table, measured_table, outcome_table
from s2d_convert.conversion.options import DEVICES, EFFORTS, MODES, NAMED_PLANS, ConvertOptions
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import EXIT_BUDGET_NOT_REACHED, EXIT_WORSE, UsageError
from s2d_convert.exporting.folder import REPORT

HERE = Path("//")  # what --resume holds where no folder is given after it


@click.command()
@click.argument("model", type=PATH, required=False)
@click.version_option(package_name="s2d-convert")
@click.option(
    "--budget",
    type=float,
    default=DEFAULTS["budget"],
    help="Mean latency allowed, as a share of the static model's. [default: as low as --max-loss, or --max-drop, allows]",
)
@click.option(
    "--max-loss",
    default=DEFAULTS["max_loss"],
    show_default=True,
    metavar="SHARE",
    help="Without --budget: the accuracy that may be lost, as far as the images tell; 0.01 is one point. For a guarantee: "
    "--max-drop.",
)
@PROMISE
@click.option(
    "--max-latency",
    type=float,
    metavar="R",
    help="Most that an image which runs through every stage may cost, as a multiple of static. [default: any]",
)
@click.option(
    "--latency",
    type=PATH,
    metavar="BOARD.json",
    help="Convert for the device that this file was measured on (s2d profile). [default: this machine, measured]",
)
@click.option(
    "--data",
    type=PATH,
    help=f"One picture, {IMAGES}. Without it images are made up.",
)
@OUT
@STAGES
@click.option(
    "--effort",
    type=click.Choice(list(EFFORTS)),
    default=DEFAULTS["effort"],
    show_default=True,
    help="How much to train and search, in named amounts; instant trains nothing.",
)
@click.option(
    "--time",
    type=Duration(),
    metavar="TIME",
    help="How long the conversion may take, such as 90s, 10m or 1h30m; in place of --effort.",
)
@click.option(
    "--plan",
    default=DEFAULTS["plan"],
    show_default=True,
    metavar="|".join((*NAMED_PLANS, "PLAN.json")),
    help="Which plans the search may choose: any, exits by depth or by width only, cascades into the untouched model, or "
    "the same share of every class; or a written plan, which is trained as it is. first: nothing but the network of --first.",
)
@RUNNING
@click.option(
    "--device", type=click.Choice(DEVICES), default=DEFAULTS["device"], show_default=True, help="Where to train."
)
@SEED
@click.option("--ray", metavar="ADDRESS", help="Spread the search over a Ray cluster: auto, local or HOST:PORT.")
@click.option(
    "--resume",
    type=PATH,
    is_flag=False,
    flag_value=str(HERE),
    metavar="[OUT]",
    help="Go on with the interrupted conversion to OUT (or to --out), with the options that it was given.",
)
@click.option(
    "--flip/--no-flip",
    default=DEFAULTS["flip"],
    show_default=True,
    help="Mirror training images (not for digits or text).",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default=DEFAULTS["mode"],
    help="train: the first stages are trained, whatever the plan (the default with data). exact: the last stage is the "
    "original; exits on it or a narrow chain before it are trained (the default without data).",
)
@WEIGHTS
@QUANTIZE
@OUTPUT
@LABELS
@CLASSES
@SIZE
@PREPROCESSING
@FIRST
@STRICT
@click.option(
    "--force",
    is_flag=True,
    help="Replace OUT where it is an export and nothing was added to it; go on though the static model is no better than "
    "chance on the data.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, how long it takes and what to expect of it; train and write nothing.",
)
@WORDS
def convert(
    model: Path | None,
    out: Path | None,
    resume: Path | None,
    *,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Convert MODEL to a folder of stages that is as fast as possible at a loss of one point at most, or, with --budget, as
    accurate as possible in a share of the static model's time.

    Ends with a verdict. Exit code 3: the budget could not be reached or --max-latency not be kept, the best effort is exported
    all the same. Exit code 10: what was exported is no better than the original.
    """
    if quiet and verbose:
        raise UsageError("--quiet: means nothing beside --verbose; leave one of the two out")
    asked = asked_for(model, out, resume, options)
    refuse_pointless(asked, named_options())
    reporter = TerminalReporter(words="quiet" if quiet else "verbose" if verbose else "plain")
    if dry_run:
        show_forecast(conversion.dry_run(asked, reporter), reporter)
        return
    clock = Clock(asked.time)
    try:
        with finish_at_interrupt(clock, say=partial(click.echo, err=True)):
            result = conversion.convert(asked, reporter, clock=clock)
    except KeyboardInterrupt:
        if RunFolder(asked.out).path.exists():
            how = f"s2d-convert --resume {shlex.quote(str(asked.out))}"
            click.echo(f"what is done so far is kept; to go on: {how}", err=True)
        raise
    if not quiet:
        show(result, asked)
    verdict = result.verdict
    click.echo("\n".join(verdict.sentences))
    if verdict.warning:
        click.echo(f"warning: {verdict.warning}", err=True)
    if not quiet:
        show_next(result)
    if verdict.worse:
        sys.exit(EXIT_WORSE)
    if not (result.reached and result.within_max_latency):
        sys.exit(EXIT_BUDGET_NOT_REACHED)


@contextmanager
def finish_at_interrupt(clock: Clock, *, say: Callable[[str], object]) -> Iterator[None]:
    """Let the first Ctrl-C end the time, so that the best so far is written; the second one interrupts at once.

    say: called with a sentence about that.
    """

    def stop(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        clock.stop()
        say("finishing with the best so far; press Ctrl-C again to stop at once")

    before = signal.getsignal(signal.SIGINT)
    if (
        before is signal.SIG_IGN or current_thread() is not main_thread()
    ):  # in the background; only the main thread gets signals
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def asked_for(model: Path | None, out: Path | None, resume: Path | None, options: Mapping[str, Any]) -> ConvertOptions:
    """Return what is asked for: the options, or with --resume those of the unfinished run, apart from the named ones.

    resume: the folder that --resume names, HERE where it names none, None without it. Raises UsageError, and OutputError where
    there is nothing to resume.
    """
    if resume not in (None, HERE) and model is None and resume.is_file():  # --resume MODEL
        model, resume = resume, HERE
    if resume is None:
        if model is None:
            raise UsageError("MODEL: give the ONNX file to convert")
        return ConvertOptions(model=model, out=out or default_out(model), **options)
    if resume == HERE:
        if out is None and model is None:
            raise UsageError("--resume: give the folder of the conversion that is to go on")
        folder = out or default_out(model or Path())
    else:
        folder = resume.with_suffix("") if resume.suffix == ".run" else resume
        if out not in (None, folder):
            raise UsageError(f"--out {out}: means nothing beside --resume {folder}; leave it out")
    named = {name: value for name, value in {**options, "model": model}.items() if name in named_options()}
    before = {**RunFolder(folder).asked(), "out": folder}
    return replace(ConvertOptions.from_json({**before, **named}), resume=True)


def show_forecast(forecast: conversion.Forecast, reporter: TerminalReporter) -> None:
    """Print the steps of a conversion, and what to expect of it."""
    reporter.plan(forecast.steps, memory_bytes=forecast.memory)
    click.echo(f"The static model has {100 * forecast.right:.1f} % {forecast.target} on held-out images.")
    for row in forecast.expected:
        lost = 100 * (forecast.right - row.right)
        click.echo(f"  {row.budget:.1f} of its time: loses about {max(0.0, lost):.1f} points before any training")
    if not forecast.expected:
        click.echo(
            "What it is worth cannot be told before it is tried: there are no real images, or the mode is exact."
        )
    click.echo("Nothing was trained or written (--dry-run).")


def show(result: conversion.Result, asked: ConvertOptions) -> None:
    """Print what was measured, and what was asked for and not reached."""
    console = Console()
    measured, data = result.manifest.measured, result.manifest.data
    console.print(outcome_table(result.manifest, result.measured))
    how = f"latency {measured['latency']} for {measured['machine']}"
    title = f"{result.out} on {result.measured.images} unseen images ({data}); {how}"
    console.print(measured_table(result.measured, title=title))
    if (classes := class_table(result.measured)) is not None:
        console.print(classes)
    if data == "made-up":
        console.print(
            "All numbers above come from made-up images: expect other shares of exits, agreement and latency on real ones."
        )
    if text := promise_text(result.manifest):
        console.print(text, soft_wrap=True, highlight=False)
    if not result.reached:
        click.echo(promise_cost(result.manifest) or _not_reached(result.manifest, asked), err=True)
    if not result.within_max_latency:
        click.echo(
            f"--max-latency {asked.max_latency:g} was not kept: an image that needs every stage costs "
            f"{result.worst_latency:.3f} of static ({measured['latency']} from the exported files); "
            "the best effort was exported",
            err=True,
        )
    click.echo()


def show_next(result: conversion.Result) -> None:
    """Print where the folder and its report are, and the two commands that come next."""
    click.echo(f"\nFolder: {result.out}\nReport: {result.out / REPORT}\nNext:")
    commands = next_commands(result.manifest, str(result.out))
    width = max(len(command) for command, _ in commands)
    for command, purpose in commands:
        click.echo(f"  {command:{width}}  # {purpose}")


def _not_reached(manifest: Manifest, asked: ConvertOptions) -> str:
    latency = manifest.default_policy.expected_latency
    if asked.budget is None:
        return f"nothing faster was found that loses at most {points(asked.max_loss)}; the best effort was exported"
    return f"budget {asked.budget:g} was not reached: expected latency {latency:.3f}; the best effort was exported"

"""The command `s2d convert`, which is also `s2d-convert`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from s2d_runtime import Manifest

from s2d_convert import conversion
from s2d_convert.base.text import promise_cost, promise_text
from s2d_convert.calibration.verdict import points
from s2d_convert.cli.options import (
    DEFAULTS,
    LABELS,
    MODEL,
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
    default_out,
    named_options,
    refuse_pointless,
)
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.cli.terminal import class_table, measured_table, outcome_table
from s2d_convert.conversion.options import DEVICES, EFFORTS, MODES, PLANS, ConvertOptions
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import EXIT_BUDGET_NOT_REACHED, EXIT_WORSE
from s2d_convert.exporting.folder import REPORT


@click.command()
@MODEL
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
    help="Folder of class folders, folder of images, .npz, or one picture. Without it images are made up.",
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
@click.option(
    "--plan",
    default=DEFAULTS["plan"],
    show_default=True,
    metavar="|".join((*PLANS, "PLAN.json")),
    help="Which plans the search may choose: any, exits by depth or by width only, cascades into the untouched model, or "
    "the same share of every class; or a written plan, which is trained as it is.",
)
@RUNNING
@click.option(
    "--device", type=click.Choice(DEVICES), default=DEFAULTS["device"], show_default=True, help="Where to train."
)
@SEED
@click.option("--ray", metavar="ADDRESS", help="Spread the search over a Ray cluster: auto, local or HOST:PORT.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options and files.")
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
@SIZE
@PREPROCESSING
@STRICT
@click.option("--force", is_flag=True, help="Go on though the static model is no better than chance on the data.")
def convert(model: Path, out: Path | None, **options: Any) -> None:
    """Convert MODEL to a folder of stages that is as fast as possible at a loss of one point at most, or, with --budget, as
    accurate as possible in a share of the static model's time.

    Ends with a verdict. Exit code 3: the budget could not be reached or --max-latency not be kept, the best effort is exported
    all the same. Exit code 10: what was exported is no better than the original.
    """
    asked = ConvertOptions(model=model, out=out or default_out(model), **options)
    refuse_pointless(asked, named_options())
    try:
        result = conversion.convert(asked, TerminalReporter())
    except KeyboardInterrupt:
        if RunFolder(asked.out).path.exists():
            click.echo("what is done so far is kept: the same command with --resume goes on", err=True)
        raise
    console = Console()
    measured, data = result.manifest.measured, result.manifest.data
    how = f"latency {measured['latency']} for {measured['machine']}"
    console.print(outcome_table(result.manifest, result.measured))
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
            f"{result.measured.worst_latency:.3f} of static ({measured['latency']} from the exported files); "
            "the best effort was exported",
            err=True,
        )
    verdict = result.verdict
    console.print("\n".join(["", *verdict.sentences]), soft_wrap=True, highlight=False)
    console.print(
        f"Report: {result.out / REPORT}. Next: s2d evaluate {result.out} --data DIR; s2d run {result.out} IMAGE"
    )
    if verdict.warning:
        click.echo(f"warning: {verdict.warning}", err=True)
    if verdict.worse:
        sys.exit(EXIT_WORSE)
    if not (result.reached and result.within_max_latency):
        sys.exit(EXIT_BUDGET_NOT_REACHED)


def _not_reached(manifest: Manifest, asked: ConvertOptions) -> str:
    latency = manifest.default_policy.expected_latency
    if asked.budget is None:
        return f"nothing faster was found that loses at most {points(asked.max_loss)}; the best effort was exported"
    return f"budget {asked.budget:g} was not reached: expected latency {latency:.3f}; the best effort was exported"

"""The command `s2d calibrate`."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from s2d_convert.base.text import promise_cost, promise_text
from s2d_convert.cli.options import (
    FOLDER,
    PATH,
    PROMISE,
    RUNNING,
    SEED,
    STATIC,
    STRICT,
    named_options,
    refuse_beside,
    refuse_confidence_alone,
)
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.cli.terminal import policy_table
from s2d_convert.data.reading import Reading
from s2d_convert.errors import EXIT_BUDGET_NOT_REACHED, UsageError
from s2d_convert.exporting.folder import REPORT
from s2d_convert.exporting.renewal import undo as undo_calibration
from s2d_convert.workflows.pack import pack_images
from s2d_convert.workflows.recalibrate import CalibrateOptions, calibrate_folder

DEFAULTS = {f.name: f.default for f in fields(CalibrateOptions)}


@click.command()
@FOLDER
@click.option(
    "--data",
    type=PATH,
    help="Real images, labelled or not, that the conversion has not seen: folder of class folders, folder, or .npz.",
)
@click.option(
    "--budget",
    type=float,
    default=DEFAULTS["budget"],
    help="The new default budget. [default: the one before, or if the conversion had none the fastest within its --max-loss; "
    "with --max-drop the cheapest that keeps the promise]",
)
@STRICT
@PROMISE
@STATIC
@RUNNING
@SEED
@click.option("--undo", is_flag=True, help="Bring back what the last calibration replaced.")
@click.option(
    "--pack", type=PATH, help="Only write the images into this .npz, for python -m s2d_runtime.calibrate on a device."
)
def calibrate(folder: Path, data: Path | None, undo: bool, pack: Path | None, **options: Any) -> None:
    """Set temperatures and thresholds of OUT anew from some hundred real images, without training.

    OUT changes in one step or not at all. Ends with exit code 3 when the budget could not be reached.
    """
    if undo:
        refuse_beside("--undo, which brings back the calibration before", {"folder", "undo"})
        undo_calibration(folder)
        click.echo(f"{folder}: as before the last calibration")
        return
    if data is None:
        raise UsageError("--data: give some hundred real images, labelled or not, or --undo")
    if pack is not None:
        _pack(folder, data, pack, strict=options["strict"])
        return
    refuse_confidence_alone(options["max_drop"], named_options())
    result = calibrate_folder(CalibrateOptions(folder=folder, data=data, **options))
    reporter, console = TerminalReporter(), Console(highlight=False)
    for text in result.warnings:
        reporter.warn(text)
    console.print(policy_table(result.manifest))
    if text := promise_text(result.manifest):
        console.print(text, soft_wrap=True)
    click.echo(f"Report: {folder / REPORT}")
    if not result.reached:
        reason = promise_cost(result.manifest) or f"budget {result.manifest.default_budget:g} was not reached"
        click.echo(f"{reason}; the folder was calibrated all the same", err=True)
        sys.exit(EXIT_BUDGET_NOT_REACHED)


def _pack(folder: Path, data: Path, out: Path, *, strict: bool) -> None:
    """Write the images for a calibration on a device."""
    refuse_beside("--pack, which only writes a file", {"folder", "data", "pack", "strict"})
    images = pack_images(folder, data, out, reading=Reading(strict, warn=TerminalReporter().warn))
    click.echo(
        f"{out}: {images} images; on the device: python -m s2d_runtime.calibrate {folder.name} {out.name} --model MODEL.onnx"
    )

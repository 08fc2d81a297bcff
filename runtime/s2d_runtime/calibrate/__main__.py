"""The command ``python -m s2d_runtime.calibrate``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s2d_runtime.calibrate.folder import PAGES
from s2d_runtime.calibrate.run import Options, calibrate, undo
from s2d_runtime.dispatcher import DispatcherError, describe

OK, FAULTY, NOT_REACHED = 0, 2, 3


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s2d_runtime.calibrate",
        description="Measure an exported folder on this device, and choose its thresholds anew.",
    )
    parser.add_argument("folder", type=Path, help="the folder that s2d-convert wrote")
    parser.add_argument("data", type=Path, nargs="?", help=".npz with images, and labels if they are known")
    parser.add_argument("--model", type=Path, help="the static model's ONNX file, to which latencies are relative")
    parser.add_argument("--budget", type=float, help="the new default budget (default: as the folder was asked to be)")
    parser.add_argument(
        "--max-loss", type=float, help="instead of a budget: the accuracy that may be lost, such as 0.01"
    )
    parser.add_argument("--threads", type=int, default=Options.threads, help="threads of onnxruntime (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="for timing the stages (%(default)s)")
    parser.add_argument("--name", help="what to call this machine in tables (default: its processor)")
    parser.add_argument("--undo", action="store_true", help="bring back what the last calibration replaced")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for errors that the caller can fix, 3 for a budget that is not reached."""
    parser = _arguments()
    given = vars(parser.parse_args(arguments))
    folder, data = given["folder"], given["data"]
    try:
        if given.pop("undo"):
            undo(folder)
            sys.stdout.write(f"{folder}: as before the last calibration\n")
            return OK
        if data is None:
            raise DispatcherError("data: give an .npz with some hundred images, or --undo")
        done = calibrate(Options(**given))
    except DispatcherError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return FAULTY
    for warning in done.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    measured = done.manifest.measured
    sys.stdout.write(f"{describe(done.manifest)}\n\n")
    sys.stdout.write(
        f"{measured['machine']}: static {measured['static_ms']:.3f} ms; at budget {done.manifest.default_budget:g} the mean "
        f"latency is {measured['mean_latency']:.3f} of it, on {measured['images']} images\n"
    )
    if pages := [name for name in PAGES if (folder / name).is_file()]:
        sys.stdout.write(
            f"{' and '.join(pages)} still tell of the calibration before; manifest.json has the new numbers\n"
        )
    if not done.manifest.default_policy.reached:
        sys.stderr.write(f"budget {done.manifest.default_budget:g} is not reached on this device\n")
        return NOT_REACHED
    return OK


if __name__ == "__main__":
    sys.exit(main())

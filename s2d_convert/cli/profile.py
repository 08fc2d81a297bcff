"""The command `s2d profile`: a kit for another device, or the table of this one."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click
from s2d_runtime.profile import CLOCKS, ProfileError, Settings, profile, summary, write_board

from s2d_convert.base.sessions import Running
from s2d_convert.cli.options import OUTPUT, PATH, RUNNING, SEED, SIZE, STAGES
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.errors import OutputError, UsageError
from s2d_convert.workflows.profile_kit import KitOptions, write_kit
from s2d_convert.workflows.split_model import static_of


@click.command(name="profile")
@click.argument("model", metavar="MODEL|OUT", type=PATH)
@click.option("--save", type=PATH, metavar="BOARD.json", help="Measure this machine and write its board file.")
@click.option("--kit", type=PATH, metavar="KIT", help="Write a folder to copy to the device, and measure it there.")
@click.option("--name", help="What tables call this machine. [default: its processor]")
@click.option(
    "--passes", default=Settings.passes, show_default=True, help="How often every stage is timed, spread over the run."
)
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default=Settings.clock,
    show_default=True,
    help="wall, or cpu for a machine that is in use meanwhile (one thread).",
)
@STAGES
@SEED
@RUNNING
@OUTPUT
@SIZE
def profile_command(model: Path, save: Path | None, kit: Path | None, name: str | None, **options: Any) -> None:
    """Measure what stages of MODEL (or of the model behind OUT) cost on a device, for `s2d-convert --latency`.

    --save measures this machine. --kit writes a folder of small files for another one, which needs Python, numpy and
    onnxruntime: copy it over and run `python KIT/s2d_profile.py --save board.json` there.
    """
    if save is None and kit is None:
        raise UsageError(
            "profile: nothing to do; give --save BOARD.json for this machine, --kit KIT for another, or both"
        )
    if kit is not None and os.path.lexists(kit):
        raise OutputError(f"--kit {kit}: exists already; remove it or choose another folder")
    Running(options["threads"], options["batch"], options["provider"])
    if save is not None and not save.absolute().parent.is_dir():
        raise UsageError(f"--save {save}: its folder does not exist; make it first")
    path, size, output = static_of(model, size=options["size"], output=options["output"])
    kit_options = KitOptions(stages=options["stages"], seed=options["seed"], output=output, size=size)
    running = {key: options[key] for key in ("threads", "batch", "provider", "passes", "clock")}
    try:
        settings = Settings(**running)
        with tempfile.TemporaryDirectory() as place:
            folder = kit or Path(place) / "kit"
            about = write_kit(path, folder, kit_options)
            if kit is not None:
                click.echo(
                    f"{kit}: {len(about['files'])} stages of {path.name}; on the device: python {kit.name}/s2d_profile.py"
                )
            if save is not None:
                reporter = TerminalReporter()
                reporter.step("profile")
                board = profile(
                    folder,
                    settings,
                    name=name,
                    progress=lambda done, total: reporter.progress(done, total, "groups", math.nan),
                )
                write_board(save, board)
                click.echo(f"{save}: {summary(board)}")
    except ProfileError as error:
        raise UsageError(str(error)) from error

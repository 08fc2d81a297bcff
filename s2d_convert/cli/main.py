"""The command line: `s2d` and its short form `s2d-convert`. Three layers: click in `cli_*`, steps in `pipeline`, functions
below. Here stand the group of commands and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click
import torch
from s2d_runtime import DispatcherError

from s2d_convert.cli.calibrate import calibrate
from s2d_convert.cli.convert import convert
from s2d_convert.cli.export import export
from s2d_convert.cli.folder import bench_command, evaluate, run
from s2d_convert.cli.model import inspect, split
from s2d_convert.cli.profile import profile_command
from s2d_convert.cli.serve import serve
from s2d_convert.errors import EXIT_INTERRUPTED, ModelError, OutputError, S2DError

MOST_THREADS = 1024


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="s2d-convert")
def s2d() -> None:
    """Make a CNN cheaper on the inputs that are easy: stages in ONNX that stop at the first confident answer."""


COMMANDS = (
    convert,
    calibrate,
    inspect,
    split,
    evaluate,
    bench_command,
    run,
    export,
    serve,
    profile_command,
)
for _command in COMMANDS:
    s2d.add_command(_command)


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
        _fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # a fault of ours
        place, what = error.filename or "a file", error.strerror or str(error)
        _fail(f"{place}: {what}; check the place, its permissions and the room there", OutputError.exit_code)
    except MemoryError:
        _fail("not enough memory; use a smaller image (--size) or a machine with more", ModelError.exit_code)


def _fail(message: str, code: int) -> None:
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))  # names may come from a stranger
    click.echo(f"error: {plain}", err=True)
    sys.exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d` and of `python -m s2d_convert`."""
    _guarded(s2d, args)


def convert_main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d-convert`, the same as `s2d convert`."""
    _guarded(convert, args)

"""The command line: `s2d` and its short form `s2d-convert`.

There are three layers: click in this package, the steps in `conversion` and `workflows`, and functions on values below
them. This module has the group of commands and the one place where errors become a sentence and an exit code.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import click
from s2d_runtime import DispatcherError

from s2d_convert.base.text import plain
from s2d_convert.errors import EXIT_INTERRUPTED, ModelError, OutputError, S2DError


@dataclass(frozen=True)
class Command:
    """A command: its place in this package, as ``module:name``, and its description in one line."""

    home: str
    summary: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "convert": Command("convert:convert", "Convert a model to a folder of stages (the same as s2d-convert)."),
        "calibrate": Command("calibrate:calibrate", "Set thresholds anew from real images, without training."),
        "inspect": Command("model:inspect", "Show what a model can be split into."),
        "split": Command("model:split", "Cut a model into stages by a plan, without training."),
        "evaluate": Command("folder:evaluate", "Measure accuracy, exits and latency on other images."),
        "bench": Command("folder:bench_command", "Time every way out beside the static model."),
        "run": Command("folder:run", "Answer one image."),
        "export": Command("export:export", "Write one file, a Triton repository or a quantised folder."),
        "serve": Command("serve:serve", "Answer HTTP requests."),
        "profile": Command("profile:profile_command", "Measure what stages cost on a device."),
    }
)


def load_command(name: str) -> click.Command:
    """Import and return a command of the table."""
    module, _, function = COMMANDS[name].home.partition(":")
    command = getattr(importlib.import_module(f"s2d_convert.cli.{module}"), function)
    assert isinstance(command, click.Command), f"{module}.{function} is not a command"
    return command


class Commands(click.Group):
    """A group that imports a command only when it is run, so that `s2d --help` loads neither torch nor onnx."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None if there is none of this name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line per command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="s2d-convert")
def s2d() -> None:
    """Make a CNN cheaper on the inputs that are easy: stages in ONNX that stop at the first confident answer."""


def _guarded(command: click.Command, args: Sequence[str] | None) -> None:
    """Run a command. Every expected failure becomes one sentence on stderr and a documented exit code."""
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
            raise  # a bug in this program
        place, what = error.filename or "a file", error.strerror or str(error)
        _fail(f"{place}: {what}; check the place, its permissions and the room there", OutputError.exit_code)
    except MemoryError:
        _fail("not enough memory; use a smaller image (--size) or a machine with more", ModelError.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {plain(message)}", err=True)
    sys.exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d` and of `python -m s2d_convert`."""
    _guarded(s2d, args)


def convert_main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d-convert`, the same as `s2d convert`."""
    _guarded(load_command("convert"), args)

"""The command line: `s2d` and its short form `s2d-convert`.

There are three layers: click in this package, the steps in `conversion` and `workflows`, and functions on values below
them. This module has the group of commands and the one place where errors become a sentence and an exit code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import click
from s2d_runtime import DispatcherError

from s2d_convert.base.files import FULL
from s2d_convert.base.text import plain
from s2d_convert.errors import EXIT_INTERRUPTED, ModelError, OutputError, S2DError


@dataclass(frozen=True)
class Command:
    """A command: its place in this package, as ``module:name``, its description in one line, and examples of its use."""

    home: str
    summary: str
    examples: tuple[str, ...]


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "convert": Command(
            "convert:convert",
            "Convert a model to a folder of stages (the same as s2d-convert).",
            (
                "s2d-convert model.onnx --data images/",
                "s2d-convert model.onnx --data images/ --dry-run",
                "s2d-convert model.onnx --data images/ --budget 0.5 --time 30m",
                "s2d-convert model.onnx --data images/ --max-drop 0.01 --out fast.s2d",
                "s2d-convert --resume fast.s2d",
            ),
        ),
        "calibrate": Command(
            "calibrate:calibrate",
            "Set thresholds anew from real images, without training.",
            (
                "s2d calibrate model.s2d --data images/",
                "s2d calibrate model.s2d --data images/ --max-drop 0.01",
                "s2d calibrate model.s2d --undo",
            ),
        ),
        "inspect": Command(
            "model:inspect",
            "Show what a model can be split into.",
            ("s2d inspect model.onnx", "s2d inspect model.onnx --data images/ --preprocess unit"),
        ),
        "split": Command(
            "model:split",
            "Cut a model into stages by a plan, without training.",
            ("s2d split model.onnx --plan depth --stages 3", "s2d split model.onnx --plan plan.json --out cut"),
        ),
        "evaluate": Command(
            "folder:evaluate",
            "Measure accuracy, exits and latency on other images.",
            ("s2d evaluate model.s2d --data images/", "s2d evaluate model.s2d --data test.npz --budget 0.7 --json"),
        ),
        "bench": Command(
            "folder:bench_command",
            "Time every way out beside the static model.",
            ("s2d bench model.s2d", "s2d bench model.s2d --threads 4 --seconds 10"),
        ),
        "run": Command(
            "run:run",
            "Answer for images.",
            (
                "s2d run model.s2d photo.jpg",
                "s2d run model.s2d images/ --json",
                "s2d run model.s2d inputs.npy --budget 0.7",
            ),
        ),
        "export": Command(
            "export:export",
            "Write one file, a Triton repository or a quantised folder.",
            (
                "s2d export model.s2d --single model_in_one.onnx",
                "s2d export model.s2d --quantize int8 --data images/ --out int8.s2d",
                "s2d export model.s2d --triton repository/",
            ),
        ),
        "serve": Command(
            "serve:serve",
            "Answer HTTP requests.",
            ("s2d serve model.s2d", "s2d serve model.s2d --host 0.0.0.0 --port 8080"),
        ),
        "profile": Command(
            "profile:profile_command",
            "Measure what stages cost on a device.",
            ("s2d profile model.onnx --save board.json", "s2d profile model.onnx --kit kit/"),
        ),
    }
)


def load_command(name: str) -> click.Command:
    """Import and return a command of the table."""
    module, _, function = COMMANDS[name].home.partition(":")
    command = getattr(importlib.import_module(f"s2d_convert.cli.{module}"), function)
    assert isinstance(command, click.Command), f"{module}.{function} is not a command"
    command.epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in COMMANDS[name].examples)])
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
        command.main(None if args is None else list(args), standalone_mode=False, help_option_names=["-h", "--help"])
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
        if error.filename is None and error.errno not in FULL:
            raise  # a bug in this program
        _fail(_about_file(error), OutputError.exit_code)
    except MemoryError:
        _fail("not enough memory; use a smaller image (--size) or a machine with more", ModelError.exit_code)


def _about_file(error: OSError) -> str:
    place, what = error.filename2 or error.filename or "a file", error.strerror or str(error)
    if error.errno in FULL:
        return f"{place}: {what}; make room there (an unfinished conversion goes on with --resume)"
    return f"{place}: {what}; check the place and its permissions"


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {plain(message)}", err=True)
    sys.exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d` and of `python -m s2d_convert`."""
    _guarded(s2d, args)


def convert_main(args: Sequence[str] | None = None) -> None:
    """Entry point of `s2d-convert`, the same as `s2d convert`."""
    _guarded(load_command("convert"), args)

"""The command `s2d export`: other formats of an exported folder.

One option chooses the format. TARGETS has, for each of them, the function that writes it and its further options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from rich.console import Console

from s2d_convert.cli.options import (
    FOLDER,
    FORCE,
    IMAGES,
    PATH,
    QUANTIZE,
    RUNNING,
    STATIC,
    STRICT,
    flag,
    refuse_beside,
)
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.cli.terminal import class_table, measured_table, policy_table
from s2d_convert.conversion.options import check_budget
from s2d_convert.errors import EXIT_WORSE, UsageError
from s2d_convert.exporting.folder import REPORT
from s2d_convert.exporting.single import THRESHOLDS, Single, write_single
from s2d_convert.exporting.triton import TritonOptions, write_repository, write_single_repository
from s2d_convert.workflows.quantize_folder import QuantizeOptions, quantize_folder

Options = Mapping[str, Any]


@click.command()
@FOLDER
@click.option(
    "--single", type=PATH, metavar="FILE", help="Write one ONNX file with all stages and per-row exits in it."
)
@click.option(
    "--bake", type=float, help="With --single or --triton-single: fix the thresholds of this budget in the file."
)
@click.option(
    "--triton",
    type=PATH,
    metavar="REPO",
    help="Write a Triton repository: a model per stage, and one in front of them.",
)
@click.option(
    "--triton-single",
    type=PATH,
    metavar="REPO",
    help="Write a Triton repository of the single file, with fixed thresholds.",
)
@click.option("--name", help="With Triton: the name of the model. [default: the folder's, without .s2d]")
@click.option(
    "--max-batch", type=int, help=f"With Triton: most images in a batch. [default: {TritonOptions.max_batch}]"
)
@click.option(
    "--delay-us", type=int, help=f"With Triton: microseconds that a batch waits. [default: {TritonOptions.delay_us}]"
)
@click.option(
    "--queue", type=int, help=f"With Triton: requests that wait; more are refused. [default: {TritonOptions.queue}]"
)
@QUANTIZE
@click.option("--data", type=PATH, help=f"With --quantize: {IMAGES}.")
@click.option("--out", type=PATH, help="With --quantize: the folder to write.")
@FORCE
@STRICT
@STATIC
@RUNNING
def export(folder: Path, **options: Any) -> None:
    """Make something else of OUT: one file, a Triton repository, or a folder in another arithmetic.

    A folder in another arithmetic is calibrated and measured anew: --data, --out, --force, --strict, --model, --threads, --batch
    and --provider go with --quantize. --provider also goes with --single: it warns where that file is not worth it.
    """
    chosen = [name for name in TARGETS if options[name] is not None]
    if len(chosen) != 1:
        raise UsageError(f"export: give exactly one of {', '.join(map(flag, TARGETS))}")
    write, further = TARGETS[chosen[0]]
    refuse_beside(flag(chosen[0]), {"folder", chosen[0], *further})
    for line in write(folder, options):
        click.echo(line)


def triton(folder: Path, options: Options) -> tuple[str, ...]:
    """Write a Triton repository with a model per stage, for `--triton REPO`; return what to know of it."""
    names = write_repository(folder, options["triton"], _triton_options(folder, options))
    return (f"{options['triton']}: models {', '.join(names)}; clients call '{names[0]}'",)


def triton_single(folder: Path, options: Options) -> tuple[str, ...]:
    """Write a Triton repository with the single file, for `--triton-single REPO`; return what to know of it."""
    if options["bake"] is not None:
        check_budget("bake", options["bake"])
    asked = _triton_options(folder, options)
    (name,) = write_single_repository(folder, options["triton_single"], asked, budget=options["bake"])
    return (f"{options['triton_single']}: model {name}",)


def _triton_options(folder: Path, options: Options) -> TritonOptions:
    """Return Triton's options, with defaults for those that were not given."""
    given = {f.name: options[f.name] for f in fields(TritonOptions) if options[f.name] is not None}
    return TritonOptions(**{"name": folder.resolve().name.removesuffix(".s2d"), **given})


def single(folder: Path, options: Options) -> tuple[str, ...]:
    """Write one ONNX file, for `--single FILE`; return its size and what to feed it."""
    if options["bake"] is not None:
        check_budget("bake", options["bake"])
    made = write_single(folder, options["single"], bake=options["bake"], provider=options["provider"])
    return tuple(line for line in _single_lines(made) if line)


def _single_lines(made: Single) -> Iterator[str]:
    """Yield the size of a single file, what to feed it, and what to mind; '' where there is nothing to say."""
    yield f"{made.path}: {made.stages} stages, {made.file_bytes / 1e6:.1f} MB"
    limits = ", ".join(f"{t:.6g}" for t in made.policy.thresholds)
    if made.baked:
        yield f"the thresholds of budget {made.policy.budget:g} are fixed in it: {limits or 'none'}"
    elif limits:
        yield f"feed '{THRESHOLDS}', float32 [{made.stages - 1}]; for budget {made.policy.budget:g}: [{limits}]"
    yield made.caution and f"warning: {made.caution}"


def quantize(folder: Path, options: Options) -> tuple[str, ...]:
    """Write a folder whose stages compute in INT8 or float16, and show its tables and what it is worth, for `--quantize KIND`.

    Ends with exit code 10 where that is no better than the static model.
    """
    for name in ("data", "out"):
        if options[name] is None:
            raise UsageError(f"--quantize {options['quantize']}: give --{name} too")
    reporter = TerminalReporter()
    asked = QuantizeOptions(folder, **{name: options[name] for name in ("quantize", *QUANTIZING)})
    made = quantize_folder(asked, note=reporter.note, warn=reporter.warn)
    console = Console()
    console.print(policy_table(made.manifest))
    title = f"{options['out']} on {made.measured.images} unseen images ({made.manifest.data})"
    console.print(measured_table(made.measured, title=title))
    if (classes := class_table(made.measured)) is not None:
        console.print(classes)
    if made.warning is not None:
        reporter.warn(made.warning)
    click.echo("\n".join([*made.sentences, f"Report: {options['out'] / REPORT}"]))
    if made.worse:
        sys.exit(EXIT_WORSE)
    return ()


QUANTIZING = frozenset(field.name for field in fields(QuantizeOptions)) - {"folder", "quantize"}
TRITON = frozenset(field.name for field in fields(TritonOptions))
# For each option: the function that writes the format, and its further options.
TARGETS: Mapping[str, tuple[Callable[[Path, Options], tuple[str, ...]], frozenset[str]]] = MappingProxyType(
    {
        "single": (single, frozenset({"bake", "provider"})),
        "quantize": (quantize, QUANTIZING),
        "triton": (triton, TRITON),
        "triton_single": (triton_single, TRITON | {"bake"}),
    }
)

"""`convert`, `forecast`, `inspect`, `calibrate`, `evaluate` and `export` for Python.

Every option of the command line is a keyword argument of the same name, with `_` for `-`; messages name it as it is written
on the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click
from s2d_runtime import Manifest

from s2d_convert.api.keywords import documented, read_options, refuse_unknown
from s2d_convert.api.line import LineReporter
from s2d_convert.api.results import (
    CalibrateResult,
    ConvertResult,
    EvaluateResult,
    ExportResult,
    ForecastResult,
    InspectResult,
    PicturesResult,
    QuantizeResult,
)
from s2d_convert.base.clock import Clock
from s2d_convert.base.reporting import Reporter
from s2d_convert.cli.convert import finish_at_interrupt
from s2d_convert.cli.export import TARGETS
from s2d_convert.cli.main import load_command
from s2d_convert.cli.model import picture_lines
from s2d_convert.cli.options import default_out, flag, refuse_confidence_alone, refuse_pointless
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.pipeline import convert as convert_model
from s2d_convert.conversion.pipeline import dry_run
from s2d_convert.conversion.prepare import preprocess_of, read_analysed
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.data.labels import LabelSpace
from s2d_convert.errors import UsageError
from s2d_convert.exporting.renewal import undo as undo_calibration
from s2d_convert.workflows.evaluate import EvaluateOptions, evaluate_folder
from s2d_convert.workflows.inspect import describe
from s2d_convert.workflows.pictures import look_at, save_pictures
from s2d_convert.workflows.quantize_folder import QuantizeOptions, quantize_folder
from s2d_convert.workflows.recalibrate import CalibrateOptions, calibrate_folder

T = TypeVar("T")
PathLike = str | os.PathLike[str]
RESUME = {"resume": "Go on with an interrupted call of the same arguments."}
FLAG = re.compile(r"--([a-z][a-z-]*[a-z])")
QUIET = {"quiet": "Show neither progress nor warnings; the result has the warnings."}


def described(command: str, *kinds: type[Any], more: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the help of a command's options by keyword, in which options have the names of keywords too.

    Only fields of the dataclasses `kinds` are keywords, and `more`.
    """
    known = {_keyword(f.name) for kind in kinds for f in fields(kind)} | more
    options = [p for p in load_command(command).params if isinstance(p, click.Option)]
    texts = {_keyword(p.name or ""): FLAG.sub(lambda flag: flag[1].replace("-", "_"), p.help or "") for p in options}
    return {name: text for name, text in texts.items() if name in known} | QUIET


def _keyword(parameter: str) -> str:
    return {"static": "model"}.get(parameter, parameter)


@documented(described("convert", ConvertOptions) | RESUME, ConvertOptions)
def convert(
    model: PathLike | ConvertOptions | None = None, reporter: Reporter | None = None, *, quiet: bool = False,
    **options: Any,
) -> ConvertResult:  # fmt: skip
    """Convert a model to a folder of stages: as fast as possible at a loss of one point at most, or, with a `budget`, as
    accurate as possible in a share of the static model's time.

    Return the folder and what was measured: `summary()`, `plot()`, `dispatcher()`, `path`, `verdict`. What is exported is
    no better than the original where `verdict.worse`. Raises S2DError. The first interrupt lets it finish with the best so
    far; after a second one the same call with `resume=True` goes on.

    Instead of keywords, the first argument may be a ConvertOptions. reporter: told of the progress, instead of one line.
    """
    if isinstance(reporter, str | os.PathLike):
        raise UsageError(f"convert: the second argument is a reporter; give images as data={os.fspath(reporter)!r}")
    asked = options.pop("options", model)
    if isinstance(asked, ConvertOptions):
        refuse_unknown(options, (), call="convert(ConvertOptions)")
    else:
        named = set(options)
        asked = _convert_options(asked, options)
        refuse_pointless(asked, named)
    line, clock = LineReporter(quiet=quiet), Clock(asked.time)
    try:
        with finish_at_interrupt(clock, say=line.tell):
            result = convert_model(asked, reporter or line, clock=clock)
    except KeyboardInterrupt:
        if RunFolder(asked.out).path.exists():
            line.tell("what is done so far is kept; the same call with resume=True goes on")
        raise
    finally:
        line.close()
    return ConvertResult(**vars(result), warnings=tuple(line.warnings))


@documented(described("convert", ConvertOptions), ConvertOptions)
def forecast(model: PathLike, *, quiet: bool = False, **options: Any) -> ForecastResult:
    """Return what `convert` with the same arguments would do and take, and what may be expected of it.

    Nothing is trained or written. Raises S2DError.
    """
    asked = _convert_options(model, options)
    refuse_pointless(asked, set(options))
    line = LineReporter(quiet=quiet)
    try:
        return ForecastResult(asked.model, dry_run(asked, line))
    finally:
        line.close()


def _convert_options(model: Any, options: Mapping[str, Any]) -> ConvertOptions:
    given = {**options} if model is None else {"model": model, **options}
    if given.get("out") is None and isinstance(given.get("model"), str | os.PathLike):
        given["out"] = default_out(Path(given["model"]))
    return read_options(ConvertOptions, given, call="convert")


INSPECT = described("inspect", ConvertOptions, more=frozenset({"pictures"}))
WITHOUT_DATA = frozenset({"output", "labels", "size", "quiet", "data"})


@documented(INSPECT, ConvertOptions)
def inspect(model: PathLike, **options: Any) -> InspectResult | PicturesResult:
    """Return what a model offers: channel classes, opaque nodes and what they cost, candidate taps.

    With `data` it returns instead what the model gets of some pictures. Raises S2DError.
    """
    refuse_unknown(options, INSPECT, call="inspect")
    named = {k: v for k, v in options.items() if k not in ("quiet", "pictures")}
    asked = read_options(ConvertOptions, {"model": model, "out": "unused", **named}, call="inspect")
    if asked.data is None and (spare := set(options) - WITHOUT_DATA):
        raise UsageError(f"{flag(min(spare))}: means nothing without --data; give both, or leave it out")
    analysed = read_analysed(asked.model, size=asked.size, output=asked.output, labels=asked.labels, strict=False)
    if asked.data is None:
        return InspectResult(asked.model, describe(analysed))
    graph = analysed.graph
    preprocess = preprocess_of(graph, asked)
    seen = look_at(asked.data, preprocess, space=LabelSpace(graph.classes, graph.task.several))
    folder = options.get("pictures")
    files = save_pictures(seen, Path(folder)) if folder is not None else []
    lines = (*picture_lines(seen, preprocess, letters=not files), *map(str, files))
    return PicturesResult(asked.model, tuple(seen), lines)


@documented(described("calibrate", CalibrateOptions, more=frozenset({"undo"})), CalibrateOptions)
def calibrate(
    folder: PathLike, data: PathLike | None = None, *, undo: bool = False, quiet: bool = False, **options: Any
) -> CalibrateResult:
    """Set temperatures and thresholds of an exported folder anew from some hundred real images, without training.

    Return the folder with its new manifest. It changes in one step or not at all. Raises S2DError and DispatcherError.
    """
    if undo:
        if data is not None or options:
            raise UsageError("--undo: brings back the calibration before, and nothing else; leave the rest out")
        undo_calibration(Path(folder))
        return CalibrateResult(Path(folder), Manifest.load(folder))
    if data is None:
        raise UsageError("--data: give some hundred real images, labelled or not, or --undo")
    asked = _on_folder(CalibrateOptions, {"folder": folder, "data": data, **options}, call="calibrate")
    refuse_confidence_alone(asked.max_drop, set(options))
    line = LineReporter(quiet=quiet)
    try:
        line.step("setting thresholds anew")
        made = calibrate_folder(asked)
        for text in made.warnings:
            line.warn(text)
    finally:
        line.close()
    return CalibrateResult(asked.folder, made.manifest, made.reached, made.warnings)


@documented(described("evaluate", EvaluateOptions), EvaluateOptions)
def evaluate(folder: PathLike, data: PathLike, *, quiet: bool = False, **options: Any) -> EvaluateResult:
    """Measure an exported folder on images: accuracy, exits and latency, beside the static model in the same run.

    Raises S2DError and DispatcherError.
    """
    asked = _on_folder(EvaluateOptions, {"folder": folder, "data": data, **options}, call="evaluate")
    line = LineReporter(quiet=quiet)
    try:
        line.step("measuring the folder")
        measured = evaluate_folder(asked, warn=line.warn)
    finally:
        line.close()
    return EvaluateResult(asked.folder, Manifest.load(asked.folder), measured, tuple(line.warnings))


def _on_folder(kind: type[T], given: Mapping[str, Any], *, call: str) -> T:
    """Return the options of a step on a folder; the static model is `model` for callers, and `static` in the options."""
    refuse_unknown(given, [_keyword(name) for name in get_type_hints(kind)], call=call)
    return read_options(kind, {{"model": "static"}.get(k, k): v for k, v in given.items()}, call=call)


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export` besides `quantize`, as the functions of the command line take them."""

    folder: Path
    single: Path | None = None
    triton: Path | None = None
    triton_single: Path | None = None
    bake: float | None = None
    name: str | None = None
    max_batch: int | None = None
    delay_us: int | None = None
    queue: int | None = None
    threads: int | None = None
    provider: str = "CPUExecutionProvider"


@documented(described("export", ExportOptions, QuantizeOptions), ExportOptions, QuantizeOptions)
def export(folder: PathLike, *, quiet: bool = False, **options: Any) -> ExportResult | QuantizeResult:
    """Make something else of an exported folder: one ONNX file (`single`), a Triton repository (`triton`, `triton_single`),
    or a folder in another arithmetic (`quantize`, with `data` and `out`).

    Raises S2DError and DispatcherError.
    """
    refuse_unknown(options, described("export", ExportOptions, QuantizeOptions), call="export")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = [name for name in TARGETS if name in given]
    if len(chosen) != 1:
        raise UsageError(f"export: give exactly one of {', '.join(map(flag, TARGETS))}")
    (target,) = chosen
    if spare := set(given) - {target, *map(_keyword, TARGETS[target][1])}:
        raise UsageError(f"{flag(min(spare))}: means nothing beside {flag(target)}; leave it out")
    if target == "quantize":
        return _quantized(folder, given, quiet=quiet)
    asked = read_options(ExportOptions, {"folder": folder, **given}, call="export")
    return ExportResult(Path(given[target]), TARGETS[target][0](asked.folder, vars(asked)))


def _quantized(folder: Any, given: Mapping[str, Any], *, quiet: bool) -> QuantizeResult:
    asked = _on_folder(QuantizeOptions, {"folder": folder, **given}, call="export")
    line = LineReporter(quiet=quiet)
    try:
        line.step("quantize")
        made = quantize_folder(asked, note=line.note, warn=line.warn)
        if made.warning is not None:
            line.warn(made.warning)
    finally:
        line.close()
    return QuantizeResult(asked.out, made.manifest, made.measured, tuple(line.warnings), made.sentences)

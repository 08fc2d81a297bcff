"""`s2d export --quantize`: an exported folder in another arithmetic, calibrated and measured anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s2d_runtime import Manifest

from s2d_convert.base.sessions import RunningOptions
from s2d_convert.calibration.verdict import Outcome, loss_text
from s2d_convert.conversion.options import ARITHMETIC, check_choice
from s2d_convert.conversion.requantize import FLOAT, QUANTIZERS, Quantizer, Requantization, requantize
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.reading import Reading, Warn
from s2d_convert.exporting.folder import check_target
from s2d_convert.exporting.measure import Measured
from s2d_convert.exporting.provenance import Origin, recorded_preprocess
from s2d_convert.exporting.report.facts import verdict_of
from s2d_convert.workflows.split_model import open_export


@dataclass(frozen=True)
class QuantizeOptions(RunningOptions):
    """The options of `s2d export --quantize`: the arithmetic, the images of the conversion, and the folder to write."""

    folder: Path
    quantize: str
    data: Path
    out: Path
    static: Path | None = None
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_choice("quantize", self.quantize, ARITHMETIC)
        super().__post_init__()


@dataclass(frozen=True)
class Quantized:
    """The folder in another arithmetic: its manifest, what was measured, and what the user should know in sentences.

    `worse`: the static model is at least as fast and as accurate. `warning`: what to know where much is lost.
    """

    manifest: Manifest
    measured: Measured
    sentences: tuple[str, ...]
    worse: bool
    warning: str | None


def quantize_folder(
    options: QuantizeOptions,
    *,
    note: Callable[[str], None],
    warn: Warn,
    quantizers: Mapping[str, Quantizer] = QUANTIZERS,
) -> Quantized:
    """Write the folder, and return what was measured and what it is worth. Raises S2DError or DispatcherError.

    quantizers: the functions that convert one stage, by arithmetic.
    """
    check_target(options.out, force=options.force)
    running = options.running
    with open_export(options.folder, static=options.static, running=running) as (runner, reference):
        dataset = load_data(
            options.data,
            preprocess=recorded_preprocess(runner.manifest),
            space=LabelSpace(reference.graph.classes, reference.graph.task.several),
            seed=Origin.of(runner.manifest).seed,
            reading=Reading(options.strict, warn=warn),
        )
        asked = Requantization(options.quantize, running, options.force, quantizers)
        manifest, measured = requantize(
            options.folder, options.out, asked, dataset=dataset, static=reference, note=note
        )
    for text in measured.lost_classes:
        warn(text)
    return judged(runner.manifest, manifest, measured)


def judged(before: Manifest, manifest: Manifest, measured: Measured) -> Quantized:
    """Return the verdict on a folder, and how it compares with the one that it was made from."""
    now, float_one = verdict_of(manifest), verdict_of(before)
    assert now is not None, "a folder in another arithmetic was measured just now"
    sentences = now.sentences
    if float_one is not None and _beats(float_one.outcome, now.outcome):
        sentences += (
            f"The {FLOAT} folder is faster and loses no more ({float_one.outcome.latency:.2f} of the static time; "
            f"{loss_text(float_one.outcome, before.target_name).lower()}): keep that one.",
        )
    return Quantized(manifest, measured, sentences, now.worse, now.warning)


def _beats(one: Outcome, other: Outcome) -> bool:
    """Return whether an outcome is faster than another one, and loses no more."""
    return one.latency < other.latency and one.loss <= other.loss

"""`s2d export --quantize`: an exported folder in another arithmetic, calibrated and measured anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s2d_runtime import Manifest

from s2d_convert.base.sessions import RunningOptions
from s2d_convert.conversion.options import ARITHMETIC, check_choice
from s2d_convert.conversion.requantize import QUANTIZERS, Quantizer, Requantization, requantize
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.reading import Reading, Warn
from s2d_convert.exporting.folder import check_target
from s2d_convert.exporting.measure import Measured
from s2d_convert.exporting.provenance import Origin, recorded_preprocess
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


def quantize_folder(
    options: QuantizeOptions,
    *,
    note: Callable[[str], None],
    warn: Warn,
    quantizers: Mapping[str, Quantizer] = QUANTIZERS,
) -> tuple[Manifest, Measured]:
    """Write the folder, and return its manifest and the measured results. Raises S2DError or DispatcherError.

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
        made = requantize(options.folder, options.out, asked, dataset=dataset, static=reference, note=note)
    for text in made[1].lost_classes:
        warn(text)
    return made

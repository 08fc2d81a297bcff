"""`s2d evaluate`: measure an exported folder on images, beside its static model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2d_convert.base.sessions import RunningOptions
from s2d_convert.conversion.options import check_budget
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.reading import Reading, Warn
from s2d_convert.errors import DataError
from s2d_convert.exporting.measure import Measured, measure
from s2d_convert.exporting.provenance import recorded_preprocess
from s2d_convert.workflows.split_model import open_export


@dataclass(frozen=True)
class EvaluateOptions(RunningOptions):
    """The options of `s2d evaluate`. `budget` None: the folder's default; `static` None: where the conversion found it."""

    folder: Path
    data: Path
    budget: float | None = None
    static: Path | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget("budget", self.budget)
        super().__post_init__()


def evaluate_folder(options: EvaluateOptions, *, warn: Warn) -> Measured:
    """Return the measured accuracy, exits and latency of a folder. Raises S2DError or DispatcherError."""
    with open_export(options.folder, static=options.static, running=options.running) as (runner, reference):
        graph = reference.graph
        images = load_all(
            options.data,
            preprocess=recorded_preprocess(runner.manifest),
            space=LabelSpace(graph.classes, graph.task.several),
            reading=Reading(options.strict, warn=warn),
        )
        if not len(images):
            raise DataError(f"{options.data}: no images found; give a folder or an .npz with at least one")
        runner.set_budget(options.budget)
        measured = measure(runner, reference, images, running=options.running)
    for text in measured.to_mind():
        warn(text)
    return measured

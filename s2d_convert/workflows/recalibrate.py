"""`s2d calibrate`: set temperatures and thresholds of an exported folder anew, without training (see `exporting.renewal`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from s2d_runtime import Dispatcher, Manifest

from s2d_convert.base.sessions import RunningOptions
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import (
    Chosen,
    Divided,
    Scores,
    check_kind,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.risk_control import RiskBound
from s2d_convert.calibration.task import task_of
from s2d_convert.conversion.options import check_budget, risk_bound_of
from s2d_convert.conversion.prepare import static_logits
from s2d_convert.data.images import Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_calibration
from s2d_convert.data.reading import Reading
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.exporting.folder import TRACE, FolderWriter, read_stages
from s2d_convert.exporting.measure import Measured, measure
from s2d_convert.exporting.provenance import Origin, recorded_names, recorded_preprocess
from s2d_convert.exporting.renewal import chosen_again, renewed_folder
from s2d_convert.exporting.steady import Costs, steadily
from s2d_convert.exporting.timing import machine, path_costs
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.slicing.chain import session_logits
from s2d_convert.slicing.stage_graph import with_logits
from s2d_convert.workflows.split_model import open_export

FIT_SHARE = 0.2  # images for temperatures and the order of policies; a promise is tested on the others


@dataclass(frozen=True)
class CalibrateOptions(RunningOptions):
    """The options of `s2d calibrate`. `budget` None: the folder's default (or, where the conversion had no budget, the fastest
    within its loss), or with `max_drop` the cheapest that keeps it."""

    folder: Path
    data: Path
    budget: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95
    per_class: bool = False
    static: Path | None = None
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget("budget", self.budget)
        super().__post_init__()
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: 0 to {2**31 - 1} is allowed")
        _ = self.risk_bound

    @property
    def risk_bound(self) -> RiskBound | None:
        """The requested bound on the risk, None if there is none. Raises UsageError."""
        return risk_bound_of(self.max_drop, self.confidence, per_class=self.per_class)


@dataclass(frozen=True)
class Calibrated:
    """The new manifest, whether the requested budget is reached, and warnings."""

    manifest: Manifest
    reached: bool
    warnings: tuple[str, ...]


def calibrate_folder(options: CalibrateOptions) -> Calibrated:
    """Set temperatures and thresholds of a folder anew from real images.

    Raises S2DError or DispatcherError, and leaves the folder unchanged then.
    """
    warnings: list[str] = []
    with _opened(options) as (runner, static):
        before = runner.manifest
        check_kind(task_of(before.output.kind), options.risk_bound)
        classes = int(np.prod([n or 1 for n in before.output.shape[1:]]))
        images = load_calibration(
            options.data,
            preprocess=recorded_preprocess(before),
            space=LabelSpace(classes, task_of(before.output.kind).several),
            reading=Reading(options.strict, warn=warnings.append),
        )
        scores = _divided(read_scores(runner, static, images, options), options)
        temperatures = fit_temperatures(scores.fit)
        with renewed_folder(options.folder, before, temperatures, running=options.running) as writer:

            def calibrate(cost: Costs) -> None:
                writer.calibrate(
                    _choose(scores, temperatures, cost=cost, options=options, before=before),
                    cost,
                    target="agreement" if images.labels is None else "accuracy",
                    data=images.kind,
                    measured={},
                    provenance={
                        **recorded_names(images.class_names),  # those of the conversion stay, if it had any
                        **before.provenance,
                        "calibration": _provenance(options, images),
                    },
                )

            if static is None:
                calibrate(tuple(stage.latency_ratio for stage in before.stages))
            else:
                _calibrate_steadily(writer, static, images, calibrate, warnings)
            writer.add_report(images, trace=options.folder / TRACE)
    reached = writer.manifest.default_policy.reached or (options.budget is None and options.risk_bound is not None)
    return Calibrated(
        writer.manifest, reached, (*warnings, *_warnings(before, options, static), *_to_mind(writer.manifest, images))
    )


def _calibrate_steadily(
    writer: FolderWriter, static: StaticModel, images: Images, calibrate: Callable[[Costs], None], warnings: list[str]
) -> None:
    """Calibrate by measured costs, and write what the folder was measured to do then."""
    timed = np.ascontiguousarray(images.batch(np.arange(writer.running.batch) % len(images)))

    def measure_costs() -> Costs:
        with writer.dispatcher() as runner:
            return path_costs(runner, static, timed).per_stage

    def deliver(cost: Costs) -> Measured:
        calibrate(cost)
        with writer.dispatcher() as runner:
            return measure(runner, static, images, running=writer.running)

    measured = steadily(measure_costs, deliver, note=lambda _text: None, warn=warnings.append)
    writer.update(
        measured={**measured.to_json(), "machine": machine(), "latency": "measured", "images_of": "calibration"}
    )


@contextmanager
def _opened(options: CalibrateOptions) -> Iterator[tuple[Dispatcher, StaticModel | None]]:
    """Yield the folder's dispatcher and the static model, None if that is missing and the last stage answers like it."""
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(open_export(options.folder, static=options.static, running=options.running))
        except ModelError:
            if options.static is not None or Manifest.load(options.folder).exactness is None:
                raise
            alone = options.running.dispatcher(options.folder)
            yield stack.enter_context(alone), None
            return
        yield pair


def read_scores(runner: Dispatcher, static: StaticModel | None, images: Images, options: CalibrateOptions) -> Scores:
    """Return the answers of every stage and of the static model. Without a static model, the last stage replaces it."""
    manifest = runner.manifest
    models = [with_logits(stage.model) for stage in read_stages(options.folder, manifest)]
    sessions = [
        runs
        if len(model.graph.output) == len(runs.get_outputs())
        else options.running.session(model.SerializeToString())
        for runs, model in zip(runner.sessions, models, strict=True)
    ]
    logits = session_logits(sessions, images, image=manifest.input.name, kind=manifest.output.kind)
    reference = logits[-1] if static is None else static_logits(static, images)
    task = task_of(manifest.output.kind)
    return Scores(logits, task.answers(reference), images.labels, images.class_names, task, static_logits=reference)


def _divided(scores: Scores, options: CalibrateOptions) -> Divided:
    """Return the scores to fit on and the scores to test a promise on. Without a promise both are all scores.

    For a promise per class, every class is divided.
    """
    if options.risk_bound is None:
        return Divided(scores, scores)
    order = np.random.default_rng(options.seed).permutation(len(scores))
    groups = scores.target[order] if options.per_class else np.zeros(len(order), np.int64)
    parts = [order[groups == group] for group in np.unique(groups)]
    fit = np.concatenate([part[: round(FIT_SHARE * len(part))] for part in parts])
    test = np.concatenate([part[round(FIT_SHARE * len(part)) :] for part in parts])
    return Divided(scores.take(fit), scores.take(test), share=1 - FIT_SHARE)


def _choose(
    scores: Divided, temperatures: tuple[float, ...], *, cost: Costs, options: CalibrateOptions, before: Manifest
) -> Chosen:
    if options.risk_bound is None:
        return chosen_again(before, scores.fit, temperatures, cost=cost, budget=options.budget)
    return promised_policies(scores, temperatures, cost=cost, risk_bound=options.risk_bound, budget=options.budget)


def _warnings(old: Manifest, options: CalibrateOptions, static: StaticModel | None) -> Iterator[str]:
    before = Origin.of(old).data
    if before is not None and Path(before) == options.data.resolve():
        yield (
            "these are the images that the folder was converted with: training and search have seen them, so that "
            "thresholds and promises are too optimistic; give others"
        )
    if static is None:
        yield "the static model is not there: its last stage spoke for it, and latencies were not measured anew"


def _to_mind(manifest: Manifest, images: Images) -> Iterator[str]:
    """Yield warnings about too few images and about classes that a stage loses."""
    few = few_images(f"expected {manifest.target_name}", manifest.default_policy.expected_accuracy, len(images))
    if few:
        yield f"{few}; give some hundred"
    yield from manifest.measured.get("lost_classes", ())


def _provenance(options: CalibrateOptions, images: Images) -> dict[str, Any]:
    today = datetime.now(timezone.utc).date().isoformat()
    return {"date": today, "data": str(options.data.resolve()), "images": len(images), "seed": options.seed,
            "max_drop": options.max_drop, "per_class": options.per_class,
            "confidence": options.confidence if options.risk_bound else None}  # fmt: skip

"""Measured truth about an exported folder: accuracy, exits and latency, through the dispatcher that users run.

Latency is taken image by image, static and dynamic in turn, so that both see the same machine. The mean is weighted
with the share of exits on *all* images, so that it does not hang on the few that are timed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from s2d_runtime import Dispatcher, Manifest

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import Running, run_stages
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import Scores
from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES
from s2d_convert.calibration.verdict import Outcome, outcomes
from s2d_convert.data.images import Images
from s2d_convert.exporting.per_class import (
    ClassResult,
    LabelScores,
    answers_on,
    class_results,
    label_scores,
    lost_classes,
)
from s2d_convert.exporting.provenance import Origin
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.reference import StaticModel, to_logits
from s2d_convert.latency.device_table import Table
from s2d_convert.latency.meter import interleave, time_round
from s2d_convert.slicing.split import OUTPUT, StageModel

TIMED_PER_EXIT = 60
REPEATS = 3
RUN_BATCH = 64
EXACT_BATCH = 32


@dataclass(frozen=True)
class PathCosts:
    """Latency of leaving at each exit, through the dispatcher: ratios to static, cumulative [S], and static ms."""

    ratios: tuple[float, ...]
    static_ms: float

    @property
    def per_stage(self) -> tuple[float, ...]:
        """What each stage adds, floored at a tiny positive cost."""
        return tuple(float(c) for c in np.maximum(np.diff([0.0, *self.ratios]), 1e-4))


@dataclass(frozen=True)
class Measured:
    """Numbers of an export on a set of images. Latencies are ratios to the static model, measured in the same run;
    `correct_*` are shares of right answers (None without labels), `agreement` with the static model; `balanced_*` and
    `per_class` tell more where classes are unequal, `lost_classes` which classes a stage loses, in sentences; `outcomes` are
    what every policy of the folder does on these images.

    Where images have several labels, an answer is right if all are, and `labels` tells of them one by one.
    """

    images: int
    exit_share: tuple[float, ...]
    correct_static: float | None
    correct_dynamic: float | None
    agreement: float
    static_ms: float
    mean_latency: float
    median_latency: float
    worst_latency: float
    static_macs: int
    mean_macs: float
    static_parameters: int
    parameters: int
    threads: int
    batch: int
    balanced_static: float | None = None
    balanced_dynamic: float | None = None
    per_class: tuple[ClassResult, ...] = ()
    lost_classes: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    labels: LabelScores | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    def to_mind(self) -> tuple[str, ...]:
        """What the numbers do not tell by themselves: that they rest on few images, and the classes that a stage loses."""
        what, share = ("agreement", self.agreement)
        if self.correct_dynamic is not None:
            what, share = ("accuracy" if self.labels is None else "exact match"), self.correct_dynamic
        few = few_images(f"measured {what}", share, self.images)
        return (*([few] if few else []), *self.lost_classes)


def thresholds_for_exit(stages: int, exit_stage: int) -> tuple[float, ...]:
    """Thresholds with which every image leaves at `exit_stage` (1-based)."""
    return tuple(ALWAYS_LEAVES if k + 1 == exit_stage else NEVER_LEAVES for k in range(stages - 1))


def worst_case(ratios: Sequence[float], thresholds: Sequence[float]) -> float:
    """Return the latency ratio of an image that leaves as late as the thresholds allow. ratios: of every stage alone."""
    last = next((k for k, t in enumerate(thresholds) if t <= ALWAYS_LEAVES), len(thresholds))
    return float(sum(ratios[: last + 1]))


def path_costs(runner: Dispatcher, static: StaticModel, image: Array, *, seconds: float = 1.5) -> PathCosts:
    """The latency of every way out for one batch, interleaved with the static model."""
    calls = _ways_out(runner, static, image)
    times = interleave(calls, seconds)
    ratios = np.median(times[:, 1:] / times[:, :1], axis=0)  # round by round, as `measure` does it
    return PathCosts(tuple(np.maximum.accumulate(ratios).tolist()), float(1e3 * np.median(times[:, 0])))


def _ways_out(runner: Dispatcher, static: StaticModel, image: Array) -> list[Callable[[], object]]:
    """Calls to time, each made once to warm up: the static model, then leaving at every exit in turn."""
    stages = len(runner.manifest.stages)
    ways = [thresholds_for_exit(stages, k + 1) for k in range(stages)]
    calls: list[Callable[[], object]] = [
        partial(static.outputs, image),
        *(partial(runner, image, thresholds=way) for way in ways),
    ]
    for call in calls:
        call()
    return calls


def measure(
    runner: Dispatcher, static: StaticModel, images: Images, *, running: Running, budget: float | None = None
) -> Measured:
    """All numbers of the export behind `runner` on `images`, at `budget` (None: the default policy)."""
    graph, task = static.graph, static.graph.task
    reference, answered, stage, every = [], [], [], []
    for part in slices(len(images), RUN_BATCH):
        data = np.ascontiguousarray(images.batch(part))
        answer = runner(data, budget=budget)
        reference.append(task.answers(static.logits(data)))
        answered.append(task.answers(to_logits(answer.output, graph.output_kind)))
        stage.append(answer.stage)
        every.append(_logits_of_stages(runner, data))
    said, dynamic, exits = np.concatenate(reference), np.concatenate(answered), np.concatenate(stage)
    stages = len(runner.manifest.stages)
    share = np.bincount(exits, minlength=stages + 1)[1:] / max(1, len(exits))
    mean, median, worst, static_ms = _latency(runner, static, images, exits, batch=running.batch, budget=budget)
    entries = runner.manifest.stages
    upto = np.cumsum([entry.macs for entry in entries])
    labels, origin = images.labels, Origin.of(runner.manifest)
    answers = answers_on(images, said, dynamic, exits, classes=graph.classes, task=task)
    lost = lost_classes(answers, images.class_names)
    shown = answers.unequal or bool(lost)
    balanced = shown and answers.labelled and not task.several
    return Measured(
        images=len(images),
        exit_share=tuple(share.tolist()),
        correct_static=None if labels is None else float(task.agree(said, labels).mean()),
        correct_dynamic=None if labels is None else float(task.agree(dynamic, labels).mean()),
        agreement=float(task.agree(said, dynamic).mean()),
        static_ms=static_ms,
        mean_latency=mean,
        median_latency=median,
        worst_latency=worst,
        static_macs=origin.macs,
        mean_macs=float((share * upto).sum()),
        static_parameters=origin.parameters,
        parameters=int(sum(entry.parameters for entry in entries)),
        threads=running.threads,
        batch=running.batch,
        balanced_static=answers.balanced(said) if balanced else None,
        balanced_dynamic=answers.balanced(dynamic) if balanced else None,
        per_class=class_results(answers, images.class_names) if shown else (),
        lost_classes=lost,
        outcomes=folder_outcomes(runner.manifest, Scores(np.concatenate(every, axis=1), said, labels, task=task)),
        labels=label_scores(answers) if task.several else None,
    )


def _logits_of_stages(runner: Dispatcher, data: Array) -> Array:
    """The logits [S, B, K] of all stages, without exits."""
    manifest = runner.manifest
    made = run_stages(runner.sessions, {manifest.input.name: data})
    return np.stack([to_logits(outputs[OUTPUT], manifest.output.kind) for _, outputs in made])


def folder_outcomes(manifest: Manifest, scores: Scores) -> tuple[Outcome, ...]:
    """Return what every policy of a folder does on images with these scores, by the latencies that the manifest has."""
    stages = manifest.stages
    temperatures, cost = [s.temperature for s in stages], [s.latency_ratio for s in stages]
    return outcomes(manifest.policies, scores, temperatures, cost=cost)


def largest_difference(runner: Dispatcher, static: StaticModel, images: Images) -> tuple[float, float]:
    """How far the dispatcher without exits and the static model are apart in onnxruntime: the largest difference of an
    output value, and the largest value of the static model. Both see the same batches."""
    difference = scale = 0.0
    for part in slices(len(images), EXACT_BATCH):
        data = np.ascontiguousarray(images.batch(part))
        own, other = static.outputs(data), runner(data, exits=False).output
        difference = max(difference, float(np.abs(own - other).max()))
        scale = max(scale, float(np.abs(own).max()))
    return difference, scale


def bench(runner: Dispatcher, static: StaticModel, *, batch: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Times of the static model and of every way out on one batch of noise, interleaved in one run.

    Milliseconds as quartiles, and the ratios of medians with the quartiles of the per-round ratios.
    """
    shape = static.graph.shapes[static.graph.image]
    image = noise((batch, *shape), static.graph.image_type, seed=seed)
    calls = _ways_out(runner, static, image)
    times = 1e3 * interleave(calls, seconds, rounds=10**6)
    quartiles = np.percentile(times, (25, 50, 75), axis=0).T
    spread = np.percentile(times / times[:, :1], (25, 75), axis=0).T
    names = ["static", *(f"exit {k}" for k in range(1, len(calls)))]
    rows = [
        {
            "name": name,
            "ms": dict(zip(("q1", "median", "q3"), map(float, q), strict=True)),
            "ratio": float(q[1] / quartiles[0][1]),
            "ratio_q1": float(s[0]),
            "ratio_q3": float(s[1]),
        }
        for name, q, s in zip(names, quartiles, spread, strict=True)
    ]
    return {"batch": batch, "rounds": len(times), "rows": rows}


def _latency(
    runner: Dispatcher, static: StaticModel, images: Images, exits: Array, *, batch: int, budget: float | None
) -> tuple[float, float, float, float]:
    """(mean, median, worst) ratio to static and the static milliseconds, for batches of `batch` images.

    Each time is divided by that of the static model beside it, so that a machine that changes its speed does not favour
    the exit that was timed last.
    """
    static_s, by_group = [], []
    for rows in _timed_batches(exits, batch):
        ratios = []
        for row in rows:
            data = np.ascontiguousarray(images.batch(row))
            calls: list[Callable[[], object]] = [partial(static.outputs, data), partial(runner, data, budget=budget)]
            beside, own = np.median([time_round(calls) for _ in range(REPEATS)], axis=0)
            static_s.append(beside)
            ratios.append(own / beside)
        by_group.append(np.array(ratios))
    base = float(np.median(static_s))
    if batch == 1:
        weights = np.array([(exits == e).mean() for e in np.unique(exits)])
        typical = np.array([np.median(ratios) for ratios in by_group])
        slowest, order = float(typical.max()), np.argsort(typical)
        median = float(typical[order][np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())])
        mean = float((weights * typical).sum())
    else:
        median, mean = float(np.median(by_group[0])), float(np.mean(by_group[0]))
        slowest = max(median, mean)
    sample = np.ascontiguousarray(images.batch(np.arange(min(batch, len(images)))))
    worst = max(slowest, path_costs(runner, static, sample).ratios[-1])  # no way out takes longer than the longest
    return mean, median, worst, 1e3 * base


def _timed_batches(exits: Array, batch: int) -> list[list[Array]]:
    """Row indices to time: up to TIMED_PER_EXIT single images of each exit, or that many batches in order."""
    if batch == 1:
        return [[np.array([r]) for r in np.flatnonzero(exits == e)[:TIMED_PER_EXIT]] for e in np.unique(exits)]
    count = max(1, len(exits) // batch)
    return [[np.arange(i * batch, min((i + 1) * batch, len(exits))) for i in range(min(count, TIMED_PER_EXIT))]]


def machine() -> str:
    """The processor in words, for tables."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, onnxruntime {ort.__version__}"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, onnxruntime {ort.__version__}"


def predicted_costs(table: Table, models: Sequence[StageModel]) -> PathCosts:
    """What the table says of every way out."""
    timing = table.measure([m.model.SerializeToString() for m in models])
    return PathCosts(tuple(np.cumsum(timing.ratios).tolist()), timing.reference_ms)


def measured_elsewhere(measured: Measured, costs: PathCosts) -> Measured:
    """The same answers and exits, with latencies as a device with these costs has them."""
    share, upto = np.array(measured.exit_share), np.array(costs.ratios)
    median = float(upto[np.searchsorted(np.cumsum(share), 0.5 - 1e-9)])
    return replace(
        measured,
        static_ms=costs.static_ms,
        mean_latency=float(share @ upto),
        median_latency=median,
        worst_latency=float(upto[-1]),
    )

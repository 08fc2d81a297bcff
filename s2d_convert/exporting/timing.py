"""Latency of an exported folder, through the dispatcher that users run.

Every call is timed in turn with the static model, so that both see the same machine, and each time is divided by that of the
static model beside it. The mean over images is weighted with the share of exits on all of them, so that it does not depend on
the few that are timed.

Letters: S stages.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from s2d_runtime import Dispatcher

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES
from s2d_convert.data.images import Images
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.latency.device_table import Table
from s2d_convert.latency.meter import Call, TimeRound, interleave, time_round
from s2d_convert.slicing.split import StageModel

SECONDS = 1.5  # of one measurement of all ways out
TIMED_PER_EXIT = 60
REPEATS = 3


@dataclass(frozen=True)
class PathCosts:
    """Latency of leaving at each exit: ratios to the static model, cumulative [S], and the static model's milliseconds."""

    ratios: tuple[float, ...]
    static_ms: float

    @property
    def per_stage(self) -> tuple[float, ...]:
        """The latency that each stage adds, at least a tiny positive number."""
        return tuple(float(c) for c in np.maximum(np.diff([0.0, *self.ratios]), 1e-4))


@dataclass(frozen=True)
class Latency:
    """Latency on images: mean, median and worst ratio to the static model, and the static model's milliseconds."""

    mean: float
    median: float
    worst: float
    static_ms: float


def thresholds_for_exit(stages: int, exit_stage: int) -> tuple[float, ...]:
    """Return thresholds with which every image leaves at `exit_stage`, counted from 1."""
    return tuple(ALWAYS_LEAVES if k + 1 == exit_stage else NEVER_LEAVES for k in range(stages - 1))


def worst_case(ratios: Sequence[float], thresholds: Sequence[float]) -> float:
    """Return the latency ratio of an image that leaves as late as the thresholds allow. ratios: of every stage alone."""
    last = next((k for k, t in enumerate(thresholds) if t <= ALWAYS_LEAVES), len(thresholds))
    return float(sum(ratios[: last + 1]))


def path_costs(
    runner: Dispatcher, static: StaticModel, image: Array, *, time_round: TimeRound = time_round
) -> PathCosts:
    """Return the measured latency of every way out for one batch."""
    times = interleave(_ways_out(runner, static, image), SECONDS, time_round=time_round)
    ratios = np.median(times[:, 1:] / times[:, :1], axis=0)  # round by round, as `image_latency` does it
    return PathCosts(tuple(np.maximum.accumulate(ratios).tolist()), float(1e3 * np.median(times[:, 0])))


def predicted_costs(table: Table, models: Sequence[StageModel]) -> PathCosts:
    """Return the latency of every way out as a device's table predicts it."""
    timing = table.measure([m.model.SerializeToString() for m in models])
    return PathCosts(tuple(np.cumsum(timing.ratios).tolist()), timing.reference_ms)


def _ways_out(runner: Dispatcher, static: StaticModel, image: Array) -> list[Call]:
    """Return calls to time, each made once to warm up: the static model, then leaving at every exit in turn."""
    stages = len(runner.manifest.stages)
    ways = [thresholds_for_exit(stages, k + 1) for k in range(stages)]
    calls: list[Call] = [partial(static.outputs, image), *(partial(runner, image, thresholds=way) for way in ways)]
    for call in calls:
        call()
    return calls


def image_latency(
    runner: Dispatcher,
    static: StaticModel,
    images: Images,
    exits: Array,
    *,
    batch: int,
    time_round: TimeRound = time_round,
) -> Latency:
    """Return the latency of the policy that the dispatcher uses, on batches of `batch` images.

    exits: the stage at which each image leaves, int [B], from 1. time_round: the clock, see `latency.meter`.
    """
    static_s, by_group = [], []
    for rows in _timed_batches(exits, batch):
        ratios = []
        for row in rows:
            data = np.ascontiguousarray(images.batch(row))
            calls: list[Call] = [partial(static.outputs, data), partial(runner, data)]
            of_static, of_folder = np.median([time_round(calls) for _ in range(REPEATS)], axis=0)
            static_s.append(of_static)
            ratios.append(of_folder / of_static)
        by_group.append(np.array(ratios))
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
    longest = path_costs(runner, static, sample, time_round=time_round).ratios[
        -1
    ]  # nothing takes longer than the longest way out
    return Latency(mean, median, max(slowest, longest), 1e3 * float(np.median(static_s)))


def _timed_batches(exits: Array, batch: int) -> list[list[Array]]:
    """Return the rows to time: up to TIMED_PER_EXIT single images of each exit, or that many batches in order."""
    if batch == 1:
        return [[np.array([r]) for r in np.flatnonzero(exits == e)[:TIMED_PER_EXIT]] for e in np.unique(exits)]
    count = max(1, len(exits) // batch)
    return [[np.arange(i * batch, min((i + 1) * batch, len(exits))) for i in range(min(count, TIMED_PER_EXIT))]]


def bench(runner: Dispatcher, static: StaticModel, *, batch: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Return the times of the static model and of every way out on one batch of noise, interleaved in one run.

    They are milliseconds as quartiles, and the ratios of medians with the quartiles of the ratios of single rounds.
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
            "ms": dict(zip(("q1", "median", "q3"), map(float, of_call), strict=True)),
            "ratio": float(of_call[1] / quartiles[0][1]),
            "ratio_q1": float(low),
            "ratio_q3": float(high),
        }
        for name, of_call, (low, high) in zip(names, quartiles, spread, strict=True)
    ]
    return {"batch": batch, "rounds": len(times), "rows": rows}


def machine() -> str:
    """Return the processor and the version of onnxruntime in words, for tables."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, onnxruntime {ort.__version__}"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, onnxruntime {ort.__version__}"

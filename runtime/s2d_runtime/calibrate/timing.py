"""Latencies on this device, always as ratios to the static model that runs in turn with what is timed.

Letters: S stages, B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.calibrate.answers import Reference
from s2d_runtime.dispatcher import Dispatcher, Policy
from s2d_runtime.profile import fast_calls
from s2d_runtime.thresholds import ALWAYS_LEAVES, NEVER_LEAVES, exits

Array = NDArray[Any]
PASSES = 3
TIMED_PER_EXIT = 40
REPEATS = 3
LEAST_COST = 1e-4
APART = 0.1  # two mean latencies that are further apart, relative to the first, contradict each other


@dataclass(frozen=True)
class Costs:
    """The latency of every stage alone, relative to the static model, [S], and the static model's milliseconds."""

    per_stage: tuple[float, ...]
    static_ms: float


def stage_costs(runner: Dispatcher, reference: Reference, image: Array, *, seconds: float) -> Costs:
    """Time every way out of the dispatcher on one image, in turn with the static model."""
    stages = len(runner.manifest.stages)
    ways = [[ALWAYS_LEAVES if k == way else NEVER_LEAVES for k in range(stages - 1)] for way in range(stages)]
    calls: list[Callable[[], object]] = [
        partial(reference, image),
        *(partial(runner, image, thresholds=way) for way in ways),
    ]
    passes = np.stack([fast_calls(calls, seconds=seconds / PASSES, clock=perf_counter) for _ in range(PASSES)])
    ratios = np.maximum.accumulate(np.median(passes[:, 1:] / passes[:, :1], axis=0))
    cost = np.maximum(np.diff([0.0, *ratios]), LEAST_COST)
    return Costs(tuple(cost.tolist()), float(1e3 * np.median(passes[:, 0])))


def median_costs(tries: Sequence[Costs]) -> Costs:
    """Return the medians of several measurements."""
    cost = np.median([one.per_stage for one in tries], axis=0)
    return Costs(tuple(cost.tolist()), float(np.median([one.static_ms for one in tries])))


@dataclass(frozen=True)
class Latency:
    """Latencies of a policy relative to the static model: mean and median over images, and of the slowest exit."""

    mean: float
    median: float
    worst: float

    def contradicts(self, expected: float) -> bool:
        """Return whether the mean is another one than the stages' costs say."""
        return abs(self.mean - expected) > APART * expected


def policy_latency(
    runner: Dispatcher, reference: Reference, images: Array, policy: Policy, confidence: Array
) -> Latency:
    """Time images with a policy, up to TIMED_PER_EXIT of every exit, each in turn with the static model.

    Every exit is weighted with its share of all images. confidence: of the stages on the images, [S, B].
    """
    stage = exits(confidence, policy.thresholds)
    present = np.unique(stage)
    typical = []
    for number in present:
        ratios = []
        for row in np.flatnonzero(stage == number)[:TIMED_PER_EXIT]:
            image = images[row : row + 1]
            pair = [_round(reference, image, partial(runner, image, policy=policy)) for _ in range(REPEATS)]
            static_s, own_s = np.median(pair, axis=0)
            ratios.append(own_s / static_s)
        typical.append(float(np.median(ratios)))
    share = np.array([(stage == number).mean() for number in present])
    order = np.argsort(typical)
    median = np.array(typical)[order][np.searchsorted(np.cumsum(share[order]), 0.5 - 1e-9)]
    return Latency(float(share @ typical), float(median), max(typical))


def _round(reference: Reference, image: Array, call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the static model and of a call."""
    began = perf_counter()
    reference(image)
    between = perf_counter()
    call()
    return between - began, perf_counter() - between

"""The worth of a conversion on the held-out images: the reward of its best thresholds at its measured costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.confidence_floor import above, floors, sure_rows
from s2d_convert.conversion.context import Job, goal_of
from s2d_convert.data.labels import groups
from s2d_convert.latency import LatencyMeter
from s2d_convert.plans.plan import Conversion
from s2d_convert.search.base import Evaluation
from s2d_convert.slicing.chain import Chain, build_stages, chains_of, stage_logits
from s2d_convert.slicing.split import StageModel

Cost = Callable[[Sequence[StageModel]], Sequence[float]]  # the latency of each stage, relative to static


def worth(job: Job, logits: Array, cost: Sequence[float]) -> Evaluation:
    """Evaluate stages by their logits [S, B, K] on the calibration images and their costs [S]."""
    ready, task = job.ready, job.ready.task
    confidence = task.confidences(logits, task.fit_temperatures(logits, ready.right_classes))
    correct = task.agree(task.answers(logits), ready.right_classes)
    exit_accuracy = [round(float(a), 4) for a in correct.mean(axis=1)]
    if job.careful:  # like the policies of the folder
        rows, static = sure_rows(ready.calib_logits, task), task.answers(ready.calib_logits)
        lowest = floors(confidence, correct, groups(static), classes=task.kinds(logits.shape[2]))
        confidence = above(confidence, lowest)[:, rows]
        correct = correct[:, rows]
    value = goal_of(job).value(confidence, correct, cost)
    return replace(value, info={**value.info, "exit_accuracy": exit_accuracy})


def stage_costs(meter: LatencyMeter, models: Sequence[StageModel]) -> tuple[float, ...]:
    """Return the latencies of stages, relative to static, from the meter."""
    return meter.measure([m.model.SerializeToString() for m in models]).ratios


def with_overhead(job: Job, costs: Sequence[float]) -> tuple[float, ...]:
    """Return the costs of stages together with what the dispatcher adds to them."""
    first, further = (ms / job.meter.measure([]).reference_ms for ms in job.overhead_ms)
    return tuple(cost + (further if stage else first) for stage, cost in enumerate(costs))


def dispatched_costs(job: Job, models: Sequence[StageModel]) -> tuple[float, ...]:
    """Return the latencies of stages, relative to static, as the dispatcher runs them."""
    return with_overhead(job, stage_costs(job.meter, models))


def timed_costs(cost: Cost, models: Sequence[StageModel]) -> tuple[Sequence[float], float]:
    """Return the costs of stages, and the seconds that measuring them took."""
    started = time.monotonic()
    return cost(models), round(time.monotonic() - started, 3)


def trained_worth(job: Job, conversion: Conversion, first: Chain, cost: Cost) -> Evaluation:
    """Evaluate a conversion with a trained first chain. cost: measures the latencies of stages, relative to static.

    All other chains are the unchanged model, whose logits are known.
    """
    ready = job.ready
    parts = [first, *chains_of(ready.model, conversion.chains[1:], ready.weights)]
    models = build_stages(parts)
    costs, measuring = timed_costs(cost, models)
    first_logits = stage_logits(ready.graph, models[: first.plan.stages], ready.dataset.calib)
    logits = np.concatenate([first_logits, *[ready.calib_logits[None]] * (len(models) - len(first_logits))])
    value = worth(job, logits, costs)
    return replace(value, info={**value.info, "measure_s": measuring})

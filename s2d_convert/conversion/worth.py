"""The worth of a conversion on the held-out images: the reward of its best thresholds at its measured costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.answered import Answered
from s2d_convert.calibration.confidence_floor import above, floors, sure_rows
from s2d_convert.conversion.context import Job, Prepared, goal_of
from s2d_convert.data.labels import groups
from s2d_convert.latency import LatencyMeter
from s2d_convert.plans.plan import Conversion, is_untouched
from s2d_convert.search.base import Evaluation
from s2d_convert.search.evaluate import mended
from s2d_convert.slicing.chain import Chain, build_stages, stage_logits
from s2d_convert.slicing.split import StageModel

Cost = Callable[[Sequence[StageModel]], Sequence[float]]  # the latency of each stage, relative to static


def worth(job: Job, logits: Array, cost: Sequence[float], *, judged: Answered | None = None) -> Evaluation:
    """Evaluate stages by their logits [S, B, K] on the `judged` images (None: the validation images) and their costs [S]."""
    judged, task = job.ready.validation if judged is None else judged, job.ready.task
    confidence = task.confidences(logits, task.fit_temperatures(logits, judged.right_classes))
    correct = judged.expected(task, logits)
    exit_accuracy = [round(float(a), 4) for a in correct.mean(axis=1)]
    if job.careful:  # like the policies of the folder
        rows, static = sure_rows(judged.logits, task), task.answers(judged.logits)
        lowest = floors(confidence, correct, groups(static), classes=task.kinds(logits.shape[2]))
        confidence = above(confidence, lowest)[:, rows]
        correct = correct[:, rows]
    value = goal_of(job, judged).value(confidence, correct, cost)
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


def later_chains(ready: Prepared, conversion: Conversion) -> list[Chain]:
    """Return all chains but the first: with the model's own weights where they are the whole model, else with solved ones."""
    return [
        Chain(ready.model, plan, ready.weights) if is_untouched(ready.graph, plan) else ready.solver.chain(plan)
        for plan in conversion.later
    ]


def _logits(ready: Prepared, chain: Chain, judged: Answered) -> Array:
    """Return the logits [S, B, K] of a later chain on the judged images; those of the whole model are known."""
    if is_untouched(ready.graph, chain.plan):
        return judged.logits[None]
    return stage_logits(ready.graph, build_stages([chain]), judged.images)


def trained_worth(
    job: Job, conversion: Conversion, first: Chain, cost: Cost, *, left: float = 1.0, judged: Answered | None = None
) -> Evaluation:
    """Evaluate a conversion with a trained first chain. cost: measures the latencies of stages, relative to static.

    left: the share that further training is taken to leave of the first chain's answers that part from the static model's.
    judged: the images that count, None for the validation images.
    """
    ready = job.ready
    judged = ready.validation if judged is None else judged
    later = later_chains(ready, conversion)
    models = build_stages([first, *later])
    costs, measuring = timed_costs(cost, models)
    first_logits = stage_logits(ready.graph, models[: first.plan.stages], judged.images)
    first_logits = mended(first_logits, judged.logits, left=left, task=ready.task)
    logits = np.concatenate([first_logits, *(_logits(ready, chain, judged) for chain in later)])
    value = worth(job, logits, costs, judged=judged)
    return replace(value, info={**value.info, "measure_s": measuring})

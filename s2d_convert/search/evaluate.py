"""The evaluation of candidate conversions: accuracy from weights solved in closed form, latency from onnxruntime.

Letters: S stages, B images, K classes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.answered import Answered
from s2d_convert.calibration.task import Task
from s2d_convert.calibration.thresholds import best_policy, cheapest_policy
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.images import Images
from s2d_convert.latency import LatencyMeter
from s2d_convert.plans.plan import Conversion, Plan, is_untouched
from s2d_convert.plans.weights import Weights
from s2d_convert.search.base import Evaluation, reward, speed_reward
from s2d_convert.slicing.chain import Chain, build_stages, chains_of, stage_logits
from s2d_convert.slicing.split import StageModel
from s2d_convert.training.reconstruction import Reconstruction

SKILLED = 0.7  # agreement beyond chance, of what there is; rough solves of chains that are worth training have more
MIXTURES = 14  # bisections of the share that is mixed in
MAX_IMAGES = 1000  # held-out images on which candidates are evaluated


@dataclass(frozen=True)
class Goal:
    """The goal of a search, in latencies relative to the static model.

    The mean latency is at most `budget`; None: it is the lowest at which at least the share `least_right` of the answers is
    right. The worst latency is at most `max_latency`.
    """

    budget: float | None
    max_latency: float = math.inf
    least_right: float = 0.0

    def value(self, confidence: Array, correct: Array, cost: Sequence[float]) -> Evaluation:
        """Return the evaluation of stages with the best thresholds.

        confidence: [S, B]; correct: [S, B], counted or expected; cost: latency of every stage relative to the static model, [S].
        """
        if self.budget is None:
            policy = cheapest_policy(confidence, correct, cost=cost, least_right=self.least_right)
        else:
            policy = best_policy(confidence, correct, cost=cost, budget=self.budget)
        accuracy, latency, worst = policy.expected_accuracy, policy.expected_latency, float(sum(cost))
        limits = {"worst": worst, "max_latency": self.max_latency}
        return Evaluation(
            accuracy=accuracy,
            latency=latency,
            reward=(
                speed_reward(accuracy, latency, self.least_right, **limits)
                if self.budget is None
                else reward(accuracy, latency, self.budget, **limits)
            ),
            info={
                "stage_latency": [round(float(c), 4) for c in cost],
                "worst_latency": round(worst, 4),
                "exit_share": [round(float(s), 4) for s in policy.exit_share],
                "exit_accuracy": [round(float(a), 4) for a in correct.mean(axis=1)],
            },
        )


class Logits(Protocol):
    """The logits [S, B, K] of all stages of a conversion on the held-out images."""

    def __call__(self, conversion: Conversion, /) -> Array:
        """Return the logits of a conversion."""

    def ahead(self, conversions: Sequence[Conversion], /) -> None:
        """Announce the conversions whose logits will be asked for next."""


@dataclass(frozen=True, eq=False)
class SolvedLogits:
    """Logits of the stage files, with weights solved in closed form. Everything in here can be sent to another machine.

    left: the share that training leaves of the answers which part from the static model's, so that a chain is judged by what it
    can become (`mended`); 1 where none follows.
    """

    model: AnalysedModel
    reconstruction: Reconstruction
    images: Images
    static_logits: Array
    left: float = 1.0

    _known: dict[Plan, Array] = field(default_factory=dict)

    def __call__(self, conversion: Conversion) -> Array:
        first, *later = conversion.chains
        return np.concatenate([self._of(first), *(self._of(plan, keep=True) for plan in later)])

    def _of(self, plan: Plan, *, keep: bool = False) -> Array:
        """Return the logits [S, B, K] of one chain. keep: many conversions share it, so it is solved once."""
        if is_untouched(self.model.graph, plan):
            return self.static_logits[None]
        if plan in self._known:
            return self._known[plan]
        stages = build_stages([Chain(self.model, plan, self.reconstruction.solve(plan).weights)])
        solved = stage_logits(self.model.graph, stages, self.images)
        logits = mended(solved, self.static_logits, left=self.left, task=self.model.graph.task)
        if keep:
            self._known[plan] = logits
        return logits

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Do nothing: here they are computed one by one."""


@dataclass(frozen=True)
class Look:
    """A candidate's results that do not depend on the budget.

    cost: latency of every stage relative to the static model, [S]. confidence, correct (expected): of every stage on the
    held-out images, [S, B]. measure_s: the seconds that timing took.
    """

    cost: tuple[float, ...]
    confidence: Array
    correct: Array
    measure_s: float


def mended(logits: Array, static_logits: Array, *, left: float, task: Task) -> Array:
    """Return the logits [S, B, K] of stages as training may leave them, with `left` of the answers that part from the static
    model's [B, K]: every stage is mixed with the static model until so few do.

    Training mends less of a stage that knows little: of one that agrees no more than by chance nothing, growing with the
    square of what it knows up to SKILLED.
    """
    if left == 1:
        return logits
    static = task.answers(static_logits)
    by_chance = float(np.unique(static, return_counts=True, axis=0)[1].max() / len(static))

    def agreement(row: Array) -> float:
        return float(task.agree(task.answers(row), static).mean())

    def after_training(row: Array) -> Array:
        before = agreement(row)
        known = max(0.0, (before - by_chance) / max(1 - by_chance, 1e-9))
        wanted = 1 - (1 - before) * (1 - (1 - left) * min(1.0, known / SKILLED) ** 2)
        return row if before >= wanted else _mixed(row, static_logits, lambda mixture: agreement(mixture) >= wanted)

    return np.stack([after_training(row) for row in logits])


def _mixed(logits: Array, static_logits: Array, enough: Callable[[Array], bool]) -> Array:
    """Return logits [B, K] with about the least share of the static model's that is `enough`."""
    none, share = 0.0, 1.0
    for _ in range(MIXTURES):
        middle = (none + share) / 2
        if enough(logits + middle * (static_logits - logits)):
            share = middle
        else:
            none = middle
    mixed: Array = logits + np.float32(share) * (static_logits - logits)
    return mixed


@dataclass(frozen=True, eq=False)
class StageLatency:
    """The latency of every stage of a conversion, relative to the static model.

    It is that of the stage's ONNX model by `meter`, plus what the dispatcher adds to the first and to each further stage
    (`overhead_ms`). `weights` are any weights of the model.
    """

    model: AnalysedModel
    weights: Weights
    meter: LatencyMeter
    overhead_ms: tuple[float, float] = (0.0, 0.0)

    def __call__(self, conversion: Conversion) -> tuple[float, ...]:
        return self.of_stages(build_stages(chains_of(self.model, conversion.chains, self.weights)))

    def of_stages(self, models: Sequence[StageModel]) -> tuple[float, ...]:
        """Return the same for stages that are built already."""
        timing = self.meter.measure([m.model.SerializeToString() for m in models])
        first, further = (ms / timing.reference_ms for ms in self.overhead_ms)
        return tuple(ratio + (further if k else first) for k, ratio in enumerate(timing.ratios))


class Evaluator:
    """Callable that evaluates conversions with solved weights.

    The accuracy is that of the best thresholds that meet the goal on the images of `logits`, which are those of `judged`.
    """

    def __init__(self, task: Task, logits: Logits, latency: StageLatency, *, judged: Answered, goal: Goal) -> None:
        self.task, self.logits, self.latency = task, logits, latency
        self.judged, self.goal = judged, goal
        self._looks: dict[Conversion, Look] = {}

    def at_budget(self, budget: float) -> Evaluator:
        """Return the same evaluator for another budget. What is known of candidates is shared."""
        other = copy.copy(self)
        other.goal = replace(self.goal, budget=budget)
        return other

    def __call__(self, conversion: Conversion) -> Evaluation:
        look = self.look(conversion)
        value = self.goal.value(look.confidence, look.correct, look.cost)
        return replace(value, info={**value.info, "measure_s": round(look.measure_s, 3)})

    def look(self, conversion: Conversion) -> Look:
        """Return the latency and answers of a candidate. They are computed once."""
        if conversion not in self._looks:
            started = time.monotonic()
            cost = self.latency(conversion)
            seconds = time.monotonic() - started
            logits = self.logits(conversion)
            temperatures = self.task.fit_temperatures(logits, self.judged.right_classes)
            correct = self.judged.expected(self.task, logits)
            self._looks[conversion] = Look(cost, self.task.confidences(logits, temperatures), correct, seconds)
        return self._looks[conversion]

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Announce the conversions that come next, so that their logits may be computed side by side."""
        self.logits.ahead(conversions)

"""What a candidate conversion is worth: accuracy from weights solved in closed form, latency from onnxruntime."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.thresholds import best_policy, cheapest_policy
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.images import Images
from s2d_convert.latency import LatencyMeter
from s2d_convert.plans.plan import Conversion, is_untouched
from s2d_convert.plans.weights import Weights
from s2d_convert.search.base import Evaluation, reward, speed_reward
from s2d_convert.slicing.chain import Chain, build_stages, chains_of, stage_logits
from s2d_convert.slicing.split import StageModel
from s2d_convert.training.reconstruction import Reconstruction

MAX_IMAGES = 1000  # that candidates are judged on


@dataclass(frozen=True)
class Goal:
    """What conversions are searched for: a mean latency of at most `budget` (None: the lowest at which at least the share
    `least_right` of the answers is right), and a worst one of at most `max_latency`, both relative to the static model."""

    budget: float | None
    max_latency: float = math.inf
    least_right: float = 0.0

    def value(self, confidence: Array, correct: Array, cost: Sequence[float]) -> Evaluation:
        """What stages are worth with the best thresholds: how sure and how right they are [S, B], and what they cost [S]."""
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
        """They."""

    def ahead(self, conversions: Sequence[Conversion], /) -> None:
        """Told which conversions will be asked for next."""


@dataclass(frozen=True, eq=False)
class SolvedLogits:
    """Logits of the stage files by weights solved in closed form; all that this needs can be sent to another machine."""

    model: AnalysedModel
    reconstruction: Reconstruction
    images: Images
    static_logits: Array

    def __call__(self, conversion: Conversion) -> Array:
        rows = []
        for plan in conversion.chains:
            if is_untouched(self.model.graph, plan):
                rows.append(self.static_logits[None])
            else:
                weights = self.reconstruction.solve(plan).weights
                stages = build_stages([Chain(self.model, plan, weights)])
                rows.append(stage_logits(self.model.graph, stages, self.images))
        return np.concatenate(rows)

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Nothing: here they are computed one by one."""


@dataclass(frozen=True)
class Look:
    """What is known of a candidate without a budget: `cost` per stage relative to static, `confidence` and `correct`
    of every stage on the held-out images [S, B], and the seconds that timing it took."""

    cost: tuple[float, ...]
    confidence: Array
    correct: Array
    measure_s: float


def solved_logits(
    model: AnalysedModel, reconstruction: Reconstruction, images: Images, static_logits: Array
) -> SolvedLogits:
    """Return the logits on the first MAX_IMAGES of the held-out images, whose static logits are [B, K]."""
    count = min(MAX_IMAGES, len(images))
    return SolvedLogits(model, reconstruction, images.take(slice(0, count)), static_logits[:count])


class Evaluator:
    """Callable that evaluates conversions with solved weights.

    The latency of every stage is what `meter` says of its ONNX model, plus what the dispatcher adds to the first and to
    each further stage (`overhead_ms`); the accuracy is that of the best thresholds that meet the budget on the images of
    `logits`. `right_classes` are their labels, or the static model's answers.
    """

    def __init__(
        self,
        model: AnalysedModel,
        logits: Logits,
        *,
        meter: LatencyMeter,
        right_classes: Array,
        goal: Goal,
        weights: Weights,
        overhead_ms: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.model, self.logits, self.meter, self.goal = model, logits, meter, goal
        self.right_classes, self.weights, self.overhead_ms = right_classes, weights, overhead_ms
        self._looks: dict[Conversion, Look] = {}

    def at_budget(self, budget: float) -> Evaluator:
        """The same evaluation for another budget; what is known of the candidates is shared."""
        other = copy.copy(self)
        other.goal = replace(self.goal, budget=budget)
        return other

    def __call__(self, conversion: Conversion) -> Evaluation:
        look = self.look(conversion)
        value = self.goal.value(look.confidence, look.correct, look.cost)
        return replace(value, info={**value.info, "measure_s": round(look.measure_s, 3)})

    def look(self, conversion: Conversion) -> Look:
        """What the candidate costs and answers, found once."""
        if conversion not in self._looks:
            started = time.monotonic()
            cost = self.latency(conversion)
            seconds = time.monotonic() - started
            logits = self.logits(conversion)
            task = self.model.graph.task
            temperatures = task.fit_temperatures(logits, self.right_classes)
            correct = task.agree(task.answers(logits), self.right_classes)
            self._looks[conversion] = Look(cost, task.confidences(logits, temperatures), correct, seconds)
        return self._looks[conversion]

    def latency(self, conversion: Conversion) -> tuple[float, ...]:
        """Latency of each stage as a ratio to static, the dispatcher's own time included."""
        return self.cost(build_stages(chains_of(self.model, conversion.chains, self.weights)))

    def cost(self, models: Sequence[StageModel]) -> tuple[float, ...]:
        """The same for stages that are built already."""
        timing = self.meter.measure([m.model.SerializeToString() for m in models])
        first, further = (ms / timing.reference_ms for ms in self.overhead_ms)
        return tuple(ratio + (further if k else first) for k, ratio in enumerate(timing.ratios))

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Told which conversions come next: their logits may be computed side by side."""
        self.logits.ahead(conversions)

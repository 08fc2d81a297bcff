"""From what stages and static model say on images to the policies of a manifest: a row of budgets, with or without a
promise; numpy only, no files, no clocks.

Letters: S stages, B rows (images), K classes or labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime import Policy, Promise
from s2d_runtime.policies import accurate_row, budget_row, counted, mean_cost
from s2d_runtime.thresholds import budgets_from, observed, policy_at

from s2d_convert.base.text import listed
from s2d_convert.calibration.risk_control import RiskBound, Tested, fixed_sequence, images_needed, path, stage_losses
from s2d_convert.calibration.task import ONE_CLASS, Task
from s2d_convert.errors import DataError, PromiseError, UsageError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """The answers of the stages and of the static model on images.

    logits: float32 [S, B, K] of every stage; static_classes: the static model's answers, int [B], or [B, K] where images
    have several labels; labels: the true answers in the same form, or None, in which case the static model's count as right;
    class_names: for messages. static_logits: the static model's, float32 [B, K], None where they are not told.
    """

    logits: Array
    static_classes: Array
    labels: Array | None
    class_names: tuple[str, ...] | None = None
    task: Task = ONE_CLASS
    static_logits: Array | None = None

    def __len__(self) -> int:
        return len(self.static_classes)

    @property
    def target(self) -> Array:
        """The answer that counts as right, [B] or [B, K]."""
        return self.static_classes if self.labels is None else self.labels

    @cached_property
    def classes(self) -> Array:
        """The answers of every stage, [S, B] or [S, B, K]."""
        return self.task.answers(self.logits)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether every stage is right, bool [S, B]."""
        return self.task.agree(self.classes, self.target)

    @cached_property
    def expected(self) -> Array:
        """How often every stage can be expected to be right, [S, B]: as the task says where labels and static logits are known,
        else `correct`."""
        if self.labels is None or self.static_logits is None:
            return self.correct
        return self.task.expected_right(self.logits, self.static_logits, self.labels)

    @property
    def static_correct(self) -> NDArray[np.bool_]:
        """Whether the static model is right, bool [B]."""
        return self.task.agree(self.static_classes, self.target)

    @property
    def as_last(self) -> NDArray[np.bool_]:
        """Whether every stage answers as the last one does, bool [S, B]."""
        return self.task.agree(self.classes, self.classes[-1])

    @property
    def losses(self) -> NDArray[np.int8]:
        """The loss of every stage against the static model, int8 [S, B], see `stage_losses`."""
        return stage_losses(self.static_correct, self.correct)

    def confidence(self, temperatures: Sequence[float]) -> NDArray[np.float32]:
        """Return the confidence of every stage, [S, B]."""
        return self.task.confidences(self.logits, temperatures)

    @property
    def images_of(self) -> dict[str, int]:
        """The number of images of every class, by its name."""
        counts = np.bincount(self.target, minlength=self.logits.shape[2])
        return {self.name_of(number): int(count) for number, count in enumerate(counts)}

    def name_of(self, number: int) -> str:
        """Return the name of a class."""
        return self.class_names[number] if self.class_names else str(number)

    def take(self, rows: Array) -> Scores:
        """Return the scores of some of the images."""
        labels = None if self.labels is None else self.labels[rows]
        told = None if self.static_logits is None else self.static_logits[rows]
        static = self.static_classes[rows]
        return replace(self, logits=self.logits[:, rows], static_classes=static, labels=labels, static_logits=told)


@dataclass(frozen=True)
class Chosen:
    """The policies of a manifest, ascending by budget, and the budget that is used unless another is asked for; `tested`: the
    images of every class, by name, that a promise per class was tested on."""

    policies: tuple[Policy, ...]
    default_budget: float
    tested: Mapping[str, int] | None = None


def fit_temperatures(scores: Scores) -> tuple[float, ...]:
    """Return the temperature of every stage."""
    return scores.task.fit_temperatures(scores.logits, scores.target)


def budget_policies(scores: Scores, temperatures: Sequence[float], *, cost: Sequence[float], budget: float) -> Chosen:
    """Return the best policies for a row of budgets, `budget` among them (`budget_row`). cost: of every stage, relative to
    the static model."""
    confidence = scores.confidence(temperatures)
    row = budget_row(confidence, scores.expected, cost=cost, budget=budget)
    return Chosen(told_of(scores, row, confidence, cost=cost), budget)


def accurate_policies(
    scores: Scores, temperatures: Sequence[float], *, cost: Sequence[float], max_loss: float
) -> Chosen:
    """Return the best policies for a row of budgets; the default is the cheapest that loses at most `max_loss` against the
    static model (`accurate_row`)."""
    confidence = scores.confidence(temperatures)
    row, default = accurate_row(confidence, scores.expected, scores.static_correct, cost=cost, max_loss=max_loss)
    return Chosen(told_of(scores, row, confidence, cost=cost), default)


def told_of(scores: Scores, row: Sequence[Policy], confidence: Array, *, cost: Sequence[float]) -> tuple[Policy, ...]:
    """Return policies with what they do on the images, counted."""
    return tuple(
        observed(policy, confidence, scores.as_last) for policy in counted(row, confidence, scores.correct, cost=cost)
    )


# With a promise


def check_enough(images: int, risk_bound: RiskBound, *, labelled: bool, share: float = 1.0) -> None:
    """Raise DataError if no result on so many images could keep the promise.

    share: the part of the user's images that these are, for the message.
    """
    needed = images_needed(risk_bound, paired=labelled)
    if images < needed:
        what = "drop of accuracy" if labelled else "disagreement"
        raise DataError(
            f"got {images} images to test the promise on; a {what} of at most {_percent(risk_bound.max_drop)} with "
            f"{_percent(risk_bound.confidence)} confidence takes at least {needed}, even if nothing is lost on them: give at "
            f"least {math.ceil(needed / share)} images for calibration, or allow more with --max-drop"
        )


def check_kind(task: Task, risk_bound: RiskBound | None) -> None:
    """Raise UsageError for a promise per class where images have several labels, as it is tested class by class."""
    if risk_bound is not None and risk_bound.per_class and task.several:
        raise UsageError(
            "--per-class: the model gives labels, each by itself, and a promise is made of all labels of an image together; "
            "leave it out"
        )


def check_classes(images_of: Mapping[str, int], risk_bound: RiskBound, *, labelled: bool, share: float = 1.0) -> None:
    """Raise DataError if a class has too few images for any result to keep a promise per class.

    images_of: the number of images of every class to test on, by name; share: see `check_enough`.
    """
    needed = images_needed(risk_bound, paired=labelled)
    few = [f"{name} ({count})" for name, count in images_of.items() if count < needed]
    if few:
        raise DataError(
            f"--per-class: too few images of class {listed(few)} to test the promise on; a promise of "
            f"{_percent(risk_bound.max_drop)} with {_percent(risk_bound.confidence)} confidence takes at least {needed} of every "
            f"class, even if nothing is lost on them: give at least {math.ceil(needed / share)} images of every class for "
            "calibration, allow more with --max-drop, or leave --per-class out"
        )


@dataclass(frozen=True, eq=False)
class Divided:
    """Scores for a promise: those to fit on, and those to test it on, of images on which nothing else was chosen.

    share: the part of the user's images that `test` has, for messages.
    """

    fit: Scores
    test: Scores
    share: float = 1.0


def promised_policies(
    scores: Divided,
    temperatures: Sequence[float],
    *,
    cost: Sequence[float],
    risk_bound: RiskBound,
    budget: float | None,
) -> Chosen:
    """Return policies for a row of budgets, all of which keep the promise together (`risk_control`).

    Temperatures and the order of the policies come from the scores to fit on, the test and all numbers from the others. A
    budget is served by the safest policy one standard error below it. `budget` is the default and in the row, reached or
    not; None: the cheapest policy is the default. Raises DataError where there are too few scores to test on for any result
    to do, PromiseError where not even the safest policy passes.
    """
    fit, test, share = scores.fit, scores.test, scores.share
    labelled = test.labels is not None
    check_enough(len(test), risk_bound, labelled=labelled, share=share)
    if risk_bound.per_class:
        check_classes(test.images_of, risk_bound, labelled=labelled, share=share)
    walk = path(fit.confidence(temperatures), fit.losses, cost=cost)
    confidence, correct, as_last = test.confidence(temperatures), test.correct, test.as_last
    groups = test.target if risk_bound.per_class else None
    tested = fixed_sequence(walk, confidence, test.losses, risk_bound, paired=labelled, groups=groups)
    if not tested.kept:
        raise PromiseError(_refusal(tested, risk_bound, test))
    kept = [tuple(map(float, row)) for row in walk[: tested.kept]]
    means = [mean_cost(confidence, thresholds, cost) for thresholds in kept]
    budgets = budgets_from(means[-1][0], include=[] if budget is None else [budget])
    promise = Promise(risk_bound.max_drop, risk_bound.confidence, tested.images)
    row = []
    for wanted in budgets:
        careful = [t for t, (mean, error) in zip(kept, means, strict=True) if mean + error <= wanted]
        policy = policy_at(confidence, correct, cost=cost, budget=wanted, thresholds=(*careful, kept[-1])[0])
        row.append(replace(observed(policy, confidence, as_last), promise=promise))
    tested_classes = test.images_of if risk_bound.per_class else None
    return Chosen(tuple(row), budgets[0] if budget is None else budget, tested_classes)


def _refusal(tested: Tested, risk_bound: RiskBound, test: Scores) -> str:
    what = "disagrees with the static model" if test.labels is None else "loses accuracy"
    likely = "allow more with --max-drop, or convert in a mode that keeps the static model as its last stage"
    if tested.risk <= risk_bound.max_drop:
        likely = f"more images may show that it is less; or {likely}"
    images = f"{tested.images} images"
    if tested.group is not None:
        images = f"{int((test.target == tested.group).sum())} images of class '{test.name_of(tested.group)}'"
    return (
        f"no policy keeps the promise: the last stage, to which every image goes under the safest one, {what} in "
        f"{_percent(tested.risk)} of {images}, and at most {_percent(risk_bound.max_drop)} with "
        f"{_percent(risk_bound.confidence)} confidence was asked for; {likely}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"

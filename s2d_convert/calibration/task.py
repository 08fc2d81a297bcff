"""The two tasks of a classifier: one class of many, or several labels, each given or not.

Code that depends on the task asks a `Task`: what logits answer, whether two answers are equal, how confident logits are, and
which temperature suits them. A network with one output for yes or no has the task of a single label.

Letters: S stages, B rows (images), K classes or labels. numpy only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime import expected
from s2d_runtime.dispatcher import LABEL_KINDS

from s2d_convert.calibration import thresholds

Array = NDArray[Any]
MOST_COUNTED = 30  # limits the number of sets of labels that `kinds` returns


@dataclass(frozen=True)
class Task(ABC):
    """How logits [..., K] become answers, and how answers are compared."""

    @property
    @abstractmethod
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""

    @abstractmethod
    def answers(self, logits: Array) -> Array:
        """Return the answers in logits [..., K]: the class, int64 [...], or 0 or 1 for every label, int8 [..., K]."""

    @abstractmethod
    def agree(self, first: Array, second: Array) -> NDArray[np.bool_]:
        """Return where two answers are equal, in all their labels."""

    @abstractmethod
    def agreement(self, first: Array, second: Array) -> float:
        """Return the share of images whose class is the same, or of the label that differs most often, whose label is."""

    @abstractmethod
    def has(self, answers: Array, k: int) -> NDArray[np.bool_]:
        """Return which answers are class k, or contain label k."""

    @abstractmethod
    def kinds(self, classes: int) -> int:
        """Return the number of possible answers. classes: K."""

    @abstractmethod
    def fit_temperature(self, logits: Array, right: Array) -> float:
        """Return the temperature at which the right answers are most likely under logits [B, K]."""

    @abstractmethod
    def confidence(self, logits: Array, temperature: float) -> NDArray[np.float32]:
        """Return the confidence of logits [B, K] at a temperature, float32 [B] in 0..1; NaN where a logit is NaN. Stage files
        compute the same (`slicing.stage_graph`)."""

    def confidences(self, logits: Array, temperatures: Sequence[float]) -> NDArray[np.float32]:
        """Return the confidence of every stage, float32 [S, B]. logits: [S, B, K]."""
        return np.stack([self.confidence(row, t) for row, t in zip(logits, temperatures, strict=True)])

    def fit_temperatures(self, logits: Array, right: Array) -> tuple[float, ...]:
        """Return the temperature of every stage. logits: [S, B, K]."""
        return tuple(self.fit_temperature(row, right) for row in logits)

    def expected_right(self, logits: Array, static_logits: Array, labels: Array) -> Array:
        """Return how often every stage can be expected to be right on each image, [S, B], from as few labels as there are;
        without a better estimate, whether it is. logits: [S, B, K]; static_logits: [B, K]."""
        return self.agree(self.answers(logits), labels)

    def right(self, labels: Array | None, static_logits: Array) -> Array:
        """Return the answers that count as right: the labels, or without labels the static model's answers."""
        return self.answers(static_logits) if labels is None else labels


@dataclass(frozen=True)
class OneClass(Task):
    """One class of K: the largest logit wins, and its softmax probability is the confidence."""

    @property
    def several(self) -> bool:
        return False

    def answers(self, logits: Array) -> Array:
        classes: Array = logits.argmax(axis=-1)
        return classes

    def agree(self, first: Array, second: Array) -> NDArray[np.bool_]:
        return np.equal(first, second)

    def agreement(self, first: Array, second: Array) -> float:
        return float(np.equal(first, second).mean())

    def has(self, answers: Array, k: int) -> NDArray[np.bool_]:
        return np.equal(answers, k)

    def kinds(self, classes: int) -> int:
        return classes

    def fit_temperature(self, logits: Array, right: Array) -> float:
        return thresholds.fit_temperature(logits, right)

    def confidence(self, logits: Array, temperature: float) -> NDArray[np.float32]:
        return thresholds.confidences(logits[None], [temperature])[0]

    def expected_right(self, logits: Array, static_logits: Array, labels: Array) -> Array:
        return expected.expected_right(logits, static_logits, labels)


@dataclass(frozen=True)
class SeveralLabels(Task):
    """K labels, each given if its logit is above 0. The confidence of an answer is that of its least confident label."""

    @property
    def several(self) -> bool:
        return True

    def answers(self, logits: Array) -> Array:
        return (logits > 0).astype(np.int8)

    def agree(self, first: Array, second: Array) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = (first == second).all(axis=-1)
        return same

    def agreement(self, first: Array, second: Array) -> float:
        return float(np.equal(first, second).mean(axis=0).min())

    def has(self, answers: Array, k: int) -> NDArray[np.bool_]:
        return answers[..., k] > 0

    def kinds(self, classes: int) -> int:
        return 2 ** min(classes, MOST_COUNTED)

    def fit_temperature(self, logits: Array, right: Array) -> float:
        return thresholds.fit_label_temperature(logits, right)

    def confidence(self, logits: Array, temperature: float) -> NDArray[np.float32]:
        return thresholds.label_confidence(logits, temperature)


ONE_CLASS, SEVERAL_LABELS = OneClass(), SeveralLabels()


def task_of(kind: str) -> Task:
    """Return the task of a model whose output is of this kind, as manifests name it."""
    return SEVERAL_LABELS if kind in LABEL_KINDS else ONE_CLASS

"""Whether answers know anything of the labels where images have several.

Chance is whoever always gives each label its commonest answer. A model that is right more often knows something, and so does
one whose labels fit the images better than they fit shuffled ones: rare labels are found at the cost of false alarms.

Letters: B images, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.chance import FEW_OF_CLASS, LOST, SURE


@dataclass(frozen=True)
class JudgedLabels:
    """Answers held against labels, 0 or 1 [B, K] both: the share of labels that are right, that of whoever always gives the
    commonest answer, `exact`: the share of images with all labels right, and F1 over all labels.

    `above_commonest` and `above_shuffled`: by how many standard deviations there are more right labels than by the commonest
    answers, and more common ones of answers and labels than when the labels are shuffled among the images. `lost`: labels
    that some images have and hardly any is given.
    """

    right: float
    commonest: float
    exact: float
    f1: float
    above_commonest: float
    above_shuffled: float
    lost: tuple[int, ...]

    @property
    def knows_labels(self) -> bool:
        """Whether the answers know anything of the labels."""
        return max(self.above_commonest, self.above_shuffled) > SURE


def judge_labels(answers: Array, labels: Array) -> JudgedLabels:
    """Hold answers against labels."""
    a, y = answers.astype(np.float64), labels.astype(np.float64)
    right = answers == labels
    common = labels == (y.mean(axis=0) > 0.5)
    gain = (right.astype(np.float64) - common).sum(axis=1)
    hits, given, true = (a * y).sum(axis=0), a.sum(axis=0), y.sum(axis=0)
    lost = np.flatnonzero((true >= FEW_OF_CLASS) & (hits <= LOST * true))
    return JudgedLabels(
        right=float(right.mean()),
        commonest=float(common.mean()),
        exact=float(right.all(axis=1).mean()),
        f1=float(2 * hits.sum() / max(1.0, given.sum() + true.sum())),
        above_commonest=_deviations(float(gain.sum()), float(len(gain) * gain.var())),
        above_shuffled=_deviations(*_common_when_shuffled(a, y)),
        lost=tuple(lost.tolist()),
    )


def _deviations(excess: float, variance: float) -> float:
    return excess / variance**0.5 if variance > 0 else 0.0


def _common_when_shuffled(answers: Array, labels: Array) -> tuple[float, float]:
    """Return by how much the labels that answers and truth have in common are more than when the images of one are shuffled, and
    the variance of their number then. With both centred the mean is 0, and the variance ``|A Y^T|^2 / (B - 1)`` (the
    permutation law of a sum over the places of a matrix whose rows and columns sum to 0)."""
    a, y = answers - answers.mean(axis=0), labels - labels.mean(axis=0)
    count, classes = a.shape
    products = (a.T @ a) * (y.T @ y) if classes <= count else (a @ y.T) ** 2
    return float((a * y).sum()), float(products.sum()) / max(1, count - 1)

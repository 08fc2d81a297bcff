"""Comparison of answers with chance, class by class: what accuracy alone does not show where classes are unequal.

Letters: B images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_convert.calibration.risk_control import binomial_tail, upper_share

Classes = NDArray[np.integer[Any]]  # one class per image [B]

LEVEL = 0.01  # significance level
SURE = 3.0  # standard deviations by which hits must exceed those of shuffled labels
UNEQUAL = 1.5  # classes are unequal if the largest has at least so many times the mean number of images
LOST = 0.05  # a class is lost if at most this share of its images is answered rightly
FEW_OF_CLASS = 5  # no statement is made on classes with fewer images
ONE_SIDED = 0.95  # share of one class above which the numbers say little about the others
FEW = 100  # with so few images, an accuracy is uncertain by about ten points


@dataclass(frozen=True)
class Judged:
    """Answers compared with labels.

    `largest`: the most frequent label; `share`: its share of the images; `recall`: float64 [K], the share of right answers
    per class (NaN for a class without images); `counts`: the number of images per class.
    """

    images: int
    hits: int
    largest: int
    share: float
    counts: Classes
    recall: NDArray[np.float64]
    answered: Classes  # the number of images with each answer [K]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.hits / self.images

    @property
    def balanced(self) -> float:
        """The mean recall of the classes that have images."""
        return float(np.nanmean(self.recall))

    @property
    def unequal(self) -> bool:
        """Whether classes differ in size by more than chance, so that accuracy says little of the small ones."""
        return unequal(self.counts)

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes that have enough images but hardly a right answer."""
        return tuple(np.flatnonzero((self.counts >= FEW_OF_CLASS) & (self.recall <= LOST)).tolist())

    @property
    def better_than_largest(self) -> bool:
        """Whether the accuracy is significantly above that of always answering the largest class (binomial test)."""
        return 1 - binomial_tail(self.hits - 1, self.images, self.share) <= LEVEL

    @property
    def knows_classes(self) -> bool:
        """Whether the answers have more hits than with shuffled labels.

        The model knows something then, even if always answering the largest class were right more often.
        """
        n, a, b = self.images, self.counts.astype(float), self.answered.astype(float)
        products = a * b
        spread = float((products * (n - a) * (n - b)).sum() + products.sum() ** 2 - (products**2).sum())
        if n < 2 or spread <= 0:
            return False
        return self.hits - products.sum() / n > SURE * math.sqrt(spread / (n**2 * (n - 1)))

    @property
    def tells_nothing(self) -> bool:
        """Whether there are so few images that even all answers could be right by luck."""
        return self.share**self.images > LEVEL


def judge(answers: Classes, labels: Classes, classes: int) -> Judged:
    """Compare answers with labels. classes: K."""
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[answers == labels], minlength=classes)
    recall = np.divide(hits, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    largest = int(counts.argmax())
    answered = np.bincount(answers, minlength=classes)
    return Judged(len(labels), int(hits.sum()), largest, counts[largest] / len(labels), counts, recall, answered)


def unequal(counts: Classes) -> bool:
    """Return whether the largest class has UNEQUAL times the mean number of images or more, beyond chance."""
    total, classes = int(counts.sum()), len(counts)
    most = int(counts.max(initial=0))
    if classes < 2 or most < UNEQUAL * total / classes:
        return False
    return classes * (1 - binomial_tail(most - 1, total, 1 / classes)) <= LEVEL


def interval(hits: int, images: int, *, level: float = 0.05) -> tuple[float, float]:
    """Return the confidence interval of the share of right answers (Clopper and Pearson), at confidence 1 - level."""
    return 1 - upper_share(images - hits, images, level / 2), upper_share(hits, images, level / 2)


def few_images(what: str, share: float, images: int) -> str | None:
    """Return a warning about a share that was measured on few images, None if there are enough."""
    if images >= FEW:
        return None
    low, high = interval(round(share * images), images)
    return (
        f"{what} {100 * share:.2f} % rests on {images} images: with 95 % confidence it is between {100 * low:.0f} and "
        f"{100 * high:.0f} %"
    )

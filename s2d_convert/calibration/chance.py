"""Whether answers know anything of the labels, class by class: what accuracy alone does not tell where classes are unequal.

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

LEVEL = 0.01  # the largest chance of a lucky result that counts as shown
SURE = 3.0  # standard deviations that hits lie above those of a random order
UNEQUAL = 1.5  # times the mean: so large is the largest class where classes are unequal
LOST = 0.05  # a class of which no larger share is answered rightly is lost
FEW_OF_CLASS = 5  # images, of which nothing is said
ONE_SIDED = 0.95  # share of one class from which the numbers say little of the others
FEW = 100  # images on which an accuracy is known to no better than some ten points


@dataclass(frozen=True)
class Judged:
    """Answers held against labels: `largest` is the commonest label and `share` its share of the images, `recall` float64
    [K] the share of each class that is answered rightly (NaN for a class without images), `counts` the images per class."""

    images: int
    hits: int
    largest: int
    share: float
    counts: Classes
    recall: NDArray[np.float64]
    answered: Classes  # images that get each class as their answer [K]

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
        """The classes that have some images and hardly a right answer."""
        return tuple(np.flatnonzero((self.counts >= FEW_OF_CLASS) & (self.recall <= LOST)).tolist())

    @property
    def better_than_largest(self) -> bool:
        """Whether accuracy is above what always answering the largest class gives, by the binomial law."""
        return 1 - binomial_tail(self.hits - 1, self.images, self.share) <= LEVEL

    @property
    def knows_classes(self) -> bool:
        """Whether there are more hits than these answers have when the labels are shuffled; then the model knows something,
        though always answering the largest class may be right more often."""
        n, a, b = self.images, self.counts.astype(float), self.answered.astype(float)
        products = a * b
        spread = float((products * (n - a) * (n - b)).sum() + products.sum() ** 2 - (products**2).sum())
        if n < 2 or spread <= 0:
            return False
        return self.hits - products.sum() / n > SURE * math.sqrt(spread / (n**2 * (n - 1)))

    @property
    def tells_nothing(self) -> bool:
        """Whether there are so few images that even right answers for all of them could be luck."""
        return self.share**self.images > LEVEL


def judge(answers: Classes, labels: Classes, classes: int) -> Judged:
    """Hold answers against labels; `classes` is K."""
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[answers == labels], minlength=classes)
    recall = np.divide(hits, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    largest = int(counts.argmax())
    answered = np.bincount(answers, minlength=classes)
    return Judged(len(labels), int(hits.sum()), largest, counts[largest] / len(labels), counts, recall, answered)


def unequal(counts: Classes) -> bool:
    """Return whether the largest class is larger than the mean by UNEQUAL times and more than chance makes it."""
    total, classes = int(counts.sum()), len(counts)
    most = int(counts.max(initial=0))
    if classes < 2 or most < UNEQUAL * total / classes:
        return False
    return classes * (1 - binomial_tail(most - 1, total, 1 / classes)) <= LEVEL


def interval(hits: int, images: int, *, level: float = 0.05) -> tuple[float, float]:
    """Return the shares of right answers that so many hits may stand for (Clopper and Pearson), with confidence 1 -
    level."""
    return 1 - upper_share(images - hits, images, level / 2), upper_share(hits, images, level / 2)


def few_images(what: str, share: float, images: int) -> str | None:
    """Return what to say of a share measured on a handful of images; None where there are more."""
    if images >= FEW:
        return None
    low, high = interval(round(share * images), images)
    return (
        f"{what} {100 * share:.2f} % rests on {images} images: with 95 % confidence it is between {100 * low:.0f} and "
        f"{100 * high:.0f} %"
    )

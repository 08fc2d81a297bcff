"""Whether two networks have the same classes in the same order, told by their answers on the same images.

Letters: B images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from s2d_runtime.policies import SURE
from scipy.optimize import linear_sum_assignment

from s2d_convert.calibration.task import Array, Task

SHUFFLES = 20  # with which agreement by chance is estimated
OTHER_ORDER = 0.2  # agreement that another order of the classes must add to be named as the cause


@dataclass(frozen=True)
class Likeness:
    """How often two networks answer alike: `agreement`, `by_chance` (with the images of one of them shuffled), and `reordered`,
    the agreement at the best order of the classes; the number of images."""

    agreement: float
    by_chance: float
    reordered: float
    images: int

    @property
    def same_classes(self) -> bool:
        """Whether the agreement is clearly above chance."""
        spread = math.sqrt(self.by_chance * (1 - self.by_chance) / self.images)
        return self.agreement > self.by_chance + SURE * spread and self.agreement * self.images > 1

    @property
    def cause(self) -> str:
        """The likely cause where the agreement is not above chance, for a message."""
        if self.reordered > self.agreement + OTHER_ORDER:
            return f"its classes are in another order (in the best one it would be {100 * self.reordered:.1f} %)"
        return "its classes are probably in another order, or its preprocessing is another one"


def likeness(task: Task, first: Array, second: Array, *, classes: int) -> Likeness:
    """Compare two networks by their answers on the same images. classes: K."""
    rng = np.random.default_rng(0)
    chance = [task.agree(first, second[rng.permutation(len(second))]).mean() for _ in range(SHUFFLES)]
    agreement, images = float(task.agree(first, second).mean()), len(first)
    reordered = agreement if task.several else _reordered(first, second, classes)
    return Likeness(agreement, float(np.mean(chance)), reordered, images)


def _reordered(first: Array, second: Array, classes: int) -> float:
    """Return the share of equal answers at the best order of the classes of one network."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (first, second), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(first))

"""Careful thresholds for images that nobody has seen: how exits are judged on made-up images.

Textures are harder for a model than photographs: it is rarely sure of them, and a head on its features is right less
often at equal confidence. So what holds on them is a guess at what holds on real images, and `careful` does not
trust it alone. Two steps follow:

- a floor for every exit: no threshold lies below the confidence above which the exit agrees with the static model in
  AGREEMENT of the made-up images. Budgets cannot push a threshold below it; they are then not reached.
- shares of exits are counted on the images that the static model itself is sure of, as it is of most real ones.

Letters: S stages, B rows, K classes. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.dispatcher import Policy

from s2d_convert.calibration.task import ONE_CLASS, Task
from s2d_convert.calibration.thresholds import NEVER_LEAVES

AGREEMENT = 0.95
LEAST_EXITS = 20  # below that many rows an agreement says nothing
SURE, LEAST_SURE = 0.9, 50
SLACK = 1e-12  # shares are sums of many

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Classes = NDArray[np.integer[Any]]


def floors(
    confidence: Floats, agrees: Bools, static: Classes, *, classes: int, agreement: float = AGREEMENT
) -> tuple[float, ...]:
    """Return the lowest threshold of each exit, S - 1: rows of at least that confidence agree in the share `agreement`.

    confidence: [S, B], agrees: bool [S, B], static: int [B], the static model's class. NEVER_LEAVES where no LEAST_EXITS rows
    agree so well. Agreement that always saying the commonest class would have too is none: of rows whose largest class has the
    share c, 1 - `agreement` may disagree if c is 1 / `classes`, less if c is larger, and none if all are of one class.
    """
    pairs = zip(confidence[:-1], agrees[:-1], strict=True)
    return tuple(_floor(row, right, static, chance=1 / max(2, classes), agreement=agreement) for row, right in pairs)


def _floor(confidence: Floats, agrees: Bools, static: Classes, *, chance: float, agreement: float) -> float:
    known = np.flatnonzero(~np.isnan(confidence))
    order = known[np.argsort(-confidence[known], kind="stable")]
    values, right = confidence[order], agrees[order]
    count = np.arange(1, len(order) + 1)
    share, largest = np.cumsum(right) / count, _largest_class(static[order]) / count
    allowed = (1 - agreement) * np.minimum(1, (1 - largest) / (1 - chance))
    last_of_value = np.append(values[1:] < values[:-1], True) if len(values) else np.zeros(0, bool)
    agreeing = (1 - share <= allowed + SLACK) & (largest < 1)
    good = np.flatnonzero(agreeing & last_of_value & (count >= LEAST_EXITS))
    return float(values[good[-1]]) if len(good) else NEVER_LEAVES


def _largest_class(classes: Classes) -> NDArray[np.int64]:
    """Return how many of the first 1, 2, ..., B rows are of the class that is commonest among them."""
    order = np.argsort(classes, kind="stable")
    _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
    met = np.empty(len(classes), np.int64)  # how often the class of a row was met up to it
    met[order] = np.arange(1, len(classes) + 1) - np.repeat(starts, counts)
    return np.maximum.accumulate(met) if len(met) else met


def above(confidence: Floats, lowest: Sequence[float]) -> Floats:
    """Return the confidence with NaN, which never leaves, where it is below the floor of its exit; [S, B]."""
    limits = np.array([*lowest, -np.inf], dtype=confidence.dtype)[:, None]
    return np.where(confidence >= limits, confidence, np.asarray(np.nan, confidence.dtype))


def raised(policy: Policy, lowest: Sequence[float]) -> Policy:
    """Return the policy with no threshold below its floor: what it does on confidences that went through `above` stays."""
    return replace(policy, thresholds=tuple(max(t, f) for t, f in zip(policy.thresholds, lowest, strict=True)))


def sure_rows(static_logits: Floats, task: Task = ONE_CLASS) -> NDArray[np.int64]:
    """The rows on which the static model's confidence is at least SURE; all rows where these are too few."""
    sure = np.flatnonzero(task.confidence(static_logits, 1.0) >= SURE)
    return sure if len(sure) >= LEAST_SURE else np.arange(len(static_logits))

"""Careful thresholds without real images: how exits are judged on made-up images.

Textures are harder for a model than photographs: it is rarely confident on them, and at equal confidence an exit head is
right less often. So what holds on textures is only a guess at what holds on real images. This has two consequences:

- Every exit has a floor, the confidence above which it agrees with the static model on the share AGREEMENT of the made-up
  images. No threshold may be below it, even if a budget cannot be reached then.
- The shares of exits are counted on images on which the static model is confident, as it is on most real images.

Letters: S stages, B rows, K classes. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.dispatcher import Policy
from s2d_runtime.thresholds import NEVER_LEAVES

from s2d_convert.calibration.task import ONE_CLASS, Task

AGREEMENT = 0.95
LEAST_EXITS = 20  # with fewer rows, an agreement means nothing
SURE, LEAST_SURE = 0.9, 50
SLACK = 1e-12  # for rounding errors of the shares

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Classes = NDArray[np.integer[Any]]


def floors(
    confidence: Floats, agrees: Bools, static: Classes, *, classes: int, agreement: float = AGREEMENT
) -> tuple[float, ...]:
    """Return the lowest allowed threshold of each of the S - 1 exits.

    The rows of at least this confidence agree with the static model in the share `agreement`. It is NEVER_LEAVES for an exit
    at which no LEAST_EXITS rows agree so often. confidence: [S, B]; agrees: bool [S, B]; static: the static model's classes,
    int [B].

    Always answering the most frequent class must not count as agreement. So the share of rows that may disagree depends on c,
    the share of the most frequent class among them: it is 1 - `agreement` if c is 1 / `classes`, falls as c rises, and is 0 if
    all rows are of one class.
    """
    pairs = zip(confidence[:-1], agrees[:-1], strict=True)
    return tuple(_floor(row, right, static, chance=1 / max(2, classes), agreement=agreement) for row, right in pairs)


def _floor(confidence: Floats, agrees: Bools, static: Classes, *, chance: float, agreement: float) -> float:
    rows = np.flatnonzero(~np.isnan(confidence))
    order = rows[np.argsort(-confidence[rows], kind="stable")]
    values, right = confidence[order], agrees[order]
    count = np.arange(1, len(order) + 1)
    share, largest = np.cumsum(right) / count, _largest_class(static[order]) / count
    allowed = (1 - agreement) * np.minimum(1, (1 - largest) / (1 - chance))
    last_of_value = np.append(values[1:] < values[:-1], True) if len(values) else np.zeros(0, bool)
    agreeing = (1 - share <= allowed + SLACK) & (largest < 1)
    good = np.flatnonzero(agreeing & last_of_value & (count >= LEAST_EXITS))
    return float(values[good[-1]]) if len(good) else NEVER_LEAVES


def _largest_class(classes: Classes) -> NDArray[np.int64]:
    """Return how many of the first 1, 2, ..., B rows belong to the most frequent class among them, int64 [B]."""
    order = np.argsort(classes, kind="stable")
    _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
    seen = np.empty(len(classes), np.int64)  # occurrences of a row's class up to this row
    seen[order] = np.arange(1, len(classes) + 1) - np.repeat(starts, counts)
    return np.maximum.accumulate(seen) if len(seen) else seen


def above(confidence: Floats, lowest: Sequence[float]) -> Floats:
    """Return the confidence [S, B] with NaN, at which no image leaves, where it is below the floor of its exit."""
    limits = np.array([*lowest, -np.inf], dtype=confidence.dtype)[:, None]
    return np.where(confidence >= limits, confidence, np.asarray(np.nan, confidence.dtype))


def raised(policy: Policy, lowest: Sequence[float]) -> Policy:
    """Return the policy with thresholds raised to their floors. On confidences from `above`, its exits do not change."""
    return replace(policy, thresholds=tuple(max(t, f) for t, f in zip(policy.thresholds, lowest, strict=True)))


def sure_rows(static_logits: Floats, task: Task = ONE_CLASS) -> NDArray[np.int64]:
    """Return the rows on which the static model's confidence is at least SURE, or all rows if these are too few."""
    sure = np.flatnonzero(task.confidence(static_logits, 1.0) >= SURE)
    return sure if len(sure) >= LEAST_SURE else np.arange(len(static_logits))

"""Careful thresholds for images that nobody has seen: how exits are judged on made-up images.

Textures are harder for a model than photographs: it is rarely sure of them, and a head on its features is right less
often at equal confidence. So what holds on them is a careful guess at what holds on real images. Two steps follow:

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

from s2d_convert.calibration.thresholds import NEVER_LEAVES, softmax

AGREEMENT = 0.95
LEAST_EXITS = 20  # below that many rows an agreement says nothing
SURE, LEAST_SURE = 0.9, 50

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def floors(confidence: Floats, agrees: Bools, *, agreement: float = AGREEMENT) -> tuple[float, ...]:
    """Return the lowest threshold of each exit, S - 1: rows of at least that confidence agree in the share `agreement`.

    confidence: [S, B], agrees: bool [S, B]. NEVER_LEAVES where no LEAST_EXITS rows agree so well.
    """
    return tuple(_floor(row, right, agreement) for row, right in zip(confidence[:-1], agrees[:-1], strict=True))


def _floor(confidence: Floats, agrees: Bools, agreement: float) -> float:
    known = ~np.isnan(confidence)
    order = np.argsort(-confidence[known], kind="stable")
    values, right = confidence[known][order], agrees[known][order]
    share = np.cumsum(right) / np.arange(1, len(right) + 1)
    last_of_value = np.append(values[1:] < values[:-1], True) if len(values) else np.zeros(0, bool)
    good = np.flatnonzero((share >= agreement) & last_of_value & (np.arange(1, len(right) + 1) >= LEAST_EXITS))
    return float(values[good[-1]]) if len(good) else NEVER_LEAVES


def above(confidence: Floats, lowest: Sequence[float]) -> Floats:
    """Return the confidence with NaN, which never leaves, where it is below the floor of its exit; [S, B]."""
    limits = np.array([*lowest, -np.inf], dtype=confidence.dtype)[:, None]
    return np.where(confidence >= limits, confidence, np.asarray(np.nan, confidence.dtype))


def raised(policy: Policy, lowest: Sequence[float]) -> Policy:
    """Return the policy with no threshold below its floor: what it does on confidences that went through `above` stays."""
    return replace(policy, thresholds=tuple(max(t, f) for t, f in zip(policy.thresholds, lowest, strict=True)))


def sure_rows(static_logits: Floats) -> NDArray[np.int64]:
    """Return the rows on which the static model's largest probability is at least SURE; all rows where these are too
    few."""
    sure = np.flatnonzero(softmax(static_logits).max(axis=1) >= SURE)
    return sure if len(sure) >= LEAST_SURE else np.arange(len(static_logits))

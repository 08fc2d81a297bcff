"""Temperatures and confidences from saved logits; numpy only, no files, no clocks.

Thresholds are chosen by `s2d_runtime.thresholds`, whose names are here too: a device calibrates without this package.

Letters: S stages, B rows (images), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.thresholds import (
    ALWAYS_LEAVES,
    NEVER_LEAVES,
    best_policy,
    budget_grid,
    budgets_from,
    cheapest_policy,
    exits,
    observed,
    policy_at,
)

from s2d_convert.errors import DataError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
FITTED_NUMBERS = 2**21  # limit for the logits of labels that a temperature is fitted to

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

__all__ = [
    "ALWAYS_LEAVES",
    "NEVER_LEAVES",
    "best_policy",
    "budget_grid",
    "budgets_from",
    "cheapest_policy",
    "confidences",
    "exits",
    "fit_label_temperature",
    "fit_temperature",
    "label_confidence",
    "observed",
    "policy_at",
    "softmax",
]


# Temperatures


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Return the T in [0.05, 20] that minimises the mean negative log-likelihood of ``softmax(logits / T)``.

    logits: [B, K]; labels: int [B], the truth or the static model's answers. Rows with logits that are not finite are
    left out; without any row left, or where T makes no difference, T is 1. The likelihood is convex in 1/T, so Newton
    steps on log(1/T), kept inside a shrinking bracket, always end at the minimum. After Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, section 4.2.
    """
    margins = _margins(logits, labels)
    low, high = -float(np.log(MAX_TEMPERATURE)), -float(np.log(MIN_TEMPERATURE))
    if _slope(margins, low)[0] > 0:
        return MAX_TEMPERATURE
    if _slope(margins, high)[0] < 0:
        return MIN_TEMPERATURE
    log_inverse = 0.0  # log(1/T)
    for _ in range(100):
        slope, curvature = _slope(margins, log_inverse)
        if slope == 0:
            break
        low, high = (log_inverse, high) if slope < 0 else (low, log_inverse)
        wanted = log_inverse - slope / curvature if curvature > 0 else np.inf
        if not low < wanted < high:
            wanted = (low + high) / 2
        log_inverse, moved = wanted, abs(wanted - log_inverse)
        if moved < 1e-10:
            break
    return float(np.exp(-log_inverse))


def _margins(logits: Floats, labels: Integers) -> NDArray[np.float64]:
    """Return each logit minus its row's logit of the label, float64 [B', K], rows with finite logits only."""
    values, targets = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or targets.shape != values.shape[:1]:
        raise ValueError(
            f"logits {values.shape} and labels {targets.shape} do not belong together; expected [B, K], [B]"
        )
    if targets.size and not (targets.min() >= 0 and targets.max() < values.shape[1]):
        raise DataError(
            f"labels: got {targets.min()} to {targets.max()}, but the model has {values.shape[1]} classes; "
            f"labels must lie in 0 to {values.shape[1] - 1}"
        )
    finite = np.isfinite(values).all(axis=1)
    values, targets = values[finite], targets[finite]
    return values - np.take_along_axis(values, targets[:, None].astype(np.int64), axis=1)


def _slope(margins: NDArray[np.float64], log_inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean loss by `log_inverse` = log(1/T)."""
    if not margins.size:
        return 0.0, 0.0
    scale = float(np.exp(log_inverse))
    weights = np.exp(scale * (margins - margins.max(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * margins).sum(axis=1)
    spread = (weights * np.square(margins - mean[:, None])).sum(axis=1)
    slope = scale * float(mean.mean())
    return slope, slope + scale**2 * float(spread.mean())


def fit_label_temperature(logits: Floats, labels: Integers) -> float:
    """Return the T in [0.05, 20] that minimises the mean negative log-likelihood of ``sigmoid(logits / T)`` over all labels.

    logits: [B, K]; labels: 0 or 1 [B, K]. If there are more than FITTED_NUMBERS, evenly spaced rows are used.
    """
    if np.ndim(logits) != 2 or np.shape(logits) != np.shape(labels):
        raise ValueError(f"logits {np.shape(logits)} and labels {np.shape(labels)} do not belong together")
    step = max(1, math.ceil(np.size(logits) / FITTED_NUMBERS))
    flat = np.asarray(logits[::step], dtype=np.float64).ravel()
    return fit_temperature(np.stack([np.zeros_like(flat), flat], axis=1), np.asarray(labels[::step]).ravel())


def softmax(logits: Floats) -> Floats:
    """Return probabilities [B, K]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def confidences(logits: Floats, temperatures: Sequence[float] | Floats) -> NDArray[np.float32]:
    """Return the maximum of ``softmax(logits[k] / temperatures[k])``, float32 [S, B]; NaN where a logit is NaN.

    logits: [S, B, K]; temperatures: S positive numbers.
    """
    if np.ndim(logits) != 3 or len(logits) != len(temperatures):
        raise ValueError(f"logits {np.shape(logits)} and {len(temperatures)} temperatures; expected [S, B, K] and S")
    result = np.empty(np.shape(logits)[:2], dtype=np.float32)
    for stage, temperature in enumerate(temperatures):
        if not temperature > 0:
            raise ValueError(f"stage {stage + 1}: got the temperature {temperature}; expected a positive number")
        scaled = np.asarray(logits[stage], dtype=np.float64) / temperature
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is the answer
            result[stage] = 1 / np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)
    return result


def label_confidence(logits: Floats, temperature: float) -> NDArray[np.float32]:
    """Return the confidence of the least confident label: the smallest max(p, 1 - p) at the temperature, float32 [B].

    logits: [B, K]. It is NaN where a logit is NaN.
    """
    if not temperature > 0:
        raise ValueError(f"got the temperature {temperature}; expected a positive number")
    least = np.abs(np.asarray(logits, dtype=np.float64)).min(axis=1) / temperature
    return (1 / (1 + np.exp(-least))).astype(np.float32)

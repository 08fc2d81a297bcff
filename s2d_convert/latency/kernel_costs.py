"""What each kind of kernel costs on one machine, fitted to measured latencies.

The model of a latency is linear: the sum over the kinds of work (`kernels.work_of`) of amount times cost. The costs are
non-negative and minimise the weighted squared relative error, where outliers count less.

Letters: F measured files, Q kinds of work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from s2d_convert.base.arrays import Array
from s2d_convert.latency.kernels import Work, without_geometry

RIDGE = 0.1  # strength of the pull to zero, in units of what a kind of work costs in the mean file
REWEIGHTINGS = 4
TYPICAL_ERROR = 0.02  # beyond this relative error a measurement counts less


@dataclass(frozen=True)
class KernelCosts:
    """The cost of one unit of every kind of work, whatever its geometry; a handful of measurements is enough to fit them."""

    costs: Mapping[str, float]

    @staticmethod
    def fit(work: Sequence[Work], ratios: Sequence[float]) -> KernelCosts:
        """Fit the costs to the latencies of F files, relative to static."""
        pooled = [_pooled(one) for one in work]
        keys = sorted({key for one in pooled for key in one})
        amounts = np.array([[one.get(key, 0.0) for key in keys] for one in pooled])
        return KernelCosts(dict(zip(keys, fit_costs(amounts, np.asarray(ratios)).tolist(), strict=True)))

    def predict(self, work: Work) -> float:
        """Return the latency of a model that does this work, relative to static; kinds that no fitted file had cost nothing."""
        return sum(amount * self.costs.get(key, 0.0) for key, amount in _pooled(work).items())


def _pooled(work: Work) -> dict[str, float]:
    pooled: dict[str, float] = defaultdict(float)
    for key, amount in work.items():
        pooled[without_geometry(key)] += amount
    return pooled


def fit_costs(amounts: Array, ratios: Array) -> Array:
    """Return the non-negative costs, float64 [Q], with the least weighted squared relative error over the F files."""
    relative = amounts / ratios[:, None]
    scale = np.maximum(relative.mean(axis=0), 1e-12)
    scaled = relative / scale
    weights, costs = np.ones(len(ratios)), np.zeros(amounts.shape[1])
    for _ in range(REWEIGHTINGS):
        costs = _nonnegative(scaled * weights[:, None], weights, ridge=RIDGE)
        errors = np.abs(scaled @ costs - 1)
        weights = np.sqrt(TYPICAL_ERROR / np.maximum(errors, TYPICAL_ERROR))
    return costs / scale


def _nonnegative(matrix: Array, target: Array, *, ridge: float) -> Array:
    """Return the x >= 0 that minimises |matrix x - target|^2 + |ridge x|^2."""
    columns = matrix.shape[1]
    x, _ = nnls(np.vstack([matrix, ridge * np.eye(columns)]), np.concatenate([target, np.zeros(columns)]))
    return np.asarray(x)

"""The kernel costs of one device, fitted to the measurements in its board file, to predict latencies without the device.

The device measured about a hundred stage files of the model (`s2d_runtime.profile`). `kernels.work_of` counts the work of
every kind in each file, `kernel_costs` fits what each kind costs.

Letters: F files, Q kinds of work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from s2d_convert.base.arrays import Array
from s2d_convert.errors import UsageError
from s2d_convert.latency.board import Board, read_board
from s2d_convert.latency.kernel_costs import fit_costs
from s2d_convert.latency.kernels import Work, without_geometry, work_of
from s2d_convert.latency.layout import LEAST_BLOCK
from s2d_convert.latency.meter import Timing

FOLDS = 5


@dataclass(frozen=True)
class PredictionError:
    """Relative errors of predictions: the median, the 90th percentile and the maximum."""

    median: float
    p90: float
    most: float

    def __str__(self) -> str:
        return f"median {100 * self.median:.1f} %, 90th percentile {100 * self.p90:.1f} %, most {100 * self.most:.1f} %"


@dataclass(frozen=True)
class Table:
    """The costs of a board's kinds of work, relative to the static model's latency, float64 [Q].

    A second set of costs ignores the geometry. It serves work whose geometry is in no measured file.
    """

    board: Board
    costs: Mapping[str, float]
    coarse: Mapping[str, float]

    @property
    def block(self) -> int:
        """The width of channel groups that suits the device's kernels."""
        return max(LEAST_BLOCK, self.board.layout_block)

    def predict(self, work: Work) -> float:
        """Return the latency of a model that does this work, relative to the static model's on the device."""
        return sum(amount * self.cost(key) for key, amount in work.items())

    def cost(self, key: str) -> float:
        """Return the cost of one unit of a kind of work, 0 for kinds that are in no measured file with any geometry."""
        return self.costs[key] if key in self.costs else self.coarse.get(without_geometry(key), 0.0)

    def measure(self, models: Sequence[bytes]) -> Timing:
        """Return the prediction of what `Meter.measure` would return for these stages on the device."""
        work = [work_of(onnx.load_from_string(m), block=self.board.layout_block) for m in models]
        ratios = tuple(map(self.predict, work))
        return Timing(tuple(r * self.board.static_ms for r in ratios), self.board.static_ms, ratios)

    @cached_property
    def held_out_error(self) -> PredictionError:
        """The cross-validated error: every file is predicted with costs that were fitted without it."""
        board, predicted = self.board, np.zeros(len(self.board.ratios))
        folds = np.random.default_rng(0).permutation(len(predicted)) % FOLDS
        for fold in range(FOLDS):
            held_out = folds == fold
            costs = fit_costs(board.amounts[~held_out], board.ratios[~held_out])
            predicted[held_out] = board.amounts[held_out] @ costs
        return prediction_error(predicted, board.ratios)


def prediction_error(predicted: Array, measured: Array) -> PredictionError:
    """Return a summary of the relative errors of predictions [F] against measurements [F]."""
    errors = np.abs(predicted / measured - 1)
    return PredictionError(float(np.median(errors)), float(np.percentile(errors, 90)), float(errors.max()))


def fit(board: Board) -> Table:
    """Fit the costs to a board's measurements."""
    costs = dict(zip(board.keys, fit_costs(board.amounts, board.ratios).tolist(), strict=True))
    kinds = sorted({without_geometry(key) for key in board.keys})
    pooled = np.zeros((len(board.ratios), len(kinds)))
    for column, key in enumerate(board.keys):
        pooled[:, kinds.index(without_geometry(key))] += board.amounts[:, column]
    return Table(board, costs, dict(zip(kinds, fit_costs(pooled, board.ratios).tolist(), strict=True)))


# --- the file ---------------------------------------------------------------------------------------------


def read_table(path: Path, *, model: Path, model_sha256: str, threads: int, batch: int) -> Table:
    """Return the table that is fitted to a board file. Raises UsageError where the file is no board file, or was measured
    for another model, number of threads or batch size."""
    board = read_board(path)
    if board.model.sha256 != model_sha256:
        raise UsageError(
            f"--latency {path}: measured for the model {board.model.name}, which is not the file {model}; "
            "make a kit of this model with s2d profile"
        )
    for name, stands_for, asked in (("threads", board.threads, threads), ("batch", board.batch, batch)):
        if stands_for != asked:
            raise UsageError(
                f"--latency {path}: stands for {name} {stands_for}, got --{name} {asked}; "
                f"give --{name} {stands_for}, or profile the device with --{name} {asked}"
            )
    return fit(board)

"""First chains for a row of latencies: how much of every class to keep, by dynamic programming.

Every class and level has an error (the score of the best unit that is left out, see `training.reconstruction.selection`) and a
cost (the latency that the chain has with it, all other classes being what they are in a reference plan). Errors add up to first
order; costs do so near the reference, so the allocation is repeated around a plan that it has found. It is a knapsack with one
choice per class (compare SPDY: Frantar & Alistarh, ICML 2022), solved exactly for all budgets in one table.

Letters: D classes that can be divided, L levels of a class, T budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.plans.divisions import Division
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.space import CASCADE, PlanSpace

Levels = tuple[int, ...]  # groups that are kept, per division
BINS = 500  # of the costs between the least and the most, which are then right to 0.2 %
BUDGETS = tuple(np.linspace(0.1, 0.95, 18).tolist())  # relative to the cost of the whole chain


@dataclass(frozen=True)
class Allocated:
    """One allocation: its levels, the predicted latency of the chain, and the predicted error."""

    levels: Levels
    latency: float
    error: float


def level_errors(division: Division, score: Array, *, left_out: float | None = None) -> tuple[float, ...]:
    """Return the error of every level of a class, from none of its groups to all: the score of the best unit that is left out.

    left_out: the error without the class, where it is known better than by the scores. A residual block whose inner class is
    left out vanishes, and the block before it can add a part of what it added, which the scores do not know.
    """
    best = [max(float(score[u]) for u in chunk) for chunk in division.chunks]
    errors = [max(best[level:]) for level in range(division.levels)]
    if left_out is not None and len(errors) > 1:
        errors[0] = max(errors[1], left_out)
    return (*errors, 0.0)


def vanishing(model: AnalysedModel, divisions: Sequence[Division]) -> list[int]:
    """Return the indices of the classes that a stage can do without, and with which all layers that read them vanish."""
    return [i for i, division in enumerate(divisions) if division.optional and _is_inner(model, division)]


def _is_inner(model: AnalysedModel, division: Division) -> bool:
    """Return whether all layers that read a class read nothing else, so that they vanish with it."""
    units, layouts = np.array(division.group.units), model.channels.layouts
    for node in model.graph.nodes:
        if model.kind(node) is Kind.MIX and node.inputs[0] in layouts:
            belongs = np.isin(layouts[node.inputs[0]].units, units)
            if belongs.any() and not belongs.all():
                return False
    return True


def knapsack(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budgets: Sequence[float]
) -> list[Levels]:
    """Return for every budget the choice per class with the least sum of errors whose costs add up to the budget at most.

    errors, costs: one row per class, one number per choice; infinite errors are never chosen while there is another choice.
    Costs are rounded up to 1/BINS of their range, so a budget is never exceeded. Budgets that nothing keeps get the cheapest
    choice.
    """
    least = sum(min(row) for row in costs)
    step = max((sum(max(row) for row in costs) - least) / BINS, 1e-12)
    bins = [[int(np.ceil((c - min(row)) / step - 1e-9)) for c in row] for row in costs]
    size = 1 + sum(max(row) for row in bins)
    table, chosen = np.zeros(size), []
    for row, taken in zip(errors, bins, strict=True):
        options = np.full((len(row), size), np.inf)
        for level, (error, cost) in enumerate(zip(row, taken, strict=True)):
            options[level, cost:] = table[: size - cost] + error
        chosen.append(options.argmin(0))
        table = options.min(0)
    result = []
    for budget in budgets:
        at = int(np.clip(np.floor((budget - least) / step + 1e-9), 0, size - 1))
        levels: list[int] = []
        for row_chosen, taken in zip(reversed(chosen), reversed(bins), strict=True):
            levels.append(int(row_chosen[at]))
            at -= taken[levels[-1]]
        result.append(tuple(reversed(levels)))
    return result


class Allocation:
    """The allocations of a space of pairs: chains of one stage that end at the last tap, before the untouched model.

    score: [U], as `data_importance` gives it. latency: predicts the latency of a chain of one stage, relative to static.
    left_out: errors without a class that are known better, by its index.
    """

    def __init__(
        self,
        space: PlanSpace,
        score: Array,
        latency: Callable[[Plan], float],
        *,
        left_out: Mapping[int, float] | None = None,
    ) -> None:
        self.space, self._predict = space, latency
        known = left_out or {}
        self.errors = [level_errors(d, score, left_out=known.get(i)) for i, d in enumerate(space.divisions)]
        self.full: Levels = tuple(d.levels for d in space.divisions)
        self._latencies: dict[Levels, float] = {}

    def latency(self, levels: Levels) -> float:
        """Return the predicted latency of a chain with these levels."""
        if levels not in self._latencies:
            actions = self.space.nearest(CASCADE, [len(self.space.taps) - 1], [levels])
            self._latencies[levels] = self._predict(self.space.decode(actions).chains[0])
        return self._latencies[levels]

    def best(self, *, rounds: int = 2) -> tuple[Allocated, ...]:
        """Return allocations from the slowest to the fastest: those of all rounds that no other one beats in both numbers."""
        reference, allocations = self.full, {self.full: self._allocated(self.full)}
        for _ in range(rounds):
            budgets = [share * self.latency(self.full) for share in BUDGETS]
            for levels in knapsack(self._allowed_errors(), self._costs(reference), budgets):
                allocations[levels] = self._allocated(levels)
            reference = min(
                allocations, key=lambda levels: abs(allocations[levels].latency - 0.5 * self.latency(self.full))
            )
        return _efficient(allocations.values())

    def _allocated(self, levels: Levels) -> Allocated:
        error = sum(row[level] for row, level in zip(self.errors, levels, strict=True))
        return Allocated(levels, self.latency(levels), error)

    def _allowed_errors(self) -> list[Sequence[float]]:
        return [
            row if division.optional else (np.inf, *row[1:])
            for row, division in zip(self.errors, self.space.divisions, strict=True)
        ]

    def _costs(self, reference: Levels) -> list[list[float]]:
        """Return the latency by class and level around a reference, of which every class but the first pays only its
        difference."""
        base = self.latency(reference)
        rows = []
        for index, division in enumerate(self.space.divisions):
            row = []
            for level in range(division.levels + 1):
                if level == 0 and not division.optional:
                    level = 1
                row.append(self.latency((*reference[:index], level, *reference[index + 1 :])) - base)
            rows.append(row)
        rows[0] = [cost + base for cost in rows[0]]
        return rows


def _efficient(allocations: Iterable[Allocated]) -> tuple[Allocated, ...]:
    """Return those that no other one beats in latency and error, from the slowest to the fastest."""
    kept: list[Allocated] = []
    for one in sorted(allocations, key=lambda a: (a.latency, a.error)):
        if not kept or one.error < kept[-1].error - 1e-12:
            kept.append(one)
    return tuple(reversed(kept))

"""Thresholds from confidences: the policy that is most often right within a budget, or the cheapest that is right often enough.

numpy only, no files, no clocks. The converter and the calibration on a device (`calibrate`) both choose with this module, so
that equal costs and answers give equal thresholds everywhere.

Letters: S stages, B rows (images), L candidate thresholds of one stage.

Who leaves where is asked of `leaves`, the only exit rule; what is computed here for many thresholds at once agrees with
it. `correct` may mean agreement with the static model; nothing here asks which. It may also be how often an answer is
expected to be right (`expected`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import DispatcherError, Policy, histogram, leaves

ALWAYS_LEAVES = 0.0  # the threshold at which every row leaves
NEVER_LEAVES = 1.01  # the threshold that no confidence reaches
SLACK = 1e-9  # by how much a mean latency may pass the budget: float rounding, no more
TOLD_APART = 0.005  # budgets closer than this look the same in tables
GRID_CELLS = 2**18  # combinations of thresholds that are looked at in one go

Floats = NDArray[np.floating[Any]]
Correct = NDArray[np.bool_] | NDArray[np.float64]
Key = tuple[bool, float, float]  # what makes one policy better than another; greater is better


def exits(confidence: Floats, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Return the stage (0-based) at which every row leaves, [B]; confidence: [S, B], thresholds: S - 1."""
    limits = np.asarray(thresholds, dtype=np.float32)
    if len(limits) != len(confidence) - 1:
        raise ValueError(f"{len(limits)} thresholds for {len(confidence)} stages; expected one for each but the last")
    sure = np.asarray(confidence, dtype=np.float32)
    leaving = [leaves(row, limit) for row, limit in zip(sure, limits, strict=False)]
    stage: NDArray[np.int64] = np.stack([*leaving, np.ones(sure.shape[1], dtype=bool)]).argmax(axis=0)
    return stage


def policy_at(
    confidence: Floats, correct: Correct, *, cost: Sequence[float], budget: float, thresholds: Sequence[float]
) -> Policy:
    """Return the policy with given thresholds, as measured on these rows (see `best_policy` for the arguments)."""
    paid = np.cumsum(_checked(confidence, correct, cost))
    stage = exits(confidence, thresholds)
    rows = stage.size
    counts = np.bincount(stage, minlength=len(paid))
    latency = float(counts @ paid) / rows
    hits = float(np.asarray(correct, dtype=np.float64)[stage, np.arange(rows)].sum())
    share = tuple((counts / rows).tolist())
    return Policy(budget, tuple(map(float, thresholds)), latency, hits / rows, share, latency <= budget + SLACK)


def observed(policy: Policy, confidence: Floats, as_last: NDArray[np.bool_]) -> Policy:
    """Return the policy with what else it does on these rows: how often its answer is not the last stage's, and the histogram of
    confidence of the rows that reach each stage. confidence: [S, B]; as_last: bool [S, B], where a stage answers as the
    last one does."""
    stage = exits(confidence, policy.thresholds)
    parted = ~as_last[stage, np.arange(stage.size)]
    counts = tuple(tuple(histogram(row[stage >= k]).tolist()) for k, row in enumerate(confidence))
    return replace(policy, disagreement=float(parted.mean()), confidence_histogram=counts)


def best_policy(confidence: Floats, correct: Correct, *, cost: Sequence[float], budget: float) -> Policy:
    """Return the policy with the highest accuracy whose mean cost is within the budget; at equal accuracy the cheaper one.

    confidence: [S, B] in [0, 1] or NaN; correct: [S, B], whether, or how often, a stage is right; cost[k]: latency of
    stage k alone relative to the static model, so that a row that leaves at stage k pays cost[0] + ... + cost[k]. Where even the
    cheapest thresholds miss the budget they are returned with `reached` False.

    1. Candidates: per stage 0, NEVER_LEAVES and the middles between neighbouring distinct confidences (`_candidates`).
    2. Grid: all combinations of at most GRID_CELLS evenly spread candidates at once (`_tables`).
    3. Zoom: the same around the best cell, until neighbours are looked at. With two stages, or few rows, step 2 has all
       combinations already and the result is the optimum.
    4. Sweep: one stage's threshold at a time, over all its candidates, until nothing improves.
    """
    thresholds = _solution(_problem(confidence, correct, cost, budget))
    return policy_at(confidence, correct, cost=cost, budget=budget, thresholds=thresholds)


def cheapest_policy(confidence: Floats, correct: Correct, *, cost: Sequence[float], least_right: float) -> Policy:
    """Return the policy with the lowest mean cost of which at least the share `least_right` of the answers is right.

    Found as by `best_policy`, whose arguments these are. Its budget is its own mean cost, rounded up to three digits. Where no
    thresholds are right so often, those that are most often right are returned with `reached` False.
    """
    problem = _problem(confidence, correct, cost, math.inf)
    thresholds = _solution(replace(problem, least_hits=least_right * problem.confidence.shape[1]))
    found = policy_at(confidence, correct, cost=cost, budget=1.0, thresholds=thresholds)
    budget = min(1.0, math.ceil(found.expected_latency * 1000 - 1e-6) / 1000)
    reached = found.expected_accuracy >= least_right - SLACK and found.expected_latency < 1
    return replace(found, budget=budget, reached=reached)


def _solution(problem: _Problem) -> list[float]:
    picked = _sweep(problem, _zoom(problem))
    return [float(c[i]) for c, i in zip(problem.candidates, picked, strict=True)]


def budget_grid(
    confidence: Floats, cost: Sequence[float], *, step: float = 0.05, include: Iterable[float] = ()
) -> tuple[float, ...]:
    """Return budgets from the cheapest reachable one (rounded up to 3 digits) over the multiples of `step` to 1.0.

    `include` adds budgets of the caller's, reachable or not. Where nothing below 1.0 is within reach: 1.0 and these.
    """
    never = np.zeros(np.shape(confidence), dtype=bool)
    thresholds = [ALWAYS_LEAVES] * (len(confidence) - 1)
    cheapest = policy_at(confidence, never, cost=cost, budget=1.0, thresholds=thresholds).expected_latency
    return budgets_from(cheapest, step=step, include=include)


def budgets_from(cheapest: float, *, step: float = 0.05, include: Iterable[float] = ()) -> tuple[float, ...]:
    """Return the `budget_grid` where the mean latency of the cheapest policy is known."""
    if not 0 < step <= 1:
        raise ValueError(f"budget_grid: step {step} is not in (0, 1]")
    first = float(np.ceil(cheapest * 1000 - 1e-6)) / 1000
    multiples = (round(i * step, 6) for i in range(1, int(1 / step) + 1))
    grid = {first, *(m for m in multiples if m - first > TOLD_APART)} if first < 1 else set()
    return tuple(sorted({b for b in grid if b < 1} | {1.0} | set(include)))


@dataclass(frozen=True)
class _Problem:
    """Thresholds to choose: what the steps of `best_policy` share.

    confidence: float32 [S - 1, B], NaN as -1; gain: float64 [S - 1, B], gain[k] is 1 (-1) where going on from stage k to k + 1
    mends (spoils) the answer, or how often it can be expected to; first: rows that stage 0 gets right; cost: [S]; candidates:
    S - 1 ascending arrays of thresholds. With `least_hits` the lowest cost with so many right answers is looked for, without
    it the most right answers within the budget.
    """

    confidence: NDArray[np.float32]
    gain: NDArray[np.float64]
    first: float
    cost: NDArray[np.float64]
    candidates: tuple[NDArray[np.float32], ...]
    budget: float
    least_hits: float | None = None


def _checked(confidence: Floats, correct: Correct, cost: Sequence[float]) -> NDArray[np.float64]:
    """Return the cost as an array, once shapes and values are sound."""
    prices = np.asarray(cost, dtype=np.float64)
    shape = np.shape(confidence)
    if len(shape) != 2 or np.shape(correct) != shape or prices.shape != shape[:1] or not shape[0]:
        got = f"confidence {shape}, correct {np.shape(correct)}, cost {prices.shape}"
        raise ValueError(f"policy: got {got}; expected [S, B], [S, B], [S]")
    if not shape[1]:
        raise DispatcherError("calibration: got no image; thresholds need at least one, some hundreds to be of use")
    if not (np.isfinite(prices).all() and (prices >= 0).all()):
        raise ValueError(f"policy: got the cost {prices.tolist()}; expected finite values of at least 0")
    return prices


def _problem(confidence: Floats, correct: Correct, cost: Sequence[float], budget: float) -> _Problem:
    prices = _checked(confidence, correct, cost)
    early = np.asarray(confidence, dtype=np.float32)[:-1]
    sound = np.isnan(early) | ((early >= 0) & (early <= 1))
    if not sound.all():
        raise ValueError(f"policy: got the confidence {early[~sound][0]}; expected 0 to 1 or NaN")
    early = np.where(np.isnan(early), np.float32(-1), early)
    right = np.asarray(correct, dtype=np.float64)
    candidates = tuple(_candidates(row) for row in early)
    return _Problem(early, np.diff(right, axis=0), float(right[0].sum()), prices, candidates, float(budget))


def _candidates(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return all thresholds of one stage that differ in what they do, ascending, float32.

    They lie midway between neighbouring confidences, so that the last bit of a confidence, which depends on machine and
    batch size, decides nothing; each is a float32 above its lower neighbour, because that is how the runtime compares.
    """
    values = np.unique(confidence[confidence >= 0])
    low, high = values[:-1], values[1:]
    middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
    middle = np.where(middle > low, middle, high)
    return np.concatenate([[np.float32(ALWAYS_LEAVES)], middle, [np.float32(NEVER_LEAVES)]]).astype(np.float32)


def _tables(
    problem: _Problem, thresholds: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows that are right, and mean cost, for all combinations of ascending thresholds, each [L_1, ..., L_(S-1)].

    A row reaches stage k + 1 when every earlier threshold is above its confidence. So the number of those rows, for all
    combinations at once, is the cumulative histogram of the rows over the bins that the thresholds make; every row that
    goes on pays cost[k + 1] and brings gain[k].
    """
    rows = problem.confidence.shape[1]
    hits, cost = np.array(problem.first), np.array(problem.cost[0])
    cell = np.zeros(rows, dtype=np.int64)
    shape: tuple[int, ...] = ()
    for k, row in enumerate(thresholds):
        bins = np.searchsorted(row, problem.confidence[k], side="right")  # stays at threshold i iff bins <= i
        cell = cell * (len(row) + 1) + bins
        shape = (*shape, len(row) + 1)
        reach = _cumulative(np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape))
        gained = np.bincount(cell, weights=problem.gain[k], minlength=int(np.prod(shape)))
        cost = cost[..., None] + problem.cost[k + 1] / rows * reach
        hits = hits[..., None] + _cumulative(gained.reshape(shape))
    return hits, cost


def _cumulative(table: NDArray[Any]) -> NDArray[Any]:
    """Return sums up to every index, along all axes; without an axis's last bin (rows that leave at every threshold)."""
    for axis in range(table.ndim):
        table = np.cumsum(table, axis=axis)
    return table[(slice(None, -1),) * table.ndim]


def _best_cell(problem: _Problem, thresholds: Sequence[NDArray[np.float32]]) -> tuple[tuple[int, ...], Key]:
    """Return indices of the best combination and how good it is.

    Better is within the budget, then more right answers, then lower cost; with `least_hits`: enough right answers, then lower
    cost, then more of them.
    """
    hits, cost = _tables(problem, thresholds)
    if problem.least_hits is not None:
        return _cheapest_cell(hits, cost, problem.least_hits)
    fits = cost <= problem.budget + SLACK
    reached = bool(fits.any())
    if reached:
        cost_of_best = np.where(fits & (hits == hits[fits].max()), cost, np.inf)
        flat = int(cost_of_best.argmin())
    else:
        flat = int(np.where(cost == cost.min(), hits, -np.inf).argmax())
    place = tuple(int(i) for i in np.unravel_index(flat, hits.shape))
    merits = (float(hits[place]), -float(cost[place]))
    return place, (reached, *(merits if reached else merits[::-1]))


def _cheapest_cell(
    hits: NDArray[np.float64], cost: NDArray[np.float64], least_hits: float
) -> tuple[tuple[int, ...], Key]:
    fits = hits >= least_hits - SLACK
    reached = bool(fits.any())
    if reached:
        cheap = np.where(fits, cost, np.inf)
        flat = int(np.where(cheap == cheap.min(), hits, -np.inf).argmax())
    else:
        flat = int(np.where(hits == hits.max(), cost, np.inf).argmin())
    place = tuple(int(i) for i in np.unravel_index(flat, hits.shape))
    merits = (-float(cost[place]), float(hits[place]))
    return place, (reached, *(merits if reached else merits[::-1]))


def _zoom(problem: _Problem) -> tuple[int, ...]:
    """Return indices into the candidates of a good combination: grids that close in on the best cell."""
    tops = [len(c) - 1 for c in problem.candidates]
    size = max(3, round(GRID_CELLS ** (1 / len(tops)))) if len(tops) > 1 else max(tops, default=0) + 1
    low, high, best = [0] * len(tops), tops, (0,) * len(tops)
    while True:
        picks = [
            np.unique([*np.linspace(a, b, min(size, b - a + 1)).round().astype(np.int64), i])
            for a, b, i in zip(low, high, best, strict=True)
        ]
        place, _key = _best_cell(problem, [c[p] for c, p in zip(problem.candidates, picks, strict=True)])
        best = tuple(int(p[i]) for p, i in zip(picks, place, strict=True))
        steps = [max(1, int(np.diff(p).max(initial=0))) for p in picks]
        if all(step == 1 for step in steps):
            break
        low = [max(0, i - 2 * step) for i, step in zip(best, steps, strict=True)]
        high = [min(top, i + 2 * step) for i, step, top in zip(best, steps, tops, strict=True)]
    return best


def _sweep(problem: _Problem, picked: tuple[int, ...]) -> tuple[int, ...]:
    """Return indices after exact searches along one stage at a time; never worse than those given."""
    best, best_key = picked, _best_cell(problem, _around(problem, picked, stage=None))[1]
    improved = True
    while improved:
        improved = False
        for stage in range(len(picked)):
            place, key = _best_cell(problem, _around(problem, best, stage=stage))
            if key > best_key:
                best, best_key, improved = (*best[:stage], place[stage], *best[stage + 1 :]), key, True
    return best


def _around(problem: _Problem, picked: tuple[int, ...], *, stage: int | None) -> list[NDArray[np.float32]]:
    """Return the picked threshold of every stage, but all candidates of `stage`."""
    chosen = enumerate(zip(problem.candidates, picked, strict=True))
    return [c if k == stage else c[i : i + 1] for k, (c, i) in chosen]

"""Temperatures and thresholds from saved logits; numpy only, no files, no clocks.

Letters: S stages, B rows (images), K classes, L candidate thresholds of one stage.

Who leaves where is asked of `s2d_runtime.leaves`, the only exit rule; what is computed here for many thresholds at once
agrees with it. `correct` may mean agreement with the static model; nothing here asks which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from s2d_runtime import Policy, histogram, leaves

from s2d_convert.errors import DataError

ALWAYS_LEAVES = 0.0  # the threshold at which every row leaves
NEVER_LEAVES = 1.01  # the threshold that no confidence reaches
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
SLACK = 1e-9  # by how much a mean latency may pass the budget: float rounding, no more
TOLD_APART = 0.005  # budgets closer than this look the same in tables
FITTED_NUMBERS = 2**21  # logits of labels that a temperature is fitted to
GRID_CELLS = 2**18  # combinations of thresholds that are looked at in one go

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Key = tuple[bool, float, float]  # what makes one policy better than another; greater is better


# Temperatures


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """The T in [0.05, 20] that minimises the mean negative log-likelihood of ``softmax(logits / T)``.

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
    place = 0.0
    for _ in range(100):
        slope, curvature = _slope(margins, place)
        if slope == 0:
            break
        low, high = (place, high) if slope < 0 else (low, place)
        wanted = place - slope / curvature if curvature > 0 else np.inf
        if not low < wanted < high:
            wanted = (low + high) / 2
        place, moved = wanted, abs(wanted - place)
        if moved < 1e-10:
            break
    return float(np.exp(-place))


def _margins(logits: Floats, labels: Integers) -> NDArray[np.float64]:
    """Each logit minus its row's logit of the label, float64 [B', K], rows with finite logits only."""
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


def _slope(margins: NDArray[np.float64], place: float) -> tuple[float, float]:
    """First and second derivative of the mean loss by `place` = log(1/T)."""
    if not margins.size:
        return 0.0, 0.0
    scale = float(np.exp(place))
    weights = np.exp(scale * (margins - margins.max(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * margins).sum(axis=1)
    spread = (weights * np.square(margins - mean[:, None])).sum(axis=1)
    slope = scale * float(mean.mean())
    return slope, slope + scale**2 * float(spread.mean())


def fit_label_temperature(logits: Floats, labels: Integers) -> float:
    """The same for labels, each given or not: the T that makes ``sigmoid(logits / T)`` likeliest, mean over all labels.

    logits: [B, K]; labels: 0 or 1 [B, K]. Of very many numbers evenly spaced rows are taken.
    """
    if np.ndim(logits) != 2 or np.shape(logits) != np.shape(labels):
        raise ValueError(f"logits {np.shape(logits)} and labels {np.shape(labels)} do not belong together")
    step = max(1, math.ceil(np.size(logits) / FITTED_NUMBERS))
    flat = np.asarray(logits[::step], dtype=np.float64).ravel()
    return fit_temperature(np.stack([np.zeros_like(flat), flat], axis=1), np.asarray(labels[::step]).ravel())


def softmax(logits: Floats) -> Floats:
    """Probabilities [B, K]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def confidences(logits: Floats, temperatures: Sequence[float] | Floats) -> NDArray[np.float32]:
    """Maximum of ``softmax(logits[k] / temperatures[k])``, float32 [S, B]; NaN where a logit is NaN.

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
    """How sure logits [B, K] are of the least sure label, the smallest of max(p, 1 - p) at the temperature, float32 [B];
    NaN where a logit is NaN."""
    if not temperature > 0:
        raise ValueError(f"got the temperature {temperature}; expected a positive number")
    least = np.abs(np.asarray(logits, dtype=np.float64)).min(axis=1) / temperature
    return (1 / (1 + np.exp(-least))).astype(np.float32)


# Policies


def exits(confidence: Floats, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """The stage (0-based) at which every row leaves, [B]; confidence: [S, B], thresholds: S - 1."""
    limits = np.asarray(thresholds, dtype=np.float32)
    if len(limits) != len(confidence) - 1:
        raise ValueError(f"{len(limits)} thresholds for {len(confidence)} stages; expected one for each but the last")
    sure = np.asarray(confidence, dtype=np.float32)
    leaving = [leaves(row, limit) for row, limit in zip(sure, limits, strict=False)]
    stage: NDArray[np.int64] = np.stack([*leaving, np.ones(sure.shape[1], dtype=bool)]).argmax(axis=0)
    return stage


def policy_at(
    confidence: Floats, correct: NDArray[np.bool_], *, cost: Sequence[float], budget: float, thresholds: Sequence[float]
) -> Policy:
    """The policy with given thresholds, as measured on these rows (see `best_policy` for the arguments)."""
    paid = np.cumsum(_checked(confidence, correct, cost))
    stage = exits(confidence, thresholds)
    rows = stage.size
    counts = np.bincount(stage, minlength=len(paid))
    latency = float(counts @ paid) / rows
    hits = int(np.asarray(correct, dtype=bool)[stage, np.arange(rows)].sum())
    share = tuple((counts / rows).tolist())
    return Policy(budget, tuple(map(float, thresholds)), latency, hits / rows, share, latency <= budget + SLACK)


def observed(policy: Policy, confidence: Floats, as_last: NDArray[np.bool_]) -> Policy:
    """The policy with what else it does on these rows: how often its answer is not the last stage's, and the histogram of
    confidence of the rows that reach each stage. confidence: [S, B]; as_last: bool [S, B], where a stage answers as the
    last one does."""
    stage = exits(confidence, policy.thresholds)
    parted = ~as_last[stage, np.arange(stage.size)]
    counts = tuple(tuple(histogram(row[stage >= k]).tolist()) for k, row in enumerate(confidence))
    return replace(policy, disagreement=float(parted.mean()), confidence_histogram=counts)


def best_policy(confidence: Floats, correct: NDArray[np.bool_], *, cost: Sequence[float], budget: float) -> Policy:
    """The policy with the highest accuracy whose mean cost is within the budget; at equal accuracy the cheaper one.

    confidence: [S, B] in [0, 1] or NaN; correct: bool [S, B]; cost[k]: latency of stage k alone relative to the static
    model, so that a row that leaves at stage k pays cost[0] + ... + cost[k]. Where even the cheapest thresholds miss
    the budget they are returned with `reached` False.

    1. Candidates: per stage 0, NEVER_LEAVES and the middles between neighbouring distinct confidences (`_candidates`).
    2. Grid: all combinations of at most GRID_CELLS evenly spread candidates at once (`_tables`).
    3. Zoom: the same around the best cell, until neighbours are looked at. With two stages, or few rows, step 2 has all
       combinations already and the result is the optimum.
    4. Sweep: one stage's threshold at a time, over all its candidates, until nothing improves.
    """
    thresholds = _solution(_problem(confidence, correct, cost, budget))
    return policy_at(confidence, correct, cost=cost, budget=budget, thresholds=thresholds)


def cheapest_policy(
    confidence: Floats, correct: NDArray[np.bool_], *, cost: Sequence[float], least_right: float
) -> Policy:
    """The policy with the lowest mean cost of which at least the share `least_right` of the answers is right.

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
    """Budgets from the cheapest reachable one (rounded up to 3 digits) over the multiples of `step` to 1.0.

    `include` adds budgets of the caller's, reachable or not. Where nothing below 1.0 is within reach: 1.0 and these.
    """
    never = np.zeros(np.shape(confidence), dtype=bool)
    thresholds = [ALWAYS_LEAVES] * (len(confidence) - 1)
    cheapest = policy_at(confidence, never, cost=cost, budget=1.0, thresholds=thresholds).expected_latency
    return budgets_from(cheapest, step=step, include=include)


def budgets_from(cheapest: float, *, step: float = 0.05, include: Iterable[float] = ()) -> tuple[float, ...]:
    """`budget_grid` where the mean latency of the cheapest policy is known."""
    if not 0 < step <= 1:
        raise ValueError(f"budget_grid: step {step} is not in (0, 1]")
    first = float(np.ceil(cheapest * 1000 - 1e-6)) / 1000
    multiples = (round(i * step, 6) for i in range(1, int(1 / step) + 1))
    grid = {first, *(m for m in multiples if m - first > TOLD_APART)} if first < 1 else set()
    return tuple(sorted({b for b in grid if b < 1} | {1.0} | set(include)))


@dataclass(frozen=True)
class _Problem:
    """Thresholds to choose: what the steps of `best_policy` share.

    confidence: float32 [S - 1, B], NaN as -1; gain: float64 [S - 1, B], gain[k] is 1 (-1) where going on from stage k
    to k + 1 mends (spoils) the answer; first: rows that stage 0 gets right; cost: [S]; candidates: S - 1 ascending
    arrays of thresholds. With `least_hits` the lowest cost with so many right answers is looked for, without it the most right
    answers within the budget.
    """

    confidence: NDArray[np.float32]
    gain: NDArray[np.float64]
    first: float
    cost: NDArray[np.float64]
    candidates: tuple[NDArray[np.float32], ...]
    budget: float
    least_hits: float | None = None


def _checked(confidence: Floats, correct: NDArray[np.bool_], cost: Sequence[float]) -> NDArray[np.float64]:
    """The cost as an array, once shapes and values are sound."""
    prices = np.asarray(cost, dtype=np.float64)
    shape = np.shape(confidence)
    if len(shape) != 2 or np.shape(correct) != shape or prices.shape != shape[:1] or not shape[0]:
        got = f"confidence {shape}, correct {np.shape(correct)}, cost {prices.shape}"
        raise ValueError(f"policy: got {got}; expected [S, B], [S, B], [S]")
    if not shape[1]:
        raise DataError("calibration: got no image; thresholds need at least one, some hundreds to be of use")
    if not (np.isfinite(prices).all() and (prices >= 0).all()):
        raise ValueError(f"policy: got the cost {prices.tolist()}; expected finite values of at least 0")
    return prices


def _problem(confidence: Floats, correct: NDArray[np.bool_], cost: Sequence[float], budget: float) -> _Problem:
    prices = _checked(confidence, correct, cost)
    early = np.asarray(confidence, dtype=np.float32)[:-1]
    sound = np.isnan(early) | ((early >= 0) & (early <= 1))
    if not sound.all():
        raise ValueError(f"policy: got the confidence {early[~sound][0]}; expected 0 to 1 or NaN")
    early = np.where(np.isnan(early), np.float32(-1), early)
    right = np.asarray(correct, dtype=bool).astype(np.float64)
    candidates = tuple(_candidates(row) for row in early)
    return _Problem(early, np.diff(right, axis=0), float(right[0].sum()), prices, candidates, float(budget))


def _candidates(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """All thresholds of one stage that differ in what they do, ascending, float32.

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
    """Rows that are right, and mean cost, for all combinations of ascending thresholds, each [L_1, ..., L_(S-1)].

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
    """Sums up to every index, along all axes; without an axis's last bin (rows that leave at every threshold)."""
    for axis in range(table.ndim):
        table = np.cumsum(table, axis=axis)
    return table[(slice(None, -1),) * table.ndim]


def _best_cell(problem: _Problem, thresholds: Sequence[NDArray[np.float32]]) -> tuple[tuple[int, ...], Key]:
    """Indices of the best combination and how good it is: within the budget, then right answers, then low cost; or with enough
    right answers, then low cost, then more of them."""
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
    """Indices into the candidates of a good combination: grids that close in on the best cell."""
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
    """Indices after exact searches along one stage at a time; never worse than those given."""
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
    """The picked threshold of every stage, but all candidates of `stage`."""
    chosen = enumerate(zip(problem.candidates, picked, strict=True))
    return [c if k == stage else c[i : i + 1] for k, (c, i) in chosen]

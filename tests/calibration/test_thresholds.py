"""Temperatures against a fine grid, policies against brute force over every threshold that matters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from s2d_runtime import DispatcherError, Policy
from s2d_runtime import thresholds as search
from s2d_runtime.thresholds import SLACK

from s2d_convert.calibration import thresholds as calibrate
from s2d_convert.calibration.thresholds import (
    ALWAYS_LEAVES,
    NEVER_LEAVES,
    best_policy,
    budget_grid,
    cheapest_policy,
    confidences,
    exits,
    fit_temperature,
    observed,
    policy_at,
)
from s2d_convert.errors import DataError

Problem = tuple[NDArray[np.float32], NDArray[np.bool_], list[float]]


def softmax(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return result


def loss(logits: NDArray[Any], labels: NDArray[Any], temperature: float) -> float:
    probabilities = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(probabilities, 1e-300)).mean())


def scores(seed: int, *, stages: int, rows: int, levels: int | None = None) -> Problem:
    """Stages that share the difficulty of a row and get better; `levels` makes confidences coarse, so that they tie."""
    rng = np.random.default_rng(seed)
    easy = rng.normal(size=rows)
    margins = np.stack([easy + 0.6 * rng.normal(size=rows) + 0.4 + 0.5 * k for k in range(stages)])
    confidence = 1 / (1 + np.exp(-2 * (margins + 0.8 * rng.normal(size=margins.shape))))
    if levels:
        confidence = np.round(confidence * levels) / levels
    return confidence.astype(np.float32), margins > 0, rng.uniform(0.1, 0.6, size=stages).tolist()


@st.composite
def problems(draw: st.DrawFn, *, stages: int, max_rows: int) -> tuple[Problem, float]:
    rows = draw(st.integers(1, max_rows))
    levels = draw(st.sampled_from([None, 3, 10]))
    problem = scores(draw(st.integers(0, 2**20)), stages=stages, rows=rows, levels=levels)
    return problem, draw(st.floats(0, 2))


def every_outcome(problem: Problem) -> list[tuple[int, float]]:
    """(right answers, minus the mean latency) of every combination of thresholds, row by row in plain Python."""
    confidence, correct, cost = problem
    paid = np.cumsum(cost)
    steps = [[0.0, *np.nextafter(np.unique(c), np.float32(2)), NEVER_LEAVES] for c in confidence[:-1]]
    found = []
    for thresholds in product(*steps):
        hits, latency = 0, 0.0
        for row in range(confidence.shape[1]):
            early = [k for k, t in enumerate(thresholds) if confidence[k, row] >= np.float32(t)]
            stage = early[0] if early else len(cost) - 1
            hits += bool(correct[stage, row])
            latency += paid[stage]
        found.append((hits, -latency / confidence.shape[1]))
    return found


def cheapest_by_force(problem: Problem, least_right: float) -> tuple[float, float]:
    """(latency, right answers) of the cheapest combination that is right so often, or of the most right one."""
    found = every_outcome(problem)
    enough = [f for f in found if f[0] >= least_right * problem[0].shape[1] - SLACK]
    hits, latency = max(enough, key=lambda f: f[::-1]) if enough else max(found)
    return -latency, hits


def brute_force(problem: Problem, budget: float) -> tuple[bool, float, float]:
    """(reached, accuracy, latency) of the best combination of thresholds."""
    found, confidence = every_outcome(problem), problem[0]
    within = [f for f in found if -f[1] <= budget + SLACK]
    hits, latency = max(within) if within else max(found, key=lambda f: f[::-1])
    return bool(within), hits / confidence.shape[1], -latency


def summary(policy: Policy) -> tuple[bool, float, float]:
    return policy.reached, policy.expected_accuracy, policy.expected_latency


# Temperatures


@given(st.integers(0, 2**20), st.floats(0.1, 10), st.integers(2, 6))
def test_the_temperature_is_where_the_loss_is_lowest(seed: int, scale: float, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(60, classes))
    labels = np.where(rng.random(60) < 0.5, logits.argmax(axis=1), rng.integers(classes, size=60))
    fitted = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 400))
    assert 0.05 <= fitted <= 20
    assert loss(logits, labels, fitted) <= min(loss(logits, labels, t) for t in grid) + 1e-9


def test_a_known_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    true = 2 * rng.normal(size=(20_000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(true, 1.0)])
    assert fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)


def test_extreme_scores_stay_within_the_bounds() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    best, worst = logits.argmax(axis=1), logits.argmin(axis=1)
    assert fit_temperature(logits, best) == calibrate.MIN_TEMPERATURE  # labels are its own answers: never sure enough
    assert fit_temperature(logits, worst) == calibrate.MAX_TEMPERATURE
    assert 0.05 <= fit_temperature((1e30 * logits).astype(np.float32), best) <= 20


@pytest.mark.parametrize("logits", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.zeros((0, 4)), np.zeros((3, 1))])
def test_scores_that_say_nothing_give_one(logits: NDArray[Any]) -> None:
    assert fit_temperature(logits, np.zeros(len(logits), dtype=np.int64)) == 1.0


def test_rows_that_are_not_finite_are_left_out() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(3, size=40)
    broken = np.concatenate([logits, [[np.nan, 0, 0], [np.inf, 0, 0]]])
    assert fit_temperature(broken, np.append(labels, [0, 1])) == fit_temperature(logits, labels)


def test_a_label_without_a_class_is_named() -> None:
    with pytest.raises(DataError, match=r"0 to 7, but the model has 3 classes; labels must lie in 0 to 2"):
        fit_temperature(np.zeros((2, 3)), np.array([0, 7]))
    with pytest.raises(ValueError, match="do not belong together"):
        fit_temperature(np.zeros((2, 3)), np.zeros(3, dtype=np.int64))


@given(st.integers(0, 2**20), st.floats(0.05, 20), st.floats(0.05, 20))
def test_confidences_are_the_largest_softmax(seed: int, first: float, second: float) -> None:
    logits = np.random.default_rng(seed).normal(scale=5, size=(2, 7, 4))
    found = confidences(logits, [first, second])
    expected = [softmax(z, t).max(axis=1) for z, t in zip(logits, (first, second), strict=True)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_confidences_of_broken_scores_are_nan_and_wrong_shapes_are_named() -> None:
    logits = np.zeros((1, 2, 3))
    logits[0, 1, 2] = np.nan
    assert np.isnan(confidences(logits, [1.0])).tolist() == [[False, True]]
    with pytest.raises(ValueError, match="2 temperatures"):
        confidences(logits, [1.0, 1.0])
    with pytest.raises(ValueError, match="stage 1: got the temperature 0"):
        confidences(logits, [0.0])


# Policies


def test_a_worked_example() -> None:
    """Four images; stage 1 is sure of two (right both times) and must guess at the others."""
    confidence = np.array([[0.9, 0.8, 0.5, 0.4], [0.9, 0.9, 0.9, 0.9]], dtype=np.float32)
    correct = np.array([[True, True, False, False], [True, True, True, False]])
    policy = best_policy(confidence, correct, cost=[0.3, 0.6], budget=0.6)
    assert list(policy.thresholds) == pytest.approx([0.65])  # midway between 0.8 and 0.5
    assert policy.expected_accuracy == 0.75
    assert policy.expected_latency == pytest.approx(0.3 + 0.6 / 2)
    assert policy.exit_share == (0.5, 0.5)
    assert policy.reached


@given(problems(stages=2, max_rows=25))
def test_two_stages_give_the_optimum(case: tuple[Problem, float]) -> None:
    (confidence, correct, cost), budget = case
    found = best_policy(confidence, correct, cost=cost, budget=budget)
    assert summary(found) == pytest.approx(brute_force(case[0], budget))


@given(problems(stages=3, max_rows=10))
def test_three_stages_with_few_rows_give_the_optimum(case: tuple[Problem, float]) -> None:
    (confidence, correct, cost), budget = case
    found = best_policy(confidence, correct, cost=cost, budget=budget)
    assert summary(found) == pytest.approx(brute_force(case[0], budget))


@pytest.mark.parametrize(("stages", "rows"), [(2, 30), (3, 9)])
@given(data=st.data(), least_right=st.floats(0, 1))
def test_the_cheapest_policy_that_is_right_so_often(
    stages: int, rows: int, data: st.DataObject, least_right: float
) -> None:
    problem, _ = data.draw(problems(stages=stages, max_rows=rows))
    confidence, correct, cost = problem
    found = cheapest_policy(confidence, correct, cost=cost, least_right=least_right)
    latency, hits = cheapest_by_force(problem, least_right)
    assert found.expected_latency == pytest.approx(latency)
    assert found.expected_accuracy == pytest.approx(hits / correct.shape[1])
    enough = hits >= least_right * correct.shape[1] - SLACK
    assert found.reached == (enough and latency < 1)
    assert found.budget == 1.0 or latency - 1e-9 <= found.budget <= latency + 1.1e-3


@pytest.mark.parametrize("stages", [3, 4])
def test_a_coarse_grid_comes_close_to_the_optimum(monkeypatch: pytest.MonkeyPatch, stages: int) -> None:
    rows = {3: 300, 4: 50}[stages]
    shortfalls = []
    for seed, budget in product(range(4), (0.4, 0.6, 0.8)):
        confidence, correct, cost = scores(seed, stages=stages, rows=rows)
        best = best_policy(confidence, correct, cost=cost, budget=budget)
        with monkeypatch.context() as patch:
            patch.setattr(search, "GRID_CELLS", 12**stages)  # the true grid has every combination of so few rows
            found = best_policy(confidence, correct, cost=cost, budget=budget)
        assert found.reached == best.reached
        shortfalls.append(round((best.expected_accuracy - found.expected_accuracy) * rows))
    assert min(shortfalls) >= 0
    assert max(shortfalls) <= 1 + rows // 100
    assert np.mean(shortfalls) <= 0.5


@given(problems(stages=4, max_rows=40))
def test_a_policy_keeps_what_it_promises(case: tuple[Problem, float]) -> None:
    (confidence, correct, cost), budget = case
    found = best_policy(confidence, correct, cost=cost, budget=budget)
    stage = exits(confidence, found.thresholds)
    paid = np.cumsum(cost)[stage]
    assert found.expected_latency == pytest.approx(paid.mean())
    assert found.expected_accuracy == pytest.approx(np.take_along_axis(correct, stage[None], axis=0).mean())
    assert found.exit_share == pytest.approx([(stage == k).mean() for k in range(4)])
    assert found.reached == (found.expected_latency <= budget + SLACK)
    assert found == policy_at(confidence, correct, cost=cost, budget=budget, thresholds=found.thresholds)
    for row, threshold in zip(confidence, found.thresholds, strict=False):
        assert threshold == np.float32(threshold)  # what the runtime compares with, to the last bit
        assert threshold in (ALWAYS_LEAVES, float(np.float32(NEVER_LEAVES))) or row.min() < threshold <= row.max()


def test_what_else_a_policy_does_is_observed() -> None:
    """Stage 1 answers rows 0 and 1, of which row 1 is another answer than the last stage's."""
    confidence = np.array([[0.93, 0.86, 0.51, np.nan], [0.2, 0.2, 1.0, 0.31]], dtype=np.float32)
    answers = np.array([[3, 1, 1, 1], [3, 2, 2, 2]])
    policy = policy_at(confidence, answers == 2, cost=[0.3, 0.6], budget=0.9, thresholds=[0.8])
    found = observed(policy, confidence, answers == answers[-1])
    assert found.disagreement == 0.25
    first, second = found.confidence_histogram
    assert {k: n for k, n in enumerate(first) if n} == {18: 1, 17: 1, 10: 1, 0: 1}
    assert {k: n for k, n in enumerate(second) if n} == {19: 1, 6: 1}
    assert replace(found, disagreement=None, confidence_histogram=()) == policy


def test_rows_that_tie_leave_together() -> None:
    confidence = np.array([[0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1]], dtype=np.float32)
    correct = np.array([[True, True, False, False], [True, True, True, True]])
    policy = best_policy(confidence, correct, cost=[0.4, 0.4], budget=0.6)  # half of them would fit
    assert policy.exit_share == (1.0, 0.0)


def test_neighbours_one_bit_apart_are_told_apart() -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    confidence = np.array([[high, low], [1, 1]], dtype=np.float32)
    correct = np.array([[True, False], [True, True]])
    policy = best_policy(confidence, correct, cost=[0.4, 0.4], budget=0.6)
    assert exits(confidence, policy.thresholds).tolist() == [0, 1]


def test_confidence_that_is_nan_never_leaves_early() -> None:
    confidence = np.array([[np.nan, 0.0, 0.2], [0.5, 0.5, 0.5]], dtype=np.float32)
    correct = np.array([[True, True, True], [False, False, False]])
    policy = best_policy(confidence, correct, cost=[0.3, 0.3], budget=0.0)
    assert policy.exit_share == pytest.approx((2 / 3, 1 / 3))
    assert not policy.reached


def test_one_stage_has_no_threshold() -> None:
    correct = np.array([[True, False]])
    policy = best_policy(np.ones((1, 2), dtype=np.float32), correct, cost=[0.7], budget=0.5)
    assert policy == Policy(0.5, (), 0.7, 0.5, (1.0,), reached=False)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_budget_out_of_reach_gives_the_cheapest(stages: int) -> None:
    confidence, correct, cost = scores(3, stages=stages, rows=50)
    policy = best_policy(confidence, correct, cost=cost, budget=cost[0] / 2)
    assert not policy.reached
    assert policy.thresholds[0] == ALWAYS_LEAVES
    assert policy.expected_latency == pytest.approx(cost[0])


def test_equal_accuracy_takes_the_cheaper() -> None:
    confidence, _, cost = scores(4, stages=3, rows=50)
    policy = best_policy(confidence, np.ones((3, 50), dtype=bool), cost=cost, budget=5.0)
    assert policy.exit_share == (1.0, 0.0, 0.0)


@given(problems(stages=3, max_rows=60), st.lists(st.floats(0.05, 1.5), min_size=1, max_size=6))
def test_a_larger_budget_is_never_less_accurate(case: tuple[Problem, float], budgets: list[float]) -> None:
    confidence, correct, cost = case[0]
    row = [best_policy(confidence, correct, cost=cost, budget=budget) for budget in sorted(set(budgets))]
    reached = [p for p in row if p.reached]
    assert all(small.expected_accuracy <= large.expected_accuracy for small, large in pairwise(reached))
    assert all(p.expected_latency <= p.budget + SLACK for p in reached)


def test_the_row_of_budgets_goes_from_the_cheapest_reachable_to_one() -> None:
    confidence, correct, _ = scores(5, stages=2, rows=20)
    grid = budget_grid(confidence, [0.3123, 0.5], step=0.1, include=[0.5, 0.333])
    assert grid == (0.313, 0.333, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    found = (best_policy(confidence, correct, cost=[0.3123, 0.5], budget=budget) for budget in grid)
    assert all(policy.reached for policy in found)
    assert budget_grid(confidence, [0.3, 0.5], step=0.35) == (0.3, 0.35, 0.7, 1.0)
    assert budget_grid(confidence, [0.848, 0.5]) == (0.848, 0.9, 0.95, 1.0)  # 0.85 would look the same in a table
    assert budget_grid(confidence, [1.2, 0.5], include=[0.5]) == (0.5, 1.0)
    with pytest.raises(ValueError, match="step 0"):
        budget_grid(confidence, [0.3, 0.5], step=0)


@pytest.mark.parametrize(
    ("confidence", "cost", "match"),
    [
        (np.zeros((2, 3)), [0.5], "expected"),
        (np.zeros((2, 3)), [0.5, -0.1], "at least 0"),
        (np.zeros((2, 3)), [0.5, np.nan], "at least 0"),
        (np.full((2, 3), 1.5), [0.5, 0.5], "0 to 1 or NaN"),
        (np.full((2, 3), -0.5), [0.5, 0.5], "0 to 1 or NaN"),
        (np.full((2, 3), -1), [0.5, 0.5], "0 to 1 or NaN"),
    ],
)
def test_arguments_that_do_not_fit_are_named(confidence: NDArray[Any], cost: list[float], match: str) -> None:
    correct = np.zeros((2, 3), dtype=bool)
    with pytest.raises(ValueError, match=match):
        best_policy(confidence, correct, cost=cost, budget=0.5)


def test_no_rows_and_a_wrong_number_of_thresholds_are_named() -> None:
    with pytest.raises(DispatcherError, match="got no image"):
        best_policy(np.zeros((2, 0)), np.zeros((2, 0), dtype=bool), cost=[0.5, 0.5], budget=0.5)
    with pytest.raises(ValueError, match="2 thresholds for 2 stages"):
        exits(np.zeros((2, 3)), [0.5, 0.5])

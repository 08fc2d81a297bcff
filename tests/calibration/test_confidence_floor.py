"""Careful thresholds against brute force, and what they mean to the exit rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_convert.calibration import confidence_floor as guard
from s2d_convert.calibration.thresholds import NEVER_LEAVES, exits, policy_at


def allowed(static: np.ndarray, classes: int, agreement: float) -> float:
    """The share that may disagree, by the model's classes of some rows."""
    largest = np.bincount(static).max() / len(static)
    return float((1 - agreement) * min(1, (1 - largest) / (1 - 1 / classes)))


@given(st.integers(0, 10**6), st.integers(1, 120), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_a_floor_is_the_lowest_threshold_that_agrees_enough(seed: int, rows: int, agreement: float) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random((3, rows)), 2).astype(np.float32)  # with ties
    confidence[rng.random((3, rows)) < 0.1] = np.nan
    agrees = rng.random((3, rows)) < np.nan_to_num(confidence, nan=0) ** 0.2
    classes = int(rng.integers(2, 5))
    static = rng.integers(0, classes, rows) * (rng.random(rows) < rng.random())
    found = guard.floors(confidence, agrees, static, classes=classes, agreement=agreement)
    assert len(found) == 2
    for floor, row, right in zip(found, confidence, agrees, strict=False):
        good = [
            t for t in np.unique(row[~np.isnan(row)])
            if (row >= t).sum() >= guard.LEAST_EXITS
            and 1 - right[row >= t].mean() <= allowed(static[row >= t], classes, agreement) + 1e-9
            and len(np.unique(static[row >= t])) > 1
        ]  # fmt: skip
        assert floor == (min(good) if good else NEVER_LEAVES)


def test_a_policy_that_was_chosen_above_the_floors_does_the_same_when_it_is_raised() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random((3, 200)).astype(np.float32), rng.random((3, 200)) < 0.7
    lowest = (0.6, 0.8)
    kept = guard.above(confidence, lowest)
    for thresholds in ([0.0, 0.0], [0.7, 0.0], [0.9, 0.9], [NEVER_LEAVES, 0.5]):
        chosen = policy_at(kept, correct, cost=(0.2, 0.3, 0.6), budget=1.0, thresholds=thresholds)
        raised = guard.raised(chosen, lowest)
        assert all(t >= f for t, f in zip(raised.thresholds, lowest, strict=True))
        np.testing.assert_array_equal(exits(confidence, raised.thresholds), exits(kept, thresholds))


@pytest.mark.parametrize(("sure", "expected"), [(80, 80), (20, 100)])
def test_shares_are_counted_on_what_the_model_is_sure_of_where_there_is_enough(sure: int, expected: int) -> None:
    logits = np.zeros((100, 4), np.float32)
    logits[:sure, 1] = 20
    assert len(guard.sure_rows(logits)) == expected


def test_agreement_that_comes_from_one_class_alone_is_none() -> None:
    """An exit that always says class 0 agrees with a model that says so on 96 % of the images."""
    static = (np.arange(1000) % 25 == 0).astype(np.int64)
    confidence = np.stack([np.linspace(1, 0.5, 1000), np.ones(1000)]).astype(np.float32)
    agrees = np.stack([static == 0, np.ones(1000, bool)])
    assert agrees[0].mean() > guard.AGREEMENT
    assert guard.floors(confidence, agrees, static, classes=2) == (NEVER_LEAVES,)
    assert guard.floors(confidence, agrees, np.arange(1000) % 2, classes=2) == (0.5,)

"""Careful thresholds against brute force, and what they mean to the exit rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_convert.calibration import confidence_floor as guard
from s2d_convert.calibration.thresholds import NEVER_LEAVES, exits, policy_at


@given(st.integers(0, 10**6), st.integers(1, 120), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_a_floor_is_the_lowest_threshold_that_agrees_enough(seed: int, rows: int, agreement: float) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random((3, rows)), 2).astype(np.float32)  # with ties
    confidence[rng.random((3, rows)) < 0.1] = np.nan
    agrees = rng.random((3, rows)) < np.nan_to_num(confidence, nan=0) ** 0.2
    found = guard.floors(confidence, agrees, agreement=agreement)
    assert len(found) == 2
    for floor, row, right in zip(found, confidence, agrees, strict=False):
        good = [
            t for t in np.unique(row[~np.isnan(row)])
            if (row >= t).sum() >= guard.LEAST_EXITS and right[row >= t].mean() >= agreement
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

"""What training is taken to mend of a stage: a stated share of the answers that part from the static model's, and less of a stage
that knows little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_convert.calibration.task import ONE_CLASS, SEVERAL_LABELS, Task
from s2d_convert.search.evaluate import SKILLED, mended

ROWS, CLASSES = 400, 5


def said(noise: float, *, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [1, B, K] of a stage, and the static model's [B, K], `scale` times as large."""
    rng = np.random.default_rng(seed)
    static = rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
    stage = static + noise * rng.normal(size=static.shape).astype(np.float32)
    return stage[None], np.float32(scale) * static


def agreement(logits: np.ndarray, static: np.ndarray, task: Task = ONE_CLASS) -> float:
    return float(task.agree(task.answers(logits), task.answers(static)).mean())


@given(noise=st.floats(0.1, 0.25), left=st.floats(0.1, 0.9), scale=st.floats(0.2, 20), seed=st.integers(0, 99))
def test_of_a_skilled_stage_the_stated_share_is_left_whatever_the_scale_of_logits(
    noise: float, left: float, scale: float, seed: int
) -> None:
    stage, static = said(noise, scale=scale, seed=seed)
    before = agreement(stage[0], static)
    after = agreement(mended(stage, static, left=left, task=ONE_CLASS)[0], static)
    assert (before - 0.3) / 0.7 > SKILLED, "else less is mended"
    assert after == pytest.approx(1 - left * (1 - before), abs=0.011)


def test_nothing_is_mended_of_a_stage_that_knows_nothing() -> None:
    _, static = said(0.1, scale=50.0)
    stage = np.random.default_rng(1).normal(size=(1, *static.shape)).astype(np.float32)
    before, after = agreement(stage[0], static), agreement(mended(stage, static, left=0.5, task=ONE_CLASS)[0], static)
    assert before < 0.3
    assert after - before < 0.02


def test_what_little_a_stage_knows_counts_little() -> None:
    mends = []
    for noise in (0.3, 1.0, 2.0, 4.0):
        stage, static = said(noise, scale=10.0)
        before, after = (
            agreement(stage[0], static),
            agreement(mended(stage, static, left=0.5, task=ONE_CLASS)[0], static),
        )
        mends.append((after - before) / (1 - before))
    assert mends == sorted(mends, reverse=True)
    assert mends[-1] < 0.1


def test_without_training_logits_stay_as_they_are() -> None:
    stage, static = said(0.5)
    assert mended(stage, static, left=1.0, task=ONE_CLASS) is stage


def test_a_stage_that_is_the_static_model_stays_so() -> None:
    _, static = said(0.5)
    np.testing.assert_array_equal(mended(static[None], static, left=0.5, task=ONE_CLASS)[0], static)


def test_sets_of_labels_are_mended_as_a_whole() -> None:
    stage, static = said(0.1)
    before = agreement(stage[0], static, SEVERAL_LABELS)
    after = agreement(mended(stage, static, left=0.5, task=SEVERAL_LABELS)[0], static, SEVERAL_LABELS)
    assert after >= 1 - 0.5 * (1 - before) - 1e-9

"""One class of many, or several labels: answers, confidences and temperatures of logits."""

from __future__ import annotations

import numpy as np
import pytest
from s2d_runtime import OutputSpec

from s2d_convert.calibration.label_chance import judge_labels
from s2d_convert.calibration.policies import Scores, budget_policies, fit_temperatures
from s2d_convert.calibration.task import ONE_CLASS, SEVERAL_LABELS, task_of

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 400, 4)).astype(np.float32)


def test_the_kind_of_output_says_which_task_it_is() -> None:
    assert [task_of(kind) for kind in ("logits", "probabilities", "log_probabilities")] == [ONE_CLASS] * 3
    assert [task_of(kind) for kind in ("sigmoid", "sigmoid_logits")] == [SEVERAL_LABELS] * 2


def test_answers_agree_with_all_their_labels_and_are_as_sure_as_the_least_sure() -> None:
    answers = SEVERAL_LABELS.answers(LOGITS)
    np.testing.assert_array_equal(answers, LOGITS > 0)
    other = answers.copy()
    other[0, :10, 2] ^= 1
    np.testing.assert_array_equal(SEVERAL_LABELS.agree(answers, other)[0], np.arange(400) >= 10)
    assert SEVERAL_LABELS.agreement(answers[0], other[0]) == 1 - 10 / 400
    assert ONE_CLASS.agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])) == 0.75
    other[0, 10:50, 1] ^= 1  # the label that differs most counts, not all of them together
    assert SEVERAL_LABELS.agreement(answers[0], other[0]) == 1 - 40 / 400
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64) / 2.5))
    expected = np.maximum(p, 1 - p).min(axis=2)
    np.testing.assert_allclose(SEVERAL_LABELS.confidences(LOGITS, (2.5, 2.5)), expected, rtol=1e-6)
    np.testing.assert_array_equal(SEVERAL_LABELS.has(answers, 3), LOGITS[..., 3] > 0)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_temperature_of_labels_is_the_scale_that_they_were_drawn_with(scale: float) -> None:
    true = RNG.normal(0, 2, (4000, 4))
    labels = (RNG.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    assert SEVERAL_LABELS.fit_temperature(scale * true, labels) == pytest.approx(scale, rel=0.06)


def test_policies_count_an_image_as_right_if_all_its_labels_are() -> None:
    labels = (LOGITS[1] > 0).astype(np.int8)
    scores = Scores(LOGITS, labels, labels, task=SEVERAL_LABELS)
    np.testing.assert_array_equal(scores.correct[0], ((LOGITS[0] > 0) == labels).all(axis=1))
    assert scores.correct[1].all()
    chosen = budget_policies(scores, fit_temperatures(scores), cost=(0.3, 0.7), budget=0.5)
    policy = next(p for p in chosen.policies if p.budget == 0.5)
    assert policy.disagreement == pytest.approx(1 - policy.expected_accuracy)


def test_answers_are_held_against_the_commonest_ones() -> None:
    labels = (RNG.random((300, 3)) < (0.5, 0.1, 0.02)).astype(np.int8)
    assert judge_labels(labels, labels).knows_labels
    assert not judge_labels(np.zeros_like(labels), labels).knows_labels
    assert not judge_labels(labels[::-1].copy(), labels).knows_labels
    finds_rare = (labels.astype(bool) | (RNG.random(labels.shape) < 0.3)).astype(np.int8)
    judged = judge_labels(finds_rare, labels)
    assert judged.right < judged.commonest
    assert judged.knows_labels


def test_what_an_output_says_is_its_class_or_its_labels() -> None:
    row = np.array([0.2, 0.9, 0.6], np.float32)
    assert OutputSpec((None, 3), "probabilities").said(row) == (1,)
    assert OutputSpec((None, 3), "sigmoid").said(row) == (1, 2)
    assert OutputSpec((None, 3), "sigmoid_logits").said(row - 0.7) == (1,)
    assert OutputSpec((None,), "sigmoid").said(row[0]) == ()

"""Expected right answers: the weights against scipy, what follows from them by hand, and against the truth on populations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from populations import Population, population
from s2d_runtime.expected import STRENGTH, expected_right, stacking_weights
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from s2d_convert.calibration.answered import Answered
from s2d_convert.calibration.policies import Scores, accurate_policies, fit_temperatures
from s2d_convert.calibration.task import ONE_CLASS, SEVERAL_LABELS
from s2d_convert.data.images import Images, Kind
from s2d_convert.data.preprocess import make_preprocess

SEEDS = st.integers(0, 2**16)


def said(seed: int, *, rows: int = 200, models: int = 3, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits [M, B, K] of models that know the label more or less, and the labels [B]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    clean = 2 * np.eye(classes)[labels]
    noise = rng.normal(0, 1, (models, rows, classes)) * np.linspace(0.8, 2, models)[:, None, None]
    return (clean + noise).astype(np.float32), labels


@given(SEEDS)
def test_the_weights_are_the_most_likely_ones(seed: int) -> None:
    logits, labels = said(seed)
    start = np.eye(len(logits))[0]

    def loss(weights: np.ndarray) -> float:
        likely = log_softmax(np.tensordot(weights, logits.astype(np.float64), axes=1), axis=1)
        return float(-likely[np.arange(len(labels)), labels].mean() + STRENGTH / 2 * ((weights - start) ** 2).sum())

    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
    found = stacking_weights(logits.astype(np.float64), labels)
    assert loss(found) <= best.fun + 1e-9
    np.testing.assert_allclose(found, best.x, atol=1e-3)


@given(SEEDS)
def test_what_is_lost_is_the_difference_of_two_probabilities(seed: int) -> None:
    logits, labels = said(seed)
    right = expected_right(logits[1:], logits[0], labels)
    weights = stacking_weights(logits.astype(np.float64), labels)
    likely = softmax(np.tensordot(weights, logits.astype(np.float64), axes=1), axis=1)
    rows, answers = np.arange(len(labels)), logits.argmax(axis=2)
    for stage, got in enumerate(right, start=1):
        lost = likely[rows, answers[0]] - likely[rows, answers[stage]]
        np.testing.assert_allclose((answers[0] == labels) - got, lost, atol=1e-6)
        alike = answers[0] == answers[stage]
        np.testing.assert_array_equal(got[alike], (answers[0] == labels)[alike])


def test_rows_that_are_not_finite_are_counted() -> None:
    logits, labels = said(1)
    logits[1, :3] = np.nan
    logits[2, 5, 0] = np.inf
    right = expected_right(logits[1:], logits[0], labels)
    assert np.isfinite(right).all()
    for row in (0, 1, 2, 5):
        np.testing.assert_array_equal(right[:, row], logits[1:, row].argmax(axis=1) == labels[row])


@pytest.mark.parametrize("change", ["one image", "one class says all", "static model twice", "always right"])
def test_degenerate_images_stay_finite(change: str) -> None:
    logits, labels = said(2)
    if change == "one image":
        logits, labels = logits[:, :1], labels[:1]
    elif change == "one class says all":
        labels = np.zeros_like(labels)
    elif change == "static model twice":
        logits[2] = logits[0]
    else:
        logits[0] = 1000 * np.eye(5)[labels]
    right = expected_right(logits[1:], logits[0], labels)
    assert np.isfinite(right).all()
    if change == "static model twice":
        np.testing.assert_array_equal(right[1], logits[0].argmax(axis=1) == labels)


def early(people: Population, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counted and expected losses of the first stage on the surest four fifths of the rows, before the static model."""
    logits, labels = people.logits[:, rows], people.truth[rows]
    sure = people.logits[0].max(axis=1) - np.sort(people.logits[0], axis=1)[:, -2]
    leaves = (sure > np.quantile(sure, 0.2))[rows]
    static = logits[-1].argmax(axis=1) == labels
    counted = static.astype(float) - (logits[0].argmax(axis=1) == labels)
    expected = static - expected_right(logits, logits[-1], labels)[0]
    return counted * leaves, expected * leaves


@pytest.mark.parametrize("seed", range(4))
def test_expected_losses_are_true_and_steadier_than_counted_ones(seed: int) -> None:
    people = population(seed, stages=2, exact=True)
    rng = np.random.default_rng(seed)
    true = early(people, np.arange(len(people.truth)))[0].mean()
    draws = [early(people, rng.choice(len(people.truth), 250, replace=False)) for _ in range(60)]
    counted, expected = (np.array([losses.mean() for losses in way]) for way in zip(*draws, strict=True))
    assert abs(expected.mean() - true) < 0.005
    assert expected.std() < counted.std()


def test_policies_tell_counted_shares_though_chosen_by_expected_ones() -> None:
    people = population(0, stages=2, exact=True)
    scores = Scores(people.logits, people.said, people.truth, static_logits=people.logits[-1])
    temperatures = fit_temperatures(scores)
    chosen = accurate_policies(scores, temperatures, cost=people.cost, max_loss=0.01)
    confidence = scores.confidence(temperatures)
    for policy in chosen.policies:
        leaves = confidence[0] >= np.float32(policy.thresholds[0])
        right = np.where(leaves, scores.correct[0], scores.correct[1])
        assert policy.expected_accuracy == pytest.approx(right.mean())


def test_without_labels_answers_are_counted() -> None:
    people = population(0, stages=2, exact=True)
    scores = Scores(people.logits, people.said, None, static_logits=people.logits[-1])
    np.testing.assert_array_equal(scores.expected, scores.correct)


@pytest.mark.parametrize(("kind", "counts"), [("labelled", False), ("unlabelled", True), ("made-up", True)])
def test_only_labels_of_the_users_own_are_worth_expecting(kind: Kind, counts: bool) -> None:
    logits, labels = said(3)
    preprocess = make_preprocess("unit", size=(1, 1), channels=1, layout="NCHW", dtype="float32")
    pixels = np.zeros((len(labels), 1, 1, 1), np.float32)
    images = Images(pixels, preprocess, np.arange(len(labels)), labels, kind)
    judged = Answered(images, logits[0], labels)
    expected, right = judged.expected(ONE_CLASS, logits[1:]), judged.counted(ONE_CLASS, logits[1:])
    assert np.array_equal(expected, right) is counts
    assert (judged.told_logits is None) is counts


def test_several_labels_are_counted() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    labels = (logits[1] > 0).astype(np.int8)
    right = SEVERAL_LABELS.expected_right(logits, logits[1], labels)
    np.testing.assert_array_equal(right, [(SEVERAL_LABELS.answers(row) == labels).all(axis=1) for row in logits])

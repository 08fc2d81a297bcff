"""Chance is judged as exact and drawn distributions judge it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2d_convert.calibration.chance import FEW, few_images, interval, judge, unequal


def with_accuracy(share: float, count: int, *, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % classes
    answers = labels.copy()
    wrong = np.random.default_rng(0).permutation(count)[: round((1 - share) * count)]
    answers[wrong] = (answers[wrong] + 1) % classes
    return answers, labels


@pytest.mark.parametrize(
    ("share", "count", "classes", "better"),
    [(0.725, 1000, 2, True), (0.72, 100, 2, True), (0.6, 40, 2, False), (0.5, 1000, 2, False), (0.13, 1000, 10, True),
     (0.11, 1000, 10, False), (1.0, 8, 2, True), (1.0, 6, 2, False)],
)  # fmt: skip
def test_accuracy_is_held_against_the_largest_class(share: float, count: int, classes: int, better: bool) -> None:
    judged = judge(*with_accuracy(share, count, classes=classes), classes)
    assert judged.better_than_largest == better
    exact = sum(
        math.comb(count, k) * judged.share**k * (1 - judged.share) ** (count - k) for k in range(judged.hits, count + 1)
    )
    assert better == (exact <= 0.01)
    assert judged.tells_nothing == (judged.share**count > 0.01)


def test_a_model_that_always_answers_one_class_knows_nothing() -> None:
    labels = (np.arange(300) % 13 == 0).astype(int)
    judged = judge(np.zeros(300, int), labels, 2)
    assert judged.accuracy == 0.92
    assert judged.balanced == 0.5
    assert judged.unequal
    assert judged.lost == (1,)
    assert not judged.better_than_largest
    assert not judged.knows_classes


def test_a_model_that_finds_rare_positives_knows_something_below_the_share_of_negatives() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(1000) % 50 == 0).astype(int)
    answers = np.where(rng.random(1000) < np.where(labels == 1, 0.8, 0.04), 1, 0)
    judged = judge(answers, labels, 2)
    assert judged.accuracy < judged.share
    assert not judged.better_than_largest
    assert judged.knows_classes
    assert judged.lost == ()


def test_hits_of_shuffled_labels_have_the_spread_that_is_reckoned_with() -> None:
    rng = np.random.default_rng(1)
    labels, answers = rng.choice(4, 400, p=[0.6, 0.2, 0.15, 0.05]), rng.choice(4, 400, p=[0.5, 0.3, 0.1, 0.1])
    shown = [judge(answers, rng.permutation(labels), 4).knows_classes for _ in range(2000)]
    assert np.mean(shown) < 0.006  # a normal law has 0.00135 above three deviations


def test_sizes_by_chance_are_not_unequal() -> None:
    rng = np.random.default_rng(0)
    drawn = [unequal(np.bincount(rng.integers(0, 1000, 2500), minlength=1000)) for _ in range(100)]
    assert np.mean(drawn) <= 0.05
    assert unequal(np.array([93, 7]))
    assert not unequal(np.array([55, 45]))
    assert not unequal(np.array([5, 1]))


def test_a_handful_of_images_has_a_wide_interval() -> None:
    low, high = interval(16, 16)
    assert low == pytest.approx(0.025 ** (1 / 16), abs=1e-6)
    assert high == 1.0
    assert "expected accuracy 100.00 % rests on 16 images: with 95 % confidence it is between 79 and 100 %" in str(
        few_images("expected accuracy", 1.0, 16)
    )
    assert few_images("expected accuracy", 1.0, FEW) is None

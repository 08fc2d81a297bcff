"""Whether two networks have the same classes in the same order, by their answers."""

from __future__ import annotations

import numpy as np
import pytest

from s2d_convert.calibration.likeness import likeness
from s2d_convert.calibration.task import ONE_CLASS, SEVERAL_LABELS


def noisy(answers: np.ndarray, share: float, classes: int) -> np.ndarray:
    """The answers, of which a share is drawn at random."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(len(answers)) < share, rng.integers(0, classes, len(answers)), answers)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_weaker_network_with_the_same_classes_is_alike(classes: int) -> None:
    answers = np.random.default_rng(0).integers(0, classes, 300)
    found = likeness(ONE_CLASS, noisy(answers, 0.5, classes), answers, classes=classes)
    assert found.same_classes
    assert found.agreement == pytest.approx(0.5 + 0.5 / classes, abs=0.08)
    assert found.by_chance == pytest.approx(1 / classes, abs=0.03)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_classes_in_another_order_are_named(classes: int) -> None:
    answers = np.random.default_rng(0).integers(0, classes, 1000)
    found = likeness(ONE_CLASS, (answers + 1) % classes, answers, classes=classes)
    assert not found.same_classes
    assert found.reordered == 1
    assert "in another order (in the best one it would be 100.0 %)" in found.cause


def test_answers_by_chance_may_have_either_cause() -> None:
    rng = np.random.default_rng(0)
    found = likeness(ONE_CLASS, rng.integers(0, 10, 500), rng.integers(0, 10, 500), classes=10)
    assert not found.same_classes
    assert "probably in another order, or its preprocessing" in found.cause


def test_always_the_same_class_is_by_chance_however_frequent_it_is() -> None:
    answers = np.where(np.random.default_rng(0).random(400) < 0.9, 0, 1)
    found = likeness(ONE_CLASS, np.zeros(400, np.int64), answers, classes=2)
    assert found.agreement > 0.85
    assert not found.same_classes


def test_labels_are_compared_all_together() -> None:
    labels = np.random.default_rng(0).integers(0, 2, (300, 4)).astype(np.int8)
    assert likeness(SEVERAL_LABELS, labels, labels, classes=4).same_classes
    turned = likeness(SEVERAL_LABELS, 1 - labels, labels, classes=4)
    assert not turned.same_classes
    assert turned.reordered == turned.agreement == 0

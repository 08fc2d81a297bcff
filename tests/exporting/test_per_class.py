"""Classes one by one: counts by hand, and the sentences about those that a stage loses."""

from __future__ import annotations

import numpy as np
import pytest

from s2d_convert.exporting.per_class import Answers, class_results, lost_classes, mistakes

TRUTH = np.repeat([0, 1], [80, 20])
KNOWS = TRUTH.copy()
NEVER = np.zeros(100, int)


def answers(static: np.ndarray, dynamic: np.ndarray, exits: np.ndarray, *, labelled: bool = True) -> Answers:
    return Answers(TRUTH, static, dynamic, exits, 2, labelled)


def test_results_are_counted_by_class_and_the_worst_comes_first() -> None:
    dynamic = KNOWS.copy()
    dynamic[80:90] = 0
    got = answers(KNOWS, dynamic, np.ones(100, int))
    assert got.unequal
    assert got.balanced(KNOWS) == 1.0
    assert got.balanced(dynamic) == 0.75
    worst, other = class_results(got, ("no", "yes"))
    assert (worst.name, worst.images, worst.correct_static, worst.correct_dynamic, worst.agreement) == (
        "yes",
        20,
        1,
        0.5,
        0.5,
    )
    assert (other.name, other.images, other.correct_dynamic) == ("no", 80, 1.0)
    without = class_results(answers(KNOWS, dynamic, np.ones(100, int), labelled=False), None)
    assert [(row.name, row.correct_static, row.agreement) for row in without] == [("1", None, 0.5), ("0", None, 1.0)]


def test_the_loss_of_a_class_has_the_error_of_a_paired_comparison() -> None:
    dynamic = KNOWS.copy()
    dynamic[80:90] = 0
    worst, other = class_results(answers(KNOWS, dynamic, np.ones(100, int)), None)
    assert [worst.loss, worst.loss_error] == pytest.approx([0.5, 0.5 / np.sqrt(20)])
    assert other.loss == 0
    assert 0 < other.loss_error < 0.03  # nothing was lost on 80 images; a little may be on others
    without, _ = class_results(answers(KNOWS, dynamic, np.ones(100, int), labelled=False), None)
    assert [without.loss, without.loss_error] == pytest.approx([0.5, 0.5 / np.sqrt(20)])


@pytest.mark.parametrize("labelled", [True, False])
def test_mistakes_are_what_the_static_model_knows_the_surest_first(labelled: bool) -> None:
    static, dynamic = KNOWS.copy(), KNOWS.copy()
    static[0] = dynamic[0] = 1  # wrong before and after
    dynamic[[5, 85, 90]] = 1 - dynamic[[5, 85, 90]]
    confidence = np.zeros(100, np.float32)
    confidence[[5, 85, 90]] = 0.6, np.nan, 0.9
    truth = TRUTH if labelled else static
    got = mistakes(Answers(truth, static, dynamic, np.ones(100, int), 2, labelled), confidence)
    assert [(one.row, one.static) for one in got] == [(90, (1,)), (5, (0,)), (85, (1,))]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_stage_that_loses_a_class_is_named(labelled: bool) -> None:
    exits = np.where(np.arange(100) % 2, 1, 2)
    dynamic = np.where(exits == 1, NEVER, KNOWS)
    (text,) = lost_classes(answers(KNOWS, dynamic, exits, labelled=labelled), ("no", "yes"))
    assert text.startswith(
        "stage 1 loses class 'yes': of the 10 such images that leave there, the static model answers 10"
    )
    assert lost_classes(answers(KNOWS, KNOWS, exits), None) == ()
    few = np.where(np.arange(100) >= 96, NEVER, KNOWS)
    assert lost_classes(answers(KNOWS, few, np.where(np.arange(100) >= 96, 1, 2)), None) == ()


def test_a_class_that_the_static_model_does_not_know_is_said_too() -> None:
    assert lost_classes(answers(NEVER, NEVER, np.ones(100, int)), ("no", "yes")) == (
        "the static model itself hardly answers an image of class 'yes' rightly",
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_images_of_one_class_alone_say_little(labelled: bool) -> None:
    same = np.zeros(100, int)
    alone = Answers(same, same, same, np.ones(100, int), 2, labelled)
    (text,) = lost_classes(alone, ("no", "yes"))
    assert text.startswith("100.0 % of the images are of class 'no': the numbers say little of the other classes")

"""The verdict says what was lost and gained on the same images, and what to do."""

from __future__ import annotations

import numpy as np
import pytest
from s2d_runtime import Policy

from s2d_convert.calibration.policies import Scores
from s2d_convert.calibration.thresholds import NEVER_LEAVES
from s2d_convert.calibration.verdict import Outcome, loss_text, outcomes, points, verdict, worth_showing

COST = (0.3, 1.0)


def policy(budget: float, threshold: float) -> Policy:
    return Policy(budget, (threshold,), 0.5, 0.9, (0.5, 0.5), True)


def scores(count: int = 400) -> Scores:
    """Two stages: stage 1 is right where it is sure (three quarters of the images), the last one and the static model always."""
    labels = np.arange(count) % 3
    first = np.zeros((count, 3), np.float32)
    hard = np.arange(count) % 4 == 0
    first[np.arange(count), np.where(hard, (labels + 1) % 3, labels)] = np.where(hard, 1.0, 5.0)
    last = 9 * np.eye(3, dtype=np.float32)[labels]
    return Scores(np.stack([first, last]), labels, labels)


def test_outcomes_are_counted_image_by_image() -> None:
    always, sure, never = outcomes(
        [policy(0.3, 0.0), policy(0.6, 0.9), policy(1.0, NEVER_LEAVES)], scores(), (1.0, 1.0), cost=COST
    )
    assert always.latency == pytest.approx(0.3)
    assert (always.right, always.loss) == (0.75, 0.25)
    assert always.loss_error == pytest.approx(np.sqrt(0.25 * 0.75 / 400))
    assert sure.latency == pytest.approx(0.75 * 0.3 + 0.25 * 1.3)
    assert sure.loss == 0
    assert sure.loss_error == pytest.approx(3 / 1.64 / 400)
    assert never.latency == pytest.approx(1.3)
    assert never.worst == pytest.approx(1.3)
    assert always.worst == pytest.approx(0.3)
    assert (always.exit_share, sure.exit_share) == ((1.0, 0.0), (0.75, 0.25))


def found(latency: float, loss: float, *, budget: float = 0.5, error: float = 0.002, worst: float = 1.2) -> Outcome:
    return Outcome(budget, latency, worst, 0.9 - loss, loss, error, (0.7, 0.3))


def test_a_good_conversion_is_worth_deploying() -> None:
    judged = verdict([found(0.5, 0.004)], budget=0.5)
    assert judged.sentences[0] == (
        "Loses 0.4 ± 0.2 points of accuracy and takes 0.500 of the static model's time on average (2.0 times as fast): "
        "worth deploying."
    )
    assert not judged.worse
    assert judged.warning is None
    assert judged.within is judged.outcome


def test_a_gain_that_nobody_notices_is_not_called_worth_deploying() -> None:
    judged = verdict([found(0.953, 0.0)], budget=0.5)
    assert judged.sentences[0].endswith(
        "hardly worth it, more time, more images or INT8 (--quantize int8) may gain more."
    )
    assert not judged.worse


def test_a_large_loss_is_refused_in_words_and_the_budget_that_keeps_within_a_point_is_named() -> None:
    judged = verdict([found(0.417, 0.224, budget=0.45), found(0.62, 0.008, budget=0.65)], budget=0.45)
    assert "Loses 22.4 ± 0.2 points of accuracy" in judged.sentences[0]
    assert judged.sentences[0].endswith("do not use this.")
    assert "--budget 0.65" in judged.sentences[-1]
    assert judged.warning is not None
    assert "--budget 0.65" in judged.warning


def test_nothing_within_a_point_is_said() -> None:
    judged = verdict([found(0.417, 0.224)], budget=0.5)
    assert judged.within is None
    assert "nothing faster was found" in judged.sentences[-1]


@pytest.mark.parametrize(
    ("latency", "loss", "worse"), [(1.122, 0.0, True), (1.0, 0.01, True), (1.05, -0.01, False), (0.9, 0.3, False)]
)
def test_worse_than_the_original_means_not_faster_and_not_more_right(latency: float, loss: float, worse: bool) -> None:
    judged = verdict([found(latency, loss)], budget=0.5)
    assert judged.worse == worse
    assert ("not worth it" in judged.sentences[0]) == worse


def test_few_images_are_not_taken_for_proof() -> None:
    judged = verdict([found(0.5, 0.0, error=0.03)], budget=0.5)
    assert "so few images" in judged.sentences[0]


def test_equal_and_dominated_policies_are_not_shown_but_the_chosen_one_is() -> None:
    cheap, chosen, good = found(0.3, 0.1, budget=0.3), found(0.5, 0.05, budget=0.5), found(0.7, 0.0, budget=0.7)
    same, beaten = found(0.7, 0.0, budget=0.8), found(0.9, 0.02, budget=0.9)
    assert worth_showing([cheap, chosen, good, same, beaten], 0.5) == (cheap, chosen, good)
    assert worth_showing([cheap, good, same, beaten], 0.9) == (cheap, good, beaten)
    assert worth_showing([good, same], 0.8) == (same,)


def test_numbers_in_words() -> None:
    assert [points(p) for p in (0.01, 0.005, 0.02)] == ["1 point", "0.5 points", "2 points"]
    assert loss_text(found(0.5, -0.0031), "agreement") == "Gains 0.3 ± 0.2 points of agreement"
    assert loss_text(found(0.5, 0.0), "agreement") == "Loses nothing (± 0.2 points of agreement)"


def test_a_folder_that_no_image_leaves_early_says_so() -> None:
    found = outcomes([policy(1.0, NEVER_LEAVES)], scores(), (1.0, 1.0), cost=COST)
    said = verdict(found, budget=1.0)
    assert said.worse
    assert "not worth it, the static model is as fast" in said.sentences[0]
    assert said.sentences[1].startswith("No image leaves early: no thresholds were found that are clearly faster")

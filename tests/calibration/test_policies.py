"""Rows of policies from scores: the budgets that are served, floors, rounding, too few images."""

from __future__ import annotations

import numpy as np
import pytest
from s2d_runtime.policies import rounded, safe_policy

from s2d_convert.calibration.careful import bounded_policies, careful_policies
from s2d_convert.calibration.policies import (
    Chosen,
    Divided,
    Scores,
    accurate_policies,
    budget_policies,
    check_enough,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.risk_control import RiskBound, images_needed
from s2d_convert.calibration.thresholds import NEVER_LEAVES, confidences, exits, policy_at
from s2d_convert.errors import DataError, PromiseError

COST = (0.25, 0.75)
CLASSES = 4


def scores_of(count: int, seed: int, *, labelled: bool = True, weak: float = 0.15) -> Scores:
    """Two stages: the first is wrong on a share `weak` of the images, and unsure of them; the second is the static model."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    last = np.eye(CLASSES)[labels] * 6 + rng.normal(0, 0.3, (count, CLASSES))
    hard = rng.random(count) < weak
    first = np.eye(CLASSES)[np.where(hard, (labels + 1) % CLASSES, labels)] * np.where(hard, 1.0, 5.0)[:, None]
    first = first + rng.normal(0, 0.3, (count, CLASSES))
    logits = np.stack([first, last]).astype(np.float32)
    return Scores(logits, last.argmax(axis=1), labels if labelled else None)


def test_what_counts_as_right_and_what_is_lost() -> None:
    logits = np.array([[[2, 0], [2, 0], [0, 2]], [[2, 0], [0, 2], [0, 2]]], np.float32)
    labelled = Scores(logits, np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert labelled.classes.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert labelled.target.tolist() == [0, 1, 0]
    assert labelled.losses.tolist() == [[0, 1, 0], [0, 0, 0]]
    unlabelled = Scores(logits, np.array([0, 1, 1]), None)
    assert unlabelled.target.tolist() == [0, 1, 1]
    assert unlabelled.losses.tolist() == [[0, 1, 0], [0, 0, 0]]
    some = labelled.take(np.array([2, 0]))
    assert (len(some), some.target.tolist(), some.logits.shape) == (2, [0, 0], (2, 2, 2))


@pytest.mark.parametrize("labelled", [True, False])
def test_every_policy_does_what_it_says(labelled: bool) -> None:
    scores = scores_of(800, 0, labelled=labelled)
    temperatures = fit_temperatures(scores)
    chosen = budget_policies(scores, temperatures, cost=COST, budget=0.6)
    confidence = confidences(scores.logits, temperatures)
    budgets = [policy.budget for policy in chosen.policies]
    assert budgets == sorted(budgets)
    assert chosen.default_budget == 0.6
    assert 0.6 in budgets
    for policy in chosen.policies:
        stage = exits(confidence, policy.thresholds)
        rows = np.arange(len(scores))
        assert policy.exit_share == pytest.approx([(stage == k).mean() for k in (0, 1)])
        assert policy.expected_latency == pytest.approx(np.cumsum(COST)[stage].mean())
        assert policy.expected_accuracy == pytest.approx((scores.classes[stage, rows] == scores.target).mean())
        assert policy.reached == (policy.expected_latency <= policy.budget + 1e-9)
        assert policy.disagreement == pytest.approx((scores.classes[stage, rows] != scores.classes[-1]).mean())
        assert [sum(row) for row in policy.confidence_histogram] == [len(scores), int((stage > 0).sum())]


def test_thresholds_aim_one_standard_error_below_the_budget() -> None:
    scores = scores_of(300, 1)
    confidence, right = confidences(scores.logits, (1.0, 1.0)), scores.classes == scores.target
    policy = safe_policy(confidence, right, COST, 0.5)
    paid = np.cumsum(COST)[exits(confidence, policy.thresholds)]
    assert policy.reached
    assert paid.mean() <= 0.5 - 0.5 * paid.std() / np.sqrt(len(paid))
    out_of_reach = safe_policy(confidence, right, COST, 0.1)
    assert not out_of_reach.reached
    assert out_of_reach.expected_latency == pytest.approx(COST[0])


def test_no_budget_pushes_careful_thresholds_below_their_floor() -> None:
    scores = scores_of(600, 2)
    plain = budget_policies(scores, (1.0, 1.0), cost=COST, budget=0.3)
    careful = careful_policies(scores, (1.0, 1.0), cost=COST, budget=0.3)
    floor = min(policy.thresholds[0] for policy in careful.policies)
    assert min(policy.thresholds[0] for policy in plain.policies) < floor
    leaving = confidences(scores.logits, (1.0, 1.0))[0] >= np.float32(floor)
    assert (scores.classes[0] == scores.target)[leaving].mean() >= 0.95


def test_promised_policies_keep_the_promise_on_the_images_of_the_test() -> None:
    fit, test = scores_of(400, 3), scores_of(2000, 4)
    risk_bound = RiskBound(0.05, 0.95)
    chosen: Chosen = promised_policies(Divided(fit, test), (1.0, 1.0), cost=COST, risk_bound=risk_bound, budget=None)
    assert chosen.default_budget == chosen.policies[0].budget
    confidence, rows = confidences(test.logits, (1.0, 1.0)), np.arange(len(test))
    for policy in chosen.policies:
        assert policy.promise is not None
        assert (policy.promise.max_drop, policy.promise.confidence, policy.promise.images) == (0.05, 0.95, 2000)
        assert test.losses[exits(confidence, policy.thresholds), rows].mean() <= 0.05


def test_a_last_stage_that_breaks_the_promise_is_refused() -> None:
    test = scores_of(2000, 5)
    test.logits[-1, :400] = -test.logits[-1, :400]
    with pytest.raises(PromiseError, match="no policy keeps the promise: the last stage"):
        promised_policies(
            Divided(scores_of(400, 6), test), (1.0, 1.0), cost=COST, risk_bound=RiskBound(0.02), budget=None
        )


@pytest.mark.parametrize("labelled", [True, False])
def test_too_few_images_are_told_before_anything_is_tried(labelled: bool) -> None:
    risk_bound = RiskBound(0.01, 0.95)
    needed = images_needed(risk_bound, paired=labelled)
    check_enough(needed, risk_bound, labelled=labelled)
    with pytest.raises(DataError, match=f"takes at least {needed}, .* give at least {2 * needed} images"):
        check_enough(needed - 1, risk_bound, labelled=labelled, share=0.5)


def test_a_manifest_has_rounded_shares_and_exact_thresholds() -> None:
    scores = scores_of(700, 7)
    confidence, right = confidences(scores.logits, (1.0, 1.0)), scores.classes == scores.target
    policy = policy_at(confidence, right, cost=COST, budget=1.0, thresholds=(0.7,))
    short = rounded(policy)
    assert short.thresholds == policy.thresholds
    for value in (short.expected_latency, short.expected_accuracy, *short.exit_share):
        assert value == round(value, 5)
    assert short.exit_share == pytest.approx(policy.exit_share, abs=5e-6)
    assert rounded(short) == short


@pytest.mark.parametrize("weak", [0.0, 0.15, 0.6])
def test_accuracy_first_takes_the_cheapest_policy_that_loses_little(weak: float) -> None:
    scores = scores_of(1000, 1, weak=weak)
    temperatures = fit_temperatures(scores)
    chosen = accurate_policies(scores, temperatures, cost=COST, max_loss=0.02)
    static = float((scores.static_classes == scores.target).mean())
    default = next(p for p in chosen.policies if p.budget == chosen.default_budget)
    assert default.expected_accuracy >= static - 0.02
    cheaper = [p for p in chosen.policies if p.budget < chosen.default_budget]
    assert all(p.expected_accuracy < static - 0.01 for p in cheaper)  # the margin keeps one standard error away
    assert [p.budget for p in chosen.policies] == sorted({p.budget for p in chosen.policies})


def test_accuracy_first_says_where_nothing_is_right_enough() -> None:
    scores = scores_of(300, 2)
    worse = Scores(scores.logits[:, :, ::-1].copy(), scores.static_classes, scores.labels)  # stages that answer wrongly
    chosen = accurate_policies(worse, (1.0, 1.0), cost=COST, max_loss=0.01)
    assert not next(p for p in chosen.policies if p.budget == chosen.default_budget).reached


# --- a promise for every class --------------------------------------------------------------------------------------


def rare_positives(count: int, seed: int, *, labelled: bool) -> Scores:
    """Two classes, 6 % of the images of class 1; stage 1 is right on every negative and on a half of the positives, and as sure
    of one as of the other; stage 2 is the static model, which is right."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.06).astype(np.int64)
    said = np.where(rng.random(count) < 0.5, 0, labels)
    sure = rng.uniform(2, 6, count)
    first = np.eye(2)[said] * sure[:, None]
    logits = np.stack([first, np.eye(2)[labels] * 8]).astype(np.float32)
    return Scores(logits, labels, labels if labelled else None, ("clean", "nude"))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_promise_per_class_holds_for_the_rare_class_too(labelled: bool) -> None:
    fit, test = rare_positives(1000, 8, labelled=labelled), rare_positives(9000, 9, labelled=labelled)
    rare = test.target == 1

    def lost(risk_bound: RiskBound) -> tuple[float, Chosen]:
        chosen = promised_policies(Divided(fit, test), (1.0, 1.0), cost=COST, risk_bound=risk_bound, budget=None)
        stage = exits(confidences(test.logits, (1.0, 1.0)), chosen.policies[0].thresholds)
        return float(test.losses[stage, np.arange(len(test))][rare].mean()), chosen

    over_all, plain = lost(RiskBound(0.05))
    per_class, careful = lost(RiskBound(0.05, per_class=True))
    assert over_all > 0.4  # half of them, and still 97 % of all answers
    assert per_class <= 0.05
    assert careful.policies[0].promise == plain.policies[0].promise
    assert plain.tested is None
    assert careful.tested == {"clean": int((~rare).sum()), "nude": int(rare.sum())}


def test_a_class_with_too_few_images_is_named_with_what_it_takes() -> None:
    risk_bound = RiskBound(0.05, per_class=True)
    fit, test = rare_positives(300, 8, labelled=True), rare_positives(900, 9, labelled=True)
    few = int((test.target == 1).sum())
    needed = images_needed(risk_bound, paired=True)
    message = rf"too few images of class 'nude \({few}\)' .* at least {needed} of every class, .* at least {2 * needed}"
    with pytest.raises(DataError, match=message):
        promised_policies(Divided(fit, test, share=0.5), (1.0, 1.0), cost=COST, risk_bound=risk_bound, budget=None)


def test_a_refusal_names_the_class() -> None:
    fit, test = rare_positives(1000, 8, labelled=True), rare_positives(9000, 9, labelled=True)
    test.logits[-1, test.target == 1] *= -1
    with pytest.raises(PromiseError, match=r"loses accuracy in 100 % of \d+ images of class 'nude'"):
        promised_policies(
            Divided(fit, test), (1.0, 1.0), cost=COST, risk_bound=RiskBound(0.1, per_class=True), budget=None
        )


# --- where no image should leave early ------------------------------------------------------------------------------


def two_classes(count: int, seed: int, *, labelled: bool = True) -> Scores:
    """The field report: a network of two classes and an exit that is sure of 89 % of the images and wrong on 8 % of them."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    static = np.where(rng.random(count) < 0.044, 1 - labels, labels)
    said = np.where(rng.random(count) < 0.08, 1 - static, static)
    sure = np.where(rng.random(count) < 0.89, 4.0, 0.2) + rng.normal(0, 0.05, count)
    logits = np.stack([np.eye(2)[said] * sure[:, None], np.eye(2)[static] * 6]).astype(np.float32)
    return Scores(logits, static, labels if labelled else None)


@pytest.mark.parametrize("cost", [(0.93, 0.12), (0.985, 0.1), (1.003, 0.2)])
def test_without_data_nothing_leaves_where_leaving_gains_nothing(cost: tuple[float, float]) -> None:
    chosen = careful_policies(two_classes(2000, 0, labelled=False), (1.0, 1.0), cost=cost, budget=0.5)
    assert [p.budget for p in chosen.policies] == [0.5, 1.0]
    for policy in chosen.policies:
        assert policy.thresholds == (NEVER_LEAVES,)
        assert policy.exit_share == (0.0, 1.0)
        assert policy.expected_latency == pytest.approx(sum(cost))
        assert (policy.reached, policy.disagreement) == (False, 0.0)


def test_budgets_and_accuracy_first_do_not_leave_either() -> None:
    scores, cost = scores_of(500, 3, weak=0.5), (0.99, 0.2)
    for chosen in (
        budget_policies(scores, (1.0, 1.0), cost=cost, budget=0.5),
        accurate_policies(scores, (1.0, 1.0), cost=cost, max_loss=0.05),
    ):
        assert all(policy.thresholds == (NEVER_LEAVES,) for policy in chosen.policies)
        assert not any(policy.reached for policy in chosen.policies)
        assert chosen.default_budget in [policy.budget for policy in chosen.policies]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("budget", [0.3, 0.6, 0.95, None])
def test_exact_mode_loses_little_at_every_budget(labelled: bool, budget: float | None) -> None:
    scores = scores_of(3000, 4, labelled=labelled, weak=0.4)
    chosen = bounded_policies(scores, (1.0, 1.0), cost=COST, budget=budget, max_loss=0.01)
    assert min(p.expected_latency for p in chosen.policies) < 0.98
    stages, rows = confidences(scores.logits, (1.0, 1.0)), np.arange(len(scores))
    for policy in chosen.policies:
        lost = scores.losses[exits(stages, policy.thresholds), rows]
        assert lost.mean() + lost.std() / np.sqrt(len(scores)) <= 0.01 + 1e-3
        assert policy.reached == (policy.expected_latency <= policy.budget + 1e-9)
    assert chosen.default_budget == (chosen.policies[0].budget if budget is None else budget)
    if budget == 0.3:
        assert not chosen.policies[0].reached
        reckless = budget_policies(scores, (1.0, 1.0), cost=COST, budget=budget).policies[0]
        assert reckless.expected_accuracy < chosen.policies[0].expected_accuracy - 0.1


def test_exact_mode_with_an_exit_that_is_wrong_too_often_never_leaves() -> None:
    chosen = bounded_policies(two_classes(2000, 5), (1.0, 1.0), cost=(0.5, 0.6), budget=None, max_loss=0.01)
    assert [(p.budget, p.thresholds) for p in chosen.policies] == [(1.0, (NEVER_LEAVES,))]

"""The promise: p-values against enumeration, the order of the policies, and simulations with a known truth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from populations import draw, population

from s2d_convert.calibration.risk_control import (
    RiskBound,
    binomial_tail,
    difference_tail,
    fixed_sequence,
    images_needed,
    p_value,
    path,
    upper_share,
)
from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES, confidences, exits
from s2d_convert.errors import UsageError


def sum_of_losses(trials: int, drop: float, differing: float) -> NDArray[np.float64]:
    """P(D = -trials), ..., P(D = trials), by convolution."""
    one = np.array([(differing - drop) / 2, 1 - differing, (differing + drop) / 2])
    total = np.ones(1)
    for _ in range(trials):
        total = np.convolve(total, one)
    return total


@pytest.mark.parametrize("chance", [0.003, 0.3, 0.97])
def test_a_binomial_tail_is_the_sum_of_its_terms(chance: float) -> None:
    trials = 60
    terms = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    for count in range(trials + 1):
        assert binomial_tail(count, trials, chance) == pytest.approx(sum(terms[: count + 1]), abs=1e-12)


@pytest.mark.parametrize(("count", "trials"), [(0, 50), (7, 50), (49, 50), (50, 50)])
def test_a_share_above_the_bound_would_seldom_give_so_few(count: int, trials: int) -> None:
    share = upper_share(count, trials, 0.02)
    if count < trials:
        assert binomial_tail(count, trials, share) == pytest.approx(0.02, rel=1e-6)
    else:
        assert share == 1


@pytest.mark.parametrize(("trials", "drop"), [(150, 0.02), (300, 0.01), (60, 0.1)])
@pytest.mark.parametrize("extra", [0.0, 0.01, 0.1, 0.35])
def test_the_tail_of_a_difference_is_the_largest_that_any_share_gives(trials: int, drop: float, extra: float) -> None:
    tails = [np.cumsum(sum_of_losses(trials, drop, drop + part * extra)) for part in np.linspace(0, 1, 12)]
    for difference in range(-12, math.ceil((trials - 1) * drop)):
        found = difference_tail(difference, trials, drop, drop + extra)
        largest = max(float(tail[trials + difference]) for tail in tails)
        assert found >= largest - 1e-12
        if difference <= (trials - 1) * drop - 2:
            assert found == pytest.approx(largest, abs=1e-9)


@pytest.mark.parametrize("differing", [0.02, 0.03, 0.06, 0.15])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_paired_p_value_is_small_by_chance_as_seldom_as_it_says(differing: float, confidence: float) -> None:
    """At the bound itself, by enumeration over all counts that matter: P(p <= level) <= level, and not far below."""
    images, risk_bound = 400, RiskBound(0.02, confidence)
    chance = sum_of_lost_and_gained(images, (differing + 0.02) / 2, (differing - 0.02) / 2)
    wrong = sum(
        weight
        for (lost, gained), weight in np.ndenumerate(chance)
        if weight > 1e-12 and p_value(lost, gained, images, risk_bound, paired=True) <= risk_bound.level
    )
    assert wrong <= risk_bound.level
    assert wrong >= 0.2 * risk_bound.level


def sum_of_lost_and_gained(images: int, lost: float, gained: float) -> NDArray[np.float64]:
    """P(so many lost, so many gained), [101, 101]."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])
    a, b = np.meshgrid(np.arange(101), np.arange(101), indexing="ij")
    ways = logs[images] - logs[a] - logs[b] - logs[images - a - b]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_gained = np.where(b == 0, 0.0, b * np.log(gained))
    result: NDArray[np.float64] = np.exp(
        ways + a * np.log(lost) + log_gained + (images - a - b) * np.log1p(-lost - gained)
    )
    return result


def test_more_loss_is_never_a_smaller_p_value() -> None:
    risk_bound = RiskBound(0.02)
    for paired in (False, True):
        found = [p_value(lost, 3 if paired else 0, 600, risk_bound, paired=paired) for lost in range(40)]
        assert all(a <= b + 1e-12 for a, b in pairwise(found))
    assert p_value(9, 6, 600, risk_bound, paired=True) < p_value(9, 0, 600, risk_bound, paired=True)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("drop", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.002, 0.99)])
def test_the_number_of_images_that_are_needed_is_the_least(drop: float, confidence: float, paired: bool) -> None:
    risk_bound = RiskBound(drop, confidence)
    needed = images_needed(risk_bound, paired=paired)
    assert p_value(0, 0, needed, risk_bound, paired=paired) <= risk_bound.level
    assert p_value(0, 0, needed - 1, risk_bound, paired=paired) > risk_bound.level


def test_the_number_for_one_percent_is_the_well_known_one() -> None:
    assert images_needed(RiskBound(0.01, 0.95), paired=False) == 299


@pytest.mark.parametrize("drop", [0.0, 1.0, -0.1, math.nan])
def test_no_sample_shows_that_nothing_is_lost(drop: float) -> None:
    with pytest.raises(UsageError, match="--max-drop"):
        RiskBound(drop)


@pytest.mark.parametrize("confidence", [1.0, 0.3, math.nan])
def test_no_sample_makes_sure_beyond_doubt(confidence: float) -> None:
    with pytest.raises(UsageError, match="--confidence"):
        RiskBound(0.01, confidence)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_path_goes_down_from_nobody_to_everybody(stages: int) -> None:
    people = population(3, stages=stages, exact=True, rows=500)
    confidence = confidences(people.logits, [3.0] * stages)
    confidence[0, :5] = np.nan
    walk = path(confidence, people.losses(paired=True), cost=people.cost)
    assert (walk[0] == NEVER_LEAVES).all()
    assert (np.diff(walk, axis=0) <= 0).all()
    last = exits(np.nan_to_num(confidence, nan=0), walk[-1].tolist())
    assert (last == 0).all()
    if stages > 1:
        assert walk[-1][0] == ALWAYS_LEAVES
        leaves = [exits(confidence, row.tolist()) for row in walk]
        moved = [int((before != after).sum()) for before, after in pairwise(leaves)]
        assert max(moved[:-1]) <= 0.02 * 500  # fine steps, so that little is lost between two of them
        assert all((after <= before).all() for before, after in pairwise(leaves))


def test_a_path_prefers_the_stage_that_saves_more_at_no_loss() -> None:
    """Stage 1 is right on the images that it is sure of, stage 2 is as often wrong as sure: stage 1 goes first."""
    sure = np.tile(np.linspace(0.99, 0.5, 200, dtype=np.float32), (3, 1))
    losses = np.zeros((3, 200), np.int8)
    losses[1] = 1
    walk = path(sure, losses, cost=[0.2, 0.4, 0.4])
    assert (walk[:, 1] == NEVER_LEAVES).all()


def test_the_test_stops_at_the_first_policy_that_fails() -> None:
    confidence = np.stack([np.linspace(0, 1, 1000), np.ones(1000)]).astype(np.float32)
    losses = np.zeros((2, 1000), np.int8)
    losses[0, :500] = 1  # all that are less sure than a half
    walk = np.array([[NEVER_LEAVES], [0.9], [0.6], [0.51], [0.4], [0.55]], np.float32)
    tested = fixed_sequence(walk, confidence, losses, RiskBound(0.01), paired=False)
    assert (tested.kept, tested.images) == (4, 1000)
    assert tested.risk == pytest.approx(0.1, abs=0.002)
    assert tested.p > 0.05
    assert fixed_sequence(walk[:3], confidence, losses, RiskBound(0.01), paired=False).kept == 3


CASES = [  # stages, paired, exact, images, bound; the first two run with every `make test`
    (2, False, True, 700, 0.02),
    (2, True, False, 1500, 0.02),
    (2, True, True, 1500, 0.01),
    (3, False, True, 800, 0.02),
]


def share_broken(case: tuple[int, bool, bool, int, float], *, draws: int, seed: int) -> tuple[float, float]:
    """(share of draws in which the bound is broken, mean number of policies that are kept)."""
    stages, paired, exact, images, drop = case
    people, rng = population(stages, stages=stages, exact=exact), np.random.default_rng(seed)
    found = [draw(people, RiskBound(drop), rng, paired=paired, images=images) for _ in range(draws)]
    return float(np.mean([risk > drop for risk, _ in found])), float(np.mean([tested.kept for _, tested in found]))


@pytest.mark.parametrize("case", CASES[:2])
def test_the_promise_is_broken_in_at_most_five_percent_of_draws(case: tuple[int, bool, bool, int, float]) -> None:
    broken, kept = share_broken(case, draws=200, seed=5)
    assert broken <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    assert kept > 40  # far from the safest: the bound is put to use


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, (4, True, True, 3000, 0.01), (2, True, True, 6000, 0.005)])
def test_the_promise_is_kept_in_many_draws(case: tuple[int, bool, bool, int, float]) -> None:
    broken, kept = share_broken(case, draws=3000, seed=6)
    assert broken <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 3000)
    assert kept > 40


def test_thresholds_without_a_test_break_the_same_bound_often() -> None:
    """What the simulation would show if the promise were not tested: the cheapest policy whose loss on the calibration
    images is within the bound breaks it about every second time."""
    people, rng, drop = population(2, stages=2, exact=True), np.random.default_rng(7), 0.02
    confidence, losses = confidences(people.logits, [3.0, 3.0]), people.losses(paired=False)
    broken = 0
    for _ in range(60):
        rows = rng.integers(0, len(people.truth), 700)
        walk = path(confidence[:, rows], losses[:, rows], cost=people.cost)
        within = [row for row in walk if losses[exits(confidence[:, rows], row.tolist()), rows].mean() <= drop]
        leave = exits(confidence, within[-1].tolist())
        broken += float(losses[leave, np.arange(len(leave))].mean()) > drop
    assert broken > 15


# --- per class ------------------------------------------------------------------------------------------------------


def test_every_group_must_pass() -> None:
    confidence = np.stack([np.linspace(0, 1, 1000), np.ones(1000)]).astype(np.float32)
    groups = np.arange(1000) % 2
    losses = np.zeros((2, 1000), np.int8)
    losses[0, (groups == 1) & (confidence[0] < 0.9)] = 1
    walk = np.array([[NEVER_LEAVES], [0.95], [0.899], [0.88], [0.85], [0.8]], np.float32)
    risk_bound = RiskBound(0.02)
    together = fixed_sequence(walk, confidence, losses, risk_bound, paired=False)
    apart = fixed_sequence(walk, confidence, losses, risk_bound, paired=False, groups=groups)
    assert apart.kept < together.kept
    assert apart.group == 1
    lost = int(losses[0, (groups == 1) & (confidence[0] >= walk[apart.kept, 0])].sum())
    assert apart.p == pytest.approx(binomial_tail(lost, 500, 0.02))
    alone = fixed_sequence(
        walk, confidence[:, groups == 1], losses[:, groups == 1], risk_bound, paired=False
    )  # the other group passes everywhere
    assert (apart.kept, apart.risk) == (alone.kept, alone.risk)


def test_the_promise_per_class_is_broken_in_at_most_five_percent_of_draws() -> None:
    """Broken: some class has a risk above the bound in the population. At the first policy that breaks it for one class, the
    largest of the p-values is at least that class's own, which is seldom small."""
    people, risk_bound, draws, broken, kept = (
        population(2, stages=2, exact=True, classes=3),
        RiskBound(0.02),
        200,
        0,
        [],
    )
    rng, losses = np.random.default_rng(5), people.losses(paired=False)
    confidence = confidences(people.logits, [3.0, 3.0])
    walk = path(confidence[:, :500], losses[:, :500], cost=people.cost)
    for _ in range(draws):
        rows = rng.integers(0, len(people.truth), 1500)
        tested = fixed_sequence(
            walk, confidence[:, rows], losses[:, rows], risk_bound, paired=False, groups=people.said[rows]
        )
        kept.append(tested.kept)
        if tested.kept:
            own = losses[exits(confidence, walk[tested.kept - 1].tolist()), np.arange(len(people.said))]
            broken += max(float(own[people.said == k].mean()) for k in range(3)) > risk_bound.max_drop
    assert broken / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert np.mean(kept) > 20

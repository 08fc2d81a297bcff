"""The allocation against brute force, and on a network whose latency is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import space_of

from s2d_convert.channels.macs import total_macs
from s2d_convert.plans.allocation import Allocation, knapsack, level_errors, vanishing
from s2d_convert.plans.assignment import check_conversion
from s2d_convert.plans.macs import chain_macs
from s2d_convert.plans.plan import Plan, identity_plan
from s2d_convert.plans.space import CASCADE, LINKED, PlanSpace
from s2d_convert.search.allocation import WIDTHS, allocated, coarse_to_fine, exits_within, pairs_of, slim_lasts

rows = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 60))
def test_the_knapsack_finds_the_least_error_that_the_budget_allows(
    classes: list[list[tuple[int, int]]], budget: int
) -> None:
    errors = [[float(e) for e, _ in row] for row in classes]
    costs = [[float(c) for _, c in row] for row in classes]
    (levels,) = knapsack(errors, costs, [budget])
    choices = list(itertools.product(*(range(len(row)) for row in errors)))
    cost = {c: sum(row[i] for row, i in zip(costs, c, strict=True)) for c in choices}
    error = {c: sum(row[i] for row, i in zip(errors, c, strict=True)) for c in choices}
    affordable = [c for c in choices if cost[c] <= budget]
    if affordable:
        assert cost[levels] <= budget + 1e-9
        # Rounding costs up to a bin can only hide choices that lie within the last bins below the budget.
        spare = 0.01 * len(classes) * max(1.0, max(cost.values()) - min(cost.values()))
        assert error[levels] <= min(error[c] for c in choices if cost[c] <= budget - spare or c == levels)
    else:
        assert cost[levels] == min(cost.values())


def test_the_error_of_a_level_is_the_score_of_the_best_unit_that_is_left_out() -> None:
    space = space_of("wide_resnet", 2)
    division = next(d for d in space.divisions if d.levels > 1)
    score = np.zeros(space.channels.units)
    falling = [float(v) for v in range(division.levels, 0, -1)]
    for value, chunk in zip(falling, division.chunks, strict=True):
        score[list(chunk)] = value
    assert level_errors(division, score) == (*falling, 0.0)
    assert level_errors(division, score, left_out=99.0)[0] == 99.0
    assert level_errors(division, score, left_out=0.0)[0] == falling[1], (
        "without a class nothing is better than with a part"
    )


@pytest.mark.parametrize("name", ["resnet_option_a", "wide_resnet", "mobilenet_v3"])
def test_allocations_are_valid_chains_of_falling_latency_and_rising_error(name: str) -> None:
    space = pairs_of(space_of(name, 3))
    score = np.random.default_rng(0).random(space.channels.units)

    def latency(plan: Plan) -> float:
        return chain_macs(space.model, plan) / 1e6

    rows = Allocation(space, score, latency).best()
    assert len(rows) > 3
    assert [row.latency for row in rows] == sorted((row.latency for row in rows), reverse=True)
    assert [row.error for row in rows] == sorted(row.error for row in rows)
    assert rows[0].error == 0
    for actions in allocated(space_of(name, 3), rows, 12):
        conversion = space_of(name, 3).decode(actions)
        assert conversion.chains[0].stages_of_units


def test_classes_with_which_their_readers_vanish_are_the_insides_of_blocks() -> None:
    space = space_of("resnet_option_a", 2)
    inner = vanishing(space.model, space.divisions)
    assert inner
    for index in inner:
        plan = space.decode(space.without(index)).chains[0]
        whole = space.decode(space.actions(CASCADE, [len(space.taps) - 1], [1.0])).chains[0]
        assert chain_macs(space.model, plan) < chain_macs(space.model, whole)
        assert len(space.divisions[index].group.producers) == 1


def test_slimmer_last_chains_end_in_the_logits_and_cost_less_than_the_model() -> None:
    space = space_of("wide_resnet", 2)
    pairs = pairs_of(space)
    whole = chain_macs(space.model, identity_plan(space.model))
    score = np.random.default_rng(0).random(space.channels.units)
    rows = Allocation(pairs, score, lambda plan: chain_macs(space.model, plan) / whole).best()
    lasts = slim_lasts(space, rows)
    costs = [chain_macs(space.model, plan) for plan in lasts]
    assert costs == sorted(costs, reverse=True)
    assert all(0 < cost < whole for cost in costs)
    wider = space.with_lasts(lasts)
    assert len(wider.slim_kinds) == len(lasts) == wider.sizes[0] - space.sizes[0]
    for kind, last in zip(wider.slim_kinds, lasts, strict=True):
        conversion = wider.decode(wider.actions(kind, [0], [0.5]))
        check_conversion(space.model, conversion)
        assert conversion.chains[1] == last
    starts = allocated(wider, rows, 20)
    assert {actions[0] for actions in starts} == set(wider.options_of_kind)
    assert len({min(actions[0], 2) for actions in starts[:3]}) == 3, "the kinds take turns"
    cheap = allocated(wider, rows, 20, below=0.3)
    narrow = [a for a in cheap if a[0] in (LINKED, CASCADE)]
    assert narrow
    assert all(chain_macs(space.model, wider.decode(a).chains[0]) < 0.35 * whole for a in narrow if a[0] == CASCADE)
    fastest = allocated(wider, rows, 20, below=0.0)
    assert sorted(a[0] for a in fastest) == sorted(wider.options_of_kind), "one of each kind"
    assert len({wider.decode(a).chains[0] for a in fastest if a[0] not in (LINKED, *wider.scaled_kinds)}) == 1


@pytest.mark.parametrize("budget", [0.02, 0.15, 0.5])
def test_early_exits_lie_as_late_as_the_budget_allows_at_every_image_size(budget: float) -> None:
    plain = space_of("mobilenet_v3", 2)
    space = PlanSpace(plain.model, plain.divisions, stages=2, scales=(0.75, 0.5))
    whole = total_macs(space.graph)

    def latency(plan: Plan) -> float:
        return plan.scale**2 * chain_macs(space.model, replace(plan, scale=1.0)) / whole

    wanted = set()
    for kind, width in itertools.product((CASCADE, *space.scaled_kinds), WIDTHS):
        options = [space.ending_at(kind, tap, width) for tap in range(len(space.taps))]
        within = [actions for actions in options if latency(space.decode(actions).chains[0]) < budget]
        wanted |= set(within[-1:])
    found = exits_within(space, latency, [budget])
    assert {a for a in found if a[0] != LINKED} == wanted
    assert len(found) == len(set(found))
    if budget > 0.1:
        assert [space.scale_of(a[0]) for a in found[:3]] == [0.5, 0.75, 1.0], "the kinds take turns"
        assert found[2][0] == CASCADE
    both = exits_within(space, latency, [0.5, 0.15])
    assert set(both) == {a for one in (0.5, 0.15) for a in exits_within(space, latency, [one])}


def test_rows_come_from_coarse_to_fine() -> None:
    assert coarse_to_fine(range(7)) == [3, 1, 5, 0, 2, 4, 6]
    for count in range(12):
        order = coarse_to_fine(range(count))
        assert sorted(order) == list(range(count))
        for shown in range(1, count):  # after every power of two the gaps are about equal
            gaps = np.diff([-1, *sorted(order[:shown]), count])
            assert gaps.max() <= 2 * count / 2 ** int(np.log2(shown + 1)) + 1

"""Spaces with scales: their decisions, the plans behind them, and that spaces without are what they were."""

from __future__ import annotations

import numpy as np
from chain_law import analysed
from hypothesis import given
from hypothesis import strategies as st
from small_spaces import by_hand
from text_nets import residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import offered_scales
from s2d_convert.plans.assignment import check_conversion
from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.heuristics import random_plan, simple_chains
from s2d_convert.plans.macs import chain_macs
from s2d_convert.plans.plan import identity_plan
from s2d_convert.plans.space import CASCADE, KINDS, LINKED, PlanSpace


def scaled(stages: int = 2, *, kinds: tuple[int, ...] = (LINKED, CASCADE)) -> PlanSpace:
    graph, channels, weights = analysed(residual())
    model = AnalysedModel(graph, channels)
    divisions = divide(model, weights, groups=2, block=4)
    return PlanSpace(model, divisions, stages=stages, kinds=kinds, scales=offered_scales(model))


def test_every_scale_is_a_kind_behind_the_others() -> None:
    space = scaled()
    assert space.scales == (0.75, 0.625, 0.5)
    assert space.sizes[0] == len(KINDS) + 3
    assert np.flatnonzero(space.allowed(())).tolist() == [0, 1, 2, 3, 4]
    assert [space.scale_of(kind) for kind in space.options_of_kind] == [1.0, 1.0, 0.75, 0.625, 0.5]
    assert scaled(kinds=(LINKED,)).options_of_kind == (LINKED,)
    assert space.restricted((CASCADE,), "any").options_of_kind == (1, 2, 3, 4)


def test_a_space_without_scales_is_what_it_was() -> None:
    space = by_hand(3)
    assert space.sizes[0] == len(KINDS)
    assert space.options_of_kind == space.kinds


def test_the_same_decisions_mean_the_same_without_a_scale() -> None:
    space = scaled()
    plain = PlanSpace(space.model, space.divisions, stages=2)
    for seed in range(20):
        actions = random_actions(plain, np.random.default_rng(seed))
        assert space.decode(actions) == plain.decode(actions)


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_only_the_first_chain_of_a_cascade_is_scaled(seed: int, stages: int) -> None:
    space = scaled(stages)
    rng = np.random.default_rng(seed)
    for conversion in (space.decode(random_actions(space, rng)), random_plan(space, rng)):
        check_conversion(space.model, conversion)
        if conversion.chains[0].scale < 1:
            assert conversion.chains[1:] == (identity_plan(space.model),)


def test_starts_and_simple_chains_have_the_whole_network_at_each_scale() -> None:
    space = scaled()
    starts = [space.decode(actions) for actions in space.starts()]
    whole = [c.chains[0] for c in starts if c.chains[0].scale < 1 and set(c.chains[0].stages_of_units) == {1}]
    assert [plan.scale for plan in whole] == [0.75, 0.625, 0.5]
    costs = [chain_macs(space.model, plan) for plan in whole]
    assert costs == sorted(costs, reverse=True)
    chains = simple_chains(space, 1.0)
    assert {c.chains[0].scale for c in chains} == {1.0, 0.75, 0.625, 0.5}
    assert all(space.decode(actions) == c for c, actions in chains.items())

"""The search space: every string of decisions is a valid conversion, groups follow the layout block."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import analysed
from text_nets import chain, residual

from s2d_convert.plan import PRUNED, check_conversion
from s2d_convert.search import random_actions
from s2d_convert.space import CASCADE, LINKED, PlanSpace, divide


def space_of(name: str, stages: int, groups: int = 4) -> PlanSpace:
    graph, channels, weights = analysed(nets.export(name))
    return PlanSpace(graph, channels, divide(graph, channels, weights, groups=groups, block=8), stages=stages)


@pytest.fixture(scope="module", params=["resnet_option_a", "densenet", "mobilenet_v3", "vgg_bn"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@given(seed=st.integers(0, 2**32), stages=st.integers(2, 4))
@settings(max_examples=15)
def test_random_decisions_make_valid_conversions(name: str, seed: int, stages: int) -> None:
    space = space_of(name, stages)
    actions = random_actions(space, np.random.default_rng(seed))
    conversion = space.decode(actions)
    check_conversion(space.graph, space.channels, conversion)
    assert conversion.stages <= stages
    assert len(conversion.chains) == (2 if actions[0] == CASCADE else 1)


def test_starts_and_uniform_plans_are_valid(name: str) -> None:
    for stages in (2, 3):
        space = space_of(name, stages)
        for actions in (*space.starts(), *space.uniform()):
            assert all(space.allowed(actions[:i])[a] for i, a in enumerate(actions))
            check_conversion(space.graph, space.channels, space.decode(actions))


def test_a_linked_plan_prunes_nothing_and_a_cascade_ends_untouched(name: str) -> None:
    space = space_of(name, 2)
    linked = space.decode(space.actions(LINKED, [0], [0.5]))
    assert PRUNED not in linked.chains[0].stages_of_units
    cascade = space.decode(space.actions(CASCADE, [len(space.taps) - 1], [0.5]))
    assert set(cascade.chains[-1].stages_of_units) == {1}


def test_groups_divide_a_class_and_follow_the_block() -> None:
    graph, channels, weights = analysed(nets.export("wide_resnet"))
    for division in divide(graph, channels, weights, groups=4, block=8):
        units = [u for chunk in division.chunks for u in chunk]
        assert sorted(units) == sorted(division.group.units)
        per_unit = division.group.width // len(division.group.units)
        if division.group.width >= 16:
            assert all(len(chunk) * per_unit % 8 == 0 for chunk in division.chunks[:-1])


def test_a_stage_can_do_without_the_inside_of_a_block_but_not_without_a_chain() -> None:
    for model, optional in ((residual(), [False, True]), (chain(), [False, False])):
        graph, channels, weights = analysed(model)
        found = divide(graph, channels, weights, groups=2, block=8)
        assert [d.optional for d in found] == optional

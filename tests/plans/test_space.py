"""The search space: every string of decisions is a valid conversion, groups follow the layout block."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from chain_law import analysed
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import by_hand, space_of
from text_nets import chain, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import node_macs
from s2d_convert.plans.assignment import check_conversion
from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.divisions import divide, importance
from s2d_convert.plans.macs import mac_shares
from s2d_convert.plans.plan import PRUNED, Plan
from s2d_convert.plans.space import CASCADE, LINKED, PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.split import split


def first_stage_macs(space: PlanSpace, plan: Plan) -> int:
    """Multiply-accumulates of the first stage of a chain."""
    weights = static_weights(space.graph, space.channels)
    return split(space.graph, space.channels, plan, weights)[0].macs


@pytest.fixture(scope="module", params=["resnet_option_a", "densenet", "mobilenet_v3", "vgg_bn", "wide_resnet"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@given(seed=st.integers(0, 2**32), stages=st.integers(2, 4))
@settings(max_examples=15)
def test_random_decisions_make_valid_conversions(name: str, seed: int, stages: int) -> None:
    space = space_of(name, stages)
    actions = random_actions(space, np.random.default_rng(seed))
    conversion = space.decode(actions)
    check_conversion(space.model, conversion)
    assert conversion.stages <= stages
    assert len(conversion.chains) == (2 if actions[0] == CASCADE else 1)


def test_starts_and_uniform_plans_are_valid(name: str) -> None:
    for stages in (2, 3):
        space = space_of(name, stages)
        for actions in (*space.starts(), *space.uniform()):
            assert all(space.allowed(actions[:i])[a] for i, a in enumerate(actions))
            check_conversion(space.model, space.decode(actions))


def test_a_linked_plan_prunes_nothing_and_a_cascade_ends_untouched(name: str) -> None:
    space = space_of(name, 2)
    linked = space.decode(space.actions(LINKED, [0], [0.5]))
    assert PRUNED not in linked.chains[0].stages_of_units
    cascade = space.decode(space.actions(CASCADE, [len(space.taps) - 1], [0.5]))
    assert set(cascade.chains[-1].stages_of_units) == {1}


def test_the_narrowest_sequence_is_the_least_in_every_decision(name: str) -> None:
    space = space_of(name, 3)
    least = space.narrowest(CASCADE)
    assert all(space.allowed(least[:i])[a] for i, a in enumerate(least))
    rng = np.random.default_rng(0)
    (first,) = space.decode(least).chains[:1]
    assert 0 < first_stage_macs(space, first) < 0.5 * sum(node_macs(space.graph).values())
    for _ in range(5):
        actions = (CASCADE, *random_actions(space, rng)[1:])
        if all(space.allowed(actions[:i])[a] for i, a in enumerate(actions)):
            (other,) = space.decode(actions).chains[:1]
            assert first_stage_macs(space, first) <= first_stage_macs(space, other)


def test_groups_divide_a_class_and_follow_the_block() -> None:
    graph, channels, weights = analysed(nets.export("wide_resnet"))
    for division in divide(AnalysedModel(graph, channels), weights, groups=4, block=8):
        units = [u for chunk in division.chunks for u in chunk]
        assert sorted(units) == sorted(division.group.units)
        per_unit = division.group.width // len(division.group.units)
        if division.group.width >= 16:
            assert all(len(chunk) * per_unit % 8 == 0 for chunk in division.chunks[:-1])


def test_a_stage_can_do_without_the_inside_of_a_block_but_not_without_a_chain() -> None:
    for model, optional in ((residual(), [False, True]), (chain(), [False, False])):
        graph, channels, weights = analysed(model)
        found = divide(AnalysedModel(graph, channels), weights, groups=2, block=8)
        assert [d.optional for d in found] == optional


def test_decisions_by_hand() -> None:
    space = by_hand(2)
    assert space.taps == ("x", "f")
    assert space.sizes == (2, 2, 3, 3)  # kind; tap, groups of the first conv, groups of the second
    assert space.allowed((LINKED,)).tolist() == [True, True]
    assert space.allowed((LINKED, 1)).tolist() == [False, True, True]  # a chain cannot do without a class
    # An exit at the first ReLU never computes the second conv: one spelling only.
    assert space.allowed((LINKED, 0, 1)).tolist() == [False, False, True]
    (plan,) = space.decode((LINKED, 1, 1, 2)).chains
    first, second = space.divisions
    assert [plan.stages_of_units[u] for u in first.chunks[0]] == [1] * 4
    assert [plan.stages_of_units[u] for u in first.chunks[1]] == [2] * 4
    assert {plan.stages_of_units[u] for chunk in second.chunks for u in chunk} == {1}


def test_a_kind_that_is_not_offered_is_not_allowed() -> None:
    space = by_hand(2, kinds=(CASCADE,))
    assert space.allowed(()).tolist() == [False, True]
    assert all(actions[0] == CASCADE for actions in (*space.starts(), *space.uniform()))


def test_a_later_stage_never_has_less() -> None:
    space = by_hand(3)
    assert space.allowed((LINKED, 1, 2, 1)).tolist() == [False, True]  # the tap
    assert space.allowed((LINKED, 1, 2, 1, 1)).tolist() == [False, False, True]  # the first conv
    assert space.allowed((LINKED, 1, 2, 1, 1, 2)).tolist() == [False, True, True]  # the second


def test_a_stage_that_adds_nothing_is_dropped() -> None:
    space = by_hand(3)
    twice = space.decode((LINKED, 1, 1, 1, 1, 1, 1))
    assert twice == by_hand(2).decode((LINKED, 1, 1, 1))
    assert twice.stages == 2


@given(data=st.data())
@settings(max_examples=20)
def test_any_string_of_allowed_options_is_a_valid_conversion(data: st.DataObject) -> None:
    space = by_hand(data.draw(st.integers(2, 4)))
    chosen: tuple[int, ...] = ()
    for _ in space.sizes:
        chosen += (data.draw(st.sampled_from(np.flatnonzero(space.allowed(chosen)).tolist())),)
    conversion = space.decode(chosen)
    check_conversion(space.model, conversion)
    assert conversion.stages <= space.stages


def test_a_narrow_class_is_divided_evenly() -> None:
    graph, channels, weights = analysed(residual())
    stream, inner = divide(AnalysedModel(graph, channels), weights, groups=3, block=16)
    assert sorted(len(chunk) for chunk in stream.chunks) == [1, 1, 2]
    assert [len(chunk) for chunk in inner.chunks] == [2, 2, 2]


def test_what_matters_most_comes_first() -> None:
    graph, channels, weights = analysed(chain())
    score = importance(AnalysedModel(graph, channels), weights)
    for division in divide(AnalysedModel(graph, channels), weights, groups=4, block=2):
        order = [score[u] for chunk in division.chunks for u in chunk]
        assert order == sorted(order, reverse=True)


def test_macs_by_hand() -> None:
    graph, channels, _ = analysed(chain())
    first, second, last = 8 * 27 * 36, 16 * 72 * 16, 5 * 16
    assert list(node_macs(graph).values()) == [first, second, last]
    total = first + second + last
    shares = mac_shares(AnalysedModel(graph, channels), ("x", "y", "logits"))
    assert shares == pytest.approx({"x": first / total, "y": (first + second) / total, "logits": 1.0})

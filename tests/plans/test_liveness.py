"""Liveness: one pass over bit sets agrees with booleans, and for all classes with one plan per class."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
from chain_law import analysed, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graphs
from slow_liveness import SlowLiveness

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.liveness import optional_classes
from s2d_convert.plans.plan import PRUNED, Plan


def one_by_one(graph: Graph, channels: Channels) -> list[bool]:
    """The slow way: a plan without the class, and whether all its logits see the image."""
    found = []
    for group in channels.classes:
        stages = np.ones(channels.units, dtype=np.int64)
        stages[list(group.units)] = PRUNED
        if not set(channels.layouts[graph.output].units.tolist()).isdisjoint(group.units):
            found.append(False)  # a plan may not prune logits
            continue
        effective = Effective(
            AnalysedModel(graph, channels), Plan((graph.output,), tuple(stages.tolist())), check_taps=False
        )
        slow = SlowLiveness(effective)
        computed = channels.layouts[graph.output].root >= 0
        found.append(bool((slow.live(graph.output) & slow.seen(graph.output))[computed].all()))
    return found


@given(random_graphs())
@settings(max_examples=60)
def test_one_walk_says_what_one_plan_per_class_says(model: onnx.ModelProto) -> None:
    graph, channels, _ = analysed(model)
    assert optional_classes(AnalysedModel(graph, channels)).tolist() == one_by_one(graph, channels)


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
def test_on_families(family: str) -> None:
    graph, channels, _ = analysed(nets.export(family))
    assert optional_classes(AnalysedModel(graph, channels)).tolist() == one_by_one(graph, channels)


def check_plan(graph: Graph, channels: Channels, plan: Plan) -> None:
    effective = Effective(AnalysedModel(graph, channels), plan, check_taps=False)
    slow = SlowLiveness(effective)
    for tensor, layout in channels.layouts.items():
        assert effective.live(tensor).tolist() == slow.live(tensor).tolist(), tensor
        computed = [root for root in layout.roots if root != graph.image]
        if all(graph.producer[root].name in effective.depth for root in computed):
            wanted = effective.readable(tensor, plan.stages) & slow.seen(tensor)
            assert effective.sees(tensor, plan.stages).tolist() == wanted.tolist(), tensor


@given(random_graphs(), st.integers(0, 2**16))
@settings(max_examples=60)
def test_one_plan_is_as_live_as_booleans_say(model: onnx.ModelProto, seed: int) -> None:
    graph, channels, _ = analysed(model)
    check_plan(graph, channels, random_plan(graph, channels, seed))


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
def test_one_plan_on_families(family: str) -> None:
    graph, channels, _ = analysed(nets.export(family))
    for seed in range(3):
        check_plan(graph, channels, random_plan(graph, channels, seed))

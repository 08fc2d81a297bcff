"""Optional classes: one walk for all classes says what one plan per class says."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
from chain_law import analysed
from hypothesis import given, settings
from random_graphs import random_graphs

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
        computed = channels.layouts[graph.output].root >= 0
        found.append(bool(effective.sees(graph.output, 1)[computed].all()))
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

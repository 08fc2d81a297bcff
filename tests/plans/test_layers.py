"""How many channels of every layer each stage of a plan computes, in a worked example."""

from __future__ import annotations

import pytest
from text_nets import residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.plans.heuristics import depth_plan, width_plan
from s2d_convert.plans.layers import Layer, layers_of
from s2d_convert.plans.plan import Conversion, Plan, identity_plan


@pytest.fixture(scope="module")
def model() -> AnalysedModel:
    return AnalysedModel.of(graph_from_proto(residual()))


def test_every_channel_of_the_static_model_is_made_once(model: AnalysedModel) -> None:
    for conversion in (Conversion((identity_plan(model),)), depth_plan(model, 2), width_plan(model, 2)):
        layers = layers_of(model, conversion)
        assert [sum(layer.made) for layer in layers] == [layer.channels for layer in layers]
        assert {len(layer.made) for layer in layers} == {conversion.stages}


def test_layers_come_in_order_with_the_channels_of_their_stages(model: AnalysedModel) -> None:
    whole = layers_of(model, Conversion((identity_plan(model),)))
    assert [layer.channels for layer in whole] == [4, 6, 4, 3]
    depth = layers_of(model, depth_plan(model, 2))
    assert [layer.name for layer in depth] == [layer.name for layer in whole]
    assert depth[0].made == (4, 0)  # the stem belongs to the first stage
    assert depth[-1].made == (0, 3)  # the classifier to the last


def test_a_pruned_block_and_a_second_chain(model: AnalysedModel) -> None:
    (inner,) = [group for group in model.channels.classes if group.width == 6]
    stages = [0 if unit in inner.units else 1 for unit in range(model.channels.units)]
    narrow = Plan((model.graph.output,), tuple(stages))
    layers = layers_of(model, Conversion((narrow, identity_plan(model))))
    assert [layer.made for layer in layers] == [(4, 4), (0, 6), (0, 4), (3, 3)]


def test_what_was_written_is_read_and_nothing_else() -> None:
    layer = Layer("conv", 8, (4, 4))
    assert Layer.from_json(layer.to_json()) == layer
    good = layer.to_json()
    bad: list[tuple[str, object]] = [("name", 3), ("channels", 0), ("channels", "8"), ("made", 4), ("made", [-1])]
    bad += [("made", [None]), ("made", [10**20])]
    assert [Layer.from_json({**good, key: value}) for key, value in bad] == [None] * 7
    others: list[object] = [None, [], {}, "conv"]
    assert [Layer.from_json(other) for other in others] == [None] * 4

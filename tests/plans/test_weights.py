"""Weights that are made without data: initial exit heads, and hollow ones that stand for others in stages nobody runs."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from chain_law import analysed, random_plan

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.linear import mix_weights
from s2d_convert.frontend.proto import SMALL
from s2d_convert.latency.kernels import work_of
from s2d_convert.plans.space import depth_taps
from s2d_convert.plans.weights import classifier_of, hollow, initial_head
from s2d_convert.slicing.chain import Chain, build_stages

FAMILIES = ["mobilenet_v2", "resnet_preact", "vgg_bn", "squeezenet", "densenet"]


def classifier_columns(model: AnalysedModel, tap: str) -> dict[int, Array]:
    """What the classifier makes of each channel of a tap that it reads too, channel by channel."""
    node = classifier_of(model)
    assert node is not None
    weight, _ = mix_weights(node, model.graph.constants)
    columns, read = weight.reshape(*weight.shape[:2], -1).sum(axis=2), model.layout(node.inputs[0]).units.tolist()
    units = model.layout(tap).units.tolist()
    shared = {
        place: [column for column, other in enumerate(read) if other == unit]
        for place, unit in enumerate(units)
        if unit != FREE
    }
    return {
        place: columns[:, found].sum(axis=1) / units.count(units[place]) for place, found in shared.items() if found
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_an_initial_head_has_the_classifiers_columns_and_small_numbers_elsewhere(family: str) -> None:
    model = AnalysedModel(*analysed(nets.export(family))[:2])
    node, seen = classifier_of(model), 0
    assert node is not None
    for tap in (*depth_taps(model), node.inputs[0]):
        ((weight, bias),) = initial_head(model, tap).layers
        known = classifier_columns(model, tap)
        for place in range(weight.shape[1]):
            if place in known:
                np.testing.assert_allclose(weight[:, place], known[place], rtol=1e-5, atol=1e-7)
            else:
                assert np.abs(weight[:, place]).max() < 1 / np.sqrt(weight.shape[1])
        seen += len(known)
        assert weight.dtype == bias.dtype == np.float32
        again = initial_head(model, tap).layers[0][0]
        assert np.array_equal(weight, again)
    assert seen > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_hollow_stages_do_the_work_of_real_ones_and_have_no_values(family: str, seed: int) -> None:
    graph, channels, weights = analysed(nets.export(family))
    model = AnalysedModel(graph, channels)
    plan = random_plan(graph, channels, seed)
    light = hollow(weights, model, [tap for tap in plan.taps if tap != graph.output])
    for real, empty in zip(*(build_stages([Chain(model, plan, w)]) for w in (weights, light)), strict=True):
        assert work_of(real.model, block=16) == work_of(empty.model, block=16)
        assert (real.macs, real.parameters) == (empty.macs, empty.parameters)
        large, none = (
            [c.raw_data for c in m.model.graph.initializer if np.prod(c.dims) > SMALL] for m in (real, empty)
        )
        assert len(large) == len(none)
        assert all(large)
        assert not any(none)

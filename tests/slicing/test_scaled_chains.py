"""Chains that read the image smaller: they compute what the network computes on images that are resized before it."""

from __future__ import annotations

from functools import cache

import nets
import pytest
import torch
import torch.nn.functional as F
from chain_law import analysed, check_chain_law
from helpers import assert_close, random_images, run
from patterns import PATTERNS

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import offered_scales, scaled_sides
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.plans.macs import chain_macs
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.chain import Chain, build_stages

CHAINED = [name for name in PATTERNS if "LogSoftmax" not in name and name != "input_that_nothing_reads"]


@cache
def built(name: str) -> AnalysedModel:
    return AnalysedModel.of(graph_from_proto(PATTERNS[name]()))


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
@pytest.mark.parametrize("fold_bn", [True, False], ids=["folded", "batchnorm"])
def test_a_whole_network_at_a_scale_is_the_network_on_resized_images(family: str, fold_bn: bool) -> None:
    proto = nets.export(family, fold_bn=fold_bn)
    graph, channels, weights = analysed(proto)
    model = AnalysedModel(graph, channels)
    original = nets.FAMILIES[family]().eval()
    feeds = random_images(proto, 2, 0)
    for scale in offered_scales(model)[:: 1 if fold_bn else -3]:
        if (family, scale) == ("squeezenet", 0.625):
            continue  # how its pools round up depends on the size; loading has settled it for the whole image
        plan = Plan((graph.output,), (1,) * channels.units, scale)
        (stage,) = build_stages([Chain(model, plan, weights)])
        images = torch.from_numpy(feeds[graph.image])
        small = F.interpolate(images, scaled_sides(model, scale), mode="bilinear", align_corners=False)
        with torch.no_grad():
            expected = original(small).numpy()
        assert_close(run(stage.model, feeds)["output"].reshape(2, -1), expected, what=f"{family} at {scale:g}")
        assert stage.macs == chain_macs(model, plan)


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
def test_chain_law_on_families(family: str) -> None:
    proto = nets.export(family)
    graph, channels, _ = analysed(proto)
    for seed, scale in enumerate(offered_scales(AnalysedModel(graph, channels))):
        check_chain_law(proto, seed, scale=scale)


@pytest.mark.parametrize("name", CHAINED)
def test_chain_law_on_patterns(name: str) -> None:
    offered = offered_scales(built(name))
    if offered:
        check_chain_law(PATTERNS[name](), 0, scale=offered[-1])

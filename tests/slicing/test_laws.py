"""What must always hold: identity, chain, size and depth laws, over random graphs and one net per family."""

from __future__ import annotations

import nets
import onnx
import pytest
from chain_law import analysed, check_chain_law, check_depth_law, check_identity_law
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graphs
from text_nets import net

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.workflows.inspect import describe

SEEDS = st.integers(0, 2**16)


@given(random_graphs())
def test_identity_law_on_random_graphs(model: onnx.ModelProto) -> None:
    check_identity_law(model)


@given(random_graphs())
@settings(max_examples=20)
def test_depth_law_on_random_graphs(model: onnx.ModelProto) -> None:
    check_depth_law(model)


@given(random_graphs(), SEEDS)
@settings(max_examples=100)
def test_chain_law_on_random_graphs(model: onnx.ModelProto, seed: int) -> None:
    check_chain_law(model, seed)


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
@pytest.mark.parametrize("fold_bn", [True, False], ids=["folded", "batchnorm"])
def test_laws_on_families(family: str, fold_bn: bool) -> None:
    model = nets.export(family, fold_bn=fold_bn)
    check_identity_law(model)
    check_depth_law(model)
    for seed in range(3):
        check_chain_law(model, seed)


# The least share of the MACs that splits by channels, where it is not nine tenths and more.
SPLITS = {
    "eca_resnet": 0.4,  # its gate is a convolution along the channels, which are neighbours to it
    "edgenext": 0.85,  # attention
    "poolformer": 0.2,  # a norm of one group, written as a norm of one channel, over the whole residual stream
    "shufflenet_v1": 0.0,  # its shuffle spreads every conv group over all groups of the next
}


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
def test_every_family_has_taps_and_splits_by_channels(family: str) -> None:
    graph, channels, _ = analysed(nets.export(family))
    about = describe(AnalysedModel(graph, channels))
    assert len(about["taps"]) >= 2
    assert about["unsupported"] == []
    assert about["splittable_macs"] >= SPLITS.get(family, 0.9), about["opaque"]


def test_a_shuffle_into_a_grouped_conv_keeps_the_order_that_its_reshape_needs() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,10] y) <int64[5] five = {0,2,4,6,6}, int64[4] four = {0,8,6,6}> {
            a = Conv(image, wa)  q = Reshape(a, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  x = Reshape(t, four)
            b = Conv<group=2>(x, wb)  p = GlobalAveragePool(b)  f = Flatten(p)  y = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 1, 1), wb=(8, 4, 1, 1), wl=(10, 8),
    )  # fmt: skip
    for seed in range(6):
        check_chain_law(model, seed)

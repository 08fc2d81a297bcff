"""Models that read their image smaller: which can and why not, the sizes, and that the channels stay."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
from chain_law import analysed
from patterns import PATTERNS
from text_nets import net, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import SCALES, at_scale, fixed_by, offered_scales, refusal, scaled_sides
from s2d_convert.channels.macs import total_macs
from s2d_convert.errors import UsageError
from s2d_convert.frontend.load import graph_from_proto

# Families whose classifier reads a flattened map, or whose attention knows its places.
FIXED = frozenset({"alexnet", "edgenext", "fastvit", "lenet", "vgg_bn"})


def model_of(proto: onnx.ModelProto) -> AnalysedModel:
    return AnalysedModel.of(graph_from_proto(proto))


def strided(
    height: int, width: int, *, steps: tuple[tuple[int, int], ...], end: str = "GlobalAveragePool"
) -> AnalysedModel:
    """A convolution per step (its strides), then a pooled linear layer."""
    lines, source = [], "image"
    for index, (rows, columns) in enumerate(steps):
        lines.append(f"a{index} = Conv<pads=[1,1,1,1], strides=[{rows},{columns}]>({source}, w{index})")
        lines.append(f"x{index} = Relu(a{index})")
        source = f"x{index}"
    shapes = {f"w{i}": (8, 8 if i else 3, 3, 3) for i in range(len(steps))}
    text = f"p = {end}({source})  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)"
    model = f"g (float[N,3,{height},{width}] image) => (float[N,5] logits) {{ {'  '.join(lines)} {text} }}"
    return model_of(net(model, **shapes, wl=(5, 8)))


@pytest.mark.parametrize(
    ("sides", "steps", "expected"),
    [
        ((224, 224), ((2, 2),) * 5, [(160, 160), (128, 128), (96, 96)]),
        ((32, 32), ((1, 1), (2, 2), (2, 2)), [(24, 24), (20, 20), (16, 16)]),
        (
            (32, 32),
            ((2, 2),) * 3,
            [(24, 24), None, (16, 16)],
        ),  # 5/8 is 20 pixels, no multiple of 8; 16 are there already
        ((48, 192), ((2, 1), (2, 2)), [(36, 144), (28, 120), (24, 96)]),  # the columns of the coarsest map are 2 pixels
        ((30, 30), ((2, 2), (2, 2)), [(22, 22), (18, 18), (14, 14)]),  # 15 rows become 8: only the first step divides
        ((1, 64), ((1, 2), (1, 2)), [(1, 48), (1, 40), (1, 32)]),
        ((2, 2), ((1, 1),), [None, None, (1, 1)]),
    ],
)
def test_sides_are_multiples_of_the_total_stride(
    sides: tuple[int, int], steps: tuple[tuple[int, int], ...], expected: list[tuple[int, int] | None]
) -> None:
    model = strided(*sides, steps=steps)
    offered = offered_scales(model)
    assert [scaled_sides(model, s) if s in offered else None for s in SCALES] == expected
    assert fixed_by(model) == ""


def test_the_model_at_a_scale_by_hand() -> None:
    model = model_of(residual())  # 8x8 pixels, no strides
    small = at_scale(model, 0.5)
    assert at_scale(model, 1.0) is model
    assert at_scale(model, 0.5) is small, "made once"
    assert at_scale(small, 0.5) is small
    assert [n.op for n in small.graph.nodes] == ["Resize", *(n.op for n in model.graph.nodes)]
    assert [n.name for n in small.graph.nodes[1:]] == [n.name for n in model.graph.nodes]
    assert small.graph.shapes["image"] == (3, 8, 8)
    resized = small.graph.nodes[0].outputs[0]
    assert [small.graph.shapes[name] for name in (resized, "s", "a", "y", "f")] == [
        (3, 4, 4), (4, 4, 4), (6, 4, 4), (4, 4, 4), (4,),
    ]  # fmt: skip
    assert all(small.graph.constants[name] is value for name, value in model.graph.constants.items())
    assert 4 * total_macs(small.graph) == total_macs(model.graph) + 3 * 12  # the linear layer stays what it is


def test_a_flattened_map_fixes_the_size() -> None:
    model = net_with_flattened_map()
    assert offered_scales(model) == ()
    assert fixed_by(model) == "a node (Gemm) holds the size of a map"
    assert refusal(model, 1.0) == ""
    with pytest.raises(
        UsageError, match=r"^plan: the model cannot read its image at scale 0.5 \(a node .*\); only 1 is possible$"
    ):
        at_scale(model, 0.5)


def net_with_flattened_map() -> AnalysedModel:
    return model_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,5] logits) {
                a = Conv<pads=[1,1,1,1]>(image, wa)  x = Relu(a)  f = Flatten(x)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 3, 3), wl=(5, 256),
        )
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.3, 2.0, float("nan")])
def test_a_scale_that_there_is_not_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match=r"at scale .*; 0.75, 0.625, 0.5 and 1 are possible$"):
        at_scale(strided(32, 32, steps=((2, 2),)), scale)


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_a_pool_over_the_whole_map_stays_one(pool: str) -> None:
    model = strided(16, 16, steps=((2, 2),), end=f"{pool}<kernel_shape=[8,8]>")
    small = at_scale(model, 0.5)
    assert [n.op for n in small.graph.nodes].count(f"Global{pool}") == 1
    assert small.graph.shapes["p"] == (8, 1, 1)


def test_a_shuffle_with_its_sizes_in_numbers_is_renewed() -> None:
    model = model_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,5] logits) <int64[5] split = {0,2,4,8,8}, int64[4] join = {0,8,8,8}> {
                a = Conv<pads=[1,1,1,1]>(image, wa)  r = Reshape(a, split)  t = Transpose<perm=[0,2,1,3,4]>(r)
                s = Reshape(t, join)  b = Conv<pads=[1,1,1,1], strides=[2,2]>(s, wb)  p = GlobalAveragePool(b)
                f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(8, 3, 3, 3), wb=(8, 8, 3, 3), wl=(5, 8),
        )
    )  # fmt: skip
    small = at_scale(model, 0.5)
    assert small.graph.shapes["r"] == (2, 4, 4, 4)
    assert small.graph.shapes["s"] == (8, 4, 4)
    assert offered_scales(model) == (0.75, 0.5)


@pytest.mark.parametrize("family", sorted(nets.FAMILIES))
def test_which_families_are_fixed(family: str) -> None:
    graph, channels, _ = analysed(nets.export(family))
    model = AnalysedModel(graph, channels)
    assert (offered_scales(model) == ()) == (family in FIXED), fixed_by(model)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_channels_are_the_same(name: str) -> None:
    model = model_of(PATTERNS[name]())
    for scale in offered_scales(model)[-1:]:
        small = at_scale(model, scale)
        assert small.channels.classes == model.channels.classes
        for tensor in set(model.channels.layouts) - {model.graph.image}:
            before, after = model.layout(tensor), small.layout(tensor)
            assert set(before.units.tolist()) == set(after.units.tolist())
            if not before.uniform:
                assert np.array_equal(before.units, after.units)
    assert bool(offered_scales(model)) != bool(fixed_by(model))

"""Every torch builder answers as onnxruntime does, in any float type and memory order, and lets gradients through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from converter_cases import CASES, IMAGE
from converter_model import (
    Case,
    Feed,
    as_tuple,
    assert_same,
    case,
    floats,
    ints,
    number,
    run_torch,
    session,
    torch_inputs,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state as native
from torch import Tensor

from s2d_convert.errors import ModelError
from s2d_convert.frontend.passes.cleaning import MIN_OPSET
from s2d_convert.network.converters.lower import BUILDERS, Lowered, builder, lower
from s2d_convert.network.converters.window import windows

every_case = pytest.mark.parametrize("made", CASES, ids=str)

# Piecewise constant, or answering with something that is no float: nothing to differentiate.
STEPS = {"ArgMax", "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
# The answer in a 16-bit float may differ by a whole step or a whole neighbour.
JUMPS = STEPS | {"Cast", "CastLike", "Ceil", "Floor", "Round", "Shrink", "Sign"}

# onnxruntime 1.32 cannot run the newest version of these.
WITHOUT_KERNEL = {"GlobalLpPool", "Swish"}
# What onnxruntime raises for a model or an input that it does not take.
REFUSALS = (native.Fail, native.InvalidArgument, native.InvalidGraph, native.NotImplemented, native.RuntimeException)
# The builders answer as onnxruntime 1.32; before, it had errors (or no answer) in corners of these operators.
OLD_RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 32)
MENDED = {"AveragePool", "ConvTranspose", "LayerNormalization", "Pad", "Resize", "Split", "Swish"}
MENDED_LATER = "onnxruntime before 1.32 errs here"
needs_recent_runtime = pytest.mark.skipif(OLD_RUNTIME, reason=MENDED_LATER)


def built(made: Case) -> Lowered:
    return lower(made.node, made.constants)


def mapped(inputs: list[Tensor | None], change: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    return [None if x is None else change(x) for x in inputs]


def to_last(x: Tensor | None) -> Tensor | None:
    return x.to(memory_format=torch.channels_last) if x is not None and x.dim() == 4 else x


@every_case
def test_answers_as_onnxruntime(made: Case) -> None:
    if OLD_RUNTIME and (made.op in MENDED or "noop_with_empty_axes" in made.attrs):
        pytest.skip(MENDED_LATER)
    assert_same(made)


@needs_recent_runtime
@pytest.mark.parametrize("opset", [MIN_OPSET, 28])  # 28 is the newest that onnxruntime 1.32 takes
def test_answers_in_the_oldest_and_the_newest_opset(opset: int) -> None:
    compared = set()
    for made in (replace(made, opset=opset, batches=made.batches[-1:]) for made in CASES):
        try:
            session(made).run(None, made.feeds(1))
        except REFUSALS:
            continue  # the operator, or its attribute, is newer or older than this opset
        assert_same(made)
        compared.add(made.op)
    schemas = onnx.defs.get_all_schemas_with_history()
    known = {schema.name for schema in schemas if not schema.domain and schema.since_version <= opset}
    assert {made.op for made in CASES} & known - compared <= WITHOUT_KERNEL


def test_every_builder_has_a_case() -> None:
    assert {made.op for made in CASES} == set(BUILDERS)


@every_case
def test_the_type_follows_the_inputs_which_are_left_alone(made: Case) -> None:
    feeds = made.feeds(made.batches[-1])
    inputs = mapped(torch_inputs(made, feeds), lambda x: x.double() if x.is_floating_point() else x)
    before = mapped(inputs, Tensor.clone)
    from_whole = made.op == "Cast" and all(x.dtype.kind != "f" for x in list(feeds.values())[:1])
    for single, double in zip(run_torch(made, feeds), as_tuple(built(made)(*inputs)), strict=True):
        assert double.dtype == (torch.float64 if single.is_floating_point() and not from_whole else single.dtype)
        torch.testing.assert_close(single, double.to(single.dtype), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


@every_case
def test_gradients_are_finite(made: Case) -> None:
    inputs = torch_inputs(made, made.feeds(made.batches[-1]))
    leaf = inputs[0]
    assert leaf is not None
    if not leaf.is_floating_point() or made.op in STEPS:
        return
    leaf.requires_grad_()
    outputs = [y for y in as_tuple(built(made)(*inputs)) if y.is_floating_point()]
    if outputs:
        sum((y.sum() for y in outputs), start=torch.zeros(())).backward()
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())


@every_case
def test_runs_under_autocast(made: Case) -> None:
    inputs = torch_inputs(made, made.feeds(made.batches[-1]))
    halves = [x.bfloat16() if x is not None and i == 0 and x.is_floating_point() else x for i, x in enumerate(inputs)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [as_tuple(built(made)(*given)) for given in (inputs, halves)]
    for reference, *others in zip(as_tuple(built(made)(*inputs)), *found, strict=True):
        for one in others:
            assert one.shape == reference.shape
            if made.op not in JUMPS and reference.is_floating_point():
                torch.testing.assert_close(one.to(reference.dtype), reference, rtol=0.05, atol=0.2)


@every_case
def test_channels_last_gives_the_same_answer(made: Case) -> None:
    inputs = torch_inputs(made, made.feeds(made.batches[-1]))
    for one, two in zip(as_tuple(built(made)(*inputs)), as_tuple(built(made)(*map(to_last, inputs))), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        case("Conv", IMAGE, floats(6, 4, 3, 3), floats(6), pads=[1, 0, 2, 1]),
        case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3), strides=[2, 2], output_padding=[1, 1]),
        case("MaxPool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2]),
        case("AveragePool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
        case("Relu", IMAGE),
        case("PRelu", IMAGE, floats(4, 1, 1)),
        case("Pad", IMAGE, ints(0, 0, 1, 1, 0, 0, 2, 2)),
        case("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32)),
        case("Concat", IMAGE, IMAGE, axis=1),
    ],
    ids=str,
)
def test_channels_last_is_kept(made: Case) -> None:
    (y,) = as_tuple(built(made)(*map(to_last, torch_inputs(made, made.feeds(2)))))
    assert y.is_contiguous(memory_format=torch.channels_last)


# --- geometry, at random ------------------------------------------------------------------------------

Geometry = dict[str, Any]

small = st.integers(1, 3)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Kernel, strides, dilations and padding of one or two spatial axes."""
    rank = draw(st.integers(1, 2))
    per_axis = st.lists(small, min_size=rank, max_size=rank)
    kernel = draw(per_axis)
    made: Geometry = {"kernel_shape": kernel, "strides": draw(per_axis), "dilations": draw(per_axis)}
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode != "NOTSET":
        return {**made, "auto_pad": mode}
    return {**made, "pads": [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]}


def spatial(geometry: Geometry, sizes: tuple[int, int]) -> tuple[int, ...]:
    return sizes[: len(geometry["kernel_shape"])]


def assert_same_if_onnxruntime_can(made: Case) -> None:
    """As `assert_same`, leaving out what onnxruntime refuses, reads beyond its input for, or answers with nothing."""
    if made.op.endswith("Pool"):
        axes = windows(made.node, made.feeds(1)["in0"].shape[2:])
        # Without room for a window onnxruntime may crash. auto_pad forgets the dilation: its crops may cut a window.
        assume(all(a.room >= 0 and (a.dilation == 1 or a.high >= 0) for a in axes))
    try:
        model = session(made)
        empty = any(y.size == 0 for y in model.run(None, made.feeds(1)))
    except REFUSALS:
        empty = True
    assume(not empty)
    assert_same(made)


sizes = st.tuples(st.integers(2, 9), st.integers(2, 9))


@given(geometries(), sizes, st.sampled_from([3, 16]), st.booleans())
def test_max_pool_windows(geometry: Geometry, size: tuple[int, int], channels: int, ceil: bool) -> None:
    shape = Feed((channels, *spatial(geometry, size)))
    assert_same_if_onnxruntime_can(case("MaxPool", shape, **geometry, ceil_mode=int(ceil)))


@needs_recent_runtime
@given(geometries(), sizes, st.sampled_from([3, 16]), st.booleans(), st.booleans(), st.sampled_from([13, 19, 22]))
def test_average_pool_windows(
    geometry: Geometry, size: tuple[int, int], channels: int, ceil: bool, padding: bool, opset: int
) -> None:
    if opset < 19:
        geometry.pop("dilations")
    shape = Feed((channels, *spatial(geometry, size)))
    geometry |= {"ceil_mode": int(ceil), "count_include_pad": int(padding)}
    assert_same_if_onnxruntime_can(case("AveragePool", shape, **geometry, opset=opset))


@given(geometries(), sizes, st.booleans(), st.integers(1, 3))
def test_lp_pool_windows(geometry: Geometry, size: tuple[int, int], ceil: bool, p: int) -> None:
    shape = Feed((3, *spatial(geometry, size)))
    assert_same_if_onnxruntime_can(case("LpPool", shape, **geometry, ceil_mode=int(ceil), p=p, opset=18))


@given(geometries(), sizes, st.sampled_from([(4, 3, 1), (4, 4, 2), (16, 16, 16), (16, 8, 1)]), st.booleans())
def test_conv_windows(geometry: Geometry, size: tuple[int, int], channels: tuple[int, int, int], biased: bool) -> None:
    source, target, group = channels
    weight = floats(target, source // group, *map(int, geometry["kernel_shape"]))
    shape, bias = Feed((source, *spatial(geometry, size))), [floats(target)] if biased else []
    assert_same_if_onnxruntime_can(case("Conv", shape, weight, *bias, **geometry, group=group))


@needs_recent_runtime
@given(geometries(), sizes, st.integers(1, 2), st.lists(st.integers(0, 2), min_size=2, max_size=2), st.booleans())
def test_conv_transpose_windows(
    geometry: Geometry, size: tuple[int, int], group: int, extra: list[int], fixed: bool
) -> None:
    kernel = [int(k) for k in geometry["kernel_shape"]]
    shape = Feed((4, *spatial(geometry, size)))
    more: Geometry = {"output_padding": extra[: len(kernel)]}
    if fixed:
        more["output_shape"] = [n * int(s) + 1 for n, s in zip(shape.shape[1:], geometry["strides"], strict=True)]
    made = case("ConvTranspose", shape, floats(4, 3, *kernel), floats(3 * group), **geometry, **more, group=group)
    assert_same_if_onnxruntime_can(made)


bound = st.integers(-12, 12)
step = st.sampled_from([-3, -2, -1, 1, 2, 3])


@given(st.lists(st.tuples(bound, bound, step), min_size=1, max_size=3))
def test_slices(cuts: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = zip(*cuts, strict=True)
    axes = ints(*range(1, len(cuts) + 1))
    assert_same(case("Slice", IMAGE, ints(*starts), ints(*ends), axes, ints(*steps)))


@needs_recent_runtime
@given(st.lists(st.integers(-2, 3), min_size=6, max_size=6), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pads(pads: list[int], mode: str) -> None:
    assert_same_if_onnxruntime_can(case("Pad", IMAGE, ints(0, *pads[:3], 0, *pads[3:]), mode=mode, opset=19))


modes = st.sampled_from(["nearest", "linear", "cubic"])
places = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
nearest = st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
scales = st.sampled_from([0.25, 0.3, 0.5, 0.6, 1, 1.3, 1.5, 2, 3])


@needs_recent_runtime
@given(modes, st.sampled_from(places), nearest, st.tuples(scales, scales), sizes, st.booleans())
def test_resizes_by_scale(
    mode: str, place: str, rounding: str, scale: tuple[float, float], size: tuple[int, int], antialias: bool
) -> None:
    attrs: Geometry = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": rounding}
    attrs |= {"antialias": 1} if antialias and mode != "nearest" else {}
    operand = np.array([1, 1, *scale], np.float32)
    assert_same_if_onnxruntime_can(case("Resize", Feed((2, *size)), None, operand, **attrs, opset=19))


@needs_recent_runtime
@given(modes, st.sampled_from(places), nearest, st.tuples(st.integers(1, 12), st.integers(1, 12)), sizes)
def test_resizes_to_a_size(
    mode: str, place: str, rounding: str, target: tuple[int, int], size: tuple[int, int]
) -> None:
    attrs: Geometry = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": rounding, "axes": [2, 3]}
    assert_same_if_onnxruntime_can(case("Resize", Feed((2, *size)), None, None, ints(*target), **attrs, opset=19))


# --- the batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (case("Resize", IMAGE, None, None, ints(7, 4, 12, 10)), (2, 4, 12, 10)),
        (case("Expand", Feed((4, 1, 1)), ints(7, 4, 6, 5)), (2, 4, 6, 5)),
        (case("Squeeze", Feed((4, 1, 1))), (2, 4)),
    ],
    ids=str,
)
def test_the_batch_of_the_export_is_forgotten(made: Case, shape: tuple[int, ...]) -> None:
    (y,) = run_torch(made, made.feeds(2))
    assert y.shape == shape


def test_one_image_is_a_batch_too() -> None:
    made = case("Squeeze", Feed((4, 1, 1)))
    assert run_torch(made, made.feeds(1))[0].shape == (1, 4)


@pytest.mark.parametrize(
    "made",
    [
        case("Softmax", IMAGE, axis=0),
        case("LogSoftmax", IMAGE, axis=-4),
        case("ReduceMean", IMAGE),
        case("ReduceSum", IMAGE, ints(0)),
        case("ArgMax", IMAGE),
        case("MeanVarianceNormalization", IMAGE),
        case("LpNormalization", IMAGE, axis=0),
        case("LayerNormalization", IMAGE, floats(3, 4, 6, 5), axis=0),
        case("RMSNormalization", IMAGE, floats(3, 4, 6, 5), axis=0),
    ],
    ids=str,
)
def test_mixing_the_images_of_a_batch_is_refused(made: Case) -> None:
    with pytest.raises(ModelError, match=rf"node 'n' \({made.op}\): axes .* axis 0"):
        run_torch(made, made.feeds(3))


# --- what is not supported ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (case("Loop", IMAGE), "not supported"),
        (case("Reshape", IMAGE, Feed((2,), "integer")), "input 1 .'in1'. is computed from the image"),
        (case("Reshape", IMAGE), "input 1 is absent"),
        (case("Clip", IMAGE, Feed(())), "computed from the image"),
        (case("Cast", IMAGE, to=10), "to=10"),
        (case("LRN", IMAGE, size=4), "size=4"),
        (case("BatchNormalization", IMAGE, *[floats(4)] * 4, training_mode=1), "training_mode"),
        (case("BatchNormalization", IMAGE, *[floats(4)] * 4, outputs=3), "3 outputs"),
        (case("Dropout", IMAGE, number(0.5), np.array(True)), "training_mode"),
        (case("Dropout", IMAGE, outputs=2), "2 outputs"),
        (case("MaxPool", IMAGE, kernel_shape=[2, 2], outputs=2), "2 outputs"),
        (case("LayerNormalization", IMAGE, floats(5), outputs=2), "2 outputs"),
        (case("Pad", IMAGE, ints(*[0] * 8), mode="mirror"), "mode=mirror"),
        (case("Resize", IMAGE, None, np.ones(4, np.float32), mode="area"), "mode=area"),
        (case("Resize", IMAGE, None, np.ones(4, np.float32), nearest_mode="odd"), "nearest_mode=odd"),
        (
            case("Resize", IMAGE, None, np.ones(4, np.float32), coordinate_transformation_mode="tf_half_pixel_for_nn"),
            "tf_",
        ),
        (
            case("Resize", IMAGE, None, ints(1), antialias=1, coordinate_transformation_mode="tf_crop_and_resize"),
            "antialias=1",
        ),
    ],
    ids=str,
)
def test_a_refusal_names_the_node_and_what_is_wrong(made: Case, words: str) -> None:
    with pytest.raises(ModelError, match=rf"^node 'n' \({made.op}\): .*{words}"):
        built(made)


def test_a_resize_needs_scales_or_sizes() -> None:
    made = case("Resize", IMAGE)
    with pytest.raises(ModelError, match="neither scales nor sizes"):
        run_torch(made, made.feeds(1))


def test_an_operator_is_registered_once() -> None:
    with pytest.raises(ValueError, match="Relu is registered twice"):
        builder("Relu")(BUILDERS["Relu"])


def test_flat_maps_have_finite_gradients() -> None:
    """Zeros are common behind a Relu: roots of zero must not spoil the gradient."""
    for made in (
        case("LpPool", IMAGE, kernel_shape=[2, 2]),
        case("GlobalLpPool", IMAGE),
        case("ReduceL2", IMAGE, axes=[2, 3]),
        case("LpNormalization", IMAGE, axis=1),
        case("MeanVarianceNormalization", IMAGE, axes=[2, 3]),
    ):
        x = torch.zeros(2, 4, 6, 5, requires_grad=True)
        (y,) = as_tuple(built(made)(x))
        y.sum().backward()
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all()), made

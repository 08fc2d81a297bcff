"""Shape arithmetic that exporters leave in models whose shapes are static all the same."""

from __future__ import annotations

import numpy as np
import onnx

from patterns.base import SIZE, Array, around, ending, number, pattern

TWO = {"one": [1], "two": [2], "three": [3], "zero": [0]}


@pattern()
def chunk_by_shape_arithmetic() -> onnx.ModelProto:
    """torch.chunk of old exporters: (C + 1) / 2 channels per part, then Slice."""
    return around(
        """h = Shape(x)  c = Gather<axis=0>(h, one)  c1 = Add(c, one)  half = Div(c1, two)  end = Mul(half, two)
        a = Slice(x, zero, half, one)  b = Slice(x, half, end, one)  r = Sigmoid(b)  y = Mul(a, r)""", TWO,
        made=4,
    )  # fmt: skip


@pattern()
def same_padding_by_ceil() -> onnx.ModelProto:
    """TensorFlow's "same" padding worked out at run time: ceil(size / stride), with floats."""
    return around(
        """h = Shape(x)  hw = Slice(h, two, four)  real = Cast<to=1>(hw)  steps = Div(real, strides)
        out = Ceil(steps)  less = Sub(out, ones)  moved = Mul(less, strides)  span = Add(moved, kernels)
        more = Sub(span, real)  need = Max(more, nil)  whole = Cast<to=7>(need)  low = Div(whole, two)
        high = Sub(whole, low)  pads = Concat<axis=0>(none, low, none, high)  q = Pad(x, pads)
        y = Conv<strides=[2,2]>(q, wy)""",
        two=[2], four=[4], strides=[2.0, 2.0], ones=[1.0, 1.0], kernels=[3.0, 3.0], nil=[0.0], none=[0, 0],
        wy=(8, 8, 3, 3),
    )  # fmt: skip


@pattern()
def resize_to_the_size_of_another_map() -> onnx.ModelProto:
    """F.interpolate(small, size=x.shape[2:]): the first two lengths from one Shape, the others from another."""
    return around(
        """d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)  r = Conv(d, wr)  h = Shape(x)  hw = Slice(h, two, four)
        g = Shape(r)  nc = Slice(g, zero, two)  sizes = Concat<axis=0>(nc, hw)
        u = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(r, , , sizes)  y = Add(u, x)""",
        wr=(8, 8, 1, 1), zero=[0], two=[2], four=[4],
    )  # fmt: skip


@pattern(each=["nearest", "linear", "cubic"])
def resize_by_constant_scales(mode: str) -> onnx.ModelProto:
    return around(f'y = Resize<mode="{mode}">(x, , by)', by=[1.0, 1.0, 2.0, 2.0])


@pattern()
def resize_by_scales_of_some_axes() -> onnx.ModelProto:
    return around('y = Resize<axes=[-2,3], mode="nearest">(x, , scales)', scales=[2.0, 1.5], opset=18)


@pattern()
def resize_that_crops_some_axes() -> onnx.ModelProto:
    crop = 'coordinate_transformation_mode="tf_crop_and_resize"'
    return around(
        f'y = Resize<axes=[2,3], mode="linear", {crop}>(x, roi, scales)',
        roi=[0.1, 0.2, 0.8, 0.9], scales=[2.0, 1.5], opset=18,
    )  # fmt: skip


@pattern(each=["1", "N"])
def resize_to_constant_sizes(batch: str) -> onnx.ModelProto:
    """With the batch that the tracer saw, or with axes (opset 18), which leave it out."""
    if batch == "1":
        return around("y = Resize(x, , , to)", batch="1", to=[1, 8, 12, 12])
    return around("y = Resize<axes=[2,3]>(x, , , to)", opset=18, to=[12, 12])


@pattern()
def resize_that_shrinks_with_antialias() -> onnx.ModelProto:
    return around('y = Resize<mode="linear", antialias=1>(x, , by)', opset=18, by=[1.0, 1.0, 0.5, 0.5])


@pattern(each=["nearest", "linear"])
def upsample_of_opset_9(mode: str) -> onnx.ModelProto:
    return around(f'y = Upsample<mode="{mode}">(x, by)', opset=9, by=[1.0, 1.0, 2.0, 2.0])


@pattern()
def upsample_by_scales_from_shapes() -> onnx.ModelProto:
    """F.interpolate(scale_factor=2) of torch 1.x: floor(size * 2), and sizes put together from both halves."""
    return around(
        """h = Shape(x)  hh = Gather<axis=0>(h, i2)  ww = Gather<axis=0>(h, i3)  fh = Cast<to=1>(hh)
        fw = Cast<to=1>(ww)
        mh = Mul(fh, by)  mw = Mul(fw, by)  gh = Floor(mh)  gw = Floor(mw)  ih = Cast<to=7>(gh)  iw = Cast<to=7>(gw)
        uh = Unsqueeze(ih, zero)  uw = Unsqueeze(iw, zero)  hw = Concat<axis=0>(uh, uw)  nc = Slice(h, zero, two)
        sizes = Concat<axis=0>(nc, hw)  y = Resize(x, , , sizes)""",
        i2=_scalar(2), i3=_scalar(3), by=number(2), zero=[0], two=[2],
    )  # fmt: skip


@pattern()
def expand_to_a_computed_shape() -> onnx.ModelProto:
    """A pooled vector spread over the map again (ASPP, global context)."""
    return around(
        """g = GlobalAveragePool(x)  c = Conv(g, wg)  h = Shape(x)  hw = Slice(h, two, four)  k = Shape(c)
        nc = Slice(k, zero, two)  to = Concat<axis=0>(nc, hw)  w = Expand(c, to)  y = Concat<axis=1>(x, w)""",
        made=16, wg=(8, 8, 1, 1), zero=[0], two=[2], four=[4],
    )  # fmt: skip


@pattern()
def expand_to_a_constant_shape() -> onnx.ModelProto:
    return around(
        "g = GlobalAveragePool(x)  c = Conv(g, wg)  w = Expand(c, to)  y = Add(x, w)",
        wg=(8, 8, 1, 1), to=[1, 8, SIZE, SIZE],
    )  # fmt: skip


@pattern(each=["batch", "all"])
def flatten_by_a_computed_shape(computed: str) -> onnx.ModelProto:
    """x.view(x.size(0), -1), and x.view(b, c * h * w) with every length read from Shape."""
    rest = "last = Identity(minus)" if computed == "batch" else (
        "c = Gather<axis=0>(h, i1)  hh = Gather<axis=0>(h, i2)  ww = Gather<axis=0>(h, i3)  ch = Mul(c, hh)"
        "  chw = Mul(ch, ww)  last = Unsqueeze(chw, zero)"
    )  # fmt: skip
    return ending(
        f"""q = MaxPool<kernel_shape=[4,4], strides=[4,4]>(z)  h = Shape(q)  n = Gather<axis=0>(h, i0)
        un = Unsqueeze(n, zero)  {rest}  to = Concat<axis=0>(un, last)  f = Reshape(q, to)
        logits = Gemm<transB=1>(f, wf, bl)""",
        i0=_scalar(0), i1=_scalar(1), i2=_scalar(2), i3=_scalar(3), zero=[0], minus=[-1], wf=(10, 64),
    )  # fmt: skip


@pattern()
def shuffle_by_a_computed_shape() -> onnx.ModelProto:
    """x.view(n, 2, c // 2, h, w) of the classic exporter: all five lengths put together at run time."""
    return around(
        """h = Shape(x)  n = Slice(h, zero, one)  c = Slice(h, one, two)  hw = Slice(h, two, four)  cc = Div(c, two)
        five = Concat<axis=0>(n, two, cc, hw)  q = Reshape(x, five)  t = Transpose<perm=[0,2,1,3,4]>(q)
        y = Reshape(t, h)""",
        zero=[0], one=[1], two=[2], four=[4],
    )  # fmt: skip


def _scalar(value: int) -> Array:
    return np.array(value, np.int64)

"""Every spelling of global pooling, and pools with unusual windows."""

from __future__ import annotations

import numpy as np
import onnx

from patterns.base import CLASSES, Weight, around, ending, number, pattern

POOLS = {
    "GlobalAveragePool": "g = GlobalAveragePool(z)",
    "GlobalMaxPool": "g = GlobalMaxPool(z)",
    "ReduceMean": "g = ReduceMean<axes=[2,3], keepdims=1>(z)",
    "ReduceMean-negative": "g = ReduceMean<axes=[-1,-2], keepdims=1>(z)",
    "ReduceMax": "g = ReduceMax<axes=[2,3], keepdims=1>(z)",
    "AveragePool": "g = AveragePool<kernel_shape=[8,8]>(z)",
    "MaxPool": "g = MaxPool<kernel_shape=[8,8], strides=[8,8]>(z)",
    "ReduceSum": "t = ReduceSum(z, hw)  g = Mul(t, part)",
    "ReduceSum-division": "t = ReduceSum(z, hw)  g = Div(t, count)",
    "twice": "t = ReduceMean<axes=[3], keepdims=1>(z)  g = ReduceMean<axes=[2], keepdims=1>(t)",
    "LpPool": "g = GlobalLpPool<p=2>(z)",
}
SQUEEZES = {
    "Squeeze": "f = Squeeze(g, hw)",
    "Flatten": "f = Flatten(g)",
    "Flatten-negative": "f = Flatten<axis=-3>(g)",
    "Reshape": "f = Reshape(g, flat)",
    "Slice": "h = Shape(g)  n = Slice(h, zero, one)  to = Concat<axis=0>(n, minus)  f = Reshape(g, to)",
    "Gather": "h = Gather<axis=3>(g, i0)  f = Gather<axis=2>(h, i0)",
}
EXTRAS: dict[str, Weight] = {
    "hw": [2, 3], "flat": [0, -1], "zero": [0], "one": [1], "minus": [-1], "i0": np.array(0),
    "part": number(1 / 64), "count": number(64),
}  # fmt: skip


@pattern(each=list(POOLS))
def global_pool(spelling: str) -> onnx.ModelProto:
    return ending(f"{POOLS[spelling]}  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, bl)", EXTRAS)


@pattern(each=list(SQUEEZES))
def features_after_a_pool(spelling: str) -> onnx.ModelProto:
    return ending(f"g = GlobalAveragePool(z)  {SQUEEZES[spelling]}  logits = Gemm<transB=1>(f, wl, bl)", EXTRAS)


@pattern(each=["attribute", "negative", "two steps"])
def mean_without_keepdims(how: str) -> onnx.ModelProto:
    made = {
        "attribute": "f = ReduceMean<axes=[2,3], keepdims=0>(z)",
        "negative": "f = ReduceMean<axes=[-2,-1], keepdims=0>(z)",
        "two steps": "t = ReduceMean<axes=[2], keepdims=0>(z)  f = ReduceMean<axes=[2], keepdims=0>(t)",
    }[how]
    return ending(f"{made}  logits = Gemm<transB=1>(f, wl, bl)")


@pattern(each=[0, 1])
def mean_with_axes_as_input(keepdims: int) -> onnx.ModelProto:
    """Opset 18."""
    squeezed = "f = Squeeze(g, hw)" if keepdims else "f = Identity(g)"
    return ending(
        f"g = ReduceMean<keepdims={keepdims}>(z, hw)  {squeezed}  logits = Gemm<transB=1>(f, wl, bl)",
        opset=18, hw=[2, 3],
    )  # fmt: skip


@pattern()
def mean_over_flattened_places() -> onnx.ModelProto:
    """[N, C, H * W], the mean over the last axis (and the maximum beside it)."""
    return ending(
        """r = Reshape(z, three)  a = ReduceMean<axes=[2], keepdims=0>(r)  b = ReduceMax<axes=[-1], keepdims=0>(r)
        f = Concat<axis=1>(a, b)  logits = Gemm<transB=1>(f, wf, bl)""",
        three=[0, 0, -1], wf=(CLASSES, 32),
    )  # fmt: skip


@pattern()
def mean_over_tokens() -> onnx.ModelProto:
    """[N, H * W, C], as in a transformer without a class token."""
    return ending(
        """r = Reshape(z, three)  t = Transpose<perm=[0,2,1]>(r)  f = ReduceMean<axes=[1], keepdims=0>(t)
        logits = Gemm<transB=1>(f, wl, bl)""",
        three=[0, 16, -1],
    )  # fmt: skip


@pattern()
def generalised_mean() -> onnx.ModelProto:
    """GeM: the third root of the mean of the cubes."""
    return ending(
        """k = Clip(z, eps)  c = Pow(k, three)  g = GlobalAveragePool(c)  r = Pow(g, third)  f = Flatten(r)
        logits = Gemm<transB=1>(f, wl, bl)""",
        eps=number(1e-3), three=number(3), third=number(1 / 3),
    )  # fmt: skip


@pattern()
def pyramid_of_pools() -> onnx.ModelProto:
    """Spatial pyramid pooling: grids of 1, 2 and 4 places, flattened side by side."""
    return ending(
        """a = GlobalMaxPool(z)  b = MaxPool<kernel_shape=[4,4], strides=[4,4]>(z)
        c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(z)  fa = Flatten(a)  fb = Flatten(b)  fc = Flatten(c)
        f = Concat<axis=1>(fa, fb, fc)  logits = Gemm<transB=1>(f, wf, bl)""",
        wf=(CLASSES, 16 * 21),
    )  # fmt: skip


WINDOWS = {
    "MaxPool ceil": "MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>",
    "MaxPool ceil pads": "MaxPool<kernel_shape=[2,2], strides=[3,3], pads=[1,1,0,0], ceil_mode=1>",
    "MaxPool dilation": "MaxPool<kernel_shape=[3,3], dilations=[2,2], pads=[1,1,1,1]>",
    "MaxPool SAME_UPPER": 'MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">',
    "MaxPool SAME_LOWER": 'MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_LOWER">',
    "MaxPool VALID": 'MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="VALID">',
    "MaxPool asymmetric": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>",
    "MaxPool oblong": "MaxPool<kernel_shape=[1,3], strides=[1,2], pads=[0,1,0,1]>",
    "AveragePool ceil": "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>",
    "AveragePool ceil count": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1,"
    " count_include_pad=1>",
    "AveragePool pads": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>",
    "AveragePool count": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>",
    "AveragePool SAME_UPPER": 'AveragePool<kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_UPPER">',
    "AveragePool SAME_LOWER": 'AveragePool<kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_LOWER">',
    "AveragePool asymmetric": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>",
    "AveragePool asymmetric count": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,0,0,1],"
    " count_include_pad=1>",
    "AveragePool dilation": "AveragePool<kernel_shape=[2,2], dilations=[2,2]>",
    "LpPool": "LpPool<kernel_shape=[2,2], strides=[2,2], p=2>",
}  # fmt: skip


@pattern(each=list(WINDOWS))
def pool(window: str) -> onnx.ModelProto:
    """Negative values too: a maximum over padding shows only then."""
    return around(f"m = Sub(x, one)  y = {WINDOWS[window]}(m)", opset=19, one=number(1))


@pattern()
def max_pool_with_places() -> onnx.ModelProto:
    """The second output, which nobody reads."""
    return around("y, places = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)")


@pattern()
def blur_pool() -> onnx.ModelProto:
    """Reflect padding and one constant kernel for all channels, spread by Expand."""
    kernel = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32).reshape(1, 1, 3, 3) / 16
    return around(
        'q = Pad<mode="reflect">(x, by)  w = Expand(kernel, to)  y = Conv<group=8, strides=[2,2]>(q, w)',
        by=[0, 0, 1, 1, 0, 0, 1, 1], kernel=kernel, to=[8, 1, 3, 3],
    )  # fmt: skip

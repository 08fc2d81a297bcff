"""Channels last, as TensorFlow's exporters leave them, and preprocessing inside the graph."""

from __future__ import annotations

import numpy as np
import onnx

from patterns.base import CHANNELS, CLASSES, LAST, SIZE, Weight, around, net, norm, number, pattern, positive

LINEAR: dict[str, Weight] = {"wl": (CLASSES, LAST), "bl": (CLASSES,)}
CONVS: dict[str, Weight] = {
    "ws": (CHANNELS, 3, 3, 3), "bs": (CHANNELS,), "we": (LAST, CHANNELS, 3, 3), "be": (LAST,)
}  # fmt: skip
TO_FIRST, TO_LAST = "Transpose<perm=[0,3,1,2]>", "Transpose<perm=[0,2,3,1]>"


def last(body: str, **weights: Weight) -> onnx.ModelProto:
    """A net whose image is NHWC."""
    text = f"(float[N,{SIZE},{SIZE},3] image) => (float[N,{CLASSES}] logits) {{ {body} }}"
    return net(text, CONVS | LINEAR | weights)


@pattern()
def one_transpose_of_the_image() -> onnx.ModelProto:
    return last(
        f"""i = {TO_FIRST}(image)  s = Conv<pads=[1,1,1,1]>(i, ws, bs)  x = Relu(s)  e = Conv<pads=[1,1,1,1]>(x, we, be)
        z = Relu(e)  g = GlobalAveragePool(z)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, bl)"""
    )


@pattern(each=["Softmax", "LogSoftmax"])
def answer_with_axes_of_length_one(tail: str) -> onnx.ModelProto:
    """A dense layer at the one place that is left: the classes lie on the last axis."""
    return net(
        f"""(float[N,{SIZE},{SIZE},3] image) => (float[N,1,1,{CLASSES}] answer) {{
            i = {TO_FIRST}(image)  s = Conv<pads=[1,1,1,1]>(i, ws, bs)  x = Relu(s)  e = Conv<pads=[1,1,1,1]>(x, we, be)
            z = Relu(e)  g = GlobalAveragePool(z)  v = {TO_LAST}(g)  d = MatMul(v, wt)  l = Add(d, bl)
            answer = {tail}<axis=-1>(l)
        }}""",
        CONVS | {"wt": (LAST, CLASSES), "bl": (CLASSES,)},
    )


@pattern()
def image_reshaped_to_channels_first() -> onnx.ModelProto:
    """A Reshape that stands for a Transpose where one of the axes has length 1, as tf2onnx writes it."""
    return net(
        f"""(float[N,{SIZE},{SIZE},1] image) => (float[N,{CLASSES}] logits) {{
            i = Reshape(image, to)  s = Conv(i, ws, bs)  x = Relu(s)  e = Conv(x, we, be)  z = Relu(e)
            g = GlobalAveragePool(z)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, bl)
        }}""",
        CONVS | LINEAR | {"ws": (CHANNELS, 1, 3, 3), "to": [-1, 1, SIZE, SIZE]},
    )


@pattern()
def transposes_around_every_conv() -> onnx.ModelProto:
    """tf2onnx before its optimiser: every conv and pool between two Transposes, biases and norms channels last."""
    return last(
        f"""i = {TO_FIRST}(image)  s = Conv<pads=[1,1,1,1]>(i, ws)  sl = {TO_LAST}(s)  sb = Add(sl, bs)  x = Relu(sb)
        xf = {TO_FIRST}(x)  q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(xf)  ql = {TO_LAST}(q)
        m = Mul(ql, g)  a = Add(m, h)  af = {TO_FIRST}(a)  e = Conv<pads=[1,1,1,1]>(af, we)  el = {TO_LAST}(e)
        eb = Add(el, be)  z = Relu(eb)  v = ReduceMean<axes=[1,2], keepdims=0>(z)  c = MatMul(v, wt)
        logits = Add(c, bl)""",
        g=positive(8), h=(8,), wt=(LAST, CLASSES),
    )  # fmt: skip


@pattern()
def residual_block_channels_last() -> onnx.ModelProto:
    """The sum is taken channels last, the convs channels first."""
    return around(
        f"""xl = {TO_LAST}(x)  c = Conv<pads=[1,1,1,1]>(x, wc, bc)  cl = {TO_LAST}(c)  t = Add(xl, cl)  r = Relu(t)
        y = {TO_FIRST}(r)""",
        wc=(8, 8, 3, 3), bc=(8,),
    )  # fmt: skip


@pattern()
def concat_and_pad_channels_last() -> onnx.ModelProto:
    return around(
        f"""xl = {TO_LAST}(x)  c = Conv<pads=[1,1,1,1]>(x, wc, bc)  cl = {TO_LAST}(c)  t = Concat<axis=3>(xl, cl)
        r = Relu(t)  q = Pad(r, by)  y = {TO_FIRST}(q)""",
        made=12, wc=(4, 8, 3, 3), bc=(4,), by=[0, 1, 1, 0, 0, 1, 1, 0],
    )  # fmt: skip


@pattern()
def linear_layers_as_matmul_channels_last() -> onnx.ModelProto:
    """ConvNeXt's pointwise layers: MatMul on NHWC."""
    return around(
        f"""t = {TO_LAST}(x)  a = MatMul(t, wa)  ab = Add(a, ba)  r = Gelu(ab)  b = MatMul(r, wb)  bb2 = Add(bb, b)
        m = Mul(bb2, scale)  u = {TO_FIRST}(m)  y = Add(x, u)""",
        opset=20, wa=(8, 16), ba=(16,), wb=(16, 8), bb=(8,), scale=positive(8),
    )  # fmt: skip


@pattern()
def flatten_channels_last() -> onnx.ModelProto:
    """The order of a flatten in Keras: place by place, the channels of one place side by side."""
    return last(
        f"""i = {TO_FIRST}(image)  s = Conv(i, ws, bs)  x = Relu(s)  e = Conv(x, we, be)  z = Relu(e)
        q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(z)  t = {TO_LAST}(q)  f = Reshape(t, flat)
        logits = Gemm<transB=1>(f, wf, bl)""",
        flat=[-1, 64], wf=(CLASSES, 64),
    )  # fmt: skip


@pattern()
def depthwise_channels_last() -> onnx.ModelProto:
    return around(
        f"""t = {TO_LAST}(x)  u = {TO_FIRST}(t)  d = Conv<pads=[1,1,1,1], group=8>(u, wd)  v = {TO_LAST}(d)
        n = Add(v, bd)
        k = Clip(n, nil, six)  y = {TO_FIRST}(k)""",
        wd=(8, 1, 3, 3), bd=(8,), nil=number(0), six=number(6),
    )  # fmt: skip


@pattern()
def gate_channels_last() -> onnx.ModelProto:
    """Squeeze-and-excite of Keras: the mean keeps its axes, Reshape to (1, 1, C), two MatMuls."""
    return around(
        f"""t = {TO_LAST}(x)  m = ReduceMean<axes=[1,2], keepdims=0>(t)  v = Reshape(m, to)  a = MatMul(v, wa)
        r = Relu(a)  b = MatMul(r, wb)  h = Sigmoid(b)  k = Mul(t, h)  y = {TO_FIRST}(k)""",
        to=[-1, 1, 1, 8], wa=(8, 4), wb=(4, 8),
    )  # fmt: skip


@pattern()
def norm_channels_last_by_transposes() -> onnx.ModelProto:
    return around(
        f"t = {TO_LAST}(x)  r = Relu(t)  u = {TO_FIRST}(r)  n = BatchNormalization(u, ns, nb, nm, nv)  y = Elu(n)",
        norm("n", 8),
    )  # fmt: skip


def preprocessed(steps: str, **weights: Weight) -> onnx.ModelProto:
    """A net that works on `i`, which `steps` make of the image (NCHW)."""
    return net(
        f"""(float[N,3,{SIZE},{SIZE}] image) => (float[N,{CLASSES}] logits) {{
            {steps}  s = Conv<pads=[1,1,1,1]>(i, ws, bs)  x = Relu(s)  e = Conv<pads=[1,1,1,1]>(x, we, be)
            z = Relu(e)  g = GlobalAveragePool(z)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, bl)
        }}""",
        CONVS | LINEAR | weights,
    )


@pattern()
def preprocessing_by_mean_and_deviation() -> onnx.ModelProto:
    return preprocessed("d = Sub(image, mean)  i = Div(d, std)", mean=(1, 3, 1, 1), std=positive(1, 3, 1, 1))


@pattern()
def preprocessing_by_a_scale() -> onnx.ModelProto:
    """Pixels to -1 .. 1."""
    return preprocessed("m = Mul(image, by)  i = Sub(m, one)", by=number(2 / 255), one=np.ones((), np.float32))


@pattern(each=["Gather", "Slice", "Concat", "Split"])
def preprocessing_to_another_channel_order(how: str) -> onnx.ModelProto:
    steps = {
        "Gather": "r = Gather<axis=1>(image, order)",
        "Slice": "r = Slice(image, minus, least, one, minus)",
        "Concat": "a = Slice(image, two, three, one)  b = Slice(image, one, two, one)  c = Slice(image, zero, one, one)"
        "  r = Concat<axis=1>(a, b, c)",
        "Split": "a, b, c = Split<axis=1>(image, ones)  r = Concat<axis=1>(c, b, a)",
    }[how]
    return preprocessed(
        f"{steps}  i = Sub(r, mean)", mean=(1, 3, 1, 1), order=[2, 1, 0], minus=[-1], least=[-(2**31)], zero=[0],
        one=[1], two=[2], three=[3], ones=[1, 1, 1],
    )  # fmt: skip


@pattern()
def preprocessing_channels_last() -> onnx.ModelProto:
    """Keras's "caffe" mode: the channels reversed on the last axis, the mean subtracted, then the Transpose."""
    return last(
        f"""r = Gather<axis=3>(image, order)  d = Add(r, mean)  i = {TO_FIRST}(d)  s = Conv<pads=[1,1,1,1]>(i, ws, bs)
        x = Relu(s)  e = Conv<pads=[1,1,1,1]>(x, we, be)  z = Relu(e)  g = GlobalAveragePool(z)  f = Flatten(g)
        logits = Gemm<transB=1>(f, wl, bl)""",
        order=[2, 1, 0], mean=(3,),
    )  # fmt: skip


@pattern()
def preprocessing_that_resizes() -> onnx.ModelProto:
    """A Resize of the image, and a border cut off."""
    return preprocessed(
        """r = Resize<mode="linear">(image, , by)  i = Slice(r, starts, ends, axes)""",
        by=[1.0, 1.0, 1.5, 1.5], starts=[2, 2], ends=[10, 10], axes=[2, 3],
    )  # fmt: skip


@pattern()
def grey_image_from_colours() -> onnx.ModelProto:
    """A weighted sum of the colours that is repeated for three channels."""
    return preprocessed(
        "m = Mul(image, by)  t = ReduceSum(m, one)  i = Expand(t, to)", by=(1, 3, 1, 1), one=[1], to=[1, 3, 1, 1]
    )

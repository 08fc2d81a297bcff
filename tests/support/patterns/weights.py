"""Weights and biases that the graph computes from constants, and weights in unusual places."""

from __future__ import annotations

import numpy as np
import onnx
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import around, ending, normal, number, pattern, positive
from patterns.traced import classic, dynamo

APPLIED = "y = Conv<pads=[1,1,1,1]>(x, w, by)"


class _Standardised(nn.Conv2d):
    """Weight standardisation as timm writes it: a batch norm of the weight."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pattern(each=["folded", "unfolded"])
def standardised_by_a_batch_norm_of_the_weight(how: str) -> onnx.ModelProto:
    return classic(_Standardised(8, 8, 3, padding=1), fold=how == "folded")


@pattern()
def standardised_by_a_training_mode_batch_norm() -> onnx.ModelProto:
    """Three outputs and batch statistics, in a part of the graph that reads only constants."""
    return around(
        f"""r = Reshape(wy, rows)
        n, nm, nv = BatchNormalization<training_mode=1, epsilon=0.00001>(r, gain, nil, nil, one)
        w = Reshape(n, back)  {APPLIED}""",
        wy=(8, 8, 3, 3), by=(8,), rows=[1, 8, -1], back=[8, 8, 3, 3], gain=0.2 * positive(8),
        nil=np.zeros(8, np.float32), one=np.ones(8, np.float32),
    )  # fmt: skip


@pattern()
def standardised_by_arithmetic() -> onnx.ModelProto:
    return around(
        f"""m = ReduceMean<axes=[1,2,3]>(wy)  d = Sub(wy, m)  q = Mul(d, d)  v = ReduceMean<axes=[1,2,3]>(q)
        ve = Add(v, eps)  sd = Sqrt(ve)  n = Div(d, sd)  w = Mul(n, gain)  {APPLIED}""",
        wy=(8, 8, 3, 3), by=(8,), eps=number(1e-5), gain=0.2 * positive(8, 1, 1, 1),
    )  # fmt: skip


@pattern()
def weight_norm() -> onnx.ModelProto:
    """g * v / |v|."""
    return around(
        f"l = ReduceL2<axes=[1,2,3]>(v)  n = Div(v, l)  w = Mul(n, g)  {APPLIED}",
        v=(8, 8, 3, 3), by=(8,), g=positive(8, 1, 1, 1),
    )  # fmt: skip


@pattern()
def weight_norm_of_torch() -> onnx.ModelProto:
    return classic(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)), fold=False)


@pattern()
def sliced_weight() -> onnx.ModelProto:
    """A slimmable net: the first channels of a wider weight."""
    return around(
        f"""w = Slice(wide, zero, ends, axes)  by = Slice(long, one, six)  {APPLIED}""",
        made=5, wide=(12, 12, 3, 3), long=(12,), zero=[0, 0], ends=[5, 8], axes=[0, 1], one=[1], six=[6],
    )  # fmt: skip


@pattern()
def masked_weight() -> onnx.ModelProto:
    """A lottery ticket: half of the weight times zero, one output channel wholly dead."""
    mask = np.random.default_rng(5).integers(0, 2, (8, 8, 3, 3)).astype(np.float32)
    mask[3] = 0
    return around(f"w = Mul(wy, mask)  {APPLIED}", wy=(8, 8, 3, 3), by=(8,), mask=mask)


@pattern(each=["Identity", "Cast", "double", "half"])
def weight_through(way: str) -> onnx.ModelProto:
    steps = {
        "Identity": "w = Identity(wy)",
        "Cast": "w = Cast<to=1>(wy)",
        "double": "d = Cast<to=11>(wy)  d2 = Mul(d, d)  d1 = Sqrt(d2)  w = Cast<to=1>(d1)",
        "half": "h = Cast<to=10>(wy)  w = Cast<to=1>(h)",
    }[way]
    # Of this many bits, so that it makes no difference that onnxruntime drops some casts to half and back.
    exact = normal(8, 8, 3, 3).astype(np.float16).astype(np.float32)
    return around(f"{steps}  {APPLIED}", wy=exact, by=(8,))


@pattern()
def weight_stored_as_half() -> onnx.ModelProto:
    half = np.random.default_rng(2).normal(0, 0.2, (8, 8, 3, 3)).astype(np.float16)
    return around(f"w = Cast<to=1>(half)  {APPLIED}", half=half, by=(8,))


@pattern()
def weight_stored_as_bytes_and_a_scale() -> onnx.ModelProto:
    """Weights packed into int8 by hand: Cast and Mul, without DequantizeLinear."""
    packed = np.random.default_rng(2).integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
    return around(
        f"c = Cast<to=1>(packed)  w = Mul(c, scale)  {APPLIED}",
        packed=packed, scale=0.002 * positive(8, 1, 1, 1), by=(8,),
    )  # fmt: skip


@pattern(each=["Transpose", "Reshape", "both"])
def linear_weight_through(way: str) -> onnx.ModelProto:
    steps, shape = {
        "Transpose": ("w = Transpose<perm=[1,0]>(wt)", (10, 16)),
        "Reshape": ("w = Reshape(wt, to)", (16, 10, 1, 1)),
        "both": ("r = Reshape(wt, to)  u = Transpose(r)  w = Transpose(u)", (160,)),
    }[way]
    return ending(f"g = GlobalAveragePool(z)  f = Flatten(g)  {steps}  logits = Gemm(f, w, bl)", wt=shape, to=[16, 10])


@pattern()
def linear_weight_times_anumber() -> onnx.ModelProto:
    """Gemm's own factors, and a bias of one row."""
    return ending(
        "g = GlobalAveragePool(z)  f = Flatten(g)  logits = Gemm<alpha=0.5, beta=2.0, transB=1>(f, wl, row)",
        row=(1, 10),
    )


@pattern(each=["number", "column"])
def linear_bias_broadcast(how: str) -> onnx.ModelProto:
    """A bias of one number for all features."""
    bias = np.full((1,) if how == "number" else (1, 1), 0.3, np.float32)
    return ending("g = GlobalAveragePool(z)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, b)", b=bias)


@pattern()
def weight_by_a_product() -> onnx.ModelProto:
    """A low-rank weight multiplied out in the graph."""
    return around(f"m = MatMul(a, b)  w = Reshape(m, to)  {APPLIED}", a=(8, 3), b=(3, 72), to=[8, 8, 3, 3], by=(8,))


@pattern()
def weight_of_two_parts() -> onnx.ModelProto:
    """Concatenated weights of two kernels, one of them padded to the other's size (a re-parametrised block)."""
    return around(
        f"k = Pad(one, by1)  w = Concat<axis=0>(three, k)  {APPLIED}",
        one=(4, 8, 1, 1), three=(4, 8, 3, 3), by1=[0, 0, 1, 1, 0, 0, 1, 1], by=(8,),
    )  # fmt: skip


@pattern()
def bias_derived_from_the_activation() -> onnx.ModelProto:
    """The dynamo exporter's "no bias" before optimisation: a zero cast like the input and expanded."""
    return around(
        "k = CastLike(nil, x)  b = Expand(k, eight)  y = Conv<pads=[1,1,1,1]>(x, wy, b)",
        nil=number(0), eight=[8], wy=(8, 8, 3, 3),
    )  # fmt: skip


@pattern(each=["conv", "norm"])
def unoptimised_dynamo(kind: str) -> onnx.ModelProto:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    return dynamo(conv if kind == "conv" else nn.Sequential(conv, nn.BatchNorm2d(8), nn.Hardswish()))


@pattern()
def bias_added_afterwards() -> onnx.ModelProto:
    """A bias of shape (1, C, 1, 1) in an Add of its own."""
    return around("c = Conv<pads=[1,1,1,1]>(x, wy)  y = Add(c, b)", wy=(8, 8, 3, 3), b=(1, 8, 1, 1))


@pattern()
def scale_that_reads_a_weight() -> onnx.ModelProto:
    """A layer scale made of the mean of the conv's weight."""
    return around(
        "m = ReduceMean<axes=[1,2,3]>(wy)  k = Reshape(m, to)  c = Conv<pads=[1,1,1,1]>(x, wy)  y = Mul(c, k)",
        wy=np.abs(np.random.default_rng(1).normal(0, 0.3, (8, 8, 3, 3))).astype(np.float32), to=[1, 8, 1, 1],
    )  # fmt: skip

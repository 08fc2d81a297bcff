"""Norms: a BatchNormalization that no conv takes in, norms in disguise, and norms over channels."""

from __future__ import annotations

import onnx
from torch import Tensor, nn

from patterns.base import SIZE, Weight, around, ending, norm, normal, number, pattern, positive
from patterns.traced import classic, dynamo

BN = "BatchNormalization(q, ns, nb, nm, nv)"
EPS = number(1e-5)
TWO = number(2)
VECTORS: dict[str, Weight] = {"g": positive(8), "h": (8,), "eps": EPS}
MAPS: dict[str, Weight] = {"g": positive(8, 1, 1), "h": (8, 1, 1), "eps": EPS}


@pattern(each=["Add", "MaxPool", "AveragePool", "Relu", "Conv"])
def norm_that_cannot_fold_backwards(before: str) -> onnx.ModelProto:
    """After something that is no conv, or behind a conv that others read too."""
    made = {
        "Add": "c = Conv(x, wc, bc)  q = Add(c, x)",
        "MaxPool": "q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
        "AveragePool": "q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)",
        "Relu": "q = Relu(x)",
        "Conv": "q = Conv(x, wc, bc)",
    }[before]
    end = "r = Relu(n)  y = Add(q, r)" if before == "Conv" else "y = Relu(n)"
    return around(f"{made}  n = {BN}  {end}", norm("n", 8), wc=(8, 8, 1, 1), bc=(8,))


@pattern()
def norm_after_concat() -> onnx.ModelProto:
    """As in DenseNet: the channels of two makers under one norm."""
    return around(
        f"c = Conv<pads=[1,1,1,1]>(x, wc)  q = Concat<axis=1>(x, c)  n = {BN}  y = Relu(n)", norm("n", 12),
        made=12, wc=(4, 8, 3, 3),
    )  # fmt: skip


@pattern()
def norm_before_the_first_conv() -> onnx.ModelProto:
    """A norm of the image itself."""
    return around(
        "n = BatchNormalization(image, ns, nb, nm, nv)  c = Conv<pads=[1,1,1,1]>(n, wc)  y = Add(c, x)", norm("n", 3),
        wc=(8, 3, 3, 3),
    )  # fmt: skip


@pattern()
def norm_of_features() -> onnx.ModelProto:
    """BatchNorm1d between two linear layers, and of the pooled vector."""
    return ending(
        """g = GlobalAveragePool(z)  f = Flatten(g)  n = BatchNormalization(f, ns, nb, nm, nv)
        a = Gemm<transB=1>(n, wa, ba)  b = BatchNormalization(a, ms, mb, mm, mv)  r = Relu(b)
        logits = Gemm<transB=1>(r, wh, bl)""", norm("n", 16) | norm("m", 12),
        wa=(12, 16), ba=(12,), wh=(10, 12),
    )  # fmt: skip


@pattern()
def norm_of_the_logits() -> onnx.ModelProto:
    return ending(
        "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  logits = " + BN, norm("n", 10)
    )


@pattern(each=["C11", "1C11", "1C11-after-relu"])
def norm_as_mul_and_add(shape: str) -> onnx.ModelProto:
    form = (8, 1, 1) if shape == "C11" else (1, 8, 1, 1)
    first = "q = Relu(x)" if "relu" in shape else "q = Conv<pads=[1,1,1,1]>(x, wc)"
    return around(
        f"{first}  m = Mul(q, g)  a = Add(m, h)  y = Relu(a)", wc=(8, 8, 3, 3), g=positive(*form), h=normal(*form)
    )


@pattern(each=["C11", "1C11"])
def norm_as_sub_mul_add(shape: str) -> onnx.ModelProto:
    form = (8, 1, 1) if shape == "C11" else (1, 8, 1, 1)
    return around(
        "q = Conv<pads=[1,1,1,1]>(x, wc)  d = Sub(q, u)  m = Mul(d, g)  a = Add(h, m)  y = Relu(a)",
        wc=(8, 8, 3, 3), u=normal(*form), g=positive(*form), h=normal(*form, seed=1),
    )  # fmt: skip


@pattern()
def norm_as_division() -> onnx.ModelProto:
    """All four weights in the graph: (x - mean) / sqrt(var + eps) * gain + shift."""
    return around(
        """d = Sub(x, u)  ve = Add(v, eps)  sd = Sqrt(ve)  n = Div(d, sd)  m = Mul(n, g)  y = Add(m, h)""", MAPS,
        u=(8, 1, 1), v=positive(8, 1, 1, seed=3),
    )  # fmt: skip


@pattern()
def norm_channels_last_between_casts() -> onnx.ModelProto:
    """TensorFlow's batch norm under mixed precision that was switched off: Casts from float to float."""
    return around(
        """t = Transpose<perm=[0,2,3,1]>(x)  c = Cast<to=1>(t)  m = Mul(c, g)  a = Add(m, h)  d = Cast<to=1>(a)
        y = Transpose<perm=[0,3,1,2]>(d)""", VECTORS,
    )  # fmt: skip


@pattern(each=["classic", "dynamo"])
def layer_norm_over_channels(exporter: str) -> onnx.ModelProto:
    """ConvNeXt: LayerNorm between two permutes."""
    middle = nn.Sequential(_Permute(0, 2, 3, 1), nn.LayerNorm(8), _Permute(0, 3, 1, 2))
    return classic(middle) if exporter == "classic" else dynamo(middle, optimize=True)


class _Permute(nn.Module):
    """Tensor.permute as a module."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


@pattern()
def layer_norm_decomposed() -> onnx.ModelProto:
    """ConvNeXt's LayerNorm2d in the words of opset 16 and before."""
    return around(
        """m = ReduceMean<axes=[1]>(x)  d = Sub(x, m)  q = Pow(d, two)  v = ReduceMean<axes=[1]>(q)  ve = Add(v, eps)
        sd = Sqrt(ve)  n = Div(d, sd)  k = Mul(n, g)  y = Add(k, h)""", MAPS,
        two=TWO,
    )  # fmt: skip


@pattern()
def layer_norm_decomposed_channels_last() -> onnx.ModelProto:
    return around(
        """t = Transpose<perm=[0,2,3,1]>(x)  m = ReduceMean<axes=[-1]>(t)  d = Sub(t, m)  q = Pow(d, two)
        v = ReduceMean<axes=[-1]>(q)  ve = Add(v, eps)  sd = Sqrt(ve)  n = Div(d, sd)  k = Mul(n, g)  a = Add(k, h)
        y = Transpose<perm=[0,3,1,2]>(a)""", VECTORS,
        two=TWO,
    )  # fmt: skip


@pattern()
def layer_norm_of_the_whole_map() -> onnx.ModelProto:
    """Statistics over channels and space together, and a scale for every place."""
    return around("y = LayerNormalization<axis=1>(x, g, h)", g=positive(8, SIZE, SIZE), h=normal(8, SIZE, SIZE))


@pattern()
def rms_norm_over_channels() -> onnx.ModelProto:
    return around(
        "q = Mul(x, x)  m = ReduceMean<axes=[1]>(q)  a = Add(m, eps)  r = Sqrt(a)  i = Reciprocal(r)  n = Mul(x, i)"
        "  y = Mul(n, g)",
        g=positive(8, 1, 1), eps=EPS,
    )  # fmt: skip


@pattern(splits=0.8, each=[1, 4])
def group_norm_of_the_classic_exporter(groups: int) -> onnx.ModelProto:
    """Reshape to groups, InstanceNormalization with scale 1, Reshape back, Mul and Add."""
    return classic(nn.GroupNorm(groups, 8))


@pattern(splits=0.8)
def group_norm_of_the_dynamo_exporter() -> onnx.ModelProto:
    return dynamo(nn.GroupNorm(4, 8), optimize=True)


@pattern(splits=0.8)
def group_norm_operator() -> onnx.ModelProto:
    """The operator as it is since opset 21; that of opset 18 was withdrawn."""
    return around("y = GroupNormalization<num_groups=4>(x, g, h)", opset=21, g=positive(8), h=(8,))


@pattern()
def instance_norm() -> onnx.ModelProto:
    return around("y = InstanceNormalization(x, g, h)", g=positive(8), h=(8,))


@pattern()
def local_response_norm() -> onnx.ModelProto:
    return around("y = LRN<size=5, alpha=0.5, beta=0.75, bias=1.0>(x)")


@pattern()
def softmax_over_channels() -> onnx.ModelProto:
    return around("a = Softmax<axis=1>(x)  b = Mul(a, eight)  y = Add(b, x)", eight=number(8))


@pattern(each=["ReduceL2", "LpNormalization", "decomposed"])
def features_of_unit_length(how: str) -> onnx.ModelProto:
    """F.normalize before a cosine classifier; the factor in front of it is learned."""
    made = {
        "ReduceL2": "l = ReduceL2<axes=[1]>(f)  k = Clip(l, eps)  n = Div(f, k)",
        "LpNormalization": "n = LpNormalization<axis=1, p=2>(f)",
        "decomposed": "q = Mul(f, f)  t = ReduceSum(q, one)  k = Max(t, eps)  l = Sqrt(k)  n = Div(f, l)",
    }[how]
    return ending(
        f"g = GlobalAveragePool(z)  f = Flatten(g)  {made}  c = MatMul(n, wt)  logits = Mul(c, by)",
        eps=EPS, one=[1], wt=(16, 10), by=number(8),
    )  # fmt: skip


@pattern()
def response_norm_of_convnext_v2() -> onnx.ModelProto:
    """Global response normalisation: the norm of each channel over space, divided by its mean over the channels."""
    return around(
        """l = ReduceL2<axes=[2,3]>(x)  m = ReduceMean<axes=[1]>(l)  me = Add(m, eps)  n = Div(l, me)  k = Mul(x, n)
        w = Mul(k, g)  v = Add(w, h)  y = Add(v, x)""", MAPS,
    )  # fmt: skip

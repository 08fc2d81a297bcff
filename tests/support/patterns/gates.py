"""Gates, split attention, and products of two computed tensors."""

from __future__ import annotations

import numpy as np
import onnx
from torch import Tensor, nn

from patterns.base import Weight, around, ending, number, pattern, positive
from patterns.traced import classic, dynamo

SQUEEZED: dict[str, Weight] = {"wa": (4, 8, 1, 1), "ba": (4,), "wb": (8, 4, 1, 1), "bb": (8,)}
LINEAR: dict[str, Weight] = {"wa": (4, 8), "ba": (4,), "wb": (8, 4), "bb": (8,)}
QKV: dict[str, Weight] = {"wq": (8, 8, 1, 1), "wk": (8, 8, 1, 1), "wv": (8, 8, 1, 1)}
PART = number(8**-0.5)


@pattern(each=["Sigmoid", "HardSigmoid", "Clip", "Tanh"])
def gate_by_convs(act: str) -> onnx.ModelProto:
    """Squeeze and excite; the hard sigmoid of MobileNetV3 is spelled out in the third case."""
    gate = "d = Add(b, three)  k = Clip(d, nil, six)  h = Div(k, six)" if act == "Clip" else f"h = {act}(b)"
    return around(
        f"g = GlobalAveragePool(x)  a = Conv(g, wa, ba)  r = Relu(a)  b = Conv(r, wb, bb)  {gate}  y = Mul(h, x)",
        SQUEEZED,
        three=number(3), nil=number(0), six=number(6),
    )  # fmt: skip


@pattern(each=["Gemm", "MatMul"])
def gate_by_linear_layers(op: str) -> onnx.ModelProto:
    made = "a = Gemm<transB=1>(g, wa, ba)  r = Relu(a)  b = Gemm<transB=1>(r, wb, bb)"
    if op == "MatMul":
        made = "m = MatMul(g, wt)  a = Add(m, ba)  r = Relu(a)  n = MatMul(r, wu)  b = Add(n, bb)"
    return around(
        f"g = ReduceMean<axes=[2,3], keepdims=0>(x)  {made}  h = Sigmoid(b)  u = Unsqueeze(h, hw)  y = Mul(x, u)",
        LINEAR,
        hw=[2, 3], wt=(8, 4), wu=(4, 8),
    )  # fmt: skip


@pattern()
def gate_expanded_to_the_map() -> onnx.ModelProto:
    """expand_as, left as an Expand to a computed shape."""
    return around(
        """g = GlobalAveragePool(x)  a = Conv(g, wa, ba)  r = Relu(a)  b = Conv(r, wb, bb)  h = Sigmoid(b)
        to = Shape(x)  u = Expand(h, to)  y = Mul(x, u)""", SQUEEZED,
    )  # fmt: skip


@pattern()
def gate_of_mean_and_maximum() -> onnx.ModelProto:
    """CBAM: one shared pair of layers reads both poolings; then a gate for each place."""
    return around(
        """g = GlobalAveragePool(x)  m = GlobalMaxPool(x)  ga = Conv(g, wa)  gr = Relu(ga)  gb = Conv(gr, wb)
        ma = Conv(m, wa)  mr = Relu(ma)  mb = Conv(mr, wb)  t = Add(gb, mb)  h = Sigmoid(t)  k = Mul(h, x)
        o = ReduceMean<axes=[1]>(k)  u = ReduceMax<axes=[1]>(k)  c = Concat<axis=1>(o, u)
        v = Conv<pads=[3,3,3,3]>(c, wv)  w = Sigmoid(v)  y = Mul(w, k)""",
        wa=(4, 8, 1, 1), wb=(8, 4, 1, 1), wv=(1, 2, 7, 7),
    )  # fmt: skip


@pattern(splits=0.8)
def gate_by_conv_over_the_pooled_vector() -> onnx.ModelProto:
    """ECA: a 1-D conv along the channels, which are space to it; that keeps the first conv whole."""
    return around(
        """g = GlobalAveragePool(x)  q = Squeeze(g, last)  t = Transpose<perm=[0,2,1]>(q)  c = Conv<pads=[1,1]>(t, wc)
        u = Transpose<perm=[0,2,1]>(c)  v = Unsqueeze(u, last)  h = Sigmoid(v)  y = Mul(x, h)""",
        last=[3], wc=(1, 1, 3),
    )  # fmt: skip


@pattern()
def gate_for_each_place() -> onnx.ModelProto:
    """(N, 1, H, W) times the features."""
    return around("c = Conv<pads=[1,1,1,1]>(x, wc, bc)  h = Sigmoid(c)  y = Mul(x, h)", wc=(1, 8, 3, 3), bc=(1,))


@pattern(each=["()", "(1,)", "(1,1,1,1)"])
def gate_of_one_learnednumber(shape: str) -> onnx.ModelProto:
    form = {"()": (), "(1,)": (1,), "(1,1,1,1)": (1, 1, 1, 1)}[shape]
    return around(
        "c = Conv<pads=[1,1,1,1]>(x, wc)  h = Sigmoid(k)  m = Mul(c, h)  y = Add(x, m)",
        wc=(8, 8, 3, 3), k=np.full(form, 0.3, np.float32),
    )  # fmt: skip


@pattern()
def gate_of_the_channels_own_value() -> onnx.ModelProto:
    """SimAM: the energy of every place from its channel's mean and variance."""
    return around(
        """m = ReduceMean<axes=[2,3]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes=[2,3]>(q)  e4 = Mul(v, four)
        el = Add(e4, eps)  r = Div(q, el)  ra = Add(r, half)  h = Sigmoid(ra)  y = Mul(x, h)""",
        four=number(4), eps=number(1e-2), half=number(0.5),
    )  # fmt: skip


@pattern()
def gate_by_halves() -> onnx.ModelProto:
    """A gated linear unit: half of the channels times the sigmoid of the others."""
    return around("a, b = Split<axis=1>(x, halves)  h = Sigmoid(b)  y = Mul(a, h)", made=4, halves=[4, 4])


@pattern()
def split_attention_in_four_axes() -> onnx.ModelProto:
    """SKNet with Concat along a new axis: [N, 2, C, H, W], Softmax over the branches, sum over them."""
    return around(
        """p1 = Conv<pads=[1,1,1,1]>(x, w1)  p2 = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w2)  t = Add(p1, p2)
        g = GlobalAveragePool(t)  a = Conv(g, wa)  r = Relu(a)  b = Conv(r, wb)  v = Reshape(b, five)
        h = Softmax<axis=1>(v)  u1 = Unsqueeze(p1, one)  u2 = Unsqueeze(p2, one)  k = Concat<axis=1>(u1, u2)
        m = Mul(k, h)  y = ReduceSum<keepdims=0>(m, one)""",
        w1=(8, 8, 3, 3), w2=(8, 8, 3, 3), wa=(4, 8, 1, 1), wb=(16, 4, 1, 1), five=[0, 2, 8, 1, 1], one=[1],
    )  # fmt: skip


@pattern()
def split_attention_by_two_gates() -> onnx.ModelProto:
    """The same with one conv per gate, and Split after the Softmax."""
    return around(
        """p1 = Conv<pads=[1,1,1,1]>(x, w1)  p2 = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w2)  t = Add(p1, p2)
        g = GlobalAveragePool(t)  a = Conv(g, wa)  r = Relu(a)  b1 = Conv(r, wb)  b2 = Conv(r, wc)
        v1 = Unsqueeze(b1, one)  v2 = Unsqueeze(b2, one)  v = Concat<axis=1>(v1, v2)  h = Softmax<axis=1>(v)
        h1, h2 = Split<axis=1>(h, ones)  g1 = Squeeze(h1, one)  g2 = Squeeze(h2, one)  m1 = Mul(p1, g1)
        m2 = Mul(p2, g2)
        y = Add(m1, m2)""",
        w1=(8, 8, 3, 3), w2=(8, 8, 3, 3), wa=(4, 8, 1, 1), wb=(8, 4, 1, 1), wc=(8, 4, 1, 1), one=[1], ones=[1, 1],
    )  # fmt: skip


@pattern(splits=0.5)
def split_attention_of_resnest() -> onnx.ModelProto:
    """A grouped conv makes both branches, which ties each of them; Softmax over [N, 2, 1, C]."""
    return around(
        """c = Conv<pads=[1,1,1,1], group=2>(x, wc)  k = Reshape(c, five)  t = ReduceSum<keepdims=0>(k, one)
        g = GlobalAveragePool(t)  a = Conv(g, wa)  r = Relu(a)  b = Conv(r, wb)  v = Reshape(b, four)
        w = Transpose<perm=[0,2,1,3]>(v)  h = Softmax<axis=1>(w)  f1 = Reshape(h, flat)  u = Reshape(f1, spread)
        m = Mul(k, u)  y = ReduceSum<keepdims=0>(m, one)""",
        wc=(16, 4, 3, 3), five=[0, 2, 8, 8, 8], wa=(4, 8, 1, 1), wb=(16, 4, 1, 1), four=[0, 1, 2, 8], flat=[0, -1],
        spread=[0, 2, 8, 1, 1], one=[1],
    )  # fmt: skip


class _Attended(nn.Module):
    """Self-attention of the places of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        out: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + out.transpose(1, 2).reshape(x.shape)


# A product of two computed tensors keeps its factors whole; what lies outside of it still splits.
@pattern(splits=0.4)
def attention_over_places() -> onnx.ModelProto:
    """A non-local block: [H * W, C] times [C, H * W], Softmax, times the values."""
    return around(
        """q = Conv(x, wq)  k = Conv(x, wk)  v = Conv(x, wv)  fq = Reshape(q, three)  fk = Reshape(k, three)
        fv = Reshape(v, three)  tq = Transpose<perm=[0,2,1]>(fq)  tv = Transpose<perm=[0,2,1]>(fv)  a = MatMul(tq, fk)
        sa = Mul(a, part)  h = Softmax<axis=-1>(sa)  o = MatMul(h, tv)  to = Transpose<perm=[0,2,1]>(o)
        r = Reshape(to, four)  y = Add(x, r)""", QKV,
        three=[0, 8, 64], four=[0, 8, 8, 8], part=PART,
    )  # fmt: skip


@pattern(splits=0.5)
def attention_with_heads() -> onnx.ModelProto:
    """One linear layer for queries, keys and values, split by a Gather; two heads."""
    return around(
        """f0 = Reshape(x, three)  t = Transpose<perm=[0,2,1]>(f0)  m = MatMul(t, wq)  qkv = Reshape(m, five)
        u = Transpose<perm=[2,0,3,1,4]>(qkv)  q = Gather<axis=0>(u, i0)  k = Gather<axis=0>(u, i1)
        v = Gather<axis=0>(u, i2)  kt = Transpose<perm=[0,1,3,2]>(k)  a = MatMul(q, kt)  sa = Mul(a, part)
        h = Softmax<axis=-1>(sa)  o = MatMul(h, v)  ot = Transpose<perm=[0,2,1,3]>(o)  r = Reshape(ot, back)
        w = MatMul(r, wo)  wt = Transpose<perm=[0,2,1]>(w)  n = Reshape(wt, four)  y = Add(x, n)""",
        three=[0, 8, 64], wq=(8, 24), five=[0, 64, 3, 2, 4], i0=np.array(0), i1=np.array(1), i2=np.array(2), part=PART,
        back=[0, 64, 8], wo=(8, 8), four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern(splits=0.4, each=["classic", "dynamo"])
def attention_of(exporter: str) -> onnx.ModelProto:
    """nn.MultiheadAttention on the places of the map."""
    return classic(_Attended()) if exporter == "classic" else dynamo(_Attended(), optimize=True)


@pattern(splits=0.5)
def attention_over_channels() -> onnx.ModelProto:
    """XCA, Restormer: [C, H * W] times [H * W, C]."""
    return around(
        """q = Conv(x, wq)  k = Conv(x, wk)  v = Conv(x, wv)  fq = Reshape(q, three)  fk = Reshape(k, three)
        fv = Reshape(v, three)  tk = Transpose<perm=[0,2,1]>(fk)  a = MatMul(fq, tk)  sa = Mul(a, part)
        h = Softmax<axis=-1>(sa)  o = MatMul(h, fv)  y = Reshape(o, four)""", QKV,
        three=[0, 8, 64], four=[0, 8, 8, 8], part=number(1 / 64),
    )  # fmt: skip


@pattern(splits=0.5)
def attention_pool_by_a_context_map() -> onnx.ModelProto:
    """Global context: the features weighted by a Softmax over the places."""
    return around(
        """m = Conv(x, wm)  fm = Reshape(m, one3)  h = Softmax<axis=2>(fm)  ht = Transpose<perm=[0,2,1]>(h)
        fx = Reshape(x, three)  c = MatMul(fx, ht)  u = Reshape(c, four)  a = Conv(u, wa)  y = Add(x, a)""",
        wm=(1, 8, 1, 1), one3=[0, 1, 64], three=[0, 8, 64], four=[0, 8, 1, 1], wa=(8, 8, 1, 1),
    )  # fmt: skip


@pattern(splits=0.5, each=["nchw,oc->nohw", "nchw,nc->nchw"])
def einsum(equation: str) -> onnx.ModelProto:
    """As a 1x1 conv and as a gate."""
    other = "k = Identity(wc)" if "oc" in equation else "k = ReduceMean<axes=[2,3], keepdims=0>(x)"
    return around(f'{other}  y = Einsum<equation="{equation}">(x, k)', wc=(8, 8))


@pattern(splits=0.1, each=["Einsum", "MatMul"])
def bilinear_pooling(op: str) -> onnx.ModelProto:
    """Products of all pairs of channels, averaged over the places: the last conv stays whole."""
    made = 'b = Einsum<equation="nchw,ndhw->ncd">(z, z)'
    if op == "MatMul":
        made = "q = Reshape(z, three)  t = Transpose<perm=[0,2,1]>(q)  b = MatMul(q, t)"
    return ending(
        f"{made}  m = Mul(b, part)  f = Flatten(m)  logits = Gemm<transB=1>(f, wf, bl)",
        part=number(1 / 64), wf=(10, 256), three=[0, 16, 64],
    )  # fmt: skip


@pattern()
def prototypes_by_distance() -> onnx.ModelProto:
    """Logits are the negative distances to learned points."""
    return ending(
        """g = GlobalAveragePool(z)  f = Flatten(g)  u = Unsqueeze(f, one)  d = Sub(u, points)  q = Mul(d, d)
        t = ReduceSum<keepdims=0>(q, two)  logits = Neg(t)""",
        one=[1], two=[2], points=positive(1, 10, 16),
    )  # fmt: skip

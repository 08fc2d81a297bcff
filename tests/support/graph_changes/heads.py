"""Other heads behind the same features: another network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graph_changes.base import ENDS, Subject, UnfitError, register, set_nodes


def _head(s: Subject) -> tuple[str, str, int, list[onnx.NodeProto]]:
    """The map that a pooled linear layer reads, what it makes, the channels, and the nodes before it."""
    nodes = list(s.graph.node)
    if [n.op_type for n in nodes[-3:]] != ["GlobalAveragePool", "Flatten", "Gemm"] or s.opset != 17:
        raise UnfitError
    if nodes[-1].output[0] != s.graph.output[0].name:
        raise UnfitError
    weight = next((i for i in s.graph.initializer if i.name == nodes[-1].input[1]), None)
    if weight is None:
        raise UnfitError
    return nodes[-3].input[0], nodes[-1].output[0], int(weight.dims[1]), nodes[:-3]


def _random(s: Subject, *shape: int) -> str:
    rng = np.random.default_rng(s.rng.randrange(2**32))
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
    return s.constant(rng.normal(0, scale, shape).astype(np.float32), "w")


POOLED = "p = GlobalAveragePool(z)  f = Flatten(p)  "
TWO = "u = Gemm<transB=1>(f, L, b)  v = Gemm<transB=1>(f, K, b)  "
HEADS = {
    "pool by mean": "q = ReduceMean<axes=[2,3], keepdims=0>(z)  y = Gemm<transB=1>(q, L, b)",
    "pool by mean, twice": "p = ReduceMean<axes=[3]>(z)  r = ReduceMean<axes=[2]>(p)  q = Squeeze(r, hw)  "
    "y = Gemm<transB=1>(q, L, b)",
    "pool by maximum": "p = GlobalMaxPool(z)  q = Flatten(p)  y = Gemm<transB=1>(q, L, b)",
    "conv behind the pool": "p = GlobalAveragePool(z)  c = Conv(p, C, b)  y = Flatten(c)",
    "conv behind the pool, squeezed": "p = GlobalAveragePool(z)  c = Conv(p, C, b)  y = Squeeze(c, hw)",
    "conv behind the pool, reshaped": "p = GlobalAveragePool(z)  c = Conv(p, C, b)  y = Reshape(c, rows)",
    "conv behind the pool, left so": "p = GlobalAveragePool(z)  y = Conv(p, C, b)",
    "conv before the pool": "c = Conv(z, C, b)  p = GlobalAveragePool(c)  y = Flatten(p)",
    "conv before the pool, left so": "c = Conv(z, C, b)  y = GlobalAveragePool(c)",
    "conv, relu, pool": "c = Conv(z, C, b)  r = Relu(c)  p = GlobalAveragePool(r)  y = Flatten(p)",
    "conv, pool by mean, softmax": "c = Conv(z, C, b)  q = ReduceMean<axes=[2,3], keepdims=0>(c)  y = Softmax(q)",
    "matrix": POOLED + "m = MatMul(f, M)  y = Add(m, b)",
    "reshape of the pool": "p = GlobalAveragePool(z)  f = Reshape(p, rows)  y = Gemm<transB=1>(f, L, b)",
    "two layers": POOLED + "h = Gemm<transB=1>(f, H, hb)  r = Relu(h)  y = Gemm<transB=1>(r, D, b)",
    "two heads averaged": POOLED + TWO + "w = Add(u, v)  y = Mul(w, half)",
    "two heads, softmax averaged": POOLED + TWO + "us = Softmax(u)  vs = Softmax(v)  w = Add(us, vs)  y = Mul(w, half)",
    "two heads beside each other": POOLED + TWO + "y = Concat<axis=1>(u, v)",
    "two pools": "p = GlobalAveragePool(z)  r = GlobalMaxPool(z)  w = Concat<axis=1>(p, r)  f = Flatten(w)  "
    "y = Gemm<transB=1>(f, T, b)",
    "cosine": POOLED + "n = ReduceL2<axes=[1]>(f)  e = Div(f, n)  y = MatMul(e, M)",
    "softmax over columns": POOLED + "t = Transpose<perm=[1,0]>(f)  m = MatMul(L, t)  y = Transpose<perm=[1,0]>(m)",
    "mirrored image as well": POOLED + "a = Gemm<transB=1>(f, L, b)  y = Sum(a, a)",
    "norm of the features": POOLED + "n = LayerNormalization(f, g)  y = Gemm<transB=1>(n, L, b)",
}  # fmt: skip


def _other_head(s: Subject, text: str) -> None:
    source, made, channels, before = _head(s)
    shapes = {"L": (10, channels), "K": (10, channels), "C": (10, channels, 1, 1), "M": (channels, 10), "H": (12, channels),
              "hb": (12,), "D": (10, 12), "T": (10, 2 * channels), "b": (10,)}  # fmt: skip
    values: dict[str, Any] = {
        "hw": [2, 3],
        "rows": [0, -1],
        "half": 0.5,
        "g": np.linspace(0.6, 1.4, channels, dtype=np.float32),
    }
    parsed = onnx.parser.parse_graph(f"g (float[N] z) => (float[N] y) {{ {text} }}")
    names = {"z": source, "y": made}
    for new in parsed.node:
        for name in new.input:
            if name in shapes and name not in names:
                names[name] = _random(s, *shapes[name])
            elif name in values and name not in names:
                names[name] = s.constant(values[name])
        for name in new.output:
            names.setdefault(name, s.fresh(f"head_{name}"))
        new.input[:] = [names[name] for name in new.input]
        new.output[:] = [names[name] for name in new.output]
    set_nodes(s.graph, [*before, *parsed.node])
    s.graph.output[0].type.tensor_type.ClearField("shape")


for _name, _text in HEADS.items():
    register(ENDS, f"head: {_name}", lambda s, text=_text: _other_head(s, text))  # type: ignore[misc]

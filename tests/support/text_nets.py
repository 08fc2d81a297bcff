"""Small nets as ONNX text, with seeded weights for every name that is declared but not given."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def net(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """The model of an ONNX text; `shapes` gives a random initializer for each name."""
    model = parser.parse_model(f"{HEADER} {text}")
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        value = rng.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def residual(end: str = "", *, classes: int = 3, answer: str = "N,3") -> onnx.ModelProto:
    """stem(4) -> [a(6) -> b(4)] + identity -> pooled linear(3). end: nodes that make `logits`, of shape `answer`, of the
    linear layer's result z."""
    linear = "z" if end else "logits"
    return net(
        f"""g (float[N,3,8,8] image) => (float[{answer}] logits) {{
            s = Conv<pads=[1,1,1,1]>(image, ws, bs)  x = Relu(s)
            a = Conv<pads=[1,1,1,1]>(x, wa, ba)      r = Relu(a)
            b = Conv<pads=[1,1,1,1]>(r, wb, bb)      t = Add(b, x)
            y = Relu(t)  p = GlobalAveragePool(y)  f = Flatten(p)  {linear} = Gemm<transB=1>(f, wl, bl)
            {end}
        }}""",
        ws=(4, 3, 3, 3), bs=(4,), wa=(6, 4, 3, 3), ba=(6,), wb=(4, 6, 3, 3), bb=(4,), wl=(classes, 4), bl=(classes,),
    )  # fmt: skip


def labels() -> onnx.ModelProto:
    """The residual net with probabilities of three labels."""
    return residual("logits = Sigmoid(z)")


def clipped_labels() -> onnx.ModelProto:
    """The same, clipped."""
    bounds = "lo = Constant<value = float {1e-7}>()  hi = Constant<value = float {0.9999999}>()"
    return residual(f"q = Sigmoid(z)  {bounds}  logits = Clip(q, lo, hi)")


def one_label() -> onnx.ModelProto:
    """The residual net with one probability per image, without an axis of its own."""
    end = "one = Constant<value = int64[1] {1}>()  q = Squeeze(z, one)  logits = Sigmoid(q)"
    return residual(end, classes=1, answer="N")


LABEL_NETS = (labels, clipped_labels, one_label)


def chain() -> onnx.ModelProto:
    """conv(8) -> conv(16) -> pooled linear(5), no way around anything."""
    return net(
        """g (float[N,3,8,8] image) => (float[N,5] logits) {
            a = Conv(image, wa)  x = Relu(a)  b = Conv(x, wb)  y = Relu(b)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 3, 3), wb=(16, 8, 3, 3), wl=(5, 16),
    )  # fmt: skip

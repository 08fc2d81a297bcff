"""Operators that networks of images rarely have: one net at least for every channel rule that no other pattern asks."""

from __future__ import annotations

import onnx

from patterns.base import around, number, pattern, positive

ACTIVATIONS = {
    "Cos": "y = Cos(x)",
    "Log": "a = Add(x, quarter)  y = Log(a)",
    "Round": "y = Round(x)",
    "Sign": "a = Sub(x, quarter)  y = Sign(a)",
}
REDUCTIONS = ("ReduceL1", "ReduceLogSumExp", "ReduceMin", "ReduceProd", "ReduceSumSquare")


@pattern(each=list(ACTIVATIONS))
def rare_activation(op: str) -> onnx.ModelProto:
    return around(ACTIVATIONS[op], quarter=number(0.25))


@pattern(each=["And", "Or"])
def two_comparisons(op: str) -> onnx.ModelProto:
    return around(
        f"a = GreaterOrEqual(x, low)  b = LessOrEqual(x, high)  c = {op}(a, b)  y = Where(c, x, low)",
        low=number(0.3), high=number(0.9),
    )  # fmt: skip


@pattern(each=REDUCTIONS)
def rare_reduction_over_places(op: str) -> onnx.ModelProto:
    return around(f"g = Sigmoid(x)  m = {op}<axes=[2,3]>(g)  y = Add(x, m)")


@pattern(each=REDUCTIONS)
def rare_reduction_over_channels(op: str) -> onnx.ModelProto:
    return around(f"g = Sigmoid(x)  m = {op}<axes=[1]>(g)  y = Add(x, m)")


@pattern(each=["places", "all"])
def mean_variance_norm(over: str) -> onnx.ModelProto:
    axes = "2,3" if over == "places" else "1,2,3"
    return around(f"y = MeanVarianceNormalization<axes=[{axes}]>(x)")


@pattern()
def rms_norm_as_one_operator() -> onnx.ModelProto:
    return around(
        "t = Transpose<perm=[0,2,3,1]>(x)  n = RMSNormalization(t, g)  y = Transpose<perm=[0,3,1,2]>(n)",
        opset=23, g=positive(8),
    )  # fmt: skip

"""Elementwise operators, activations, comparisons, casts and reductions as torch functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import (
    Constants,
    Lowered,
    builder,
    feature_axes,
    one_output,
    refusal,
    register_functions,
    static,
    static_axes,
)

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

# TensorProto.DataType numbers of the types that a float32 classifier computes in.
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    # The slope broadcasts to x as in numpy; torch's own prelu takes it along axis 1 only.
    return torch.where(x < 0, slope * x, x)


def _div(a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    power = torch.pow(base, exponent)
    return power if base.is_floating_point() else power.to(base.dtype)


def _sqrt(x: Tensor) -> Tensor:
    """Return the square root, with the gradient 0 at 0: a channel that a mask made zero must not turn its weights into NaN."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), x.detach().sqrt())


def _sum(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A float stays the float it is, so that one graph runs in float32, float64 and under autocast.
    return x if dtype.is_floating_point and x.is_floating_point() else x.to(dtype)


register_functions(
    {
        "Abs": torch.abs,
        "Add": torch.add,
        "And": torch.logical_and,
        "CastLike": lambda x, like: _cast(x, like.dtype),
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Div": _div,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "HardSwish": lambda x: F.hardswish(x),
        "Identity": lambda x: x,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "Max": lambda *inputs: reduce(torch.maximum, inputs),
        "Mean": lambda *inputs: _sum(*inputs) / len(inputs),
        "Min": lambda *inputs: reduce(torch.minimum, inputs),
        "Mish": lambda x: F.mish(x),
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "PRelu": _prelu,
        "Pow": _pow,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Round": torch.round,
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Sqrt": _sqrt,
        "Sub": torch.sub,
        "Sum": _sum,
        "Tanh": torch.tanh,
        "Where": torch.where,
    }
)


@builder("LeakyRelu")
def _leaky_relu(node: Node, constants: Constants) -> Lowered:
    alpha = node.attrs.get("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@builder("Elu")
def _elu(node: Node, constants: Constants) -> Lowered:
    alpha = node.attrs.get("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@builder("Selu")
def _selu(node: Node, constants: Constants) -> Lowered:
    alpha, gamma = node.attrs.get("alpha", SELU_ALPHA), node.attrs.get("gamma", SELU_GAMMA)
    return lambda x: gamma * F.elu(x, alpha)


@builder("Celu")
def _celu(node: Node, constants: Constants) -> Lowered:
    alpha = node.attrs.get("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@builder("HardSigmoid")
def _hard_sigmoid(node: Node, constants: Constants) -> Lowered:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return lambda x: F.hardtanh(alpha * x + beta, 0.0, 1.0)


@builder("Shrink")
def _shrink(node: Node, constants: Constants) -> Lowered:
    threshold, bias = node.attrs.get("lambd", 0.5), node.attrs.get("bias", 0.0)
    return lambda x: torch.where(x.abs() > threshold, x - x.sign() * bias, torch.zeros_like(x))


@builder("Mod")
def _mod(node: Node, constants: Constants) -> Lowered:
    return torch.fmod if node.attrs.get("fmod", 0) else torch.remainder


@builder("ThresholdedRelu")
def _thresholded_relu(node: Node, constants: Constants) -> Lowered:
    alpha = node.attrs.get("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


@builder("Gelu")
def _gelu(node: Node, constants: Constants) -> Lowered:
    approximate = node.attrs.get("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@builder("Swish")
def _swish(node: Node, constants: Constants) -> Lowered:
    alpha = node.attrs.get("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _bound(value: Any) -> Any:
    """Return a bound of Clip; files say "no bound" by the largest float32 too, which bfloat16 does not have."""
    return None if value is None or abs(value.item()) >= torch.finfo(torch.float32).max else value.item()


@builder("Clip")
def _clip(node: Node, constants: Constants) -> Lowered:
    low, high = (_bound(static(node, constants, i)) for i in (1, 2))
    if low is None and high is None:
        return lambda x, *_: x
    if low is not None and high is not None and low < high:
        # Its backward pass is one sweep over the map instead of four, which is a quarter of a MobileNetV2's training step.
        return lambda x, *_: F.hardtanh(x, low, high) if x.is_floating_point() else x.clamp(low, high)
    return lambda x, *_: x.clamp(low, high)


@builder("Cast")
def _cast_to(node: Node, constants: Constants) -> Lowered:
    dtype = DTYPES.get(node.attrs["to"])
    if dtype is None:
        raise refusal(
            node, f"to={node.attrs['to']} is not supported; {sorted(DTYPES)} (float, int32, int64, bool) are allowed"
        )
    return lambda x: _cast(x, dtype)


@builder("Dropout")
def _dropout(node: Node, constants: Constants) -> Lowered:
    one_output(node)
    training = static(node, constants, 2)
    if training is not None and bool(training):
        raise refusal(node, "training_mode is true; false is allowed: export the model for inference")
    return lambda x, *_: x


def _prod(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keepdims: torch.linalg.vector_norm(x, 1, axes, keepdims),
    "ReduceL2": lambda x, axes, keepdims: torch.linalg.vector_norm(x, 2, axes, keepdims),
    "ReduceLogSum": lambda x, axes, keepdims: x.sum(axes, keepdims).log(),
    "ReduceLogSumExp": lambda x, axes, keepdims: torch.logsumexp(x, axes, keepdims),
    "ReduceMax": lambda x, axes, keepdims: x.amax(axes, keepdims),
    "ReduceMean": lambda x, axes, keepdims: x.mean(axes, keepdims),
    "ReduceMin": lambda x, axes, keepdims: x.amin(axes, keepdims),
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keepdims: x.sum(axes, keepdims),
    "ReduceSumSquare": lambda x, axes, keepdims: x.square().sum(axes, keepdims),
}


@builder(*REDUCTIONS)
def _reduce(node: Node, constants: Constants) -> Lowered:
    function = REDUCTIONS[node.op]
    axes, keepdims = static_axes(node, constants, 1), bool(node.attrs.get("keepdims", 1))
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        # Nothing is joined, yet each element still goes through (an L2 norm of one element is its magnitude).
        return lambda x, *_: function(x.unsqueeze(-1), (x.dim(),), False)

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        return function(x, feature_axes(node, axes or range(x.dim()), x.dim()), keepdims)

    return run


@builder("ArgMax")
def _argmax(node: Node, constants: Constants) -> Lowered:
    axis, keepdims = node.attrs.get("axis", 0), bool(node.attrs.get("keepdims", 1))
    last = bool(node.attrs.get("select_last_index", 0))

    def run(x: Tensor) -> Tensor:
        (dim,) = feature_axes(node, (axis,), x.dim())
        if last:  # torch names the first of equal maxima
            return x.shape[dim] - 1 - x.flip(dim).argmax(dim, keepdims)
        return x.argmax(dim, keepdims)

    return run


@builder("Softmax", "LogSoftmax")
def _softmax(node: Node, constants: Constants) -> Lowered:
    axis = node.attrs.get("axis", -1)
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    return lambda x: function(x, feature_axes(node, (axis,), x.dim())[0])

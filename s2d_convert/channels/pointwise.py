"""Rules of the operators that keep channels apart: element-wise operators, pooling, norms and reductions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from s2d_convert.channels.kinds import RULES, Array, Context, Kind, Role, mapped, opaque, rule
from s2d_convert.frontend.graph import Node

# What these make of zero is not a number, or infinite. Channels that the plan took away stay zero under them.
UNDEFINED_AT_ZERO = ("Div", "Log", "Mod", "Pow", "Reciprocal")

# --- one operand ------------------------------------------------------------------------------------


@rule("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Tanh", "HardSwish", "Softsign", "Mish", "Gelu", "ThresholdedRelu",
      "Identity", "Dropout", "Cast", "Abs", "Neg", "Sqrt", "Sign", "Floor", "Ceil", "Round", "Erf", "Sin", "Swish",
      "Shrink", keeps_zero=True)  # fmt: skip
@rule("Sigmoid", "HardSigmoid", "Softplus", "Exp", "Log", "Reciprocal", "Cos", "Clip", "Not")
def _elementwise(node: Node, context: Context) -> Role:
    """Element by element."""
    if len(context.computed(node)) != 1:
        return opaque("its bounds are computed")
    varying = context.varying(node.inputs[0])
    return _tied(node, context, varying) if len(varying) > 1 else mapped(node, context)


def _tied(node: Node, context: Context, varying: list[int], *, free: tuple[int, ...] = ()) -> Role:
    """Return a TIE that keeps the longest axis along which units differ (none of `free`)."""
    shape = context.shape(node.outputs[0])
    kept = max((a for a in varying if a not in free), key=lambda a: shape[a])
    return Role(Kind.TIE, kept)


@rule("BatchNormalization", vectors=(1, 2, 3, 4))
@rule("InstanceNormalization", vectors=(1, 2))
@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxPool", "AveragePool", "LpPool", "GridSample",
      keeps_zero=True)  # fmt: skip
def _channel_by_channel(node: Node, context: Context) -> Role:
    """Over space it maps, with the channels at position 1."""
    if context.computed(node) != node.inputs[:1]:
        return opaque("an input other than the first is computed")
    if len(node.outputs) > 1:
        return opaque("it has several outputs")
    if context.has_axis(node.inputs[0], 0):
        return Role(Kind.MAP, 0)
    if 0 in context.varying(node.inputs[0]) or node.op == "InstanceNormalization":
        return Role(Kind.TIE, 0)
    return opaque("its input has no channel axis at position 1")


@rule("Softmax", "LogSoftmax", "LpNormalization")
def _over_axis(node: Node, context: Context) -> Role:
    """Over one axis: beside the channels it maps, over the channels it is a norm."""
    shape, varying = context.shape(node.inputs[0]), context.varying(node.inputs[0])
    axis = node.attrs.get("axis", -1) % (len(shape) + 1) - 1
    if axis < 0:
        return opaque(f"{node.op} over the batch")
    if len(varying) > 1:
        return _tied(node, context, varying, free=(axis,))
    return Role(Kind.NORM, axis) if varying == [axis] else mapped(node, context)


@rule("LayerNormalization", "RMSNormalization", broadcasts=True)
def _layer_norm(node: Node, context: Context) -> Role:
    """Over the last axes: beside the channels it maps, over the channels it is a norm."""
    data = node.inputs[0]
    first = node.attrs.get("axis", -1) % (len(context.shape(data)) + 1) - 1
    varying = context.varying(data)
    if first < 0:
        return opaque(f"{node.op} over the batch")
    if len(node.outputs) > 1 or len(context.computed(node)) > 1:
        return opaque("its statistics are read, or its scale is computed")
    if len(varying) > 1:
        return Role(Kind.TIE, max(varying, key=lambda a: context.shape(data)[a]))
    return Role(Kind.NORM, varying[0]) if varying and varying[0] >= first else mapped(node, context)


@rule("LRN")
def _lrn(node: Node, context: Context) -> Role:
    """A norm over neighbouring channels: those that exist by then close ranks."""
    if not context.has_axis(node.inputs[0], 0):
        return opaque("its input has no channel axis at position 1")
    return Role(Kind.NORM if context.varying(node.inputs[0]) else Kind.MAP, 0)


@rule("MeanVarianceNormalization")
def _mean_variance(node: Node, context: Context) -> Role:
    """Over the axes it names: beside the channels it maps, over the channels it is a norm."""
    rank = len(context.shape(node.inputs[0])) + 1
    axes = {a % rank - 1 for a in node.attrs.get("axes", (0, 2, 3))}
    varying = context.varying(node.inputs[0])
    if -1 in axes:
        return opaque(f"{node.op} over the batch")
    if len(varying) > 1:
        return opaque("its input has units on several axes")
    if axes == set(varying):  # of one channel onnxruntime's answer is not a number
        return opaque(f"{node.op} over the channels alone")
    return Role(Kind.NORM, varying[0]) if axes.intersection(varying) else mapped(node, context)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", keeps_zero=True)
@rule("ReduceProd", "ReduceLogSumExp")
def _reduce(node: Node, context: Context) -> Role:
    """Over space it maps; over the channels it gives one value of all that exist by then."""
    data = node.inputs[0]
    rank = len(context.shape(data)) + 1
    axes = {a % rank - 1 for a in reduced_axes(node, context.constants, rank)}
    varying, channel = context.varying(data), context.axis(data)
    if -1 in axes:
        return opaque(f"{node.op} over the batch")
    if channel is None:
        rest = [a for a in varying if a not in axes]
        if len(rest) != 1:
            return opaque("its input has units on several axes")
        return Role(Kind.TIE, rest[0])
    if axes.issuperset(varying) and varying:
        return Role(Kind.REDUCE, 0)
    if channel in axes:  # one unit in all: which axis its channels are on is anyone's choice
        return opaque(f"{node.op} over channels of one unit")
    if node.attrs.get("keepdims", 1):
        return mapped(node, context)
    return mapped(node, context, channel - sum(a < channel for a in axes))


def reduced_axes(node: Node, constants: Mapping[str, Array], rank: int) -> tuple[int, ...]:
    """Return the ONNX axes that a Reduce node reduces, from its attribute or its second input."""
    if "axes" in node.attrs:
        return tuple(node.attrs["axes"])
    if len(node.inputs) > 1 and node.inputs[1]:
        return tuple(int(a) for a in constants[node.inputs[1]])
    return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))


@rule("Resize")
def _resize(node: Node, context: Context) -> Role:
    """Over space it maps."""
    data = node.inputs[0]
    channel = context.axis(data)
    scales = context.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or scales.size != len(context.shape(data)) + 1:
        return opaque("a Resize to absolute sizes")
    if channel is None or scales[channel + 1] != 1:
        return opaque("a Resize over the channels")
    return mapped(node, context)


# --- several operands -------------------------------------------------------------------------------


@rule("Add", "Sub", "Sum", "Max", "Min", "Mean", "Pow", "PRelu", "Where", "Equal", "Greater", "Less", "GreaterOrEqual",
      "LessOrEqual", "And", "Or", "Div", "Mod", broadcasts=True)  # fmt: skip
@rule("Mul", broadcasts=True, keeps_zero=True)
def _operands(node: Node, context: Context) -> Role:
    """Position by position; an operand with one channel is spread over all of the others' channels."""
    tensors, out = context.computed(node), context.shape(node.outputs[0])
    if any(len(context.shape(t)) != len(out) for t in tensors):
        return opaque("its operands have different ranks")
    varying = sorted({a for t in tensors for a in context.varying(t)})
    if len(varying) > 1:
        return _tied(node, context, varying)
    axis = varying[0] if varying else _common_axis(tensors, context)
    if all(context.shape(t)[axis] != out[axis] for t in tensors):
        return opaque("a constant is broadcast over the channels")
    return Role(Kind.MAP if len(tensors) == 1 else Kind.JOIN, axis)


def _common_axis(tensors: tuple[str, ...], context: Context) -> int:
    """Return the channel axis of operands with one unit each: that of the largest."""
    axis = context.axis(max(tensors, key=lambda t: int(np.prod(context.shape(t)))))
    assert axis is not None, "a tensor of one unit has its channels on any axis"
    return axis


def channel_axis_of_constant(node: Node, index: int, value: Array, *, rank: int, axis: int) -> int | None:
    """Return the axis of constant input `index` that runs over the channels of the data, None if it has none.

    `rank` is the rank of the data without the batch, `axis` its channel axis.
    """
    rule_of_node = RULES[node.op]
    if index in rule_of_node.vectors:
        return 0
    if not rule_of_node.broadcasts:
        return None
    channel_axis = axis + 1 - (rank + 1 - value.ndim)
    return None if channel_axis < 0 or value.shape[channel_axis] == 1 else channel_axis


def slice_constant(node: Node, index: int, value: Array, *, rank: int, axis: int, positions: Array) -> Array:
    """Return constant input `index` of a node that keeps channels apart, cut to the channel `positions` of its data.

    `rank` is the rank of the data without the batch, `axis` its channel axis.
    """
    channel_axis = channel_axis_of_constant(node, index, value, rank=rank, axis=axis)
    return value if channel_axis is None else np.take(value, positions, axis=channel_axis)

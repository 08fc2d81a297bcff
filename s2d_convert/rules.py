"""One channel rule per operator: the single source for ties, masks, slicing and MAC counts.

A rule answers one question: *what does this node do to channels?* The answer is a `Role`:

=========  ==========================================================================================
MIX        every output channel reads every input channel through a constant weight (Conv, Gemm...)
GROUPED    a Conv with groups: the channels of one group live and die together
MAP        channel i of the output depends on channel i of the one computed input (ReLU, pooling...)
JOIN       channel i of the output depends on channel i of several computed inputs (Add, Mul...)
MOVE       channels are rearranged, copied or dropped; nothing is computed (Concat, Reshape...)
OPAQUE     channels mix in some other way: all of them become one unit, the node only splits by depth
=========  ==========================================================================================

Axes here never count the batch: axis 0 of a feature map (C, H, W) is the channel axis of NCHW.
Adding an operator is one entry here, one builder in `lower` and one small test net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

from s2d_convert.errors import ModelError
from s2d_convert.graph import Node

Array = np.ndarray[Any, Any]


class Kind(Enum):
    """What a node does to channels; see the module's table."""

    MIX = "mix"
    GROUPED = "grouped"
    MAP = "map"
    JOIN = "join"
    MOVE = "move"
    OPAQUE = "opaque"


@dataclass(frozen=True)
class Role:
    """The answer of a rule: the kind, the channel axis of the output (None: any), and why if opaque."""

    kind: Kind
    axis: int | None = None
    reason: str = ""


class Context(Protocol):
    """What a rule may ask about the tensors around a node."""

    constants: Mapping[str, Array]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a computed tensor, without the batch."""

    def computed(self, node: Node) -> tuple[str, ...]:
        """The computed inputs of a node."""

    def axis(self, name: str) -> int | None:
        """The channel axis of a computed tensor, None where its units lie on several axes."""

    def has_axis(self, name: str, axis: int) -> bool:
        """Whether `axis` is the channel axis of the tensor, or can be taken as it (one unit in all)."""


@dataclass(frozen=True)
class Rule:
    """How one operator treats channels.

    `vectors`: indices of constant inputs that hold one value per channel (axis 0);
    `broadcasts`: whether other constant inputs follow numpy broadcasting against the first input;
    `keeps_zero`: whether zero inputs give a zero output.
    """

    role: Callable[[Node, Context], Role]
    vectors: tuple[int, ...] = ()
    broadcasts: bool = False
    keeps_zero: bool = False


RULES: dict[str, Rule] = {}


def rule(
    *ops: str, vectors: tuple[int, ...] = (), broadcasts: bool = False, keeps_zero: bool = False
) -> Callable[[Callable[[Node, Context], Role]], Callable[[Node, Context], Role]]:
    """Register the decorated function as the rule of `ops`; registering an operator twice is an error."""

    def register(function: Callable[[Node, Context], Role]) -> Callable[[Node, Context], Role]:
        for op in ops:
            if op in RULES:
                raise ValueError(f"operator {op} has a rule already")
            RULES[op] = Rule(function, vectors, broadcasts, keeps_zero)
        return function

    return register


def role_of(node: Node, context: Context) -> Role:
    """The role of a node; OPAQUE for operators without a rule and for units spread over several axes."""
    found = RULES.get(node.op)
    if found is None:
        return opaque(f"operator {node.op} has no channel rule")
    return found.role(node, context)


def opaque(reason: str) -> Role:
    """The role of a node whose channels cannot be told apart."""
    return Role(Kind.OPAQUE, None, reason)


def _map(node: Node, context: Context, axis: int | None = None) -> Role:
    """MAP that keeps the channel axis (or moves it to `axis`), if there is one."""
    source = context.axis(context.computed(node)[0])
    if source is None:
        return opaque("its input has units on several axes")
    return Role(Kind.MAP, source if axis is None else axis)


# --- mixing -----------------------------------------------------------------------------------------


@rule("Conv", "ConvTranspose")
def _conv(node: Node, context: Context) -> Role:
    if node.inputs[1] not in context.constants:
        return opaque("its weight is computed")
    if not context.has_axis(node.inputs[0], 0):
        return opaque("its input has no channel axis at position 1")
    if node.attrs.get("group", 1) == 1:
        return Role(Kind.MIX, 0)
    if node.op == "ConvTranspose":
        return opaque("a grouped ConvTranspose")
    return Role(Kind.GROUPED, 0)


@rule("Gemm", "MatMul")
def _linear(node: Node, context: Context) -> Role:
    data, weight = node.inputs[0], node.inputs[1]
    if data in context.constants or weight not in context.constants or np.ndim(context.constants[weight]) != 2:
        return opaque("a product of two computed tensors, or of a stack of matrices")
    if node.attrs.get("transA", 0) or (len(node.inputs) > 2 and node.inputs[2] not in (*context.constants, "")):
        return opaque("a Gemm with transA or a computed bias")
    last = len(context.shape(data)) - 1
    if not context.has_axis(data, last):
        return opaque("its input has no channel axis at the end")
    return Role(Kind.MIX, last)


def mix_weights(node: Node, constants: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """The weight [O, I, *kernel] and the bias [O] (or None) of a MIX or GROUPED node, scale factors folded in.

    For a grouped Conv the second axis is I / groups, as in ONNX.
    """
    weight = constants[node.inputs[1]]
    bias = constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    if node.op == "ConvTranspose":
        weight = weight.swapaxes(0, 1)
    elif node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
        weight = weight.T
    if node.op == "Gemm":
        weight = weight * np.float32(node.attrs.get("alpha", 1.0))
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(-1), (len(weight),)) * np.float32(node.attrs.get("beta", 1.0))
    return weight, bias


def macs_per_weight(node: Node, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> int:
    """How many multiply-accumulates one entry of the [O, I, *kernel] weight takes per image."""
    if node.op == "ConvTranspose":
        return int(np.prod(shape_in[1:]))
    if node.op == "Conv":
        return int(np.prod(shape_out[1:]))
    return int(np.prod(shape_out[:-1]))


# --- channel by channel -----------------------------------------------------------------------------


@rule("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Tanh", "HardSwish", "Softsign", "Mish", "Gelu", "ThresholdedRelu",
      "Identity", "Dropout", "Cast", "Abs", "Neg", "Sqrt", "Sign", "Floor", "Ceil", "Round", "Erf", "Sin", "Swish",
      keeps_zero=True)  # fmt: skip
@rule("Sigmoid", "HardSigmoid", "Softplus", "Exp", "Log", "Reciprocal", "Cos", "Clip", "Not")
def _elementwise(node: Node, context: Context) -> Role:
    if len(context.computed(node)) != 1:
        return opaque("its bounds are computed")
    return _map(node, context)


@rule("BatchNormalization", vectors=(1, 2, 3, 4))
@rule("InstanceNormalization", vectors=(1, 2))
@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxPool", "AveragePool", "LpPool", keeps_zero=True)
def _needs_axis_0(node: Node, context: Context) -> Role:
    if len(context.computed(node)) != 1 or not context.has_axis(node.inputs[0], 0):
        return opaque("its input has no channel axis at position 1")
    if len(node.outputs) > 1:
        return opaque("it has several outputs")
    return Role(Kind.MAP, 0)


@rule("Softmax", "LogSoftmax", "LpNormalization")
def _over_axis(node: Node, context: Context) -> Role:
    shape = context.shape(node.inputs[0])
    axis = node.attrs.get("axis", -1) % (len(shape) + 1) - 1
    if context.axis(node.inputs[0]) == axis or axis < 0:
        return opaque(f"{node.op} over the channels")
    return _map(node, context)


@rule("LayerNormalization", broadcasts=True)
def _layer_norm(node: Node, context: Context) -> Role:
    data = node.inputs[0]
    first = node.attrs.get("axis", -1) % (len(context.shape(data)) + 1) - 1
    channel = context.axis(data)
    if channel is None or channel >= first:
        return opaque("LayerNormalization over the channels")
    return _map(node, context)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", keeps_zero=True)
@rule("ReduceProd", "ReduceLogSumExp")
def _reduce(node: Node, context: Context) -> Role:
    data = node.inputs[0]
    rank = len(context.shape(data)) + 1
    axes = {a % rank - 1 for a in reduced_axes(node, context.constants, rank)}
    channel = context.axis(data)
    if channel is None:
        return opaque("its input has units on several axes")
    if channel in axes or -1 in axes:
        return opaque(f"{node.op} over the channels")
    if node.attrs.get("keepdims", 1):
        return _map(node, context)
    return _map(node, context, channel - sum(a < channel for a in axes))


def reduced_axes(node: Node, constants: Mapping[str, Array], rank: int) -> tuple[int, ...]:
    """The ONNX axes that a Reduce node reduces, from its attribute or its second input."""
    if "axes" in node.attrs:
        return tuple(node.attrs["axes"])
    if len(node.inputs) > 1 and node.inputs[1]:
        return tuple(int(a) for a in constants[node.inputs[1]])
    return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))


@rule("Resize")
def _resize(node: Node, context: Context) -> Role:
    data = node.inputs[0]
    channel = context.axis(data)
    scales = context.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or scales.size != len(context.shape(data)) + 1:
        return opaque("a Resize to absolute sizes")
    if channel is None or scales[channel + 1] != 1:
        return opaque("a Resize over the channels")
    return _map(node, context)


# --- several operands -------------------------------------------------------------------------------


@rule("Add", "Sub", "Sum", "Max", "Min", "Mean", "Pow", "PRelu", "Where", "Equal", "Greater", "Less", "GreaterOrEqual",
      "LessOrEqual", "And", "Or", "Div", broadcasts=True)  # fmt: skip
@rule("Mul", broadcasts=True, keeps_zero=True)
def _operands(node: Node, context: Context) -> Role:
    tensors = context.computed(node)
    first, out = context.shape(tensors[0]), context.shape(node.outputs[0])
    axis = context.axis(tensors[0])
    if axis is None or any(not context.has_axis(t, axis) for t in tensors):
        return opaque("its operands have their channels on different axes")
    if any(len(context.shape(t)) != len(out) or context.shape(t)[axis] != first[axis] for t in tensors):
        return opaque("an operand is broadcast over the channels")
    if out[axis] != first[axis]:
        return opaque("a constant is broadcast over the channels")
    return Role(Kind.MAP if len(tensors) == 1 else Kind.JOIN, axis)


def slice_constant(node: Node, index: int, value: Array, *, rank: int, axis: int, positions: Array) -> Array:
    """Constant input `index` of a MAP or JOIN node, cut to the channel `positions` of its data.

    `rank` is the rank of the data without the batch, `axis` its channel axis.
    """
    found = RULES[node.op]
    if index in found.vectors:
        return value[positions]
    if not found.broadcasts:
        return value
    own = axis + 1 - (rank + 1 - value.ndim)
    if own < 0 or value.shape[own] == 1:
        return value
    return np.take(value, positions, axis=own)


# --- movement ---------------------------------------------------------------------------------------


@rule("Concat")
def _concat(node: Node, context: Context) -> Role:
    tensors = context.computed(node)
    axis = node.attrs["axis"] % (len(context.shape(node.outputs[0])) + 1) - 1
    if len(tensors) != len(node.inputs) or axis < 0:
        return opaque("a Concat with a constant, or over the batch")
    if any(context.axis(t) is None for t in tensors) or all(context.axis(t) == axis for t in tensors):
        return Role(Kind.MOVE)
    channel = context.axis(tensors[0])
    if channel is None or any(not context.has_axis(t, channel) for t in tensors):
        return opaque("its operands have their channels on different axes")
    return Role(Kind.JOIN, channel)


@rule("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
def _move(node: Node, context: Context) -> Role:
    return Role(Kind.MOVE)


@rule("Slice", "Split", "Gather", "Pad", keeps_zero=True)
def _move_or_map(node: Node, context: Context) -> Role:
    """MOVE when the channel axis is touched; a MAP when only space is."""
    data = node.inputs[0]
    if data in context.constants or len(context.computed(node)) != 1:
        return opaque("its indices are computed")
    channel = context.axis(data)
    touched = _touched_axes(node, context)
    if channel is None:
        return Role(Kind.MOVE)
    if channel not in touched:
        dropped = len(context.shape(data)) - len(context.shape(node.outputs[0]))
        return _map(node, context, channel - (dropped if min(touched, default=99) < channel else 0))
    if touched != {channel}:
        return opaque(f"a {node.op} of channels and space at once")
    if node.op == "Gather" and np.ndim(context.constants[node.inputs[1]]) != 1:
        return opaque("a Gather of a single channel")
    if node.op == "Pad" and node.attrs.get("mode", "constant") != "constant":
        return opaque("a Pad of channels that is not constant")
    return Role(Kind.MOVE)


def _touched_axes(node: Node, context: Context) -> set[int]:
    """The axes (without the batch) that a Slice, Split, Gather or Pad changes."""
    shape = context.shape(node.inputs[0])
    if node.op in ("Gather", "Split"):
        return {node.attrs.get("axis", 0) % (len(shape) + 1) - 1}
    if node.op == "Pad":
        pads = _pads(node, context.constants, len(shape) + 1)
        return {a - 1 for a, both in enumerate(pads) if any(both)}
    out = context.shape(node.outputs[0])
    axes = {a - 1 for a, _ in _slices(node, context.constants, len(shape) + 1)}
    reversing = {a - 1 for a, s in _slices(node, context.constants, len(shape) + 1) if (s.step or 1) < 0}
    return {a for a in axes if a in reversing or out[a] != shape[a]}


def _pads(node: Node, constants: Mapping[str, Array], rank: int) -> list[tuple[int, int]]:
    amounts = [int(p) for p in constants[node.inputs[1]]]
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        axes = [int(a) % rank for a in constants[node.inputs[3]]]
    pads = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pads[axis] = (amounts[i], amounts[i + len(axes)])
    return pads


def pad_value(node: Node, constants: Mapping[str, Array]) -> float:
    """The constant that a Pad node fills with."""
    if len(node.inputs) > 2 and node.inputs[2]:
        return float(constants[node.inputs[2]].reshape(-1)[0])
    return 0.0


def _slices(node: Node, constants: Mapping[str, Array], rank: int) -> list[tuple[int, slice]]:
    given: list[list[int]] = [constants[name].tolist() if name else [] for name in node.inputs[1:]]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 and given[2] else list(range(len(starts)))
    steps = given[3] if len(given) > 3 and given[3] else [1] * len(starts)
    found = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # A negative step runs to before the first element, which Python only spells as None.
        stop = None if step < 0 and end < -(2**30) else end
        found.append((axis % rank, slice(start, stop, step)))
    return found


def move(node: Node, inputs: list[Array], constants: Mapping[str, Array], *, fill: int) -> list[Array]:
    """The outputs of a movement operator applied to integer arrays with a batch axis of length 1.

    Padded positions take the value `fill`. This is the reference semantics that channel analysis
    runs on identities instead of values. Raises ModelError for an operator that is not movement.
    """
    data = inputs[0]
    if node.op == "Concat":
        return [np.concatenate(inputs, axis=node.attrs["axis"])]
    if node.op == "Transpose":
        return [data.transpose(node.attrs.get("perm", tuple(reversed(range(data.ndim)))))]
    if node.op == "Split":
        axis = node.attrs.get("axis", 0)
        return list(np.split(data, np.cumsum(_split_sizes(node, constants, data.shape[axis]))[:-1], axis=axis))
    if node.op == "Slice":
        index = [slice(None)] * data.ndim
        for axis, part in _slices(node, constants, data.ndim):
            index[axis] = part
        return [data[tuple(index)]]
    if node.op == "Gather":
        return [np.take(data, constants[node.inputs[1]], axis=node.attrs.get("axis", 0))]
    if node.op == "Pad":
        return [np.pad(data, _pads(node, constants, data.ndim), constant_values=fill)]
    raise ModelError(f"{node}: not an operator that only moves channels")


def _split_sizes(node: Node, constants: Mapping[str, Array], total: int) -> list[int]:
    if len(node.inputs) > 1 and node.inputs[1]:
        return [int(s) for s in constants[node.inputs[1]]]
    parts = len(node.outputs)
    step = -(-total // parts)
    return [min(step, total - i * step) for i in range(parts)]

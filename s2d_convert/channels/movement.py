"""Rules of the operators that only move channels, and the movements themselves on arrays of identities."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from s2d_convert.channels.kinds import RULES, Array, Context, Kind, Role, mapped, opaque, rule
from s2d_convert.errors import ModelError
from s2d_convert.frontend.graph import Node


@rule("Concat")
def _concat(node: Node, context: Context) -> Role:
    """Channels side by side; over space it joins."""
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
    """The same elements in another shape."""
    return Role(Kind.MOVE)


@rule("DepthToSpace", "SpaceToDepth")
def _blocks(node: Node, context: Context) -> Role:
    """Channels become space, or space channels: those of one block are tied."""
    if not context.has_axis(node.inputs[0], 0):
        return opaque("its input has no channel axis at position 1")
    return Role(Kind.MOVE, 0)


@rule("Expand", keeps_zero=True)
def _expand(node: Node, context: Context) -> Role:
    """Copies over space; what is one unit may also be spread over channels."""
    data = node.inputs[0]
    before, after = context.shape(data), context.shape(node.outputs[0])
    varying = context.varying(data)
    if data in context.constants or len(before) != len(after):
        return opaque("a constant is expanded, or the number of axes changes")
    if len(varying) > 1:
        return Role(Kind.TIE, max(varying, key=lambda a: before[a]))
    return mapped(node, context)


@rule("Slice", "Split", "Gather", "Pad", "Tile", keeps_zero=True)
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
        return mapped(node, context, channel - (dropped if min(touched, default=99) < channel else 0))
    if touched != {channel}:
        return opaque(f"{node.op} over channels and space at once")
    if node.op == "Tile":
        return Role(Kind.MOVE)
    if node.op == "Gather" and np.ndim(context.constants[node.inputs[1]]) != 1:
        return opaque("a Gather of a single channel")
    if node.op == "Pad" and node.attrs.get("mode", "constant") != "constant":
        return opaque("a Pad of channels that is not constant")
    return Role(Kind.MOVE)


def _touched_axes(node: Node, context: Context) -> set[int]:
    """Return the axes (without the batch) that a Slice, Split, Gather or Pad changes."""
    shape = context.shape(node.inputs[0])
    if node.op in ("Gather", "Split"):
        return {node.attrs.get("axis", 0) % (len(shape) + 1) - 1}
    if node.op == "Pad":
        pads = _pads(node, context.constants, len(shape) + 1)
        return {a - 1 for a, both in enumerate(pads) if any(both)}
    if node.op == "Tile":
        return tiled_axes(node, context.constants)
    out = context.shape(node.outputs[0])
    axes = {a - 1 for a, _ in _slices(node, context.constants, len(shape) + 1)}
    reversing = {a - 1 for a, s in _slices(node, context.constants, len(shape) + 1) if (s.step or 1) < 0}
    return {a for a in axes if a in reversing or out[a] != shape[a]}


def tiled_axes(node: Node, constants: Mapping[str, Array]) -> set[int]:
    """Return the axes (without the batch) along which a Tile repeats."""
    return {a - 1 for a, times in enumerate(constants[node.inputs[1]].tolist()) if times != 1}


def _pads(node: Node, constants: Mapping[str, Array], rank: int) -> list[tuple[int, int]]:
    amounts = [int(p) for p in constants[node.inputs[1]]]
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        axes = [int(a) % rank for a in constants[node.inputs[3]]]
    pads = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pads[axis] = (amounts[i], amounts[i + len(axes)])
    return pads


def keeps_zero(node: Node, constants: Mapping[str, Array]) -> bool:
    """Return whether zero inputs give a zero output."""
    if node.op == "Pad" and pad_value(node, constants) != 0:
        return False
    if node.op == "Clip":
        low, high = (_bound(node, constants, index) for index in (1, 2))
        return (low is None or low <= 0) and (high is None or high >= 0)
    return node.op in RULES and RULES[node.op].keeps_zero


def _bound(node: Node, constants: Mapping[str, Array], index: int) -> float | None:
    """Return the lower (1) or upper (2) bound of a Clip: None where it has none, nan where it is computed."""
    name = node.inputs[index] if len(node.inputs) > index else ""
    if not name:
        return None
    return float(constants[name].reshape(-1)[0]) if name in constants else math.nan


def pad_value(node: Node, constants: Mapping[str, Array]) -> float:
    """Return the constant that a Pad node fills with."""
    if len(node.inputs) > 2 and node.inputs[2]:
        return float(constants[node.inputs[2]].reshape(-1)[0])
    return 0.0


def _slices(node: Node, constants: Mapping[str, Array], rank: int) -> list[tuple[int, slice]]:
    given: list[list[int]] = [constants[name].tolist() if name else [] for name in node.inputs[1:]]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 and given[2] else list(range(len(starts)))
    steps = given[3] if len(given) > 3 and given[3] else [1] * len(starts)
    slices = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # A negative step runs to before the first element, which Python only spells as None.
        stop = None if step < 0 and end < -(2**30) else end
        slices.append((axis % rank, slice(start, stop, step)))
    return slices


def move(node: Node, inputs: list[Array], constants: Mapping[str, Array], *, fill: int) -> list[Array]:
    """Apply a movement operator to integer arrays with a batch axis of length 1, and return its outputs.

    Padded positions take the value `fill`. This is the reference semantics that channel analysis runs on identities instead
    of values. Raises ModelError for an operator that does more than move channels.
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
        widths = np.array(_pads(node, constants, data.ndim))
        kept = tuple(slice(max(0, -low), n - max(0, -high)) for (low, high), n in zip(widths, data.shape, strict=True))
        return [np.pad(data[kept], np.maximum(widths, 0), constant_values=fill)]
    if node.op == "Tile":
        return [np.tile(data, constants[node.inputs[1]])]
    if node.op in ("DepthToSpace", "SpaceToDepth"):
        return [_move_blocks(node, data)]
    raise ModelError(f"{node}: not an operator that only moves channels")


def _move_blocks(node: Node, data: Array) -> Array:
    batch, channels, height, width = data.shape
    side = int(node.attrs["blocksize"])
    if node.op == "SpaceToDepth":
        cut = data.reshape(batch, channels, height // side, side, width // side, side)
        return cut.transpose(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // side, width // side)
    depth = channels // side**2
    if node.attrs.get("mode", "DCR") == "DCR":
        cut = data.reshape(batch, side, side, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        cut = data.reshape(batch, depth, side, side, height, width).transpose(0, 1, 4, 2, 5, 3)
    return cut.reshape(batch, depth, height * side, width * side)


def block_channels(node: Node, channels: Array) -> Array:
    """Return which channels a DepthToSpace turns into one: [channels out, blocksize squared] of the vector `channels`."""
    squared = int(node.attrs["blocksize"]) ** 2
    return channels.reshape(squared, -1).T if node.attrs.get("mode", "DCR") == "DCR" else channels.reshape(-1, squared)


def _split_sizes(node: Node, constants: Mapping[str, Array], total: int) -> list[int]:
    if len(node.inputs) > 1 and node.inputs[1]:
        return [int(s) for s in constants[node.inputs[1]]]
    parts = len(node.outputs)
    step = -(-total // parts)
    return [min(step, total - i * step) for i in range(parts)]

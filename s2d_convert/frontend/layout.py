"""The channel axis of the image and its length, according to the first operator that depends on it.

Shapes are not enough: 13 bands may come last, and a signal of 9 sensors may be one pixel wide. So the axes of the image are
followed through the first nodes of the graph (a Transpose, scaling, padding...) to a convolution or a norm of channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from s2d_convert.frontend.operator_sets import ELEMENTWISE
from s2d_convert.frontend.proto import attributes_of

IMAGE_AXES = 4
CHANNEL_AXES = (1, 3)  # first or last
# Operators that leave every axis where it is.
KEEPING = ELEMENTWISE | {
    "AveragePool", "Ceil", "Concat", "DepthToSpace", "Floor", "Gather", "LRN", "MaxPool", "Pad", "Resize", "Round", "Slice",
    "SpaceToDepth", "Split", "Upsample",
}  # fmt: skip
# Of these the ones that may change how many channels there are.
RECOUNTING = ("Concat", "DepthToSpace", "Gather", "Pad", "Slice", "SpaceToDepth", "Split")
PER_CHANNEL = ("BatchNormalization", "InstanceNormalization")

Dims = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """The axis of the image's channels, batch included, and their number, None where the graph does not tell it."""

    axis: int
    channels: int | None


@dataclass(frozen=True)
class _Trace:
    """Where the axes of the image are in a tensor (`axes[i]` is the image's axis at position i), and whether it has as many
    channels as the image."""

    axes: tuple[int, ...]
    same_count: bool = True


def layout_of(graph: onnx.GraphProto, image: str) -> Layout | None:
    """Return the layout of an image, None where nothing tells it before its axes are mixed; nodes are in topological order."""
    dims = _constant_dims(graph)
    traces = {image: _Trace(tuple(range(IMAGE_AXES)))}
    for node in graph.node:
        trace = next((traces[name] for name in node.input if name in traces), None)
        if trace is None:
            continue
        if node.input[0] in traces and (node.op_type in ("Conv", "ConvTranspose") or node.op_type in PER_CHANNEL):
            count = _channels(node, dims) if trace.same_count else None
            return Layout(trace.axes[1], count) if trace.axes[1] in CHANNEL_AXES else None
        if node.op_type == "Transpose":
            order = attributes_of(node).get("perm", range(IMAGE_AXES)[::-1])
            traces[node.output[0]] = _Trace(tuple(trace.axes[p] for p in order), trace.same_count)
        elif node.op_type in KEEPING and _keeps_rank(node, dims):
            kept = trace.same_count and node.op_type not in RECOUNTING
            traces.update((name, _Trace(trace.axes, kept)) for name in node.output if name)
    return None


def _channels(node: onnx.NodeProto, dims: Dims) -> int | None:
    """Return how many channels the input of a convolution or of a norm has; None where its weight is computed."""
    weight = dims.get(node.input[1])
    if weight is None:
        return None
    if node.op_type == "Conv":
        return weight[1] * int(attributes_of(node).get("group", 1))
    return weight[0]


def _keeps_rank(node: onnx.NodeProto, dims: Dims) -> bool:
    """Return whether the operands leave the number of axes as it is."""
    if node.op_type == "Gather":
        return len(dims.get(node.input[1], ())) == 1
    return all(len(dims.get(name, ())) <= IMAGE_AXES for name in node.input)


def _constant_dims(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of initializers and of what Constant and Identity nodes make of them."""
    dims = {i.name: tuple(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            (value,) = attributes_of(node).values()
            dims[node.output[0]] = tuple(value.dims) if isinstance(value, onnx.TensorProto) else np.shape(value)
        elif node.op_type in ("Cast", "Identity") and node.input[0] in dims:
            dims[node.output[0]] = dims[node.input[0]]
    return dims

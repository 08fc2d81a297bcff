"""Rules of the operators with weights: convolutions and matrix products, and their weights in one layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from s2d_convert.channels.kinds import Array, Context, Kind, Role, opaque, rule
from s2d_convert.frontend.graph import Node


@rule("Conv", "ConvTranspose")
def _conv(node: Node, context: Context) -> Role:
    """Mixes all channels; with groups, the channels of one conv group are tied."""
    if node.inputs[1] not in context.constants:
        return opaque("its weight is computed")
    if len(node.inputs) > 2 and node.inputs[2] not in (*context.constants, ""):
        return opaque("its bias is computed")
    if not context.has_axis(node.inputs[0], 0):
        return opaque("its input has no channel axis at position 1")
    return Role(Kind.MIX if node.attrs.get("group", 1) == 1 else Kind.GROUPED, 0)


@rule("Gemm", "MatMul")
def _linear(node: Node, context: Context) -> Role:
    """Mixes all channels where the weight is a constant matrix and the channels lie on the last axis."""
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
    """Return the weight [O, I, *kernel] and the bias [O] (or None) of a MIX or GROUPED node, scale factors folded in.

    With groups the second axis is I / groups, as in ONNX.
    """
    weight = constants[node.inputs[1]]
    bias = constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    if node.op == "ConvTranspose":
        weight = transposed_kernel(weight, int(node.attrs.get("group", 1)))
    elif node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
        weight = weight.T
    if node.op == "Gemm":
        if node.attrs.get("alpha", 1.0) != 1:
            weight = weight * np.float32(node.attrs["alpha"])
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(-1), (len(weight),)) * np.float32(node.attrs.get("beta", 1.0))
    return weight, bias


def transposed_kernel(weight: Array, groups: int) -> Array:
    """Convert the weight of a ConvTranspose [I, O / groups, *kernel] to [O, I / groups, *kernel], or back."""
    parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).swapaxes(1, 2)
    return parts.reshape(-1, *parts.shape[2:])

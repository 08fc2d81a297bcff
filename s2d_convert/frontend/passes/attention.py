"""The operator Attention of opset 23 in the words of older opsets, which rules, builders and slicing know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import attributes_of, label, unused_stem

MASK, FIRST_OF_A_CACHE = 3, 4  # places among its inputs
HEADS_FIRST, LAST_TWO_SWAPPED = [0, 2, 1, 3], [0, 1, 3, 2]


def plain_attention(model: onnx.ModelProto, node: onnx.NodeProto, types: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Return the nodes that do what an Attention does: softmax(Q K^T scale + mask) V for every head.

    Inputs are [B, H, L, D], or [B, L, H D] where the node tells the number of heads. `types` has the element types of tensors.
    Raises ModelError for what belongs to text (a cache of keys, a causal mask, a soft cap), and for further outputs.
    """
    attributes = attributes_of(node)
    _refuse_text(node, attributes)
    write = _Writer(model, node.output[0], node.name)
    heads = int(attributes.get("q_num_heads", 0))
    query, key, value = (_with_heads(write, node, index, attributes) for index in range(3))
    scores = write("MatMul", [query, write("Transpose", [key], perm=LAST_TWO_SWAPPED)])
    scores = write("Mul", [scores, _scale(write, query, attributes)])
    if len(node.input) > MASK and node.input[MASK]:
        scores = _masked(write, scores, node.input[MASK], types)
    shares = write("Softmax", [scores], axis=-1)
    if not heads:
        write("MatMul", [shares, value], made=node.output[0])
    else:
        merged = write("Transpose", [write("MatMul", [shares, value])], perm=HEADS_FIRST)
        write("Reshape", [merged, write.constant([0, 0, -1])], made=node.output[0])
    return write.nodes


class _Writer:
    """Nodes in the making, whose names begin as that of the tensor that they make in the end."""

    def __init__(self, model: onnx.ModelProto, made: str, name: str) -> None:
        self.model, self.stem, self.name = model, unused_stem(model.graph, made), name or made
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op: str, inputs: list[str], *, made: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        number = len(self.nodes)
        output = made or f"{self.stem}.{number}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"{self.name}.{number}", **attributes))
        return output

    def constant(self, value: list[int] | np.ndarray) -> str:
        """Add an initializer; returns its name."""
        name = f"{self.stem}.constant{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _refuse_text(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    unknown = [name for name in ("is_causal", "softcap") if attributes.get(name)]
    unknown += ["a cache of keys and values"] if any(node.input[FIRST_OF_A_CACHE:]) else []
    unknown += ["further outputs"] if any(node.output[1:]) else []
    if unknown:
        raise ModelError(
            f"node {label(node)}: {', '.join(unknown)} cannot be taken over; export the attention without, as classifiers of "
            "images have it"
        )


def _with_heads(write: _Writer, node: onnx.NodeProto, index: int, attributes: Mapping[str, Any]) -> str:
    """Return query, key or value with an axis of heads: [B, H, L, D]; keys and values repeated where several heads share them."""
    name = node.input[index]
    heads, key_heads = int(attributes.get("q_num_heads", 0)), int(attributes.get("kv_num_heads", 0))
    if not heads:
        return name
    count = key_heads if index else heads
    name = write("Reshape", [name, write.constant([0, 0, count, -1])])
    name = write("Transpose", [name], perm=HEADS_FIRST)
    if count != heads:
        name = write("Gather", [name, write.constant(np.repeat(np.arange(count), heads // count))], axis=1)
    return name


def _scale(write: _Writer, query: str, attributes: Mapping[str, Any]) -> str:
    """Return what the scores are multiplied with: given, or one over the root of the length of a head."""
    if "scale" in attributes:
        return write.constant(np.array(attributes["scale"], np.float32))
    length = write("Cast", [write("Shape", [query], start=3)], to=onnx.TensorProto.FLOAT)
    return write("Reciprocal", [write("Sqrt", [length])])


def _masked(write: _Writer, scores: str, mask: str, types: Mapping[str, int]) -> str:
    """Return the scores with a mask: of booleans, where True takes part, or of numbers that are added."""
    if types.get(mask) == onnx.TensorProto.BOOL:
        return write("Where", [mask, scores, write.constant(np.array(-np.inf, np.float32))])
    return write("Add", [scores, mask])

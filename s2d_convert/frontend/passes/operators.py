"""Passes that put an operator into the words of simpler ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.passes.attention import plain_attention
from s2d_convert.frontend.proto import attributes_of, label, opset_of, set_nodes, unused_stem, without_weights

NEED_TYPES = ("Attention", "CastLike")


def with_plain_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace If nodes with a constant condition, CastLike, GroupNormalization and Attention, in place; return the model.

    onnxruntime fails on the first, does not fold the second, and expands the third into nodes without inferred shapes; the
    fourth is newer than the operators that this package knows. Raises ModelError for an If that depends on the image.
    """
    kinds = _types(model) if any(n.op_type in NEED_TYPES for n in model.graph.node) else {}
    nodes: list[onnx.NodeProto] = []
    for node in _without_decided_branches(model):
        if node.op_type == "CastLike":
            to = kinds.get(node.input[1], 0)
            if not to:
                raise ModelError(f"node {label(node)}: the type of its second input is not known; export with types")
            nodes.append(onnx.helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=to))
        elif node.op_type == "Attention" and not node.domain:
            nodes.extend(plain_attention(model, node, kinds))
        elif node.op_type == "GroupNormalization":
            nodes.extend(_plain_group_norm(model, node))
        else:
            nodes.append(node)
    set_nodes(model.graph, nodes)
    return model


def _without_decided_branches(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes in order; in place of an If whose condition is a constant the nodes of the branch that it takes, and
    so on in that."""
    known = {i.name: i for i in model.graph.initializer}
    waiting = deque(model.graph.node)
    while waiting:
        node = waiting.popleft()
        if node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
        if node.op_type == "Constant" and isinstance(attributes_of(node).get("value"), onnx.TensorProto):
            known[node.output[0]] = attributes_of(node)["value"]
        if node.op_type == "If" and node.input[0] in known:
            condition = bool(numpy_helper.to_array(known[node.input[0]]).reshape(-1)[0])
            before = len(model.graph.initializer)
            waiting.extendleft(reversed(_taken_branch(model, node, condition)))
            known.update((i.name, i) for i in model.graph.initializer[before:])
        else:
            yield node


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of everything that shape inference can tell the type of."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return types | {i.name: i.data_type for i in model.graph.initializer}


def _taken_branch(model: onnx.ModelProto, node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """Return the nodes of the branch that an If takes, and one more for each of its outputs."""
    wanted = "then_branch" if condition else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == wanted)
    # Two branches may use the same names; what they take from outside keeps its own.
    own = {i.name for i in branch.initializer} | {name for n in branch.node for name in n.output if name}
    stem = unused_stem(model.graph, node.output[0], mark="/")
    renamed = {name: f"{stem}/{name}" for name in own}
    for constant in branch.initializer:
        fresh = model.graph.initializer.add()
        fresh.CopyFrom(constant)
        fresh.name = renamed[constant.name]
    nodes = []
    for inner in branch.node:
        taken, made = ([renamed.get(name, name) for name in side] for side in (inner.input, inner.output))
        nodes.append(onnx.helper.make_node(inner.op_type, taken, made, name=inner.name, domain=inner.domain))
        nodes[-1].attribute.extend(inner.attribute)
        for attribute in nodes[-1].attribute:
            if attribute.HasField("g"):
                _rename_outer(attribute.g, renamed)
    pairs = zip(branch.output, node.output, strict=True)
    ends = [onnx.helper.make_node("Identity", [renamed.get(a.name, a.name)], [b]) for a, b in pairs]
    return [*nodes, *ends]


def _rename_outer(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give what a branch within a branch reads from outside its new name, in place; names of its own hide those."""
    inner = {i.name for i in graph.initializer} | {name for n in graph.node for name in n.output}
    visible = {old: new for old, new in renamed.items() if old not in inner}
    for node in graph.node:
        node.input[:] = [visible.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_outer(attribute.g, visible)
    for output in graph.output:
        output.name = visible.get(output.name, output.name)


def _plain_group_norm(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a GroupNormalization as an InstanceNormalization of groups; until opset 20 its scale and bias go by group."""
    attributes = attributes_of(node)
    groups, (data, scale, bias), out = attributes["num_groups"], node.input, node.output[0]
    stem = unused_stem(model.graph, out)

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{stem}.{name}"))
        return f"{stem}.{name}"

    def make(op: str, inputs: list[str], name: str, **more: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [name], name=f"{node.name or stem}.{op}.{name[-1]}", **more)

    by_group = opset_of(model) < 21
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    norm = [f"{stem}.g", scale, bias] if by_group else [f"{stem}.g", constant("ones", ones), constant("zeros", zeros)]
    nodes = [
        make("Reshape", [data, constant("grouped", np.array([0, groups, -1]))], f"{stem}.g"),
        make("InstanceNormalization", norm, f"{stem}.n", epsilon=attributes.get("epsilon", 1e-5)),
        make("Shape", [data], f"{stem}.s"),
        make("Reshape", [f"{stem}.n", f"{stem}.s"], out if by_group else f"{stem}.r"),
    ]
    if by_group:
        return nodes
    column = constant("column", np.array([-1, 1, 1]))
    return [
        *nodes,
        make("Reshape", [scale, column], f"{stem}.f"),
        make("Reshape", [bias, column], f"{stem}.b"),
        make("Mul", [f"{stem}.r", f"{stem}.f"], f"{stem}.m"),
        make("Add", [f"{stem}.m", f"{stem}.b"], out),
    ]

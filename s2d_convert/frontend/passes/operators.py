"""Passes that put an operator into the words of simpler ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.passes.attention import plain_attention
from s2d_convert.frontend.proto import attributes_of, label, opset_of, set_nodes, without_weights

NEED_TYPES = ("Attention", "CastLike")


def with_plain_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without If nodes that are decided already, CastLike, GroupNormalization and Attention, in place: onnxruntime
    trips over the first, does not fold the second, and puts the third into words whose shapes nobody infers; the fourth is
    newer than the words that the rest of the package knows. Raises ModelError for an If that the image decides."""
    kinds = _types(model) if any(n.op_type in NEED_TYPES for n in model.graph.node) else {}
    known = {i.name: i for i in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
        if node.op_type == "If" and node.input[0] in known:
            nodes.extend(_taken_branch(model, node, bool(numpy_helper.to_array(known[node.input[0]]).reshape(-1)[0])))
        elif node.op_type == "CastLike":
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


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of everything that shape inference can tell the type of."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return found | {i.name: i.data_type for i in model.graph.initializer}


def _taken_branch(model: onnx.ModelProto, node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """The nodes of the branch that an If takes, and one more for each of its outputs."""
    wanted = "then_branch" if condition else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == wanted)
    # Two branches may use the same names; what they take from outside keeps its own.
    own = {i.name for i in branch.initializer} | {name for n in branch.node for name in n.output if name}
    renamed = {name: f"{node.output[0]}/{name}" for name in own}
    for constant in branch.initializer:
        fresh = model.graph.initializer.add()
        fresh.CopyFrom(constant)
        fresh.name = renamed[constant.name]
    nodes = []
    for inner in branch.node:
        taken, made = ([renamed.get(name, name) for name in side] for side in (inner.input, inner.output))
        nodes.append(onnx.helper.make_node(inner.op_type, taken, made, name=inner.name, domain=inner.domain))
        nodes[-1].attribute.extend(inner.attribute)
    pairs = zip(branch.output, node.output, strict=True)
    ends = [onnx.helper.make_node("Identity", [renamed.get(a.name, a.name)], [b]) for a, b in pairs]
    return [*nodes, *ends]


def _plain_group_norm(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A GroupNormalization as an InstanceNormalization of groups; until opset 20 its scale and bias go by group."""
    attributes = attributes_of(node)
    groups, (data, scale, bias), out = attributes["num_groups"], node.input, node.output[0]

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{out}.{name}"))
        return f"{out}.{name}"

    def make(op: str, inputs: list[str], name: str, **more: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [name], name=f"{node.name or out}.{op}.{name[-1]}", **more)

    by_group = opset_of(model) < 21
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    norm = [f"{out}.g", scale, bias] if by_group else [f"{out}.g", constant("ones", ones), constant("zeros", zeros)]
    nodes = [
        make("Reshape", [data, constant("grouped", np.array([0, groups, -1]))], f"{out}.g"),
        make("InstanceNormalization", norm, f"{out}.n", epsilon=attributes.get("epsilon", 1e-5)),
        make("Shape", [data], f"{out}.s"),
        make("Reshape", [f"{out}.n", f"{out}.s"], out if by_group else f"{out}.r"),
    ]
    if by_group:
        return nodes
    column = constant("column", np.array([-1, 1, 1]))
    return [
        *nodes,
        make("Reshape", [scale, column], f"{out}.f"),
        make("Reshape", [bias, column], f"{out}.b"),
        make("Mul", [f"{out}.r", f"{out}.f"], f"{out}.m"),
        make("Add", [f"{out}.m", f"{out}.b"], out),
    ]

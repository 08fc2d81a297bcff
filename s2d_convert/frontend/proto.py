"""Look at and change ONNX protobufs in place: names, nodes, graphs within graphs.

onnx-ir, which comes with onnxscript, was considered and left alone. It is a dependency of the demo's exporter, not of this
package; the neighbours of every pass (shape inference, the version converter, the inliner, onnxruntime) take and give
protobufs, so that each pass would pay for a conversion there and back; and what is needed here is these few functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
SMALL = 1024  # elements of a constant that may be a shape or the like
FREE_INITIALIZERS = 4  # the IR version since which initializers need not be inputs too


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def label(node: onnx.NodeProto) -> str:
    """Return how messages name a node."""
    return f"'{node.name or next(iter(node.output), '')}' ({node.op_type})"


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name; strings are bytes."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    return fresh


def without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of nodes, inputs and outputs alone."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    return bare


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph, some of which may be its own: protobuf frees those that are deleted."""
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large constants are inputs: what is left is quick to check and to infer shapes of."""
    fresh = onnx.ModelProto(ir_version=max(model.ir_version, FREE_INITIALIZERS), opset_import=model.opset_import)
    fresh.functions.extend(model.functions)
    graph = fresh.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    constants = {i.name for i in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in constants)
    for constant in model.graph.initializer:
        if constant.data_type in FLOATS and np.prod(constant.dims) > SMALL:
            graph.input.append(onnx.helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
        else:
            graph.initializer.append(constant)
    return fresh


def checkable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy for onnx's checker: without large constants, and with the shapes of inputs and outputs that onnxruntime
    can do without and the checker cannot."""
    bare = without_weights(model)
    for value in (*bare.graph.input, *bare.graph.output):
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return bare


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the branches of its If and Loop nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those that its branches take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names.update(name for graph in graphs(attribute.g) for inner in graph.node for name in inner.input)
            names.update(output.name for graph in graphs(attribute.g) for output in graph.output)
    return names


def unused_stem(graph: onnx.GraphProto, name: str, *, mark: str = ".") -> str:
    """Return a name such that no tensor is called like it with a mark and more behind."""
    taken = {name for inner in graphs(graph) for node in inner.node for name in (*node.input, *node.output)}
    taken.update(i.name for i in (*graph.initializer, *graph.input))
    while any(other.startswith(f"{name}{mark}") for other in taken):
        name += "_"
    return name


def computed_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of everything that depends on an input, for nodes in topological order."""
    names = {i.name for i in graph.input} - {i.name for i in graph.initializer}
    for node in graph.node:
        if names.intersection(names_read(node)):
            names.update(o for o in node.output if o)
    return names


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Return the tensors among the attributes of a graph's nodes."""
    return (a.t for n in graph.node for a in n.attribute if a.HasField("t"))

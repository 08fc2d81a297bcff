"""The Graph of a model that is simple enough."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from s2d_runtime.dispatcher import LABEL_KINDS

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.ending import (
    Ending,
    Region,
    set_end_aside,
    set_sigmoid_aside,
    with_axis,
    with_softmax_behind,
)
from s2d_convert.frontend.graph import SOFTMAXES, Graph, Node
from s2d_convert.frontend.proto import names_read, opset_of, without_constants


def graph_of(
    model: onnx.ModelProto,
    shapes: dict[str, tuple[int, ...]],
    *,
    labels: str | None = None,
    probabilities: bool = False,
    ends_in_softmax: bool = False,
) -> Graph:
    """Return the Graph of a simplified model, its trailing Softmax or Sigmoid set aside; `labels` as of `load_graph`.

    `probabilities`: it is known to answer some; `ends_in_softmax`: nothing before its last Softmax is to be set aside.
    Where no Softmax at the end makes the probabilities, one is put there, in the model and its `shapes` too.
    """
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise ModelError("the model has sparse initializers; export it with dense weights")
    taken: set[str] = set()
    nodes = [_node(n, index, taken) for index, n in enumerate(model.graph.node)]
    image, output = _input_name(model), model.graph.output[0].name
    if all(output not in n.outputs for n in nodes):
        raise ModelError(f"output '{output}' is not computed by any node; logits of shape (N, K) are expected")
    region = Region(tuple(nodes), constants, shapes)
    ending = set_end_aside(region, output, as_it_is=ends_in_softmax)
    # Of a part of the classes the sum is 1 for some images at most, such as those that were tried.
    if labels != "multi" and probabilities and not ending.tail and ending.classes_before <= region.count(output):
        with_softmax_behind(model, shapes)
        return graph_of(model, shapes, ends_in_softmax=True)
    ending, kind = with_kind(region, ending, output, labels)
    nodes = _reaching(ending.nodes, ending.logits)
    _check_classifier(nodes, ending, shapes, least=1 if kind in LABEL_KINDS else 2)
    used = set().union(*map(names_read, model.graph.node))
    computed = {image, *(o for n in nodes for o in n.outputs)}
    return Graph(
        nodes=tuple(nodes),
        constants=MappingProxyType({k: v for k, v in constants.items() if k in used}),
        shapes=MappingProxyType({k: v[1:] for k, v in shapes.items() if k in computed}),
        image=image,
        output=ending.logits,
        opset=opset_of(model),
        skeleton=without_constants(model),
        tail=ending.tail,
        output_kind=kind,
        tail_shapes=MappingProxyType({o: shapes[o][1:] for n in ending.tail for o in n.outputs}),
    )


def with_kind(region: Region, ending: Ending, output: str, labels: str | None) -> tuple[Ending, str]:
    """Return the division with what is behind a Sigmoid set aside as well, and what kind of output that makes. `load` looks
    again where more than a Softmax was set aside. Raises UsageError where `labels` does not fit."""
    softmax = ending.tail
    if softmax and labels == "multi":
        raise UsageError(
            f"--labels multi: output '{output}' comes from {softmax[0]}, which gives one class of many; leave the option out, or "
            "choose a tensor before it with --output"
        )
    if softmax:
        return ending, SOFTMAXES.get(softmax[-1].op, "logits")
    behind_sigmoid = set_sigmoid_aside(region, output)
    ending = with_axis(region, behind_sigmoid or ending)
    if labels == "classes":
        return ending, "logits"
    if behind_sigmoid:
        return ending, "sigmoid"
    one = region.count(ending.logits) == 1
    return ending, "sigmoid_logits" if labels == "multi" or one else "logits"


def _check_classifier(nodes: list[Node], ending: Ending, shapes: Mapping[str, tuple[int, ...]], *, least: int) -> None:
    """Raise ModelError unless the nodes are a convolutional network of at least so many classes whose exits can answer as it
    does."""
    output = ending.logits
    if ending.made_of_probabilities:
        raise ModelError(
            f"{ending.made_of_probabilities}: what output '{output}' makes of its probabilities is no function of the logits of "
            "one layer, and early exits could not answer likewise; choose a tensor before it with --output, or export the model "
            "with its logits"
        )
    if all(n.op not in ("Conv", "ConvTranspose") for n in nodes):
        raise ModelError("the model has no Conv node; only convolutional classifiers can be converted")
    logits = shapes[output][1:]
    if not logits or sum(d != 1 for d in logits) > 1 or int(np.prod(logits)) < least:
        raise ModelError(
            f"output '{output}' has shape {('N', *logits)}; logits of shape (N, K) with K >= {least} are expected: choose them "
            "with --output"
        )


def _input_name(model: onnx.ModelProto) -> str:
    constants = {i.name for i in model.graph.initializer}
    return str(next(i.name for i in model.graph.input if i.name not in constants))


def _node(proto: onnx.NodeProto, index: int, taken: set[str]) -> Node:
    name = proto.name or f"{proto.op_type}_{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    attrs = {a.name: _attribute(a) for a in proto.attribute}
    return Node(name, proto.op_type, tuple(proto.input), tuple(o for o in proto.output if o), MappingProxyType(attrs))


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (int, float, str)):
        return value
    if isinstance(value, onnx.GraphProto):
        return value
    return tuple(v.decode() if isinstance(v, bytes) else v for v in value)


def _reaching(nodes: tuple[Node, ...], output: str) -> list[Node]:
    """Return the nodes that `output` depends on, in their order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]

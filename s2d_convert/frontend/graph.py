"""A read-only view of a model that is simple enough to reason about.

Every tensor is either a constant (a numpy array in `Graph.constants`) or computed from the image, with the batch as axis 0 of
symbolic length. Shapes here never name the batch axis: a feature map has shape (C, H, W). How a file gets so simple stands
in `load`, which lists the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import copy_of, names_read, opset_of, set_nodes, without_constants

RESERVED = ("output", "confidence", "inverse_temperature")  # names of every stage file
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
IMAGE_CHANNELS = (1, 3, 4)
TAIL_KINDS = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities"}


@dataclass(frozen=True)
class Node:
    """One operator. `inputs` holds '' where an optional input is absent; `name` is unique in its graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.op})"


@dataclass(frozen=True)
class Graph:
    """A simplified classifier: nodes in topological order from `image` to `output` (the logits).

    `shapes` gives every computed tensor without its batch axis. `tail` is the trailing Softmax or
    LogSoftmax that was set aside (None if the model ends in logits); it is put back at export.
    `half` says that the file had float16 weights; here all numbers are float32. `folded` has the tensors whose axis 0 is
    not the batch alone (windows as rows...), with the number of its rows per image. `types` has the numpy type of each
    tensor that is not float32 (masks, indices). `image_type` is what the file takes the image as, float32 or uint8; here it is
    float32 from the first node on.
    `skeleton` is the simplified static model without its constants, which large models should not have in memory twice;
    `to_model` puts them together.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    image: str
    output: str
    opset: int
    skeleton: onnx.ModelProto
    tail: Node | None = None
    half: bool = False
    folded: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    image_type: str = "float32"

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each computed tensor (the image has none)."""
        return MappingProxyType({name: node for node in self.nodes for name in node.outputs})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[tuple[Node, int], ...]]:
        """For each computed tensor the (node, input index) pairs that read it."""
        table: dict[str, list[tuple[Node, int]]] = {name: [] for name in self.shapes}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name in table:
                    table[name].append((node, index))
        return MappingProxyType({name: tuple(readers) for name, readers in table.items()})

    def to_model(self) -> onnx.ModelProto:
        """Return the whole simplified static model, tail included, with a symbolic batch: the reference for latency and
        answers. Every call builds a new copy, which the caller may change."""
        whole = copy_of(self.skeleton)
        if self.image_type != "float32":
            _take_pixels(whole, self.image)
        for name, value in self.constants.items():
            whole.graph.initializer.append(numpy_helper.from_array(value, name))
        return whole

    @property
    def image_axis(self) -> int:
        """The axis of the image's channels, without the batch: 0, or 2 for channels last."""
        return channel_axis(self.shapes[self.image])

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return int(np.prod(self.shapes[self.output]))

    @property
    def output_kind(self) -> str:
        """What the static model's output means: logits, probabilities or log_probabilities."""
        return TAIL_KINDS[self.tail.op] if self.tail else "logits"

    def computed(self, node: Node) -> tuple[str, ...]:
        """The inputs of `node` that are computed from the image, in order."""
        return tuple(name for name in node.inputs if name in self.shapes)


def channel_axis(shape: Sequence[int | None]) -> int:
    """Which axis of an image [C, H, W] or [H, W, C] has the channels; the last one if only that can have them."""
    return 2 if shape[2] in IMAGE_CHANNELS and shape[0] not in IMAGE_CHANNELS else 0


def _take_pixels(model: onnx.ModelProto, image: str) -> None:
    """Let a model take its image as uint8, in place."""
    cast = onnx.helper.make_node("Cast", [image], [f"{image}.float32"], name=f"{image}.cast", to=onnx.TensorProto.FLOAT)
    (value,) = (i for i in model.graph.input if i.name == image)
    value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = [cast.output[0] if name == image else name for name in node.input]
    set_nodes(model.graph, [cast, *model.graph.node])


def graph_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The Graph of a simplified model, its trailing Softmax set aside."""
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise ModelError("the model has sparse initializers; export it with dense weights")
    taken: set[str] = set()
    nodes = [_node(n, index, taken) for index, n in enumerate(model.graph.node)]
    image, output = _input_name(model), model.graph.output[0].name
    tail, nodes, output = _set_tail_aside(nodes, output, shapes)
    nodes = _reaching(nodes, output)
    convs = [n for n in nodes if n.op in ("Conv", "ConvTranspose")]
    if not convs:
        raise ModelError("the model has no Conv node; only convolutional classifiers can be converted")
    logits = shapes[output][1:]
    if sum(d != 1 for d in logits) > 1 or int(np.prod(logits)) < 2:
        raise ModelError(
            f"output '{output}' has shape {('N', *logits)}; logits of shape (N, K) with K >= 2 are expected"
        )
    used = set().union(*map(names_read, model.graph.node))
    computed = {image, *(o for n in nodes for o in n.outputs)}
    return Graph(
        nodes=tuple(nodes),
        constants=MappingProxyType({k: v for k, v in constants.items() if k in used}),
        shapes=MappingProxyType({k: v[1:] for k, v in shapes.items() if k in computed}),
        image=image,
        output=output,
        opset=opset_of(model),
        skeleton=without_constants(model),
        tail=tail,
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


def _set_tail_aside(
    nodes: list[Node], output: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Node | None, list[Node], str]:
    last = next((n for n in nodes if output in n.outputs), None)
    if last is None:
        raise ModelError(f"output '{output}' is not computed by any node; logits of shape (N, K) are expected")
    made_by = {name: n for n in nodes for name in n.outputs}
    behind = []  # what only reshapes the answer: a Softmax before opset 13 was one over a flat copy
    while last is not None and last.op in RESHAPING and np.count_nonzero(np.array(shapes[output][1:]) != 1) == 1:
        behind.append(last)
        last = made_by.get(last.inputs[0])
    if last is None or last.op not in TAIL_KINDS:
        return None, nodes, output
    axis, shape = last.attrs.get("axis", -1), shapes[last.outputs[0]]
    if shape[axis % len(shape)] != np.prod(shape[1:]):
        return None, nodes, output
    classes = np.flatnonzero(np.array(shapes[output]) == np.prod(shapes[output][1:]))[-1]
    tail = replace(last, attrs=MappingProxyType({"axis": int(classes)}))
    kept = [n for n in nodes if n is not last]
    if not behind:
        return tail, kept, last.inputs[0]
    first = behind[-1]
    moved = replace(first, inputs=(last.inputs[0], *first.inputs[1:]))
    return tail, [moved if n is first else n for n in kept], output


def _reaching(nodes: list[Node], output: str) -> list[Node]:
    """The nodes that `output` depends on, in their order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]

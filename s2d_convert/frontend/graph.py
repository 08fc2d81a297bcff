"""A read-only view of a model that is simple enough to reason about.

Every tensor is either a constant (a numpy array in `Graph.constants`) or computed from the image, with the batch as axis 0 of
symbolic length. Shapes here never name the batch axis: a feature map has shape (C, H, W). `load` makes it
of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.calibration.task import Task, task_of
from s2d_convert.frontend.proto import copy_of, set_nodes

RESERVED = ("output", "confidence", "inverse_temperature")  # names of every stage file
SOFTMAXES = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities"}


BYTES = 4  # of a float32
PASS_BYTES = 1_000_000_000


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

    shapes: of every computed tensor, without its batch axis. tail: the nodes from the logits to the file's output (none if the
    model ends in logits), and `tail_shapes` the shapes of their results; the export puts them after every exit. output_kind:
    the form of that output, see `s2d_runtime.dispatcher.KINDS`. half: whether the file had float16 weights; in a graph all
    numbers are float32. folded: the tensors whose axis 0 is not the batch alone (windows as rows...), with the number of rows
    per image. types: the numpy type of each tensor that is not float32 (masks, indices).

    image_type: the type of the image in the file, float32 or uint8; in a graph it is float32 from the first node on.
    image_axis: the axis of its channels, 0, or 2 for channels last. opset: of the graph; source_opset: of the file. scale: the
    part of each side that the image is read at; below 1, the first nodes resize it (`image_size`). class_names: those in the
    file's metadata, if any. skeleton: the simplified static model without its constants, which large models should not have
    in memory twice; `to_model` puts them together.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    image: str
    output: str
    opset: int
    skeleton: onnx.ModelProto
    tail: tuple[Node, ...] = ()
    tail_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output_kind: str = "logits"
    half: bool = False
    folded: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    image_type: str = "float32"
    image_axis: int = 0
    source_opset: int = 0
    scale: float = 1.0
    class_names: tuple[str, ...] | None = None

    def batch_of(self, most: int) -> int:
        """Return how many images a pass takes at once: `most`, or fewer where all its values together would exceed PASS_BYTES."""
        return max(1, min(most, PASS_BYTES // max(1, self.image_bytes)))

    def bytes_of(self, name: str) -> int:
        """Return the bytes of one image's share of a tensor."""
        return round(BYTES * int(np.prod(self.shapes[name])) * self.folded.get(name, 1))

    @cached_property
    def image_bytes(self) -> int:
        """The bytes of all values of one image together."""
        return sum(map(self.bytes_of, self.shapes))

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

    def to_logits_model(self) -> onnx.ModelProto:
        """Return the static model with one output, from which its logits can be read; that is of the kind `logits_kind`."""
        whole = self.to_model()
        if not self.tells_logits:
            del whole.graph.output[:]
            shape: list[str | int | None] = ["N", *self.shapes[self.output]]
            whole.graph.output.append(onnx.helper.make_tensor_value_info(self.output, onnx.TensorProto.FLOAT, shape))
        return whole

    @property
    def task(self) -> Task:
        """What the model answers: one class of many, or several labels."""
        return task_of(self.output_kind)

    @property
    def labels(self) -> str:
        """What `load_graph` is to be told of its labels to read a part of the model likewise."""
        return "multi" if self.task.several else "classes"

    @property
    def classes(self) -> int:
        """K, the number of classes, or of labels."""
        return int(np.prod(self.shapes[self.output]))

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """The shape of what the file answers for an image; the logits may have more axes of one element, or fewer."""
        return self.shapes[self.output] if self.tells_logits else self.tail_shapes[self.tail[-1].outputs[0]]

    @property
    def tells_logits(self) -> bool:
        """Whether the answer of the file tells its logits up to a constant per image: no tail, or a Softmax alone."""
        return not self.tail or (len(self.tail) == 1 and self.tail[0].op in SOFTMAXES)

    @property
    def logits_kind(self) -> str:
        """What the logits are read from: an output of the kind `output_kind`, or, where that does not tell them, themselves."""
        return self.output_kind if self.tells_logits else "logits"

    def computed(self, node: Node) -> tuple[str, ...]:
        """Return the inputs of `node` that are computed from the image, in order."""
        return tuple(name for name in node.inputs if name in self.shapes)


def _take_pixels(model: onnx.ModelProto, image: str) -> None:
    """Let a model take its image as uint8, in place."""
    cast = onnx.helper.make_node("Cast", [image], [f"{image}.float32"], name=f"{image}.cast", to=onnx.TensorProto.FLOAT)
    (value,) = (i for i in model.graph.input if i.name == image)
    value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = [cast.output[0] if name == image else name for name in node.input]
    set_nodes(model.graph, [cast, *model.graph.node])

"""What all changes of a graph share: the registry, fresh names, and nodes put in behind a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from s2d_convert.frontend.proto import graphs

Nodes = Sequence[onnx.NodeProto]


class UnfitError(Exception):
    """This change has no place in this graph."""


@dataclass
class Subject:
    """A file in the making: the model, and what a user would have to say about it.

    `output` is given as `--output`, `size` as `--size`; `layout` is how the file takes the images that the reference takes
    as they are; `saving` is how the file is written. `told` has the names of the changes so far.
    """

    model: onnx.ModelProto
    rng: Random
    output: str | None = None
    size: tuple[int, int] | None = None
    transposed: bool = False
    saving: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    @property
    def opset(self) -> int:
        return max(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    @property
    def image(self) -> onnx.ValueInfoProto:
        """The one input that nodes compute on. Raises UnfitError where there are several."""
        constants = {i.name for i in self.graph.initializer}
        read = {name for node in all_nodes(self.graph) for name in node.input}
        images = [i for i in self.graph.input if i.name not in constants and i.name in read]
        if len(images) != 1:
            raise UnfitError
        return images[0]

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        taken = all_names(self.graph)
        while name in taken:
            name += "_"
        return name

    def constant(self, value: ArrayLike, name: str = "k") -> str:
        """The name of a new initializer; integers become int64, floats float32."""
        array = np.asarray(value)
        if array.dtype.kind in "if" and not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        fresh = numpy_helper.from_array(array, self.fresh(name))
        self.graph.initializer.append(fresh)
        if self.model.ir_version < 4:
            self.graph.input.append(helper.make_tensor_value_info(fresh.name, fresh.data_type, fresh.dims))
        return fresh.name


Change = Callable[[Subject], None]
CHANGES: dict[str, Change] = {}  # those that leave the answers as they are
ENDS: dict[str, Change] = {}  # those that make another network of it


def register(table: dict[str, Change], name: str, change: Change) -> Change:
    """Enter a change under a name."""
    if name in table:
        raise ValueError(f"change {name} is registered already; choose another name")
    table[name] = change
    return change


def change(function: Change) -> Change:
    """Register a change that leaves the answers as they are under the name of its function."""
    return register(CHANGES, function.__name__, function)


def end(function: Change) -> Change:
    """Register another end of a network under the name of its function."""
    return register(ENDS, function.__name__, function)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def all_names(graph: onnx.GraphProto) -> set[str]:
    """The names of all tensors of a graph and its branches."""
    names: set[str] = set()
    for inner in graphs(graph):
        names.update(i.name for i in (*inner.input, *inner.output, *inner.initializer))
        for node in inner.node:
            names.update((*node.input, *node.output))
    return names


def lengths_of(subject: Subject) -> dict[str, list[int | None]]:
    """The lengths of the axes of all float32 tensors that the image decides and whose rank is known; None for unknown ones:
    those behind a pool that rounds up as well, where onnx counts a window that onnxruntime leaves out."""
    try:
        graph = onnx.shape_inference.infer_shapes(subject.model).graph
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise UnfitError from error
    computed, rounded = {subject.image.name}, set[str]()
    for node in subject.graph.node:
        if computed.intersection(node.input):
            computed.update(node.output)
        if rounded.intersection(node.input) or any(a.name == "ceil_mode" and a.i for a in node.attribute):
            rounded.update(node.output)
    lengths = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.name in computed and kind.elem_type == TensorProto.FLOAT and kind.HasField("shape"):
            lengths[value.name] = [
                d.dim_value if d.dim_value > 0 and value.name not in rounded else None for d in kind.shape.dim
            ]
    if not lengths:
        raise UnfitError
    return lengths


def put_behind(subject: Subject, tensor: str, make: Callable[[str, str], Nodes]) -> None:
    """Put nodes right behind what makes a tensor: `make(source, target)` gives them, and readers read what they make."""
    graph = subject.graph
    maker = next((i for i, n in enumerate(graph.node) if tensor in n.output), None)
    if maker is None:  # the image
        if tensor in {o.name for o in graph.output}:
            raise UnfitError
        target = subject.fresh(f"{tensor}_in")
        for node in all_nodes(graph):
            node.input[:] = [target if name == tensor else name for name in node.input]
        new, place = make(tensor, target), 0
    else:
        source = subject.fresh(f"{tensor}_raw")
        node = graph.node[maker]
        node.output[:] = [source if name == tensor else name for name in node.output]
        new, place = make(source, tensor), maker + 1
    for offset, node in enumerate(new):
        graph.node.insert(place + offset, node)


def set_nodes(graph: onnx.GraphProto, nodes: Nodes) -> None:
    """Replace the nodes of a graph, some of which may be its own."""
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)

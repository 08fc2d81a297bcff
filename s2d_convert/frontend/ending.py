"""The end of a classifier, from its logits to its output, which is set aside.

Stages do not compute a Softmax and the nodes after it (clipping, percent, a logarithm, an L2 norm...), but every exit must
answer in the form of the static model. So the nodes after the logits become a tail, which the export puts after each exit.

The search goes backwards from the output. Nodes that only treat the classes of one image (element by element, or by a number
over all classes) may belong to the end. The logits are the last tensor on which all later ones depend and before which there is
no normalisation over the classes. Nodes that mix several tensors after a Softmax cannot be set aside. If their result is still
probabilities (such as an average over several heads), their logarithms serve as logits: a logarithm and a Softmax are
added. Otherwise the model is refused.

A Sigmoid of all classes is set aside like a Softmax (`set_sigmoid_aside`), with all nodes that depend on it alone; there may be
one class only. If the answer is one number per image without an axis of its own, the logit is taken before it lost that axis
(`with_axis`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.frontend.graph import SOFTMAXES, Node
from s2d_convert.frontend.operator_sets import ELEMENTWISE
from s2d_convert.frontend.proto import unused_stem

RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
CHOOSING = ("Concat", "Expand", "Gather", "GatherElements", "Slice", "Split", "Transpose")
OVER_AXIS = (*SOFTMAXES, "LpNormalization")
SMALLEST = 1e-30  # keeps the logarithm of a probability that underflowed finite
REDUCING = tuple(f"Reduce{op}" for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare"))

Shape = tuple[int, ...]

# Whether an operator that keeps the shape moves nothing, by its constant inputs.
STILL: dict[str, Callable[[Sequence[np.ndarray]], bool]] = {
    "Concat": lambda given: not given,
    "Gather": lambda given: (given[0] % len(given[0]) == np.arange(len(given[0]))).all(),
    "Pad": lambda given: not given[0].any(),
    "Slice": lambda given: len(given) < 4 or bool((given[3] > 0).all()),
    "Tile": lambda given: True,
}


@dataclass(frozen=True)
class Ending:
    """Nodes [in order] up to the tensor `logits`, and the `tail` behind it, which makes the file's answer of it.

    `made_of_probabilities` names a Softmax that could not be set aside, of `classes_before` classes.
    """

    nodes: tuple[Node, ...]
    logits: str
    tail: tuple[Node, ...] = ()
    made_of_probabilities: str = ""
    classes_before: int = 0


def set_end_aside(graph: Region, output: str, *, as_it_is: bool = False) -> Ending:
    """Divide nodes in topological order that end in `output`; `as_it_is`: a last Softmax is all there is to set aside."""
    plain = _plain_softmax(graph, output)
    if plain is not None and (as_it_is or not any(map(graph.is_normalising, graph.end(plain.logits)))):
        return plain
    end = graph.end(output)
    normalising = {n.name for n in end if graph.is_normalising(n)}
    for name in reversed([name for n in end for name in n.inputs if name in graph.shapes]):
        behind = _behind(end, name, output, graph.shapes)
        if normalising and behind >= normalising and graph.count(name) == graph.count(output):
            tail = tuple(n for n in end if n.name in behind)
            return Ending(tuple(n for n in graph.nodes if n.name not in behind), name, tail)
    softmax = graph.softmax_before(output)
    if softmax is None:
        return Ending(graph.nodes, output)
    return Ending(
        graph.nodes, output, made_of_probabilities=str(softmax), classes_before=graph.count(softmax.outputs[0])
    )


def set_sigmoid_aside(graph: Region, output: str) -> Ending | None:
    """Return the division of a model whose output is made of a Sigmoid of all classes, and of nothing else; None for others."""
    end = graph.end(output)
    for node in end:
        made = node.outputs[0]
        behind = _behind(end, made, output, graph.shapes)
        if node.op == "Sigmoid" and graph.count(made) == graph.count(output) and (behind or made == output):
            gone = {node.name, *behind}
            tail = tuple(n for n in end if n.name in gone)
            return Ending(tuple(n for n in graph.nodes if n.name not in gone), node.inputs[0], tail)
    return None


def with_axis(graph: Region, ending: Ending) -> Ending:
    """Return the division moved to before the logits of one class lost their axis, where that is so."""
    while len(graph.shapes[ending.logits]) < 2:
        maker = graph.made_by.get(ending.logits)
        if maker is None or maker.op not in RESHAPING or graph.count(maker.inputs[0]) != 1:
            return ending
        nodes = tuple(n for n in ending.nodes if n is not maker)
        ending = replace(ending, nodes=nodes, logits=maker.inputs[0], tail=(maker, *ending.tail))
    return ending


@dataclass(frozen=True)
class Region:
    """What is asked of a graph here: nodes in topological order, constants, and the shapes of all computed tensors, batch
    included."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, Shape]

    @cached_property
    def made_by(self) -> Mapping[str, Node]:
        """The node that makes each tensor."""
        return {name: n for n in self.nodes for name in n.outputs}

    def count(self, name: str) -> int:
        """Return how many elements a tensor has per image."""
        return int(np.prod(self.shapes[name][1:]))

    def end(self, output: str) -> list[Node]:
        """Return the nodes before `output` that only treat the classes of one image, in order."""
        classes, wanted, nodes = self.count(output), {output}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs) and self._treats_classes(node, classes):
                nodes.append(node)
                wanted.update(node.inputs)
        return nodes[::-1]

    def _treats_classes(self, node: Node, classes: int) -> bool:
        touched = [name for name in (*node.inputs, *node.outputs) if name in self.shapes]
        if any(self.count(name) not in (1, classes) for name in touched):
            return False
        if node.op in REDUCING:
            return 0 not in self._axes(node)
        if node.op in OVER_AXIS:
            return self.is_normalising(node)
        return node.op in ELEMENTWISE or node.op in RESHAPING or node.op == "Expand" or self.moves_nothing(node)

    def moves_nothing(self, node: Node) -> bool:
        """Return whether an operator that moves elements leaves them all where they are, as tools put in that take care of
        shapes."""
        shape = self.shapes.get(node.inputs[0])
        if shape is None or any(name and name not in self.constants for name in node.inputs[1:]):
            return False
        if node.op == "Transpose":  # of axes of length 1
            order = node.attrs.get("perm", range(len(shape))[::-1])
            long = [a for a in order if a == 0 or shape[a] != 1]
            return long == sorted(long)
        if self.shapes[node.outputs[0]] != shape or node.op not in STILL:
            return False
        given = [self.constants[name] for name in node.inputs[1:] if name]
        return STILL[node.op](given)

    def softmax_before(self, output: str) -> Node | None:
        """Return a Softmax over all classes whose probabilities `output` is made of, None if there is none."""
        wanted = {output}
        for node in reversed(self.nodes):
            if not wanted.intersection(node.outputs):
                continue
            if node.op in SOFTMAXES and self.is_normalising(node):
                return node
            if node.op in ELEMENTWISE or node.op in (*RESHAPING, *REDUCING, *CHOOSING):
                wanted.update(node.inputs)
        return None

    def is_normalising(self, node: Node) -> bool:
        """Return whether a node takes all classes of an image together."""
        shape, out = self.shapes.get(node.inputs[0]), self.shapes[node.outputs[0]]
        if shape is None or np.prod(shape[1:]) < 2:
            return False
        if node.op in REDUCING:
            return bool(np.prod(out[1:]) == 1)
        return node.op in OVER_AXIS and shape[int(node.attrs.get("axis", -1)) % len(shape)] == np.prod(shape[1:])

    def _axes(self, node: Node) -> list[int]:
        """Return the axes that a reduction is over, batch included; they became an input between opsets 13 and 18."""
        rank = len(self.shapes[node.inputs[0]])
        given = node.attrs.get("axes")
        if given is None and len(node.inputs) > 1 and node.inputs[1] in self.constants:
            given = self.constants[node.inputs[1]].tolist()
        return [int(axis) % rank for axis in given] if given else list(range(rank))


def _behind(end: Sequence[Node], name: str, output: str, shapes: Mapping[str, Shape]) -> set[str]:
    """Return the names of the nodes between a tensor and `output`; none unless all of it comes from that tensor."""
    wanted, names = {output}, set()
    for node in reversed(end):
        if wanted.intersection(node.outputs):
            wanted.difference_update(node.outputs)
            wanted.update(n for n in node.inputs if n in shapes and n != name)
            names.add(node.name)
    return set() if wanted else names


def _plain_softmax(graph: Region, output: str) -> Ending | None:
    """Return the division of a model that ends in one Softmax or LogSoftmax, which may be reshaped: the Reshape moves
    before it."""
    shapes, last = graph.shapes, graph.made_by.get(output)
    behind = []  # what only reshapes the answer: a Softmax before opset 13 was one over a flat copy
    while last is not None and last.op in RESHAPING and np.count_nonzero(np.array(shapes[output][1:]) != 1) == 1:
        behind.append(last)
        last = graph.made_by.get(last.inputs[0])
    if last is None or last.op not in SOFTMAXES or not graph.is_normalising(last):
        return None
    classes = np.flatnonzero(np.array(shapes[output]) == np.prod(shapes[output][1:]))[-1]
    tail = replace(last, attrs=MappingProxyType({"axis": int(classes)}))
    kept = tuple(n for n in graph.nodes if n is not last)
    if not behind:
        return Ending(kept, last.inputs[0], (tail,))
    first = behind[-1]
    moved = replace(first, inputs=(last.inputs[0], *first.inputs[1:]))
    return Ending(tuple(moved if n is first else n for n in kept), output, (tail,))


def with_softmax_behind(model: onnx.ModelProto, shapes: dict[str, Shape]) -> None:
    """Let a model that answers probabilities make them by a Softmax of their logarithms, in place; `shapes` as well."""
    (answer,) = model.graph.output
    stem = unused_stem(model.graph, answer.name)
    names = [f"{stem}.{part}" for part in ("positive", "logarithm", "probabilities")]
    smallest = numpy_helper.from_array(np.array(SMALLEST, np.float32), f"{stem}.smallest")
    model.graph.initializer.append(smallest)
    axis = int(np.argmax(shapes[answer.name][1:])) + 1
    model.graph.node.extend(
        [
            onnx.helper.make_node("Clip", [answer.name, smallest.name], names[:1], name=names[0]),
            onnx.helper.make_node("Log", names[:1], names[1:2], name=names[1]),
            onnx.helper.make_node("Softmax", names[1:2], names[2:], name=names[2], axis=axis),
        ]
    )
    shapes.update(dict.fromkeys(names, shapes[answer.name]))
    answer.name = names[2]

"""The target of a mixing node: the static model's values at the tensor where the node's error matters.

Usually the target is the static model's value of the node's output. If the output goes into a sum, the target is the static
sum minus the cut network's other summands, so that the errors of a residual stream do not add up. If the blocks after that sum
are left out, the cut network passes the sum on, and the target is the static stream after the last of these blocks (compare
PRACTISE, Wang and Wu, CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.channels.kinds import Kind
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.liveness import ADDITIVE

PROBES = (-2.0, -1.0, 0.0, 1.0, 2.0)
Evaluate = Callable[[Node, Tensor], Tensor]  # a node with one computed input, on values [B, ...]


@dataclass(frozen=True, eq=False)
class Target:
    """The target of a node's output y: (`tensor` of the static model - the cut network's `others`, each with its sign - `offset`)
    / `scale`, channel by channel. Without scale and offset (None), y itself is a summand.

    activation: the idempotent operator after the sum, or after y if there is no sum; None if there is no such operator.
    """

    tensor: str
    others: tuple[tuple[str, float], ...] = ()
    activation: Node | None = None
    scale: Array | None = None
    offset: Array | None = None


@dataclass(frozen=True, eq=False)
class _Summand:
    """A tensor on the way from a node to a sum; its value is scale * y + offset."""

    tensor: str
    scale: Array
    offset: Array


class Targets:
    """Finds the target of every node under one plan."""

    def __init__(self, effective: Effective, evaluate: Evaluate) -> None:
        self.effective, self.evaluate = effective, evaluate
        self.graph: Graph = effective.graph
        self._elementwise: dict[str, bool] = {}
        self._order = {node.name: index for index, node in enumerate(self.graph.nodes)}

    def of(self, node: Node) -> Target:
        """Return the target of a mixing node, or of a norm."""
        name = node.outputs[0]
        found = self._to_sum(node)
        if found is None:
            return Target(self._past_dead_blocks(name), activation=self._activation(name))
        summand, join = found
        others = [(t, self._sign(join, i)) for i, t in enumerate(join.inputs) if t != summand.tensor]
        sign = self._sign(join, join.inputs.index(summand.tensor))
        live = tuple((t, s) for t, s in others if bool(self.effective.live(t).any()))
        tensor = self._past_dead_blocks(join.outputs[0])
        plain = sign == 1 and bool((summand.scale == 1).all() and (summand.offset == 0).all())
        if plain:
            return Target(tensor, live, self._activation(join.outputs[0]))
        return Target(tensor, live, None, sign * summand.scale, sign * summand.offset)

    def _to_sum(self, node: Node) -> tuple[_Summand, Node] | None:
        """Return the sum that a node's output goes into, over operators that only scale and shift channels; None if it
        goes elsewhere, or if the other summands are not there yet when the node is solved."""
        name = node.outputs[0]
        width = len(self.effective.channels.layouts[name].units)
        here = _Summand(name, np.ones(width), np.zeros(width))
        while True:
            reader = self.only_reader(here.tensor)
            if reader is None or self.graph.shapes[reader.outputs[0]] != self.graph.shapes[name]:
                return None
            if self._is_sum(reader):
                known = all(t == here.tensor or self._is_known(t, before=node) for t in reader.inputs)
                return (here, reader) if known and reader.inputs.count(here.tensor) == 1 else None
            affine = self._affine(reader)
            if affine is None:
                return None
            scale, offset = affine
            here = _Summand(reader.outputs[0], here.scale * scale, here.offset * scale + offset)

    def _past_dead_blocks(self, name: str) -> str:
        """Return the static tensor that a sum, or what stands in its place, should equal: itself, or the sum behind
        left-out blocks."""
        while True:
            after, between = self._next_sum(name)
            if after is None:
                return name
            # Activations pass what they made themselves (relu(relu(x)) = relu(x)), if the last one comes after it too.
            if between is not None:
                reader = self.only_reader(after)
                if reader is None or not _same_operator(reader, between, self.graph):
                    return name
            name = after

    def _next_sum(self, name: str) -> tuple[str | None, Node | None]:
        """Return the next sum to which nothing but this tensor adds, and the activation before it; None if there is none."""
        reader, between = self.only_reader(name), None
        if reader is not None and not self._is_sum(reader) and self._is_idempotent(reader):
            between, reader = reader, self.only_reader(reader.outputs[0])
        if (
            reader is None
            or not self._is_sum(reader)
            or self.graph.shapes[reader.outputs[0]] != self.graph.shapes[name]
        ):
            return None, None
        summed = name if between is None else between.outputs[0]
        dead = all(t == summed or not self.effective.live(t).any() for t in reader.inputs)
        alone = reader.inputs.count(summed) == 1 and self._sign(reader, reader.inputs.index(summed)) == 1
        return (reader.outputs[0], between) if dead and alone else (None, None)

    def _activation(self, name: str) -> Node | None:
        """Return the one reader of a tensor if it is an activation that is the same for all channels, such as Relu or Clip."""
        reader = self.only_reader(name)
        if reader is None or any(self.graph.constants[c].size > 1 for c in reader.inputs if c in self.graph.constants):
            return None
        return reader if self._is_idempotent(reader) else None

    def only_reader(self, name: str) -> Node | None:
        """Return the one node that reads a tensor and makes anything in this plan; None for several, and at a tap."""
        if name in self.effective.plan.taps:
            return None
        readers = {r.name: r for r, _ in self.graph.consumers[name] if self._is_alive(r)}
        return next(iter(readers.values())) if len(readers) == 1 else None

    def _is_alive(self, node: Node) -> bool:
        if node.name not in self.effective.depth:
            return False
        layouts = self.effective.channels.layouts
        return any(o not in layouts or bool(self.effective.live(o).any()) for o in node.outputs)

    def _is_known(self, name: str, *, before: Node) -> bool:
        """Return whether the cut network has a tensor, or does without it, when `before` is solved."""
        if name not in self.graph.shapes or name not in self.effective.channels.layouts:
            return False
        maker = self.graph.producer.get(name)
        dead = not self.effective.live(name).any()
        return dead or maker is None or self._order[maker.name] < self._order[before.name]

    def _is_sum(self, node: Node) -> bool:
        """Return whether a node adds computed tensors of one shape."""
        shapes = {self.graph.shapes.get(t) for t in node.inputs}
        role = self.effective.channels.roles[node.name]
        return node.op in ADDITIVE and role.kind is Kind.JOIN and len(node.inputs) > 1 and len(shapes) == 1

    @staticmethod
    def _sign(node: Node, index: int) -> float:
        return -1.0 if node.op == "Sub" and index > 0 else 1.0

    def _affine(self, node: Node) -> tuple[Array, Array] | None:
        """Return (scale, offset) by channel of an operator that only scales and shifts channels, found by trying,
        or None."""
        values = self._probe(node)
        if values is None:
            return None
        axis = self.effective.channels.layouts[node.outputs[0]].axis
        lines = values.cpu().movedim(axis + 1, 1).reshape(len(values), values.shape[axis + 1], -1)
        if not bool((lines == lines[:, :, :1]).all()):
            return None
        offset = lines[2, :, 0]
        scale = lines[3, :, 0] - offset
        wanted = torch.tensor(PROBES, dtype=values.dtype)[:, None] * scale + offset
        fits = (lines[:, :, 0] - wanted).abs().amax() <= 1e-5 * (1 + wanted.abs().amax())
        if not bool(fits) or float(scale.abs().min()) <= 1e-6 * float(scale.abs().max()):
            return None
        return scale.double().numpy(), offset.double().numpy()

    def _is_idempotent(self, node: Node) -> bool:
        """Return whether an operator changes nothing the second time, element by element; found by trying."""
        once = self._probe(node)
        return once is not None and torch.equal(self.evaluate(node, once), once)

    def is_elementwise(self, node: Node) -> bool:
        """Return whether every element of a node's output hangs on the same element of its one computed input alone; found by
        changing other elements."""
        if node.name not in self._elementwise:
            self._elementwise[node.name] = self._keeps_shape(node) and self._keeps_apart(node)
        return self._elementwise[node.name]

    def _keeps_shape(self, node: Node) -> bool:
        sources, layouts = self.graph.computed(node), self.effective.channels.layouts
        kind = self.effective.channels.roles[node.name].kind
        if len(sources) != 1 or kind is not Kind.MAP or len(node.outputs) != 1 or sources[0] not in layouts:
            return False
        shapes = {self.graph.shapes[name] for name in (sources[0], node.outputs[0])}
        return len(shapes) == 1 and not self.graph.types.keys() & {sources[0], node.outputs[0]}  # no masks and indices

    def _keeps_apart(self, node: Node) -> bool:
        shape = self.graph.shapes[self.graph.computed(node)[0]]
        draw = torch.Generator().manual_seed(0)
        stays = torch.rand(1, *shape, generator=draw) < 0.5
        first, other = torch.rand(2, 1, *shape, generator=draw)
        before, after = self.evaluate(node, first).cpu(), self.evaluate(node, torch.where(stays, first, other)).cpu()
        return torch.equal(before[stays], after[stays])

    def _probe(self, node: Node) -> Tensor | None:
        """Return what an element-wise operator makes of maps filled with each of PROBES; None for operators of other sorts."""
        if not self.is_elementwise(node):
            return None
        shape = self.graph.shapes[node.outputs[0]]
        filled = torch.tensor(PROBES).view(-1, *[1] * len(shape)).expand(-1, *shape)
        return self.evaluate(node, filled.contiguous())


def _same_operator(node: Node, other: Node, graph: Graph) -> bool:
    """Return whether two nodes with one computed input do the same to it."""
    if node.op != other.op or dict(node.attrs) != dict(other.attrs) or len(node.inputs) != len(other.inputs):
        return False
    pairs = zip(node.inputs, other.inputs, strict=True)
    constants = [(a, b) for a, b in pairs if a not in graph.shapes or b not in graph.shapes]
    return all(
        a == b
        or (a in graph.constants and b in graph.constants and np.array_equal(graph.constants[a], graph.constants[b]))
        for a, b in constants
    )

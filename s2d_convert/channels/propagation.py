"""One pass of the channel analysis over a graph: every operator is run on channel identities instead of values.

`atoms` has the identities; `analysis` explains the passes and uses their results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from s2d_convert.channels.atoms import FREE, Atoms
from s2d_convert.channels.kinds import Array, Kind, Role, opaque, role_of
from s2d_convert.channels.movement import block_channels
from s2d_convert.frontend.graph import Graph, Node

SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


class Propagation(Atoms):
    """One pass over the graph."""

    def __init__(self, graph: Graph, labels: Array, anchored: Array, settled: set[str]) -> None:
        super().__init__(graph, labels, anchored)
        self.settled = settled  # the TIE and OPAQUE nodes whose ties are drawn
        self.pending: dict[Kind, list[str]] = {Kind.TIE: [], Kind.OPAQUE: []}
        self.anchored: list[Array] = []  # what this pass anchors
        self.raw_count = sum(_most_channels(graph, node) for node in graph.nodes)
        self._next_raw = 0
        self.edges: list[tuple[Array, Array]] = []
        self.roles: dict[str, Role] = {}
        self.inside: set[str] = set()  # what exists only between movements, though its units lie on one axis

    def run(self) -> None:
        """Give atoms to every tensor, and collect the ties between raw ids in `edges`."""
        image = self.graph.image
        axis = self.graph.image_axis
        self.add_root(image, axis, np.full(self.shape(image)[axis], FREE))
        for node in self.graph.nodes:
            folded = any(name in self.graph.folded for name in (*node.inputs, *node.outputs))
            role = opaque("the batch is folded together with other axes") if folded else role_of(node, self)
            self.roles[node.name] = role
            FOLLOW[role.kind](self, node, role)
            # A fixed range of raw ids per node keeps their meaning when a role changes between passes.
            self._next_raw += _most_channels(self.graph, node)

    def _fresh(self, count: int) -> Array:
        return np.arange(self._next_raw, self._next_raw + count)

    def _tie(self, left: Array, right: Array) -> None:
        both = (left != FREE) & (right != FREE)
        self.edges.append((left[both], right[both]))

    def follow_mix(self, node: Node, role: Role) -> None:
        """Give the output new channels."""
        name = node.outputs[0]
        self.add_root(name, _axis(role), self._fresh(self.shape(name)[_axis(role)]))

    def follow_grouped(self, node: Node, role: Role) -> None:
        """Give the output new channels; tie those of one group to one another and to what the group reads."""
        name, groups = node.outputs[0], int(node.attrs["group"])
        raws = self._fresh(self.shape(name)[0])
        heads = np.repeat(raws.reshape(groups, -1)[:, :1], len(raws) // groups, axis=1).reshape(-1)
        self._tie(raws, heads)
        source = self.raws(node.inputs[0], 0)
        self._tie(source, np.repeat(raws.reshape(groups, -1)[:, 0], len(source) // groups))
        self.add_root(name, 0, raws)

    def follow_map(self, node: Node, role: Role) -> None:
        """Pass the channels of the input on."""
        source = self.computed(node)[0]
        raws = self.raws(source, self.axis(source) or 0)
        for name in node.outputs:
            shape = self.shape(name)
            count = shape[_axis(role)] if shape else 1
            # Only a tensor of one unit may be read along another axis than its own.
            self.add_root(name, _axis(role), raws if len(raws) == count else np.repeat(raws[:1], count))

    def follow_join(self, node: Node, role: Role) -> None:
        """Pass the channels of all operands on, tied position by position."""
        name, axis = node.outputs[0], _axis(role)
        merged = np.full(self.shape(name)[axis], FREE)
        for operand in self.computed(node):
            other = self.raws(operand, axis)
            if len(other) != len(merged):  # one channel for all
                self.anchored.append(other)
                continue
            self._tie(merged, other)
            merged = np.where(merged == FREE, other, merged)
        self.add_root(name, axis, merged)

    def follow_reduce(self, node: Node, role: Role) -> None:
        """Give the output one new channel."""
        self._one_unit(node.outputs[0], self._fresh(1))

    def _one_unit(self, name: str, raw: Array) -> None:
        shape = self.shape(name)
        self.add_root(name, 0, np.repeat(raw, shape[0] if shape else 1))

    def follow_tie(self, node: Node, role: Role) -> None:
        """Tie the channels that the node mixes, once it is settled. Before that, nothing is known of its output."""
        if node.name in self.settled:
            for source in self.computed(node):
                atoms = np.moveaxis(self.atoms[source], _axis(role), 0)
                raws = np.where(atoms < 0, FREE, self.atom_raw[np.maximum(atoms, 0)]).reshape(len(atoms), -1)
                for row in map(np.unique, raws):
                    self._tie(np.broadcast_to(row[-1:], row.shape), row)
                    if row[0] == FREE:  # constants take no part in ties; what is mixed with them becomes as free
                        self.anchored.append(row[1:])
        else:
            self.pending[Kind.TIE].append(node.name)
        for name in node.outputs:
            self._one_unit(name, np.array([FREE]))

    def follow_opaque(self, node: Node, role: Role) -> None:
        """Tie all channels that the node reads, once it is settled; its output belongs to the same unit."""
        if node.name not in self.settled:
            self.pending[Kind.OPAQUE].append(node.name)
            for name in node.outputs:
                self._one_unit(name, np.array([FREE]))
            return
        raws = np.concatenate([self.all_raws(name) for name in self.computed(node)])
        raws = raws[raws != FREE]
        tied = len(np.unique(self.known(raws))) == 1
        if tied and any(len(self.varying(name)) > 1 for name in self.computed(node)):  # by constants, that is
            self.anchored.append(raws)
        one = raws[:1] if len(raws) else self._fresh(1)
        self._tie(raws, np.broadcast_to(one, raws.shape))
        for name in node.outputs:
            self._one_unit(name, one)

    def follow_move(self, node: Node, role: Role) -> None:
        """Apply the movement to the atoms."""
        sources = self.computed(node)
        if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            self.reshape(sources[0], node.outputs[0])
        elif node.op == "Transpose":
            self.transpose(node)
        elif node.op in ("DepthToSpace", "SpaceToDepth"):
            return self._blocks(node)
        else:
            self.rearrange(node, sources)
        if not all(self._settle(node, name, sources) for name in node.outputs):
            self.roles[node.name] = opaque("it rearranges channels and space in one")
            self.follow_opaque(node, self.roles[node.name])
        return None

    def _blocks(self, node: Node) -> None:
        raws = self.raws(node.inputs[0], 0)
        if node.op == "SpaceToDepth":
            return self.add_root(node.outputs[0], 0, np.tile(raws, int(node.attrs["blocksize"]) ** 2))
        merged = block_channels(node, raws)
        heads = merged.max(axis=1)  # FREE only where nothing else is
        for column in merged.T:
            self._tie(heads, column)
        return self.add_root(node.outputs[0], 0, heads)

    def _settle(self, node: Node, name: str, sources: tuple[str, ...]) -> bool:
        """Decide what the output of a movement is: the inside of a longer movement, a view or a root. Returns False if
        none fits."""
        varying = self.varying(name)
        if len(varying) > 1:
            return True
        axis = varying[0] if varying else self._any_axis(node, name)
        if self.is_view(name, axis):
            self.own_axis[name] = axis
            return True
        if len(sources) != 1 or self.axis(sources[0]) is None or sources[0] in self.inside:
            self.inside.add(name)
            return all(reader.op in SHAPING for reader, _ in self.graph.consumers[name])
        if node.op not in SHAPING:  # what picks and puts together is only understood as a view
            return False
        self.add_root(name, axis, self.raws(name, axis))
        return True

    def _any_axis(self, node: Node, name: str) -> int:
        """Return a channel axis for a tensor of one unit: the one its atoms vary on, else its source's, else the first."""
        form, source = self.atoms[name].shape, self.computed(node)[0]
        kept = self.own_axis.get(source, 0) if node.op not in SHAPING and len(self.shape(source)) == len(form) else 0
        return next((a for a, length in enumerate(form) if length > 1), kept)


FOLLOW: Mapping[Kind, Callable[[Propagation, Node, Role], None]] = {
    Kind.MIX: Propagation.follow_mix,
    Kind.GROUPED: Propagation.follow_grouped,
    Kind.MAP: Propagation.follow_map,
    Kind.JOIN: Propagation.follow_join,
    Kind.NORM: Propagation.follow_map,
    Kind.REDUCE: Propagation.follow_reduce,
    Kind.MOVE: Propagation.follow_move,
    Kind.TIE: Propagation.follow_tie,
    Kind.OPAQUE: Propagation.follow_opaque,
}


def _most_channels(graph: Graph, node: Node) -> int:
    """Return how many new raw ids a node can need at most."""
    return max((max(graph.shapes[name], default=1) for name in node.outputs), default=1)


def _axis(role: Role) -> int:
    assert role.axis is not None, "a role that makes a root names its channel axis"
    return role.axis

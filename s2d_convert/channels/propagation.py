"""One pass of the channel analysis over a graph: every operator is run on channel identities instead of values.

An *atom* is one position on the channel axis of a *root* (a tensor that is really computed) and has a raw id; a negative atom
is a constant. `analysis` says what the passes are for and what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from s2d_convert.channels.axes import LOST, Tag, reshaped
from s2d_convert.channels.kinds import Array, Kind, Role, opaque, role_of
from s2d_convert.channels.movement import block_channels, move, pad_value, tiled_axes
from s2d_convert.frontend.graph import Graph, Node

FREE = -1  # the unit of what needs no channel unit: the image, constants and what is anchored
SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


class Propagation:
    """One pass over the graph; also the `Context` that rules ask."""

    def __init__(self, graph: Graph, labels: Array, anchored: Array, settled: set[str]) -> None:
        self.graph = graph
        self.constants = graph.constants
        self.labels = labels
        self.settled = settled  # the TIE and OPAQUE nodes whose ties are drawn
        self.pending: dict[Kind, list[str]] = {Kind.TIE: [], Kind.OPAQUE: []}
        self.anchored: list[Array] = []  # what this pass anchors
        self.free = np.zeros(len(labels), dtype=bool)  # by label, whether an earlier pass did
        self.free[anchored] = True
        self.raw_count = sum(_most_channels(graph, node) for node in graph.nodes)
        self._next_raw = 0
        self.edges: list[tuple[Array, Array]] = []
        self.roles: dict[str, Role] = {}
        self.atoms: dict[str, Array] = {}  # broadcastable against the shape; -1 - k is constant number k
        self.tags: dict[str, tuple[Tag, ...]] = {}  # which axes of the roots an axis still is
        self.inside: set[str] = set()  # what exists only between movements, though its units lie on one axis
        self.own_axis: dict[str, int] = {}  # channel axis of roots
        self.fills: list[float] = []
        self.roots: list[str] = []
        self.offsets: list[int] = []
        self.atom_raw = np.zeros(0, dtype=np.int64)

    # --- what rules ask: see `kinds.Context` ---

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.shapes[name]

    def computed(self, node: Node) -> tuple[str, ...]:
        return self.graph.computed(node)

    def axis(self, name: str) -> int | None:
        varying = self.varying(name)
        if len(varying) > 1:
            return None
        return varying[0] if varying else self.own_axis.get(name, 0)

    def has_axis(self, name: str, axis: int) -> bool:
        return self.varying(name) in ([], [axis])

    def varying(self, name: str) -> list[int]:
        ids = self._ids(self.atoms[name])
        return [a for a in range(ids.ndim) if ids.shape[a] > 1 and bool((ids != ids.take([0], axis=a)).any())]

    def _ids(self, atoms: Array) -> Array:
        """Labels (raw ids where a label is not known yet) of atoms, FREE for constants."""
        raw = np.where(atoms < 0, FREE, self.atom_raw[np.maximum(atoms, 0)] if len(self.atom_raw) else FREE)
        ids = self._known(raw)
        if not len(self.labels):
            return ids
        return np.where((ids >= 0) & self.free[np.maximum(ids, 0)], FREE, ids)

    def _known(self, raw: Array) -> Array:
        """Return the labels of raw ids: themselves in the first pass, FREE for FREE."""
        return np.where(raw == FREE, FREE, self.labels[np.maximum(raw, 0)]) if len(self.labels) else raw

    # --- the pass ---

    def run(self) -> None:
        image = self.graph.image
        axis = self.graph.image_axis
        self._root(image, axis, np.full(self.shape(image)[axis], FREE))
        for node in self.graph.nodes:
            folded = any(name in self.graph.folded for name in (*node.inputs, *node.outputs))
            role = opaque("the batch is folded together with other axes") if folded else role_of(node, self)
            self.roles[node.name] = role
            FOLLOW[role.kind](self, node, role)
            # A fixed range of raw ids per node keeps their meaning when a role changes between passes.
            self._next_raw += _most_channels(self.graph, node)

    def _root(self, name: str, axis: int, raws: Array) -> None:
        rank = len(self.shape(name))
        self.roots.append(name)
        self.offsets.append(len(self.atom_raw))
        atoms = len(self.atom_raw) + np.arange(len(raws))
        self.atom_raw = np.concatenate([self.atom_raw, raws])
        form = [1] * rank
        if rank:
            form[axis] = len(raws)
        self.atoms[name] = atoms.reshape(form)
        self.tags[name] = tuple(((a, n),) for a, n in enumerate(self.shape(name)))
        self.own_axis[name] = axis

    def _fresh(self, count: int) -> Array:
        return np.arange(self._next_raw, self._next_raw + count)

    def _raws(self, name: str, axis: int) -> Array:
        """Return the raw ids along the channel axis, FREE for constants; a uniform tensor repeats its one id."""
        atoms = self.atoms[name]
        count = self.shape(name)[axis] if self.shape(name) else 1
        if atoms.ndim and atoms.shape[axis] == count:
            line = np.moveaxis(atoms, axis, 0).reshape(count, -1)[:, 0]
        else:
            line = np.broadcast_to(atoms.reshape(-1)[:1], (count,))
        raws: Array = np.where(line < 0, FREE, self.atom_raw[np.maximum(line, 0)])
        return raws

    def _tie(self, left: Array, right: Array) -> None:
        both = (left != FREE) & (right != FREE)
        self.edges.append((left[both], right[both]))

    def follow_mix(self, node: Node, role: Role) -> None:
        """Give the output new channels."""
        name = node.outputs[0]
        self._root(name, _axis(role), self._fresh(self.shape(name)[_axis(role)]))

    def follow_grouped(self, node: Node, role: Role) -> None:
        """Give the output new channels; tie those of one group to one another and to what the group reads."""
        name, groups = node.outputs[0], int(node.attrs["group"])
        raws = self._fresh(self.shape(name)[0])
        heads = np.repeat(raws.reshape(groups, -1)[:, :1], len(raws) // groups, axis=1).reshape(-1)
        self._tie(raws, heads)
        source = self._raws(node.inputs[0], 0)
        self._tie(source, np.repeat(raws.reshape(groups, -1)[:, 0], len(source) // groups))
        self._root(name, 0, raws)

    def follow_map(self, node: Node, role: Role) -> None:
        """Pass the channels of the input on."""
        source = self.computed(node)[0]
        raws = self._raws(source, self.axis(source) or 0)
        for name in node.outputs:
            shape = self.shape(name)
            count = shape[_axis(role)] if shape else 1
            # Only a tensor of one unit may be read along another axis than its own.
            self._root(name, _axis(role), raws if len(raws) == count else np.repeat(raws[:1], count))

    def follow_join(self, node: Node, role: Role) -> None:
        """Pass the channels of all operands on, tied position by position."""
        name, axis = node.outputs[0], _axis(role)
        merged = np.full(self.shape(name)[axis], FREE)
        for operand in self.computed(node):
            other = self._raws(operand, axis)
            if len(other) != len(merged):  # one channel for all
                self.anchored.append(other)
                continue
            self._tie(merged, other)
            merged = np.where(merged == FREE, other, merged)
        self._root(name, axis, merged)

    def follow_reduce(self, node: Node, role: Role) -> None:
        """Give the output one new channel."""
        self._one_unit(node.outputs[0], self._fresh(1))

    def _one_unit(self, name: str, raw: Array) -> None:
        shape = self.shape(name)
        self._root(name, 0, np.repeat(raw, shape[0] if shape else 1))

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
        raws = np.concatenate([self._all_raws(name) for name in self.computed(node)])
        raws = raws[raws != FREE]
        tied = len(np.unique(self._known(raws))) == 1
        if tied and any(len(self.varying(name)) > 1 for name in self.computed(node)):  # by constants, that is
            self.anchored.append(raws)
        one = raws[:1] if len(raws) else self._fresh(1)
        self._tie(raws, np.broadcast_to(one, raws.shape))
        for name in node.outputs:
            self._one_unit(name, one)

    def _all_raws(self, name: str) -> Array:
        atoms = np.unique(self.atoms[name])
        return self.atom_raw[atoms[atoms >= 0]]

    def follow_move(self, node: Node, role: Role) -> None:
        """Apply the movement to the atoms."""
        sources = self.computed(node)
        if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            self._reshape(sources[0], node.outputs[0])
        elif node.op == "Transpose":
            self._transpose(node)
        elif node.op in ("DepthToSpace", "SpaceToDepth"):
            return self._blocks(node)
        else:
            self._rearrange(node, sources)
        if not all(self._settle(node, name, sources) for name in node.outputs):
            self.roles[node.name] = opaque("it rearranges channels and space in one")
            self.follow_opaque(node, self.roles[node.name])
        return None

    def _blocks(self, node: Node) -> None:
        raws = self._raws(node.inputs[0], 0)
        if node.op == "SpaceToDepth":
            return self._root(node.outputs[0], 0, np.tile(raws, int(node.attrs["blocksize"]) ** 2))
        merged = block_channels(node, raws)
        heads = merged.max(axis=1)  # FREE only where nothing else is
        for column in merged.T:
            self._tie(heads, column)
        return self._root(node.outputs[0], 0, heads)

    def _settle(self, node: Node, name: str, sources: tuple[str, ...]) -> bool:
        """Decide what the output of a movement is: the inside of a longer movement, a view or a root. Returns False if
        none fits."""
        varying = self.varying(name)
        if len(varying) > 1:
            return True
        axis = varying[0] if varying else self._any_axis(node, name)
        if self._is_view(name, axis):
            self.own_axis[name] = axis
            return True
        if len(sources) != 1 or self.axis(sources[0]) is None or sources[0] in self.inside:
            self.inside.add(name)
            return all(reader.op in SHAPING for reader, _ in self.graph.consumers[name])
        if node.op not in SHAPING:  # what picks and puts together is only understood as a view
            return False
        self._root(name, axis, self._raws(name, axis))
        return True

    def _any_axis(self, node: Node, name: str) -> int:
        """Return a channel axis for a tensor of one unit: the one its atoms vary on, else its source's, else the first."""
        form, source = self.atoms[name].shape, self.computed(node)[0]
        kept = self.own_axis.get(source, 0) if node.op not in SHAPING and len(self.shape(source)) == len(form) else 0
        return next((a for a, length in enumerate(form) if length > 1), kept)

    def _is_view(self, name: str, axis: int) -> bool:
        atoms, shape = self.atoms[name], self.shape(name)
        others = [a for a in range(len(shape)) if a != axis]
        if any(atoms.shape[a] != 1 or self.tags[name][a] != ((a, shape[a]),) for a in others):
            return False
        present = atoms[atoms >= 0]
        roots = {self.roots[i] for i in np.unique(np.searchsorted(self.offsets, present, side="right") - 1)}
        rest = [shape[a] for a in others]
        return bool(roots) and all(
            self.own_axis[r] == axis and len(self.shape(r)) == len(shape) and [self.shape(r)[a] for a in others] == rest
            for r in roots
        )

    def _reshape(self, source: str, name: str) -> None:
        atoms, tags = self.atoms[source], self.tags[source]
        self.atoms[name], self.tags[name] = reshaped(atoms, tags, self.shape(source), self.shape(name))

    def _transpose(self, node: Node) -> None:
        source, name = node.inputs[0], node.outputs[0]
        perm = node.attrs.get("perm", tuple(reversed(range(len(self.shape(source)) + 1))))
        inner = [p - 1 for p in perm[1:]]
        self.atoms[name] = self.atoms[source].transpose(inner)
        self.tags[name] = tuple(self.tags[source][p] for p in inner)

    def _rearrange(self, node: Node, sources: tuple[str, ...]) -> None:
        """Run a Concat, Split, Slice, Gather or Pad on atoms, spread out only on the axes that it touches."""
        touched = self._touched(node, sources)
        spread = [self._spread_over(source, touched) for source in sources]
        if node.op == "Concat":
            spread = _alike_beside(spread, {axis + 1 for axis in touched})
        if node.op == "Pad":
            self.fills.append(pad_value(node, self.constants))
        results = move(node, spread, self.constants, fill=-len(self.fills))
        for name, result in zip(node.outputs, results, strict=True):
            self.atoms[name] = result[0]
            known = self.tags[sources[0]]
            self.tags[name] = known if len(known) == result.ndim - 1 else (LOST,) * (result.ndim - 1)

    def _spread_over(self, source: str, axes: set[int]) -> Array:
        """Return the atoms of a tensor at full length on these axes, with a batch axis of length 1."""
        lengths = zip(self.shape(source), self.atoms[source].shape, strict=True)
        form = [full if axis in axes else kept for axis, (full, kept) in enumerate(lengths)]
        return np.broadcast_to(self.atoms[source], form)[None]

    def _touched(self, node: Node, sources: tuple[str, ...]) -> set[int]:
        rank = len(self.shape(sources[0])) + 1
        if node.op == "Tile":
            return tiled_axes(node, self.constants)
        if node.op in ("Concat", "Gather", "Split"):
            return {node.attrs.get("axis", 0) % rank - 1}
        axis = self.axis(sources[0])
        return set(range(rank - 1)) if axis is None else {axis}


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


def _alike_beside(arrays: Sequence[Array], axes: set[int]) -> list[Array]:
    """Broadcast arrays against one another on all axes but these."""
    lengths = [tuple(1 if axis in axes else n for axis, n in enumerate(a.shape)) for a in arrays]
    common = np.broadcast_shapes(*lengths)
    return [np.broadcast_to(a, [a.shape[x] if x in axes else n for x, n in enumerate(common)]) for a in arrays]


def _axis(role: Role) -> int:
    assert role.axis is not None, "a role that makes a root names its channel axis"
    return role.axis

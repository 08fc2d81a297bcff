"""Channel analysis: which channels, all over the graph, must live or die together.

The graph is walked once in topological order, running every operator on channel *identities* instead
of values:

1. every tensor that is really computed (a *root*) gives each position on its channel axis an *atom*;
2. an atom has a raw id: new for the outputs of mixing operators, inherited by everything channel-wise;
3. operators that combine operands tie raw ids (union), opaque ones tie all of theirs;
4. movement operators (Concat, Slice, Reshape, Transpose...) are run on the atoms themselves, so a
   channel shuffle or a zero-padded shortcut needs no case of its own. If the result only permutes,
   selects or pads channels of roots it stays a *view* that costs nothing; else it is a root itself.

Ties found late can turn what looked like a mixture into something simple, so the walk repeats until
the ties are stable. Until then an operator that looks opaque ties nothing: only when nothing else is left
to find are its ties drawn, and the walk goes on. Units are then the connected components of the ties, and
classes the units that are made by the same nodes.

An operand with one channel that is spread over many (a spatial gate, a mean over the channels) is
*anchored* rather than tied: its unit is FREE, so that it exists in the first stage that needs its node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s2d_convert.errors import ModelError
from s2d_convert.graph import Graph, Node
from s2d_convert.rules import Array, Kind, Role, block_channels, move, opaque, pad_value, role_of, tiled_axes

FREE = -1  # the unit of what needs no channel unit: the image, constants and what is anchored
MAX_WALKS = 100
# What an axis is made of: the (axis, length) of one axis of the roots, or of several that were merged.
Tag = tuple[tuple[int, int], ...]
LOST: Tag = ((-1, 0),)
SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


@dataclass(frozen=True)
class Layout:
    """Where the channels of one tensor lie and where their values come from.

    `axis` counts without the batch. For each of the C positions on it: `units` (FREE for constants and
    the image), `root` (index into `roots`, -1 for a constant), `position` on the root's channel axis and
    `fill`, the value of a constant. A computed tensor is its own only root.
    """

    axis: int
    units: Array
    roots: tuple[str, ...]
    root: Array
    position: Array
    fill: Array

    @cached_property
    def uniform(self) -> bool:
        """Whether all positions belong to one unit, so that the tensor is never cut by channels."""
        return bool((self.units == self.units[0]).all())


@dataclass(frozen=True)
class ChannelClass:
    """Units that are made by the same nodes, e.g. the residual stream of one resolution.

    `units` are unit numbers; `width` is the number of channels at the first producer; a class with one
    unit, or one that holds logits, is not `splittable`.
    """

    name: str
    units: tuple[int, ...]
    producers: tuple[str, ...]
    width: int
    splittable: bool


@dataclass(frozen=True)
class Channels:
    """The result of the analysis. `layouts` has no entry for tensors that exist only inside a movement
    (such as the five-dimensional middle of a channel shuffle); `roles` is keyed by node name."""

    layouts: Mapping[str, Layout]
    roles: Mapping[str, Role]
    classes: tuple[ChannelClass, ...]
    units: int

    def is_root(self, name: str) -> bool:
        """Whether the tensor is computed (and not a view of others, or the inside of a movement)."""
        layout = self.layouts.get(name)
        return layout is not None and layout.roots == (name,)

    @cached_property
    def class_of(self) -> Array:
        """The class index of every unit, int64 [U]."""
        table = np.full(self.units, -1)
        for index, group in enumerate(self.classes):
            table[list(group.units)] = index
        return table


def analyse(graph: Graph) -> Channels:
    """The channel units, classes and layouts of a graph. Source of the idea: DepGraph (Fang et al., CVPR 2023),
    done here on identities rather than per layer type."""
    labels = np.zeros(0, dtype=np.int64)
    anchored = np.zeros(0, dtype=np.int64)
    settled: set[str] = set()
    for _ in range(MAX_WALKS):
        walk = _Walk(graph, labels, anchored, settled)
        walk.run()
        # Ties only ever grow, so the walk must settle.
        found = _components(walk.raw_count, [*walk.edges, (np.arange(len(labels)), labels)])
        pending = walk.pending[Kind.TIE] or walk.pending[Kind.OPAQUE]
        free = np.unique(found[np.concatenate([anchored, *walk.anchored])])
        if not (np.array_equal(found, labels) and np.array_equal(free, anchored)):
            labels, anchored = found, free
        elif pending:
            settled.update(pending)
        else:
            return walk.result()
    raise ModelError("channel analysis did not settle; please report this model")


def _components(count: int, edges: list[tuple[Array, Array]]) -> Array:
    """For each of `count` elements the smallest element of its connected component (pointer jumping)."""
    labels = np.arange(count)
    if not edges:
        return labels
    left = np.concatenate([e[0] for e in edges])
    right = np.concatenate([e[1] for e in edges])
    while True:
        low = np.minimum(labels[left], labels[right])
        before = labels.copy()
        np.minimum.at(labels, labels[left], low)
        np.minimum.at(labels, labels[right], low)
        np.minimum.at(labels, left, low)
        np.minimum.at(labels, right, low)
        labels = labels[labels]
        if np.array_equal(before, labels):
            return labels


class _Walk:
    """One pass over the graph; also the `Context` that rules ask."""

    def __init__(self, graph: Graph, labels: Array, anchored: Array, settled: set[str]) -> None:
        self.graph = graph
        self.constants = graph.constants
        self.labels = labels
        self.settled = settled  # the TIE and OPAQUE nodes whose ties are drawn
        self.pending: dict[Kind, list[str]] = {Kind.TIE: [], Kind.OPAQUE: []}
        self.anchored: list[Array] = []  # what this walk anchors
        self.free = np.zeros(len(labels), dtype=bool)  # by label, whether an earlier walk did
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

    # --- what rules ask ---

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
        """The labels of raw ids: themselves in the first walk, FREE for FREE."""
        return np.where(raw == FREE, FREE, self.labels[np.maximum(raw, 0)]) if len(self.labels) else raw

    # --- the walk ---

    def run(self) -> None:
        image = self.graph.image
        shape = self.shape(image)
        axis = 2 if shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4) else 0
        self._root(image, axis, np.full(shape[axis], FREE))
        for node in self.graph.nodes:
            folded = any(name in self.graph.folded for name in (*node.inputs, *node.outputs))
            role = opaque("the batch is folded together with other axes") if folded else role_of(node, self)
            self.roles[node.name] = role
            handler = getattr(self, f"_do_{role.kind.value}")
            handler(node, role)
            # A fixed range of raw ids per node keeps their meaning when a role changes between walks.
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
        """Raw ids along the channel axis, FREE for constants; one id, repeated, for a uniform tensor."""
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

    def _do_mix(self, node: Node, role: Role) -> None:
        name = node.outputs[0]
        self._root(name, _axis(role), self._fresh(self.shape(name)[_axis(role)]))

    def _do_grouped(self, node: Node, role: Role) -> None:
        name, groups = node.outputs[0], int(node.attrs["group"])
        raws = self._fresh(self.shape(name)[0])
        heads = np.repeat(raws.reshape(groups, -1)[:, :1], len(raws) // groups, axis=1).reshape(-1)
        self._tie(raws, heads)
        source = self._raws(node.inputs[0], 0)
        self._tie(source, np.repeat(raws.reshape(groups, -1)[:, 0], len(source) // groups))
        self._root(name, 0, raws)

    def _do_map(self, node: Node, role: Role) -> None:
        source = self.computed(node)[0]
        raws = self._raws(source, self.axis(source) or 0)
        for name in node.outputs:
            shape = self.shape(name)
            count = shape[_axis(role)] if shape else 1
            # Only a tensor of one unit may be read along another axis than its own.
            self._root(name, _axis(role), raws if len(raws) == count else np.repeat(raws[:1], count))

    def _do_join(self, node: Node, role: Role) -> None:
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

    _do_norm = _do_map

    def _do_reduce(self, node: Node, role: Role) -> None:
        self._one_unit(node.outputs[0], self._fresh(1))

    def _one_unit(self, name: str, raw: Array) -> None:
        shape = self.shape(name)
        self._root(name, 0, np.repeat(raw, shape[0] if shape else 1))

    def _do_tie(self, node: Node, role: Role) -> None:
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

    def _do_opaque(self, node: Node, role: Role) -> None:
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

    def _do_move(self, node: Node, role: Role) -> None:
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
            self._do_opaque(node, self.roles[node.name])
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
        """Decide what a movement output is: the inside of a movement, a view or a root; False if none fits."""
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
        """The axis that atoms vary on in a tensor of one unit; that of its source if they do not vary, or the first."""
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

    def _transpose(self, node: Node) -> None:
        source, name = node.inputs[0], node.outputs[0]
        rank = len(self.shape(source)) + 1
        perm = node.attrs.get("perm", tuple(reversed(range(rank))))
        inner = [p - 1 for p in perm[1:]]
        self.atoms[name] = self.atoms[source].transpose(inner)
        self.tags[name] = tuple(self.tags[source][p] for p in inner)

    def _reshape(self, source: str, name: str) -> None:
        before, after = self.shape(source), self.shape(name)
        form: list[int] = []
        whole: list[int] = []
        tags: list[Tag] = []
        atoms = self.atoms[source]
        for left, right in _aligned(before, after):
            lengths = [after[a] for a in right]
            flat = all(atoms.shape[a] == 1 for a in left)
            form += [1] * len(right) if flat else lengths
            whole += [1 if flat else before[a] for a in left]
            tags += _shared_out([self.tags[source][a] for a in left], lengths)
        self.atoms[name] = np.broadcast_to(atoms, whole).reshape(form)
        self.tags[name] = tuple(tags)

    def _rearrange(self, node: Node, sources: tuple[str, ...]) -> None:
        """Run a Concat, Split, Slice, Gather or Pad on atoms, spread out only on the axes that it touches."""
        touched = self._touched(node, sources)
        spread = []
        for source in sources:
            form = [n if a in touched else k for a, (n, k) in enumerate(
                zip(self.shape(source), self.atoms[source].shape, strict=True))]  # fmt: skip
            spread.append(np.broadcast_to(self.atoms[source], form)[None])
        if node.op == "Concat":
            others = np.broadcast_shapes(
                *(tuple(1 if a - 1 in touched else n for a, n in enumerate(s.shape)) for s in spread)
            )
            spread = [
                np.broadcast_to(s, [s.shape[a] if a - 1 in touched else n for a, n in enumerate(others)])
                for s in spread
            ]
        if node.op == "Pad":
            self.fills.append(pad_value(node, self.constants))
        results = move(node, spread, self.constants, fill=-len(self.fills))
        for name, result in zip(node.outputs, results, strict=True):
            self.atoms[name] = result[0]
            known = self.tags[sources[0]]
            self.tags[name] = known if len(known) == result.ndim - 1 else (LOST,) * (result.ndim - 1)

    def _touched(self, node: Node, sources: tuple[str, ...]) -> set[int]:
        rank = len(self.shape(sources[0])) + 1
        if node.op == "Tile":
            return tiled_axes(node, self.constants)
        if node.op in ("Concat", "Gather", "Split"):
            return {node.attrs.get("axis", 0) % rank - 1}
        axis = self.axis(sources[0])
        return set(range(rank - 1)) if axis is None else {axis}

    # --- the result ---

    def result(self) -> Channels:
        labels = self.labels
        used = np.unique(self.atom_raw[self.atom_raw != FREE])
        # Labels are smallest members, so that sorting them is sorting by appearance.
        order = np.setdiff1d(labels[used], np.flatnonzero(self.free))
        number = np.full(self.raw_count + 1, FREE)
        number[order] = np.arange(len(order))
        layouts = {}
        for name in self.atoms:
            axis = self.axis(name)
            if axis is not None and name not in self.inside:
                layouts[name] = self._layout(name, axis, number)
        classes = self._classes(layouts, len(order))
        return Channels(layouts, dict(self.roles), classes, len(order))

    def _layout(self, name: str, axis: int, number: Array) -> Layout:
        count = self.shape(name)[axis] if self.shape(name) else 1
        atoms = self.atoms[name]
        if atoms.ndim:
            line = np.moveaxis(atoms, axis, 0).reshape(atoms.shape[axis], -1)[:, 0]
            line = np.broadcast_to(line, (count,))
        else:
            line = atoms.reshape(1)
        raw = np.where(line < 0, FREE, self.atom_raw[np.maximum(line, 0)])
        units = np.where(raw == FREE, FREE, number[self.labels[np.maximum(raw, 0)]] if len(self.labels) else FREE)
        owner = np.where(line < 0, -1, np.searchsorted(self.offsets, line, side="right") - 1)
        owners, first = np.unique(owner[owner >= 0], return_index=True)
        owners = owners[np.argsort(first)]
        number_of = np.full(len(self.offsets) + 1, -1)
        number_of[owners] = np.arange(len(owners))
        position = np.where(line < 0, 0, line - np.array(self.offsets)[np.maximum(owner, 0)])
        fill = np.zeros(count, dtype=np.float32)
        fill[line < 0] = np.array(self.fills, dtype=np.float32)[-1 - line[line < 0]]
        roots, root = tuple(self.roots[o] for o in owners.tolist()), number_of[owner]
        return Layout(axis, units, roots, root, position, fill)

    def _classes(self, layouts: Mapping[str, Layout], units: int) -> tuple[ChannelClass, ...]:
        makers: list[list[str]] = [[] for _ in range(units)]
        widths: dict[str, int] = {}
        for node in self.graph.nodes:
            if self.roles[node.name].kind in (Kind.MIX, Kind.GROUPED, Kind.OPAQUE) and node.outputs[0] in layouts:
                made = layouts[node.outputs[0]].units
                widths[node.name] = len(made)
                for unit in np.unique(made[made != FREE]).tolist():
                    makers[unit].append(node.name)
        fixed = set(layouts[self.graph.output].units.tolist())
        groups: dict[tuple[str, ...], list[int]] = {}
        for unit, made_by in enumerate(makers):
            groups.setdefault(tuple(made_by), []).append(unit)
        return tuple(
            ChannelClass(
                name=made_by[0] if made_by else f"unit {members[0]}",
                units=tuple(members),
                producers=made_by,
                width=widths[made_by[0]] if made_by else len(members),
                splittable=len(members) > 1 and fixed.isdisjoint(members),
            )
            for made_by, members in groups.items()
        )


def _most_channels(graph: Graph, node: Node) -> int:
    """How many new raw ids a node can need at most."""
    return max((max(graph.shapes[name], default=1) for name in node.outputs), default=1)


def _shared_out(tags: list[Tag], lengths: list[int]) -> list[Tag]:
    """The tags of axes of these `lengths` that together are the axes tagged `tags`; LOST where one is cut."""
    parts = [part for tag in tags for part in tag]
    if LOST in tags:
        return [LOST] * len(lengths)
    found: list[Tag] = []
    for index, length in enumerate(lengths):
        taken: list[tuple[int, int]] = []
        last = index == len(lengths) - 1
        while parts and (last or int(np.prod([n for _, n in taken])) < length):
            taken.append(parts.pop(0))
        if int(np.prod([n for _, n in taken])) != length:
            return [LOST] * len(lengths)
        found.append(tuple(taken))
    return found


def _axis(role: Role) -> int:
    assert role.axis is not None, "a role that makes a root names its channel axis"
    return role.axis


def _aligned(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs of axis runs with equal products that a reshape maps onto each other."""
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, have, want = [], [], 1, 1
        if i < len(before):
            left.append(i)
            have *= before[i]
            i += 1
        if j < len(after):
            right.append(j)
            want *= after[j]
            j += 1
        while have != want:
            if have < want:
                left.append(i)
                have *= before[i]
                i += 1
            else:
                right.append(j)
                want *= after[j]
                j += 1
        pairs.append((left, right))
    return pairs

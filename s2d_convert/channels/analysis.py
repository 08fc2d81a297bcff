"""Channel analysis: which channels, all over the graph, must live or die together.

Each pass (`Propagation`) goes over the graph in topological order and runs every operator on channel *identities*
instead of values:

1. every tensor that is really computed (a *root*) gives each position on its channel axis an *atom*;
2. an atom has a raw id: new for the outputs of mixing operators, inherited by everything channel-wise;
3. operators that combine operands tie raw ids (union), opaque ones tie all of theirs;
4. movement operators (Concat, Slice, Reshape, Transpose...) are run on the atoms themselves, so a
   channel shuffle or a zero-padded shortcut needs no case of its own. If the result only permutes,
   selects or pads channels of roots it stays a *view* that costs nothing; else it is a root itself.

Ties found late can turn what looked like a mixture into something simple, so passes repeat until
the ties are stable. Until then an operator that looks opaque ties nothing: only when nothing else is left
to find are its ties drawn, and the passes go on. Units are then the connected components of the ties, and
classes the units that are made by the same nodes.

An operand with one channel that is spread over many (a spatial gate, a mean over the channels) is
*anchored* rather than tied: its unit is FREE, so that it exists in the first stage that needs its node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import FINAL_KINDS, Array, Kind, Role
from s2d_convert.channels.propagation import Propagation
from s2d_convert.errors import ModelError
from s2d_convert.frontend.graph import Graph, Node

MAX_PASSES = 100


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

    @cached_property
    def without_constants(self) -> bool:
        """Whether every position shows a root."""
        return bool((self.root >= 0).all())

    def gather(self, tables: Sequence[Array], constants: Array) -> Array:
        """Return values [C, ...] of the tensor, given those of its roots (`tables`, in the order of `roots`). Positions that are
        constants take theirs from `constants` [C, ...]."""
        if len(tables) == 1 and self.without_constants:
            return tables[0][self.position]
        values = constants.copy()
        for number, table in enumerate(tables):
            here = self.root == number
            values[here] = table[self.position[here]]
        return values


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
        """Return whether the tensor is computed (and not a view of others, or the inside of a movement)."""
        layout = self.layouts.get(name)
        return layout is not None and layout.roots == (name,)

    @cached_property
    def class_of(self) -> Array:
        """The class index of every unit, int64 [U]."""
        table = np.full(self.units, -1)
        for index, group in enumerate(self.classes):
            table[list(group.units)] = index
        return table


@dataclass(frozen=True, eq=False)
class AnalysedModel:
    """A graph together with what the analysis found out about its channels."""

    graph: Graph
    channels: Channels

    @staticmethod
    def of(graph: Graph) -> AnalysedModel:
        """Analyse `graph`. Raises ModelError as `analyse` does."""
        return AnalysedModel(graph, analyse(graph))

    def kind(self, node: Node) -> Kind:
        """Return what `node` does to channels."""
        return self.channels.roles[node.name].kind

    def layout(self, tensor: str) -> Layout:
        """Return where the channels of a tensor lie. Raises KeyError for a tensor that exists only inside a movement."""
        return self.channels.layouts[tensor]


def analyse(graph: Graph) -> Channels:
    """Find the channel units, classes and layouts of a graph. Raises ModelError when the passes do not settle.

    The idea is DepGraph's (Fang et al., CVPR 2023), applied to channel identities rather than to layer types.
    """
    labels = np.zeros(0, dtype=np.int64)
    anchored = np.zeros(0, dtype=np.int64)
    settled: set[str] = set()
    for _ in range(MAX_PASSES):
        propagation = Propagation(graph, labels, anchored, settled)
        propagation.run()
        # Ties only ever grow, so the passes must settle.
        components = _components(propagation.raw_count, [*propagation.edges, (np.arange(len(labels)), labels)])
        pending = propagation.pending[Kind.TIE] or propagation.pending[Kind.OPAQUE]
        free = np.unique(components[np.concatenate([anchored, *propagation.anchored])])
        if not (np.array_equal(components, labels) and np.array_equal(free, anchored)):
            labels, anchored = components, free
        elif pending:
            settled.update(pending)
        else:
            return _result(propagation)
    raise ModelError("channel analysis did not settle; please report this model")


def _components(count: int, edges: Sequence[tuple[Array, Array]]) -> Array:
    """Return, for each of `count` elements, the smallest element of its connected component, int64 [count]."""
    left = np.concatenate([e[0] for e in edges])
    right = np.concatenate([e[1] for e in edges])
    links = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    component = connected_components(links, directed=False)[1]
    smallest = np.unique(component, return_index=True)[1]
    return smallest[component]


def _result(last: Propagation) -> Channels:
    """Return what the last pass found out. Raises ModelError if a node has a kind that is not final."""
    for name, role in last.roles.items():
        if role.kind not in FINAL_KINDS:
            raise ModelError(f"node '{name}': channel analysis did not settle what it ties; please report this model")
    labels = last.labels
    used = np.unique(last.atom_raw[last.atom_raw != FREE])
    # Labels are smallest members, so that sorting them is sorting by appearance.
    order = np.setdiff1d(labels[used], np.flatnonzero(last.free))
    number = np.full(last.raw_count + 1, FREE)
    number[order] = np.arange(len(order))
    layouts = {}
    for name in last.atoms:
        axis = last.axis(name)
        if axis is not None and name not in last.inside:
            layouts[name] = _layout(last, name, axis, number)
    classes = _classes(last, layouts, len(order))
    return Channels(layouts, dict(last.roles), classes, len(order))


def _layout(last: Propagation, name: str, axis: int, number: Array) -> Layout:
    count = last.shape(name)[axis] if last.shape(name) else 1
    atoms = last.atoms[name]
    if atoms.ndim:
        line = np.moveaxis(atoms, axis, 0).reshape(atoms.shape[axis], -1)[:, 0]
        line = np.broadcast_to(line, (count,))
    else:
        line = atoms.reshape(1)
    raw = np.where(line < 0, FREE, last.atom_raw[np.maximum(line, 0)])
    units = np.where(raw == FREE, FREE, number[last.labels[np.maximum(raw, 0)]] if len(last.labels) else FREE)
    owner = np.where(line < 0, -1, np.searchsorted(last.offsets, line, side="right") - 1)
    owners, first = np.unique(owner[owner >= 0], return_index=True)
    owners = owners[np.argsort(first)]
    number_of = np.full(len(last.offsets) + 1, -1)
    number_of[owners] = np.arange(len(owners))
    position = np.where(line < 0, 0, line - np.array(last.offsets)[np.maximum(owner, 0)])
    fill = np.zeros(count, dtype=np.float32)
    fill[line < 0] = np.array(last.fills, dtype=np.float32)[-1 - line[line < 0]]
    roots, root = tuple(last.roots[o] for o in owners.tolist()), number_of[owner]
    return Layout(axis, units, roots, root, position, fill)


def _classes(last: Propagation, layouts: Mapping[str, Layout], units: int) -> tuple[ChannelClass, ...]:
    makers: list[list[str]] = [[] for _ in range(units)]
    widths: dict[str, int] = {}
    for node in last.graph.nodes:
        if last.roles[node.name].kind in (Kind.MIX, Kind.GROUPED, Kind.OPAQUE) and node.outputs[0] in layouts:
            made = layouts[node.outputs[0]].units
            widths[node.name] = len(made)
            for unit in np.unique(made[made != FREE]).tolist():
                makers[unit].append(node.name)
    fixed = set(layouts[last.graph.output].units.tolist())
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

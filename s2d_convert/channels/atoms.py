"""Channel identities of tensors: which channel lies at every position, and along which axis.

An *atom* is one position on the channel axis of a *root* (a tensor that is really computed) and has a raw id; a negative atom
is a constant. A tensor that only moves channels is a view: it has the atoms of its roots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2d_convert.channels.axes import LOST, Tag, reshaped
from s2d_convert.channels.kinds import Array
from s2d_convert.channels.movement import move, pad_value, tiled_axes
from s2d_convert.frontend.graph import Graph, Node

FREE = -1  # the unit of what needs no channel unit: the image, constants and what is anchored


class Atoms:
    """The atoms of every tensor of a graph; also the `Context` that rules ask.

    labels: by raw id, the unit that earlier passes found, empty in the first pass; anchored: labels that earlier passes freed.
    """

    def __init__(self, graph: Graph, labels: Array, anchored: Array) -> None:
        self.graph = graph
        self.constants = graph.constants
        self.labels = labels
        self.free = np.zeros(len(labels), dtype=bool)  # by label, whether an earlier pass anchored it
        self.free[anchored] = True
        self.atoms: dict[str, Array] = {}  # broadcastable against the shape; -1 - k is constant number k
        self.tags: dict[str, tuple[Tag, ...]] = {}  # which axes of the roots an axis still is
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
        ids = self.ids(self.atoms[name])
        return [a for a in range(ids.ndim) if ids.shape[a] > 1 and bool((ids != ids.take([0], axis=a)).any())]

    def ids(self, atoms: Array) -> Array:
        """Return labels (raw ids where a label is not known yet) of atoms, FREE for constants."""
        raw = np.where(atoms < 0, FREE, self.atom_raw[np.maximum(atoms, 0)] if len(self.atom_raw) else FREE)
        ids = self.known(raw)
        if not len(self.labels):
            return ids
        return np.where((ids >= 0) & self.free[np.maximum(ids, 0)], FREE, ids)

    def known(self, raw: Array) -> Array:
        """Return the labels of raw ids: themselves in the first pass, FREE for FREE."""
        return np.where(raw == FREE, FREE, self.labels[np.maximum(raw, 0)]) if len(self.labels) else raw

    def add_root(self, name: str, axis: int, raws: Array) -> None:
        """Make a tensor a root, with new atoms of these raw ids along its channel axis."""
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

    def raws(self, name: str, axis: int) -> Array:
        """Return the raw ids along the channel axis, FREE for constants; a uniform tensor repeats its one id."""
        atoms = self.atoms[name]
        count = self.shape(name)[axis] if self.shape(name) else 1
        if atoms.ndim and atoms.shape[axis] == count:
            line = np.moveaxis(atoms, axis, 0).reshape(count, -1)[:, 0]
        else:
            line = np.broadcast_to(atoms.reshape(-1)[:1], (count,))
        raws: Array = np.where(line < 0, FREE, self.atom_raw[np.maximum(line, 0)])
        return raws

    def all_raws(self, name: str) -> Array:
        """Return the raw ids of all its atoms, in ascending order of the atoms."""
        atoms = np.unique(self.atoms[name])
        return self.atom_raw[atoms[atoms >= 0]]

    def is_view(self, name: str, axis: int) -> bool:
        """Return whether a tensor has whole channels of its roots along this axis, and nothing but them."""
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

    # --- movements ---

    def reshape(self, source: str, name: str) -> None:
        """Give the output of a reshape the atoms of its input."""
        atoms, tags = self.atoms[source], self.tags[source]
        self.atoms[name], self.tags[name] = reshaped(atoms, tags, self.shape(source), self.shape(name))

    def transpose(self, node: Node) -> None:
        """Give the output of a Transpose the atoms of its input."""
        source, name = node.inputs[0], node.outputs[0]
        perm = node.attrs.get("perm", tuple(reversed(range(len(self.shape(source)) + 1))))
        inner = [p - 1 for p in perm[1:]]
        self.atoms[name] = self.atoms[source].transpose(inner)
        self.tags[name] = tuple(self.tags[source][p] for p in inner)

    def rearrange(self, node: Node, sources: tuple[str, ...]) -> None:
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


def _alike_beside(arrays: Sequence[Array], axes: set[int]) -> list[Array]:
    """Broadcast arrays against one another on all axes but these."""
    lengths = [tuple(1 if axis in axes else n for axis, n in enumerate(a.shape)) for a in arrays]
    common = np.broadcast_shapes(*lengths)
    return [np.broadcast_to(a, [a.shape[x] if x in axes else n for x, n in enumerate(common)]) for a in arrays]

"""The pieces that the stages of a split have so far, and channels brought together from them.

The channel order inside a piece is free. Mixing operators absorb any order in their columns; what cannot (joins of differently
ordered operands, grouped convs, LRN, opaque nodes) asks for its own, which may cost a Gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from s2d_convert.channels.analysis import Layout
from s2d_convert.channels.kinds import Array
from s2d_convert.slicing.demand import Demand
from s2d_convert.slicing.stage_graph import StageGraph

MAX_RUNS = 3  # reorder by a Concat of up to this many slices, by a Gather beyond


@dataclass(frozen=True)
class Piece:
    """Part of a root tensor: runtime name, root positions in order, and the stage that has it (0: the image)."""

    name: str
    positions: Array
    home: int

    @cached_property
    def index(self) -> Array:
        """Where each position of the root lies in this piece, by position."""
        table = np.full(int(self.positions.max(initial=-1)) + 1, -1)
        table[self.positions] = np.arange(len(self.positions))
        return table


Segment = tuple[Piece | None, list[int]]  # a piece and the indices to take of it; None: constants, by position


def _turns(index: Array) -> list[Array]:
    """Return where the first occurrences of all numbers of `index` lie, then the second ones, and so on."""
    order = np.argsort(index, kind="stable")
    values = index[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    nth = np.arange(len(values)) - np.repeat(starts, np.diff([*starts, len(values)]))
    return [np.sort(order[nth == k]) for k in range(int(nth.max(initial=0)) + 1)]


class Pieces:
    """The stages in the making, and what each of them computes of every tensor."""

    def __init__(self, demand: Demand, first_stage: int) -> None:
        self.demand, self.graph, self.channels, self.first = demand, demand.graph, demand.channels, first_stage
        self.stages = [StageGraph(first_stage + k, self.graph) for k in range(demand.plan.stages)]
        image = self.graph.image
        self._casts: dict[tuple[str, int], str] = {}
        self._pieces: dict[tuple[str, int], Piece] = {(image, 0): Piece(image, demand.every(image), 0)}

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._pieces

    def __getitem__(self, key: tuple[str, int]) -> Piece:
        return self._pieces[key]

    def keep(self, tensor: str, stage: int, name: str, positions: Array, *, home: int | None = None) -> None:
        """Record that a stage has a piece of a tensor under this runtime name; `home` is the stage that made it, if another."""
        self._pieces[tensor, stage] = Piece(name, positions, stage if home is None else home)

    def shape(self, tensor: str, count: int) -> list[int]:
        """Return the shape of a piece with `count` positions."""
        shape = list(self.graph.shapes[tensor])
        if shape:
            shape[self.channels.layouts[tensor].axis] = count
        return shape

    def _dtype(self, tensor: str) -> Any:
        """Return the numpy type of a tensor; masks and indices are not float32."""
        return self.graph.types.get(tensor, np.float32)

    def _constant(self, builder: StageGraph, tensor: str, positions: Array, values: Array) -> str:
        """Add a constant feature map of the batch's length. It is rare, so it is built from the shape of any input."""
        shape = self.shape(tensor, len(positions))
        axis = self.channels.layouts[tensor].axis
        pattern = values.astype(self._dtype(tensor)).reshape(
            [1] + [len(positions) if a == axis else 1 for a in range(len(shape))]
        )
        source = next(iter([*builder.links_in, *([builder.image.name] if builder.image is not None else [])]), None)
        source = source or self._use(builder, self._pieces[self.graph.image, 0])
        sizes = builder.op("Shape", [source], f"{tensor}.sizes", [])
        batch = builder.op("Slice", [sizes, np.array([0]), np.array([1])], f"{tensor}.batch", [])
        target = builder.op(
            "Concat", [batch, np.array(shape, dtype=np.int64)], f"{tensor}.target", [], attrs={"axis": 0}
        )
        for name in (sizes, batch, target):
            builder.tensors[name].dtype, builder.tensors[name].shape = np.int64, None
        return builder.op("Expand", [pattern, target], tensor, shape)

    def fetch(self, stage: int, tensor: str, positions: Array, *, ordered: bool = False) -> tuple[str, Array]:
        """Return the runtime tensor in `stage` that holds `positions` of `tensor`, and the order in which it does.

        Without `ordered` the order is whatever costs least.
        """
        builder, axis = self.stages[stage - 1], self.channels.layouts[tensor].axis
        segments, order = self.arrange(tensor, positions)
        if ordered and order != positions.tolist():
            runs = self._runs(tensor, positions)
            if len(runs) <= MAX_RUNS:
                segments, order = runs, positions.tolist()
        name = self._join_segments(builder, tensor, segments)
        if ordered and order != positions.tolist():
            index_of = {p: i for i, p in enumerate(order)}
            index = np.array([index_of[p] for p in positions.tolist()])
            name = builder.op("Gather", [name, index], tensor, self.shape(tensor, len(index)), attrs={"axis": axis + 1})
            order = positions.tolist()
        return name, np.array(order, dtype=np.int64)

    def _join_segments(self, builder: StageGraph, tensor: str, segments: list[Segment]) -> str:
        """Return one runtime tensor of all segments: themselves, a Concat, and a Pad for constants at the end."""
        layout = self.channels.layouts[tensor]
        padding: list[int] = []
        if len(segments) > 1 and segments[-1][0] is None and len(set(layout.fill[segments[-1][1]].tolist())) == 1:
            segments, padding = segments[:-1], segments[-1][1]
        parts = [self._segment(builder, tensor, layout, piece, index) for piece, index in segments]
        count = sum(len(index) for _, index in segments)
        name = parts[0]
        if len(parts) > 1:
            name = builder.op("Concat", parts, tensor, self.shape(tensor, count), attrs={"axis": layout.axis + 1})
        if padding:
            pads = np.zeros((2, len(self.graph.shapes[tensor]) + 1), dtype=np.int64)
            pads[1, layout.axis + 1] = len(padding)
            value = layout.fill[padding[0]].astype(self._dtype(tensor)).reshape(())
            name = builder.op("Pad", [name, pads.reshape(-1), value], tensor, self.shape(tensor, count + len(padding)))
        return name

    def arrange(self, tensor: str, positions: Array) -> tuple[list[Segment], list[int]]:
        """Return the cheapest arrangement: per piece (None: constants) the indices to take, and the positions in that order."""
        segments: list[Segment] = []
        order: list[int] = []
        for root, stage, mine in self.demand.sources(tensor, positions):
            if not root:
                segments.append((None, positions[mine].tolist()))
                order += positions[mine].tolist()
                continue
            piece = self._pieces[root, stage]
            index = piece.index[self.channels.layouts[tensor].position[positions[mine]]]
            for turn in _turns(index):  # a channel that shows twice is taken in turns
                turn = turn[np.argsort(index[turn], kind="stable")]
                segments.append((piece, index[turn].tolist()))
                order += positions[mine[turn]].tolist()
        return segments, order

    def _runs(self, tensor: str, positions: Array) -> list[Segment]:
        """Return the wanted order as runs of consecutive channels of one piece."""
        layout = self.channels.layouts[tensor]
        wanted: list[tuple[Piece | None, int]] = [(None, p) for p in positions.tolist()]
        for root, stage, mine in self.demand.sources(tensor, positions):
            if root:
                piece = self._pieces[root, stage]
                for i, index in zip(mine.tolist(), piece.index[layout.position[positions[mine]]].tolist(), strict=True):
                    wanted[i] = (piece, index)
        runs: list[Segment] = []
        for piece_, index in wanted:
            if runs and runs[-1][0] is piece_ and runs[-1][1][-1] + 1 == index:
                runs[-1][1].append(index)
            else:
                runs.append((piece_, [index]))
        return runs

    def _segment(self, builder: StageGraph, tensor: str, layout: Layout, piece: Piece | None, index: list[int]) -> str:
        """Return the runtime name of some channels of one piece, or of constants."""
        if piece is None:
            return self._constant(builder, tensor, np.array(index), layout.fill[index])
        return self.cut(builder, tensor, self._use(builder, piece), index, len(piece.positions))

    def cut(self, builder: StageGraph, tensor: str, name: str, index: list[int], count: int) -> str:
        """Return the channels `index` of a runtime tensor with `count` of them."""
        shape, axis = self.shape(tensor, len(index)), self.channels.layouts[tensor].axis
        return builder.cut(name, index, tensor, shape, axis=axis, count=count)

    def _use(self, builder: StageGraph, piece: Piece) -> str:
        """Make a piece readable in a stage: its own tensor, the image, or a link."""
        here = builder.number - self.first + 1
        if piece.home == 0:
            return builder.take_image(self.graph)
        if piece.home == here:
            return piece.name
        home = self.stages[piece.home - 1]
        made = home.tensors[piece.name]
        if made.dtype == np.float32:
            return self._link(home, builder, piece.name)
        return self._received(home, builder, piece.name)

    def _received(self, home: StageGraph, builder: StageGraph, name: str) -> str:
        """Receive a mask or an index of an earlier stage. Links are float32, so it is cast on its way (exact up to 2^24)."""
        made = home.tensors[name]
        shape, dtype = made.shape[1:], np.dtype(made.dtype)
        if (name, home.number) not in self._casts:
            self._casts[name, home.number] = home.cast(name, name, np.dtype(np.float32), shape)
        if (name, builder.number) not in self._casts:
            link = self._link(home, builder, self._casts[name, home.number])
            self._casts[name, builder.number] = builder.cast(link, name, dtype, shape)
        return self._casts[name, builder.number]

    def _link(self, home: StageGraph, builder: StageGraph, name: str) -> str:
        """Make a tensor of an earlier stage an input of this one."""
        if name not in builder.links_in:
            made = home.tensors[name]
            home.links_out[name] = made
            builder.links_in[name] = builder.tensors[name] = gs.Variable(name, dtype=made.dtype, shape=list(made.shape))
        return name

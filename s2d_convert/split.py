"""Cut a graph into the stages of a plan: Graph + Plan + Weights -> one ONNX model per stage.

A *piece* is the part of a computed tensor that one stage computes: the positions p with e(p) = s. The
cutting has the steps of `split`:

1. backwards over the graph, find the pieces that some stage's logits depend on;
2. forwards, emit every needed piece once, in its stage. Weights lose the rows of other stages and the
   columns of later ones; a mixing row without any input is zero, and additions of zero vanish;
3. a piece that a later stage reads becomes a link: an output here, an input there;
4. close every stage with its head (pooled tap -> logits; the last one is the model's own classifier),
   the model's trailing Softmax and the confidence.

The channel order inside a piece is free. Mixing operators absorb any order in their columns, so only
joins of differently ordered operands and grouped convs ever need a Gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from s2d_convert.channels import Channels, Layout
from s2d_convert.graph import Graph, Node
from s2d_convert.plan import Effective, Plan
from s2d_convert.rules import (
    PRODUCTS,
    UNDEFINED_AT_ZERO,
    Array,
    Kind,
    macs_of,
    macs_per_weight,
    move,
    slice_constant,
    transposed_kernel,
)
from s2d_convert.stagegraph import OUTPUT, StageGraph, StageModel
from s2d_convert.weights import Weights, initial_head

__all__ = ["OUTPUT", "StageModel", "split"]

SUMS = ("Add", "Sum")
MAX_RUNS = 3  # reorder by a Concat of up to this many slices, by a Gather beyond


@dataclass(frozen=True)
class _Piece:
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


def split(
    graph: Graph, channels: Channels, plan: Plan, weights: Weights, *, first_stage: int = 1
) -> tuple[StageModel, ...]:
    """The stages of one chain, in order. `first_stage` is the number of its first stage in the conversion.

    Exit heads that `weights` lacks are initialised from the classifier. Raises UsageError when the plan does not fit.
    """
    cutter = _Cutter(graph, channels, plan, weights, first_stage)
    needed = cutter.find_needed()
    cutter.emit(needed)
    return cutter.close()


_Segment = tuple[_Piece | None, list[int]]  # a piece and the indices to take of it; None: constants, by position


def _taken(weight: Array, index: Array, axis: int) -> Array:
    """The positions `index` along an axis of a weight; itself, not a copy, where these are all in order."""
    whole = len(index) == weight.shape[axis] and bool((index == np.arange(len(index))).all())
    return weight if whole else weight.take(index, axis=axis)


def _turns(index: Array) -> list[Array]:
    """Where the first, the second... occurrence of every number of `index` lies."""
    order = np.argsort(index, kind="stable")
    values = index[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    nth = np.arange(len(values)) - np.repeat(starts, np.diff([*starts, len(values)]))
    return [np.sort(order[nth == k]) for k in range(int(nth.max(initial=0)) + 1)]


class _Cutter:
    """The state of one `split`: the stages in the making and the pieces that exist."""

    def __init__(self, graph: Graph, channels: Channels, plan: Plan, weights: Weights, first_stage: int) -> None:
        self.graph, self.channels, self.plan, self.weights = graph, channels, plan, weights
        self.first = first_stage
        self.effective = Effective(graph, channels, plan)
        self.stages = [StageGraph(first_stage + k, graph) for k in range(plan.stages)]
        everything = np.arange(len(channels.layouts[graph.image].units))
        self._held: dict[str, Array] = {}
        self.pieces: dict[tuple[str, int], _Piece] = {(graph.image, 0): _Piece(graph.image, everything, 0)}

    # --- step 1: what is needed ---------------------------------------------------------------------

    def find_needed(self) -> set[tuple[str, int]]:
        """The (root tensor, stage) pairs that some stage's logits depend on."""
        needed: set[tuple[str, int]] = set()
        for stage, tap in enumerate(self.plan.taps, start=1):
            everything = tap == self.graph.output
            self._need(needed, tap, self._all(tap) if everything else self._readable(tap, stage))
        for node in reversed(self.graph.nodes):
            for stage in range(1, self.plan.stages + 1):
                if any((name, stage) in needed for name in node.outputs):
                    for name, positions in self._reads(node, stage):
                        self._need(needed, name, positions)
        return needed

    def _need(self, needed: set[tuple[str, int]], tensor: str, positions: Array) -> None:
        needed.update((root, stage) for root, stage, _ in self._sources(tensor, positions) if root)

    def _sources(self, tensor: str, positions: Array) -> list[tuple[str, int, Array]]:
        """Where `positions` of a tensor come from: for each (root, effective stage) which of them, as indices into
        `positions`; root '' for constants and for what is always zero."""
        layout = self.channels.layouts[tensor]
        roots, places = layout.root[positions], layout.position[positions]
        found: list[tuple[str, int, Array]] = []
        missing = roots < 0
        for number, root in enumerate(layout.roots):
            mine = np.flatnonzero(roots == number)
            present = self._present(root)[places[mine]]
            missing[mine[~present]] = True
            mine = mine[present]
            stages = self.effective.of(root)[places[mine]]
            found += [(root, int(e), mine[stages == e]) for e in np.unique(stages)]
        if missing.any():
            found.append(("", 0, np.flatnonzero(missing)))
        return sorted(found, key=lambda source: (not source[0], int(source[2][0])))

    def _present(self, root: str) -> Array:
        """Which positions of a root its pieces hold, bool [C]: not those of a stage where all are always zero."""
        if root not in self._held:
            stages, live = self.effective.of(root), self.effective.live(root)
            self._held[root] = np.isin(stages, stages[live]) & self._computed(root)
        return self._held[root]

    def _computed(self, root: str) -> Array:
        """Which positions of a root are computed, bool [C]: of a norm, and of what is undefined at zero, not those that
        are zero because the plan took away what they are made of."""
        node, live = self.graph.producer.get(root), self.effective.live(root)
        if node is None or not (self.channels.roles[node.name].kind is Kind.NORM or node.op in UNDEFINED_AT_ZERO):
            return np.ones_like(live)
        return live

    def _reads(self, node: Node, stage: int) -> list[tuple[str, Array]]:
        """The (tensor, positions) that the pieces of a node in one stage are computed from."""
        kind = self.channels.roles[node.name].kind
        inputs = self.graph.computed(node)
        if kind is Kind.MIX:
            return [(inputs[0], self._readable(node.inputs[0], stage))]
        if kind in (Kind.NORM, Kind.REDUCE):
            return [(inputs[0], self.effective.counted(node, stage))]
        if kind is Kind.OPAQUE:
            return [(name, self._all(name)) for name in inputs]
        if kind is Kind.GROUPED:
            return [(inputs[0], np.concatenate(list(self._group_columns(node, stage).values())))]
        if kind is Kind.MOVE:
            return [(inputs[0], self._moved(node, stage))]
        return [(name, self._same_positions(name, node, stage)) for name in inputs]

    def _all(self, tensor: str) -> Array:
        return np.arange(len(self.channels.layouts[tensor].units))

    def _made(self, node: Node, stage: int) -> Array:
        """The output positions of a node that `stage` computes, sorted by unit."""
        name = node.outputs[0]
        positions = np.flatnonzero((self.effective.of(name) == stage) & self._computed(name))
        if self.channels.layouts[name].uniform:
            return positions
        return positions[np.argsort(self.channels.layouts[name].units[positions], kind="stable")]

    def _same_positions(self, tensor: str, node: Node, stage: int) -> Array:
        """The positions of an operand of a MAP or JOIN that its piece needs: all of a tensor of one unit."""
        return self._all(tensor) if self.channels.layouts[tensor].uniform else self._made(node, stage)

    def _is_spread(self, tensor: str, out: str) -> bool:
        """Whether one channel of a JOIN's operand serves all channels of its output."""
        axis = self.channels.layouts[out].axis
        return self.graph.shapes[tensor][axis] == 1 < self.graph.shapes[out][axis]

    def _readable(self, tensor: str, stage: int) -> Array:
        """The positions that a mixing operator may read in a stage; all or none of a tensor of one unit."""
        return np.flatnonzero(self.effective.readable(tensor, stage))

    def _group_columns(self, node: Node, stage: int) -> dict[int, Array]:
        """For each conv group that `stage` computes, its input positions."""
        groups = int(node.attrs["group"])
        rows = len(self.channels.layouts[node.outputs[0]].units) // groups
        columns = len(self.channels.layouts[node.inputs[0]].units) // groups
        kept = dict.fromkeys((self._made(node, stage) // rows).tolist())
        return {g: np.arange(g * columns, (g + 1) * columns) for g in kept}

    def _moved(self, node: Node, stage: int) -> Array:
        """The input positions whose channels a MOVE root shows in a stage, found by moving all elements."""
        source, out = self.graph.computed(node)[0], node.outputs[0]
        before, axis = self.graph.shapes[source], self.channels.layouts[source].axis
        elements = np.arange(int(np.prod(before))).reshape(before)
        moved = self._move_elements(node, elements, self.graph.shapes[out])
        shown = moved.take(self._made(node, stage), axis=self.channels.layouts[out].axis) if moved.ndim else moved
        return np.unique(np.unravel_index(shown.reshape(-1), before)[axis]) if before else np.zeros(1, dtype=np.int64)

    # --- step 2: emit -------------------------------------------------------------------------------

    def emit(self, needed: set[tuple[str, int]]) -> None:
        """Emit every needed piece into its stage, in topological order."""
        for node in self.graph.nodes:
            for stage in range(1, self.plan.stages + 1):
                if any((name, stage) in needed for name in node.outputs):
                    handler = getattr(self, f"_emit_{self.channels.roles[node.name].kind.value}")
                    handler(node, stage)

    def _keep(self, tensor: str, stage: int, name: str, positions: Array, *, home: int | None = None) -> None:
        self.pieces[tensor, stage] = _Piece(name, positions, stage if home is None else home)

    def _emit_mix(self, node: Node, stage: int) -> None:
        out, builder = node.outputs[0], self.stages[stage - 1]
        rows, columns = self._made(node, stage), self._readable(node.inputs[0], stage)
        weight, bias = self.weights.mix[node.name]
        source, order = self.fetch(stage, node.inputs[0], columns)
        if len(weight[0]) != len(self.channels.layouts[node.inputs[0]].units):
            order = np.arange(len(weight[0]))  # a tensor of one unit, read along another axis than its own
        part = _taken(_taken(weight, rows, 0), order, 1)
        shape = self._shape(out, len(rows))
        name = builder.mixing(node, source, part, None if bias is None else bias[rows], shape=shape)
        builder.macs += int(part.size) * macs_per_weight(
            node, self.graph.shapes[node.inputs[0]], self.graph.shapes[out]
        )
        self._keep(out, stage, name, rows)

    def _emit_grouped(self, node: Node, stage: int) -> None:
        out, builder = node.outputs[0], self.stages[stage - 1]
        by_group = self._group_columns(node, stage)
        wanted = np.concatenate(list(by_group.values()))
        size = len(wanted) // len(by_group)
        _, natural = self._arrange(node.inputs[0], wanted)
        groups = list(dict.fromkeys((np.asarray(natural) // size).tolist()))
        groups += [g for g in by_group if g not in groups]
        ordered = np.concatenate([by_group[g] for g in groups])
        source, _ = self.fetch(stage, node.inputs[0], ordered, ordered=True)
        weight, bias = self.weights.mix[node.name]
        per = len(weight) // int(node.attrs["group"])
        rows = np.concatenate([np.arange(g * per, (g + 1) * per) for g in groups])
        shape = self._shape(out, len(rows))
        live = self.effective.live(out)[rows]
        part = weight[rows] if node.op == "Conv" else transposed_kernel(weight[rows], len(groups))
        operands: list[str | Array] = [source, part, *([] if bias is None else [bias[rows] * live])]
        name = builder.op(node.op, operands, out, shape, attrs={**node.attrs, "group": len(groups)})
        builder.macs += int(weight[rows].size) * macs_per_weight(
            node, self.graph.shapes[node.inputs[0]], self.graph.shapes[out]
        )
        self._keep(out, stage, name, rows)

    def _emit_map(self, node: Node, stage: int) -> None:
        source, builder = self.graph.computed(node)[0], self.stages[stage - 1]
        positions = self._same_positions(source, node, stage)
        made = self._made(node, stage)
        whole = self.channels.layouts[source].uniform
        data, order = self.fetch(stage, source, positions, ordered=whole)
        kept = made if whole else order
        operands = self._operands(node, {source: data}, source, order)
        names = builder.ops(node.op, operands, [(n, self._shape(n, len(kept))) for n in node.outputs], dict(node.attrs))
        for tensor, name in zip(node.outputs, names, strict=True):
            self._keep(tensor, stage, name, kept)

    def _emit_join(self, node: Node, stage: int) -> None:
        out, builder = node.outputs[0], self.stages[stage - 1]
        made, inputs = self._made(node, stage), self.graph.computed(node)
        if node.op in SUMS and len(inputs) == len(node.inputs):
            inputs = self._summands(node, stage)
        lead = self._lead(node, stage, inputs)
        if len(inputs) == 1 and self._alias(out, stage, lead, made):
            return None
        data, order = self._fetch_operand(node, stage, lead, made, ordered=self.channels.layouts[out].uniform)
        fetched = {lead: data}
        for tensor in inputs:
            if tensor not in fetched:
                fetched[tensor], _ = self._fetch_operand(node, stage, tensor, order, ordered=True)
        shape = self._shape(out, len(order))
        if len(inputs) == 1:  # a copy, so that the piece is this stage's own even where nothing was done to it
            return self._keep(out, stage, builder.op("Identity", [data], out, shape), order)
        remaining = replace(node, inputs=inputs) if len(inputs) < len(node.inputs) and node.op in SUMS else node
        operands = self._operands(remaining, fetched, lead, order)
        return self._keep(out, stage, builder.op(node.op, operands, out, shape, attrs=dict(node.attrs)), order)

    def _lead(self, node: Node, stage: int, inputs: tuple[str, ...]) -> str:
        """The operand of a JOIN that the others are put in order by: of full width, if possible without constants."""
        layouts, out = self.channels.layouts, node.outputs[0]
        full = [t for t in inputs if not self._is_spread(t, out)]
        if not layouts[out].uniform:  # what comes from the image alone has no order to follow
            full = [t for t in full if not layouts[t].uniform] or full
        return next((t for t in full if (layouts[t].root[self._same_positions(t, node, stage)] >= 0).all()), full[0])

    def _fetch_operand(
        self, node: Node, stage: int, tensor: str, positions: Array, *, ordered: bool
    ) -> tuple[str, Array]:
        """The runtime tensor that holds `positions` of a JOIN's output in one of its operands, and their order."""
        out, layouts, builder = node.outputs[0], self.channels.layouts, self.stages[stage - 1]
        if not layouts[tensor].uniform:
            return self.fetch(stage, tensor, positions, ordered=ordered)
        name, _ = self.fetch(stage, tensor, self._all(tensor), ordered=True)
        if layouts[out].uniform or self._is_spread(tensor, out):
            return name, positions
        axis, whole = layouts[out].axis, self.graph.shapes[tensor]
        shape = [len(positions) if a == axis else n for a, n in enumerate(whole)]
        return builder.cut(name, positions.tolist(), tensor, shape, axis=axis, count=whole[axis]), positions

    def _summands(self, node: Node, stage: int) -> tuple[str, ...]:
        """The operands of a sum that are not all zero, and as many others as give the sum its shape."""
        inputs, shapes = self.graph.computed(node), self.graph.shapes
        kept = [t for t in inputs if self.effective.live(t)[self._same_positions(t, node, stage)].any()]
        for tensor in inputs:
            if kept and np.broadcast_shapes(*(shapes[t] for t in kept)) == shapes[node.outputs[0]]:
                break
            if tensor not in kept:
                kept.append(tensor)
        return tuple(t for t in inputs if t in kept)

    def _emit_norm(self, node: Node, stage: int) -> None:
        """Statistics over all channels up to this stage, then only those of this stage are kept."""
        source, out, builder = node.inputs[0], node.outputs[0], self.stages[stage - 1]
        data, order = self.fetch(stage, source, self.effective.counted(node, stage), ordered=node.op == "LRN")
        operands = self._operands(node, {source: data}, source, order)
        name = builder.op(node.op, operands, out, self._shape(out, len(order)), attrs=dict(node.attrs))
        index = np.flatnonzero((self.effective.of(out)[order] == stage) & self.effective.live(out)[order])
        self._keep(out, stage, self._cut(builder, out, name, index.tolist(), len(order)), order[index])

    def _emit_reduce(self, node: Node, stage: int) -> None:
        source, out, builder = node.inputs[0], node.outputs[0], self.stages[stage - 1]
        data, order = self.fetch(stage, source, self.effective.counted(node, stage))
        operands = self._operands(node, {source: data}, source, order)
        name = builder.op(node.op, operands, out, self.graph.shapes[out], attrs=dict(node.attrs))
        self._keep(out, stage, name, self._all(out))

    def _alias(self, out: str, stage: int, source: str, positions: Array) -> bool:
        """Let a piece be another piece itself, so that adding zero costs nothing, not even a link of its own."""
        sources = self._sources(source, positions)
        root, e, _ = sources[0]
        if len(sources) != 1 or not root:
            return False
        piece = self.pieces[root, e]
        layout = self.channels.layouts[source]
        if layout.roots != (source,) or len(piece.positions) != len(positions):
            return False
        self._keep(out, stage, piece.name, piece.positions, home=piece.home)
        return True

    def _emit_opaque(self, node: Node, stage: int) -> None:
        builder = self.stages[stage - 1]
        fetched = {}
        for tensor in self.graph.computed(node):
            fetched[tensor], _ = self.fetch(stage, tensor, self._all(tensor), ordered=True)
        operands = [fetched[n] if n in fetched else self.weights.operand(self.graph, node, i) if n else ""
                    for i, n in enumerate(node.inputs)]  # fmt: skip
        names = builder.ops(node.op, operands, [(n, self.graph.shapes[n]) for n in node.outputs], dict(node.attrs))
        if node.op in PRODUCTS:
            builder.macs += macs_of(node, self.graph)
        for tensor, name in zip(node.outputs, names, strict=True):
            self._keep(tensor, stage, name, self._all(tensor))

    def _emit_move(self, node: Node, stage: int) -> None:
        """A movement that must really run (Flatten, Transpose...): the same one on fewer channels."""
        source, out, builder = self.graph.computed(node)[0], node.outputs[0], self.stages[stage - 1]
        if (out, stage) not in self.pieces and not self.channels.is_root(out):
            return  # a view: its channels are found through its roots
        positions = self._moved(node, stage)
        shape = self._shape(out, len(self._made(node, stage)))
        _, natural = self._arrange(source, positions)
        kept = self._moved_places(node, np.array(natural), shape)
        data, order = self.fetch(stage, source, positions, ordered=kept is None)
        if kept is None:  # a reshape that cuts through the channels needs them in their original order
            kept = self._moved_places(node, order, shape)
            assert kept is not None, "channels in their original order stay a grid under any movement"
        if node.op != "Reshape":
            operands: list[str | Array] = [data, *(self.graph.constants[n] for n in node.inputs[1:])]
            name = builder.op(node.op, operands, out, shape, attrs=dict(node.attrs))
        else:
            name = builder.op("Reshape", [data, np.array([0, *shape])], out, shape)
        self._keep(out, stage, name, kept)

    def _moved_places(self, node: Node, order: Array, shape: Sequence[int]) -> Array | None:
        """The output positions that a movement gives when its input holds the channels in `order`, in their order.

        None if that is not the movement of whole channels: found by moving the numbers of all elements.
        """
        source, out = self.graph.computed(node)[0], node.outputs[0]
        before, after = self.graph.shapes[source], self.graph.shapes[out]
        axis_in, axis_out = self.channels.layouts[source].axis, self.channels.layouts[out].axis
        elements = np.arange(int(np.prod(before))).reshape(before)
        full = self._move_elements(node, elements, after)
        part = self._move_elements(node, elements.take(order, axis=axis_in), tuple(shape))
        place = np.zeros(full.size, dtype=np.int64)
        place[full] = np.arange(after[axis_out]).reshape([-1 if a == axis_out else 1 for a in range(len(after))])
        kept: Array = place[np.moveaxis(part, axis_out, 0).reshape(shape[axis_out], -1)[:, 0]]
        return kept if np.array_equal(full.take(kept, axis=axis_out), part) else None

    def _move_elements(self, node: Node, elements: Array, shape: tuple[int, ...]) -> Array:
        if node.op not in ("Transpose", "DepthToSpace", "SpaceToDepth"):
            return elements.reshape(shape)
        return move(node, [elements[None]], self.graph.constants, fill=-1)[0][0]

    def _operands(self, node: Node, fetched: dict[str, str], data: str, order: Array) -> list[str | Array]:
        """The inputs of an emitted MAP or JOIN node: fetched tensors, and constants cut to `order`."""
        rank, axis = len(self.graph.shapes[data]), self.channels.layouts[data].axis
        operands: list[str | Array] = []
        for index, name in enumerate(node.inputs):
            if name in fetched:
                operands.append(fetched[name])
            elif not name:
                operands.append("")
            else:
                value = self.weights.operand(self.graph, node, index)
                uniform = self.channels.layouts[data].uniform
                operands.append(value if uniform else slice_constant(
                    node, index, value, rank=rank, axis=axis, positions=order))  # fmt: skip
        return operands

    def _shape(self, tensor: str, count: int) -> list[int]:
        """The shape of a piece with `count` positions."""
        shape = list(self.graph.shapes[tensor])
        if shape:
            shape[self.channels.layouts[tensor].axis] = count
        return shape

    def _constant(self, builder: StageGraph, tensor: str, positions: Array, values: Array) -> str:
        """A constant feature map of the batch's length: rare, so built from the shape of any input."""
        shape = self._shape(tensor, len(positions))
        axis = self.channels.layouts[tensor].axis
        pattern = values.astype(np.float32).reshape(
            [1] + [len(positions) if a == axis else 1 for a in range(len(shape))]
        )
        source = next(iter([*builder.links_in, *([builder.image.name] if builder.image is not None else [])]), None)
        source = source or self._use(builder, self.pieces[self.graph.image, 0])
        sizes = builder.op("Shape", [source], f"{tensor}.sizes", [])
        batch = builder.op("Slice", [sizes, np.array([0]), np.array([1])], f"{tensor}.batch", [])
        target = builder.op(
            "Concat", [batch, np.array(shape, dtype=np.int64)], f"{tensor}.target", [], attrs={"axis": 0}
        )
        for name in (sizes, batch, target):
            builder.tensors[name].dtype, builder.tensors[name].shape = np.int64, None
        return builder.op("Expand", [pattern, target], tensor, shape)

    # --- step 3: bring channels together ------------------------------------------------------------

    def fetch(self, stage: int, tensor: str, positions: Array, *, ordered: bool = False) -> tuple[str, Array]:
        """The runtime tensor in `stage` that holds `positions` of `tensor`, and the order in which it does.

        Without `ordered` the order is whatever costs least.
        """
        builder, axis = self.stages[stage - 1], self.channels.layouts[tensor].axis
        segments, order = self._arrange(tensor, positions)
        if ordered and order != positions.tolist():
            runs = self._runs(tensor, positions)
            if len(runs) <= MAX_RUNS:
                segments, order = runs, positions.tolist()
        name = self._join_segments(builder, tensor, segments)
        if ordered and order != positions.tolist():
            place = {p: i for i, p in enumerate(order)}
            index = np.array([place[p] for p in positions.tolist()])
            name = builder.op(
                "Gather", [name, index], tensor, self._shape(tensor, len(index)), attrs={"axis": axis + 1}
            )
            order = positions.tolist()
        return name, np.array(order, dtype=np.int64)

    def _join_segments(self, builder: StageGraph, tensor: str, segments: list[_Segment]) -> str:
        """One runtime tensor of all segments: themselves, a Concat, and a Pad for constants at the end."""
        layout = self.channels.layouts[tensor]
        padding: list[int] = []
        if len(segments) > 1 and segments[-1][0] is None and len(set(layout.fill[segments[-1][1]].tolist())) == 1:
            segments, padding = segments[:-1], segments[-1][1]
        parts = [self._segment(builder, tensor, layout, piece, index) for piece, index in segments]
        count = sum(len(index) for _, index in segments)
        name = parts[0]
        if len(parts) > 1:
            name = builder.op("Concat", parts, tensor, self._shape(tensor, count), attrs={"axis": layout.axis + 1})
        if padding:
            pads = np.zeros((2, len(self.graph.shapes[tensor]) + 1), dtype=np.int64)
            pads[1, layout.axis + 1] = len(padding)
            value = layout.fill[padding[0]].reshape(())
            name = builder.op("Pad", [name, pads.reshape(-1), value], tensor, self._shape(tensor, count + len(padding)))
        return name

    def _arrange(self, tensor: str, positions: Array) -> tuple[list[_Segment], list[int]]:
        """The cheapest arrangement: per piece (None: constants) the indices to take, and the positions in that order."""
        segments: list[_Segment] = []
        order: list[int] = []
        for root, stage, mine in self._sources(tensor, positions):
            if not root:
                segments.append((None, positions[mine].tolist()))
                order += positions[mine].tolist()
                continue
            piece = self.pieces[root, stage]
            index = piece.index[self.channels.layouts[tensor].position[positions[mine]]]
            for turn in _turns(index):  # a channel that shows twice is taken in turns
                turn = turn[np.argsort(index[turn], kind="stable")]
                segments.append((piece, index[turn].tolist()))
                order += positions[mine[turn]].tolist()
        return segments, order

    def _runs(self, tensor: str, positions: Array) -> list[_Segment]:
        """The wanted order as runs of consecutive channels of one piece."""
        layout = self.channels.layouts[tensor]
        wanted: list[tuple[_Piece | None, int]] = [(None, p) for p in positions.tolist()]
        for root, stage, mine in self._sources(tensor, positions):
            if root:
                piece = self.pieces[root, stage]
                for i, index in zip(mine.tolist(), piece.index[layout.position[positions[mine]]].tolist(), strict=True):
                    wanted[i] = (piece, index)
        runs: list[_Segment] = []
        for piece_, index in wanted:
            if runs and runs[-1][0] is piece_ and runs[-1][1][-1] + 1 == index:
                runs[-1][1].append(index)
            else:
                runs.append((piece_, [index]))
        return runs

    def _segment(self, builder: StageGraph, tensor: str, layout: Layout, piece: _Piece | None, index: list[int]) -> str:
        """Runtime name of some channels of one piece, or of constants."""
        if piece is None:
            return self._constant(builder, tensor, np.array(index), layout.fill[index])
        return self._cut(builder, tensor, self._use(builder, piece), index, len(piece.positions))

    def _cut(self, builder: StageGraph, tensor: str, name: str, index: list[int], count: int) -> str:
        """The channels `index` of a runtime tensor with `count` of them."""
        shape, axis = self._shape(tensor, len(index)), self.channels.layouts[tensor].axis
        return builder.cut(name, index, tensor, shape, axis=axis, count=count)

    def _use(self, builder: StageGraph, piece: _Piece) -> str:
        """Make a piece readable in a stage: its own tensor, the image, or a link."""
        here = builder.number - self.first + 1
        if piece.home == 0:
            return builder.take_image(self.graph)
        if piece.home != here and piece.name not in builder.links_in:
            home = self.stages[piece.home - 1]
            made = home.tensors[piece.name]
            home.links_out[piece.name] = made
            link = gs.Variable(piece.name, dtype=made.dtype, shape=list(made.shape))
            builder.links_in[piece.name] = builder.tensors[piece.name] = link
        return piece.name

    # --- step 4: close ------------------------------------------------------------------------------

    def close(self) -> tuple[StageModel, ...]:
        """Add heads, trailing Softmax and confidence, and build the models."""
        for stage, tap in enumerate(self.plan.taps, start=1):
            builder = self.stages[stage - 1]
            if tap == self.graph.output:
                logits, _ = self.fetch(stage, tap, self._all(tap), ordered=True)
            else:
                logits = self._head(builder, stage, tap)
            tensor = self.graph.shapes[self.graph.output]
            builder.answer(logits, tensor, tail=self.graph.tail, temperature=self.weights.temperature(builder.number))
        return tuple(builder.finish() for builder in self.stages)

    def _head(self, builder: StageGraph, stage: int, tap: str) -> str:
        """The logits of an exit: means over the cells of the tap, then the head's layers."""
        layout = self.channels.layouts[tap]
        head = self.weights.heads.get(tap) or initial_head(self.graph, self.channels, tap)
        source, order = self.fetch(stage, tap, self._readable(tap, stage))
        if len(self.graph.shapes[tap]) == 3:
            source = self._pooled(builder, tap, source, len(order), cell=head.cell)
        first = head.first_weight(len(layout.units))[:, order]
        weights = [first.reshape(len(first), -1), *(weight for weight, _ in head.layers[1:])]
        for number, (weight, (_, bias)) in enumerate(zip(weights, head.layers, strict=True), start=1):
            name, shape = ("exit.logits" if number == len(weights) else f"exit.hidden{number}"), [len(weight)]
            source = builder.op("Gemm", [source, weight, bias], name, shape, attrs={"transB": 1})
            if number < len(weights):
                source = builder.op("Relu", [source], f"{name}.relu", shape)
            builder.macs += int(weight.size)
        shape = list(self.graph.shapes[self.graph.output])
        if len(shape) > 1:
            source = builder.op("Reshape", [source, np.array([0, *shape])], "exit.shaped", shape)
        return source

    def _pooled(self, builder: StageGraph, tap: str, source: str, count: int, *, cell: tuple[int, int] | None) -> str:
        """The features of a head: the means over the cells of a map with `count` channels, channel by channel."""
        axis, shape = self.channels.layouts[tap].axis, list(self.graph.shapes[tap])
        if cell is None and axis == 2:
            return builder.reduce("ReduceMean", source, [1, 2], [count])
        if axis == 2:
            shape = [shape[2], *shape[:2]]
            source = builder.op("Transpose", [source], "exit.map", [count, *shape[1:]], attrs={"perm": [0, 3, 1, 2]})
        grid = [1, 1] if cell is None else [side // step for side, step in zip(shape[1:], cell, strict=True)]
        if cell is None:
            source = builder.op("GlobalAveragePool", [source], "exit.pooled", [count, *grid])
        elif cell != (1, 1):
            steps = {"kernel_shape": list(cell), "strides": list(cell)}
            source = builder.op("AveragePool", [source], "exit.pooled", [count, *grid], attrs=steps)
        return builder.op("Flatten", [source], "exit.features", [count * int(np.prod(grid))], attrs={"axis": 1})

"""Cut a graph into the stages of a plan: Graph + Plan + Weights -> one ONNX model per stage.

The steps (*pieces* are defined in `demand`):

1. backwards over the graph, find the pieces that some stage's logits depend on (`demand`);
2. forwards, emit every needed piece once, in its stage. Weights lose the rows of other stages and the
   columns of later ones; a mixing row without any input is zero, and additions of zero vanish;
3. a piece that a later stage reads becomes a link: an output here, an input there (`pieces`);
4. close every stage with its head (pooled tap -> logits; the last one is the model's own classifier),
   the model's trailing Softmax and the confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.channels.linear import transposed_kernel
from s2d_convert.channels.macs import PRODUCTS, macs_of, macs_per_weight
from s2d_convert.channels.pointwise import slice_constant
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.weights import Hollow, Weights, initial_head
from s2d_convert.slicing.demand import Demand
from s2d_convert.slicing.exits import exit_logits
from s2d_convert.slicing.pieces import Pieces
from s2d_convert.slicing.stage_graph import OUTPUT, StageModel

__all__ = ["OUTPUT", "StageModel", "split"]

SUMS = ("Add", "Sum")


def split(
    graph: Graph, channels: Channels, plan: Plan, weights: Weights, *, first_stage: int = 1
) -> tuple[StageModel, ...]:
    """Return the stages of one chain, in order. `first_stage` is the number of its first stage in the conversion.

    Exit heads that `weights` lacks are initialised from the classifier. Raises UsageError when the plan does not fit.
    """
    cutter = _Cutter(AnalysedModel(graph, channels), plan, weights, first_stage)
    cutter.emit(cutter.demand.pieces())
    return cutter.close()


def _taken(weight: Array, index: Array, axis: int) -> Array:
    """Take the positions `index` along an axis of a weight; the weight itself, not a copy, if these are all in order."""
    if len(index) == weight.shape[axis] and bool((index == np.arange(len(index))).all()):
        return weight
    if isinstance(weight, Hollow):
        return Hollow.of((*weight.shape[:axis], len(index), *weight.shape[axis + 1 :]))
    return weight.take(index, axis=axis)


class _Cutter:
    """The state of one `split`; one `emit_` method for every kind of node, see `EMIT`."""

    def __init__(self, model: AnalysedModel, plan: Plan, weights: Weights, first_stage: int) -> None:
        self.model, self.graph, self.channels = model, model.graph, model.channels
        self.plan, self.weights = plan, weights
        self.demand = Demand(model, plan)
        self.effective = self.demand.effective
        self.pieces = Pieces(self.demand, first_stage)
        self.stages = self.pieces.stages

    # --- emit -------------------------------------------------------------------------------

    def emit(self, needed: set[tuple[str, int]]) -> None:
        """Emit every needed piece into its stage, in topological order."""
        for node in self.graph.nodes:
            for stage in range(1, self.plan.stages + 1):
                if any((name, stage) in needed for name in node.outputs):
                    EMIT[self.model.kind(node)](self, node, stage)

    def emit_mix(self, node: Node, stage: int) -> None:
        """Emit the rows of this stage, with the columns that exist by then."""
        out, builder = node.outputs[0], self.stages[stage - 1]
        rows, columns = self.demand.made(node, stage), self.demand.readable(node.inputs[0], stage)
        weight, bias = self.weights.mix[node.name]
        source, order = self.pieces.fetch(stage, node.inputs[0], columns)
        if len(weight[0]) != len(self.channels.layouts[node.inputs[0]].units):
            order = np.arange(len(weight[0]))  # a tensor of one unit, read along another axis than its own
        part = _taken(_taken(weight, rows, 0), order, 1)
        shape = self.pieces.shape(out, len(rows))
        name = builder.mixing(node, source, part, None if bias is None else bias[rows], shape=shape)
        builder.macs += int(part.size) * macs_per_weight(
            node, self.graph.shapes[node.inputs[0]], self.graph.shapes[out]
        )
        self.pieces.keep(out, stage, name, rows)

    def emit_grouped(self, node: Node, stage: int) -> None:
        """Emit the conv groups of this stage."""
        out, builder = node.outputs[0], self.stages[stage - 1]
        by_group = self.demand.group_columns(node, stage)
        wanted = np.concatenate(list(by_group.values()))
        size = len(wanted) // len(by_group)
        _, natural = self.pieces.arrange(node.inputs[0], wanted)
        groups = list(dict.fromkeys((np.asarray(natural) // size).tolist()))
        groups += [g for g in by_group if g not in groups]
        ordered = np.concatenate([by_group[g] for g in groups])
        source, _ = self.pieces.fetch(stage, node.inputs[0], ordered, ordered=True)
        weight, bias = self.weights.mix[node.name]
        per = len(weight) // int(node.attrs["group"])
        rows = np.concatenate([np.arange(g * per, (g + 1) * per) for g in groups])
        shape = self.pieces.shape(out, len(rows))
        live = self.effective.live(out)[rows]
        part = weight[rows] if node.op == "Conv" else transposed_kernel(weight[rows], len(groups))
        operands: list[str | Array] = [source, part, *([] if bias is None else [bias[rows] * live])]
        name = builder.op(node.op, operands, out, shape, attrs={**node.attrs, "group": len(groups)})
        builder.macs += int(weight[rows].size) * macs_per_weight(
            node, self.graph.shapes[node.inputs[0]], self.graph.shapes[out]
        )
        self.pieces.keep(out, stage, name, rows)

    def emit_map(self, node: Node, stage: int) -> None:
        """Emit the same operator on the channels of this stage."""
        source, builder = self.graph.computed(node)[0], self.stages[stage - 1]
        positions = self.demand.same_positions(source, node, stage)
        made = self.demand.made(node, stage)
        whole = self.channels.layouts[source].uniform
        data, order = self.pieces.fetch(stage, source, positions, ordered=whole)
        kept = made if whole else order
        operands = self._operands(node, {source: data}, source, order)
        names = builder.ops(
            node.op, operands, [(n, self.pieces.shape(n, len(kept))) for n in node.outputs], dict(node.attrs)
        )
        for tensor, name in zip(node.outputs, names, strict=True):
            self.pieces.keep(tensor, stage, name, kept)

    def emit_join(self, node: Node, stage: int) -> None:
        """Emit the same operator on the channels of this stage, its operands in one order; a sum leaves out what is zero."""
        out, builder = node.outputs[0], self.stages[stage - 1]
        made, inputs = self.demand.made(node, stage), self.graph.computed(node)
        if node.op in SUMS and len(inputs) == len(node.inputs):
            inputs = self._summands(node, stage)
            node = replace(node, inputs=inputs)
        lead = self._lead(node, stage, inputs)
        if len(inputs) == 1 and self._alias(out, stage, lead, made):
            return None
        data, order = self._fetch_operand(node, stage, lead, made, ordered=self.channels.layouts[out].uniform)
        fetched = {lead: data}
        for tensor in inputs:
            if tensor not in fetched:
                fetched[tensor], _ = self._fetch_operand(node, stage, tensor, order, ordered=True)
        shape = self.pieces.shape(out, len(order))
        if len(inputs) == 1:  # a copy, so that the piece is this stage's own even where nothing was done to it
            return self.pieces.keep(out, stage, builder.op("Identity", [data], out, shape), order)
        operands = self._operands(node, fetched, lead, order)
        return self.pieces.keep(out, stage, builder.op(node.op, operands, out, shape, attrs=dict(node.attrs)), order)

    def _lead(self, node: Node, stage: int, inputs: tuple[str, ...]) -> str:
        """Choose the operand of a JOIN that sets the order of the others: of full width, if possible without constants."""
        layouts, out = self.channels.layouts, node.outputs[0]
        full = [t for t in inputs if not self.demand.is_spread(t, out)]
        if not layouts[out].uniform:  # what comes from the image alone has no order to follow
            full = [t for t in full if not layouts[t].uniform] or full
        return next(
            (t for t in full if (layouts[t].root[self.demand.same_positions(t, node, stage)] >= 0).all()), full[0]
        )

    def _fetch_operand(
        self, node: Node, stage: int, tensor: str, positions: Array, *, ordered: bool
    ) -> tuple[str, Array]:
        """Fetch the runtime tensor that holds `positions` of a JOIN's output in one of its operands, and their order."""
        out, layouts, builder = node.outputs[0], self.channels.layouts, self.stages[stage - 1]
        if not layouts[tensor].uniform:
            return self.pieces.fetch(stage, tensor, positions, ordered=ordered)
        name, _ = self.pieces.fetch(stage, tensor, self.demand.every(tensor), ordered=True)
        if layouts[out].uniform or self.demand.is_spread(tensor, out):
            return name, positions
        axis, whole = layouts[out].axis, self.graph.shapes[tensor]
        shape = [len(positions) if a == axis else n for a, n in enumerate(whole)]
        return builder.cut(name, positions.tolist(), tensor, shape, axis=axis, count=whole[axis]), positions

    def _summands(self, node: Node, stage: int) -> tuple[str, ...]:
        """Return the operands of a sum that are not all zero, and as many others as give the sum its shape."""
        inputs, shapes = self.graph.computed(node), self.graph.shapes
        kept = [t for t in inputs if self.effective.live(t)[self.demand.same_positions(t, node, stage)].any()]
        for tensor in inputs:
            if kept and np.broadcast_shapes(*(shapes[t] for t in kept)) == shapes[node.outputs[0]]:
                break
            if tensor not in kept:
                kept.append(tensor)
        return tuple(t for t in inputs if t in kept)

    def emit_norm(self, node: Node, stage: int) -> None:
        """Emit the norm over all channels up to this stage, then keep only those of this stage."""
        source, out, builder = node.inputs[0], node.outputs[0], self.stages[stage - 1]
        data, order = self.pieces.fetch(stage, source, self.effective.counted(node, stage), ordered=node.op == "LRN")
        operands = self._operands(node, {source: data}, source, order)
        name = builder.op(node.op, operands, out, self.pieces.shape(out, len(order)), attrs=dict(node.attrs))
        index = np.flatnonzero((self.effective.of(out)[order] == stage) & self.effective.live(out)[order])
        self.pieces.keep(out, stage, self.pieces.cut(builder, out, name, index.tolist(), len(order)), order[index])

    def emit_reduce(self, node: Node, stage: int) -> None:
        """Emit the value over all channels up to this stage."""
        source, out, builder = node.inputs[0], node.outputs[0], self.stages[stage - 1]
        data, order = self.pieces.fetch(stage, source, self.effective.counted(node, stage))
        operands = self._operands(node, {source: data}, source, order)
        name = builder.op(node.op, operands, out, self.graph.shapes[out], attrs=dict(node.attrs))
        self.pieces.keep(out, stage, name, self.demand.every(out))

    def _alias(self, out: str, stage: int, source: str, positions: Array) -> bool:
        """Let a piece be another piece itself, so that adding zero costs nothing, not even a link of its own."""
        sources = self.demand.sources(source, positions)
        root, e, _ = sources[0]
        if len(sources) != 1 or not root:
            return False
        piece = self.pieces[root, e]
        layout = self.channels.layouts[source]
        if layout.roots != (source,) or len(piece.positions) != len(positions):
            return False
        self.pieces.keep(out, stage, piece.name, piece.positions, home=piece.home)
        return True

    def emit_opaque(self, node: Node, stage: int) -> None:
        """Emit the node as it is."""
        builder = self.stages[stage - 1]
        fetched = {}
        for tensor in self.graph.computed(node):
            fetched[tensor], _ = self.pieces.fetch(stage, tensor, self.demand.every(tensor), ordered=True)
        operands = [fetched[n] if n in fetched else self.weights.operand(self.graph, node, i) if n else ""
                    for i, n in enumerate(node.inputs)]  # fmt: skip
        names = builder.ops(node.op, operands, [(n, self.graph.shapes[n]) for n in node.outputs], dict(node.attrs))
        if node.op in PRODUCTS:
            builder.macs += macs_of(node, self.graph)
        for tensor, name in zip(node.outputs, names, strict=True):
            self.pieces.keep(tensor, stage, name, self.demand.every(tensor))

    def emit_move(self, node: Node, stage: int) -> None:
        """Emit a movement that must really run (Flatten, Transpose...) on the channels of this stage."""
        source, out, builder = self.graph.computed(node)[0], node.outputs[0], self.stages[stage - 1]
        if (out, stage) not in self.pieces and not self.channels.is_root(out):
            return  # a view: its channels are found through its roots
        positions = self.demand.moved(node, stage)
        shape = self.pieces.shape(out, len(self.demand.made(node, stage)))
        _, natural = self.pieces.arrange(source, positions)
        kept = self.demand.moved_places(node, np.array(natural), shape)
        data, order = self.pieces.fetch(stage, source, positions, ordered=kept is None)
        if kept is None:  # a reshape that cuts through the channels needs them in their original order
            kept = self.demand.moved_places(node, order, shape)
            assert kept is not None, "channels in their original order stay a grid under any movement"
        if node.op != "Reshape":
            operands: list[str | Array] = [data, *(self.graph.constants[n] for n in node.inputs[1:])]
            name = builder.op(node.op, operands, out, shape, attrs=dict(node.attrs))
        else:
            name = builder.op("Reshape", [data, np.array([0, *shape])], out, shape)
        self.pieces.keep(out, stage, name, kept)

    def _operands(self, node: Node, fetched: dict[str, str], data: str, order: Array) -> list[str | Array]:
        """Return the inputs of an emitted MAP or JOIN node: fetched tensors, and constants cut to `order`."""
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

    # --- close ------------------------------------------------------------------------------

    def close(self) -> tuple[StageModel, ...]:
        """Add heads, trailing Softmax and confidence, and build the models."""
        for stage, tap in enumerate(self.plan.taps, start=1):
            builder = self.stages[stage - 1]
            if tap == self.graph.output:
                logits, _ = self.pieces.fetch(stage, tap, self.demand.every(tap), ordered=True)
            else:
                head = self.weights.heads.get(tap) or initial_head(self.model, tap)
                logits = exit_logits(self.pieces, stage, tap, head)
            builder.answer(logits, self.graph, temperature=self.weights.temperature(builder.number))
        return tuple(builder.finish() for builder in self.stages)


# TIE is missing, because a finished analysis has none: see `kinds.FINAL_KINDS`.
EMIT: Mapping[Kind, Callable[[_Cutter, Node, int], None]] = {
    Kind.MIX: _Cutter.emit_mix,
    Kind.GROUPED: _Cutter.emit_grouped,
    Kind.MAP: _Cutter.emit_map,
    Kind.JOIN: _Cutter.emit_join,
    Kind.NORM: _Cutter.emit_norm,
    Kind.REDUCE: _Cutter.emit_reduce,
    Kind.MOVE: _Cutter.emit_move,
    Kind.OPAQUE: _Cutter.emit_opaque,
}

"""What the stages of a plan need: which positions of which tensors each of them computes and reads.

A *piece* is the part of a computed tensor that one stage computes: the positions p with e(p) = s. Roots and positions
are those of the analysis. Everything here follows from the model and the plan; nothing is emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.channels.movement import move
from s2d_convert.channels.pointwise import UNDEFINED_AT_ZERO
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan


class Demand:
    """The positions that the stages of one chain compute and read."""

    def __init__(self, model: AnalysedModel, plan: Plan) -> None:
        self.model, self.graph, self.channels, self.plan = model, model.graph, model.channels, plan
        self.effective = Effective(model, plan)
        self._held: dict[str, Array] = {}

    def pieces(self) -> set[tuple[str, int]]:
        """Return the (root tensor, stage) pairs that some stage's logits depend on."""
        needed: set[tuple[str, int]] = set()
        for stage, tap in enumerate(self.plan.taps, start=1):
            everything = tap == self.graph.output
            self._need(needed, tap, self.every(tap) if everything else self.readable(tap, stage))
        for node in reversed(self.graph.nodes):
            for stage in range(1, self.plan.stages + 1):
                if any((name, stage) in needed for name in node.outputs):
                    for name, positions in self._reads(node, stage):
                        self._need(needed, name, positions)
        return needed

    def _need(self, needed: set[tuple[str, int]], tensor: str, positions: Array) -> None:
        needed.update((root, stage) for root, stage, _ in self.sources(tensor, positions) if root)

    def sources(self, tensor: str, positions: Array) -> list[tuple[str, int, Array]]:
        """Return where `positions` of a tensor come from: for each (root, effective stage) which of them, as indices into
        `positions`; root '' for constants and for what is always zero."""
        layout = self.channels.layouts[tensor]
        roots, at_root = layout.root[positions], layout.position[positions]
        sources: list[tuple[str, int, Array]] = []
        missing = roots < 0
        for number, root in enumerate(layout.roots):
            mine = np.flatnonzero(roots == number)
            present = self._present(root)[at_root[mine]]
            missing[mine[~present]] = True
            mine = mine[present]
            stages = self.effective.of(root)[at_root[mine]]
            sources += [(root, int(e), mine[stages == e]) for e in np.unique(stages)]
        if missing.any():
            sources.append(("", 0, np.flatnonzero(missing)))
        return sorted(sources, key=lambda source: (not source[0], int(source[2][0])))

    def _present(self, root: str) -> Array:
        """Return which positions of a root its pieces hold, bool [C]: not those of a stage where all are always zero."""
        if root not in self._held:
            stages, live = self.effective.of(root), self.effective.live(root)
            self._held[root] = np.isin(stages, stages[live]) & self._computed(root)
        return self._held[root]

    def _computed(self, root: str) -> Array:
        """Return which positions of a root are computed, bool [C].

        Of a norm, and of an operator undefined at zero, those are left out that are zero because the plan pruned what they
        are made of.
        """
        node, live = self.graph.producer.get(root), self.effective.live(root)
        if node is None or not (self.channels.roles[node.name].kind is Kind.NORM or node.op in UNDEFINED_AT_ZERO):
            return np.ones_like(live)
        return live

    def _reads(self, node: Node, stage: int) -> list[tuple[str, Array]]:
        """Return the (tensor, positions) that the pieces of a node in one stage are computed from."""
        positions = READ[self.model.kind(node)]
        return [(name, positions(self, name, node, stage)) for name in self.graph.computed(node)]

    def readable_columns(self, tensor: str, node: Node, stage: int) -> Array:
        """Return what a MIX node reads: all that exists by then."""
        return self.readable(tensor, stage)

    def counted(self, tensor: str, node: Node, stage: int) -> Array:
        """Return what a NORM or REDUCE node reads: all that exists by then, constants included."""
        return self.effective.counted(node, stage)

    def whole_groups(self, tensor: str, node: Node, stage: int) -> Array:
        """Return what a GROUPED node reads: the channels of the groups that the stage computes."""
        return np.concatenate(list(self.group_columns(node, stage).values()))

    def whole_tensor(self, tensor: str, node: Node, stage: int) -> Array:
        """Return what an OPAQUE node reads: everything."""
        return self.every(tensor)

    def moved_positions(self, tensor: str, node: Node, stage: int) -> Array:
        """Return what a MOVE node reads: the channels that it shows."""
        return self.moved(node, stage)

    def every(self, tensor: str) -> Array:
        """Return all positions of a tensor."""
        return np.arange(len(self.channels.layouts[tensor].units))

    def made(self, node: Node, stage: int) -> Array:
        """Return the output positions of a node that `stage` computes, sorted by unit."""
        name = node.outputs[0]
        positions = np.flatnonzero((self.effective.of(name) == stage) & self._computed(name))
        if self.channels.layouts[name].uniform:
            return positions
        return positions[np.argsort(self.channels.layouts[name].units[positions], kind="stable")]

    def same_positions(self, tensor: str, node: Node, stage: int) -> Array:
        """Return the positions of an operand of a MAP or JOIN that its piece needs: all of a tensor of one unit."""
        return self.every(tensor) if self.channels.layouts[tensor].uniform else self.made(node, stage)

    def is_spread(self, tensor: str, out: str) -> bool:
        """Tell whether one channel of a JOIN's operand serves all channels of its output."""
        axis = self.channels.layouts[out].axis
        return self.graph.shapes[tensor][axis] == 1 < self.graph.shapes[out][axis]

    def readable(self, tensor: str, stage: int) -> Array:
        """Return the positions that a mixing operator may read in a stage; all or none of a tensor of one unit."""
        return np.flatnonzero(self.effective.readable(tensor, stage))

    def group_columns(self, node: Node, stage: int) -> dict[int, Array]:
        """Return for each conv group that `stage` computes, its input positions."""
        groups = int(node.attrs["group"])
        rows = len(self.channels.layouts[node.outputs[0]].units) // groups
        columns = len(self.channels.layouts[node.inputs[0]].units) // groups
        kept = dict.fromkeys((self.made(node, stage) // rows).tolist())
        return {g: np.arange(g * columns, (g + 1) * columns) for g in kept}

    def moved(self, node: Node, stage: int) -> Array:
        """Return the input positions whose channels a MOVE root shows in a stage, found by moving all elements."""
        source, out = self.graph.computed(node)[0], node.outputs[0]
        before, axis = self.graph.shapes[source], self.channels.layouts[source].axis
        elements = np.arange(int(np.prod(before))).reshape(before)
        moved = self._move_elements(node, elements, self.graph.shapes[out])
        shown = moved.take(self.made(node, stage), axis=self.channels.layouts[out].axis) if moved.ndim else moved
        return np.unique(np.unravel_index(shown.reshape(-1), before)[axis]) if before else np.zeros(1, dtype=np.int64)

    def moved_places(self, node: Node, order: Array, shape: Sequence[int]) -> Array | None:
        """Return the output positions that a movement gives when its input holds the channels in `order`, in their order.

        None if that is not the movement of whole channels: found by moving the numbers of all elements.
        """
        source, out = self.graph.computed(node)[0], node.outputs[0]
        before, after = self.graph.shapes[source], self.graph.shapes[out]
        axis_in, axis_out = self.channels.layouts[source].axis, self.channels.layouts[out].axis
        elements = np.arange(int(np.prod(before))).reshape(before)
        full = self._move_elements(node, elements, after)
        part = self._move_elements(node, elements.take(order, axis=axis_in), tuple(shape))
        position = np.zeros(full.size, dtype=np.int64)
        position[full] = np.arange(after[axis_out]).reshape([-1 if a == axis_out else 1 for a in range(len(after))])
        kept: Array = position[np.moveaxis(part, axis_out, 0).reshape(shape[axis_out], -1)[:, 0]]
        return kept if np.array_equal(full.take(kept, axis=axis_out), part) else None

    def _move_elements(self, node: Node, elements: Array, shape: tuple[int, ...]) -> Array:
        if node.op not in ("Transpose", "DepthToSpace", "SpaceToDepth"):
            return elements.reshape(shape)
        return move(node, [elements[None]], self.graph.constants, fill=-1)[0][0]


# The positions of one computed input that a node reads in one stage. TIE is missing: see `kinds.FINAL_KINDS`.
READ: Mapping[Kind, Callable[[Demand, str, Node, int], Array]] = {
    Kind.MIX: Demand.readable_columns,
    Kind.GROUPED: Demand.whole_groups,
    Kind.MAP: Demand.same_positions,
    Kind.JOIN: Demand.same_positions,
    Kind.NORM: Demand.counted,
    Kind.REDUCE: Demand.counted,
    Kind.MOVE: Demand.moved_positions,
    Kind.OPAQUE: Demand.whole_tensor,
}

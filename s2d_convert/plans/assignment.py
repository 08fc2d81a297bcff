"""What a plan means: in which stage every channel is computed, which can be other than zero, which see the image.

Node n computes unit u in stage ``e(n, u) = max(s(u), d(n))``, and an operator that mixes channels may connect input i to
output o only where ``e(i) <= e(o)``. All else follows from this rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Layout
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.image_scale import refusal
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.liveness import Liveness, words_of
from s2d_convert.plans.plan import MAX_STAGES, PRUNED, Conversion, Plan, check_plan

NO_STAGE = 1 << 20  # the effective stage of a unit that no stage computes


class Effective:
    """Effective stages of every channel under one plan. Raises UsageError when the plan does not fit the graph."""

    def __init__(self, model: AnalysedModel, plan: Plan, *, check_taps: bool = True) -> None:
        self.model, self.graph, self.channels, self.plan = model, model.graph, model.channels, plan
        check_plan(model, plan)
        self._check_folded()
        stages = np.array([*plan.stages_of_units, 0], dtype=np.int64)  # FREE (-1) reads the last entry
        stages[:-1][stages[:-1] == PRUNED] = NO_STAGE
        self._stage_of_unit = stages
        self._cache: dict[str, Array] = {}
        for stage, tap in enumerate(plan.taps if check_taps else (), start=1):
            if not self.readable(tap, stage).any():
                raise UsageError(f"plan: stage {stage} has no channel of its tap '{tap}'; give it at least one unit")
            if not self.sees(tap, stage).any():
                raise UsageError(
                    f"plan: nothing of the image reaches tap '{tap}' of stage {stage}; give it units of the classes before"
                )

    def _check_folded(self) -> None:
        for name in self.graph.folded:
            ends = [self.graph.producer[name], *(reader for reader, _ in self.graph.consumers.get(name, ()))]
            if len({self.depth[n.name] for n in ends if n.name in self.depth}) > 1:
                raise UsageError(
                    f"plan: a stage would end at '{name}', whose rows are not those of the batch; choose another tap"
                )

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """d(n) by node name: the first stage whose tap has n among its ancestors. Nodes that no tap needs are absent."""
        depth: dict[str, int] = {}
        for stage, tap in enumerate(self.plan.taps, start=1):
            pending = [tap]
            while pending:
                node = self.graph.producer.get(pending.pop())
                if node is not None and node.name not in depth:
                    depth[node.name] = stage
                    pending.extend(self.graph.computed(node))
        return depth

    def of(self, tensor: str) -> Array:
        """Return e for every position of a tensor with a layout, int64 [C]: 0 for the image and constants, NO_STAGE if pruned."""
        if tensor not in self._cache:
            layout = self.channels.layouts[tensor]
            if layout.roots == (tensor,):
                self._cache[tensor] = self._of_root(tensor, layout)
            else:
                tables = [self.of(root) for root in layout.roots]
                self._cache[tensor] = layout.gather(tables, np.zeros(len(layout.root), dtype=np.int64))
        return self._cache[tensor]

    def _of_root(self, tensor: str, layout: Layout) -> Array:
        if tensor == self.graph.image:
            return np.zeros(len(layout.units), dtype=np.int64)
        depth = self.depth.get(self.graph.producer[tensor].name, NO_STAGE)
        return np.maximum(self._stage_of_unit[layout.units], depth)

    def live(self, tensor: str) -> Array:
        """Return which positions of a tensor can be other than zero, bool [C].

        A mixing row that reads no live channel counts as zero, bias included. This lets a residual block whose inner class has no
        unit in a stage vanish from that stage.
        """
        live: Array = self._liveness.live(tensor)[:, 0] != 0
        return live

    def readable(self, tensor: str, stage: int) -> Array:
        """Return the positions of a tensor that exist by the end of `stage` and can be other than zero, bool [C]."""
        return (self.of(tensor) <= stage) & self.live(tensor)

    def sees(self, tensor: str, stage: int) -> Array:
        """Return which of the readable positions depend on the image, bool [C]. A bias behind channels of zeros does not."""
        seen: Array = self._liveness.seen(tensor)[:, 0] != 0
        return self.readable(tensor, stage) & seen

    def mask(self, node: Node) -> Array:
        """Return M[o, i] = e(i) <= e(o) of a MIX node, bool [O, I]. Pruned rows and columns that are always zero are False."""
        source = node.inputs[0]
        rows, columns = self.of(node.outputs[0])[:, None], self.columns(node, self.of(source))[None, :]
        return (columns <= rows) & (rows < NO_STAGE) & self.columns(node, self.live(source))[None, :]

    def levels(self, node: Node) -> tuple[tuple[Array, Array], ...]:
        """Return, for every stage of a NORM or REDUCE node, the positions that it reads and those that it makes.

        A channel that is zero because the plan pruned what it was made of takes no part in statistics and stays zero.
        """
        out = node.outputs[0]
        made = self.of(out)
        if self.channels.roles[node.name].kind is Kind.REDUCE:
            return ((self.counted(node, int(made[0])), np.arange(len(made))),)
        live = self.live(out)
        stages = np.unique(made[live & (made < NO_STAGE)]).tolist()
        return tuple((self.counted(node, k), np.flatnonzero(live & (made == k))) for k in stages)

    def counted(self, node: Node, stage: int) -> Array:
        """Return the input positions that a NORM or REDUCE node reads in a stage: all that exist by then, constants included."""
        source = node.inputs[0]
        free = self.channels.layouts[source].units == FREE
        return np.flatnonzero((self.of(source) <= stage) & (self.live(source) | free))

    def columns(self, node: Node, values: Array) -> Array:
        """Convert per-position `values` of a MIX node's input to per-column values [I]. A tensor of one unit may be
        read along any axis."""
        shape = self.graph.shapes[node.inputs[0]]
        axis = 0 if node.op in ("Conv", "ConvTranspose") else len(shape) - 1
        channel_axis = self.channels.layouts[node.inputs[0]].axis
        return values if channel_axis == axis else np.broadcast_to(values.max(keepdims=True), (shape[axis],))

    @cached_property
    def _liveness(self) -> Liveness:
        """Liveness in this one plan."""
        return Liveness(self.model, kept=lambda root: words_of(self.of(root) < NO_STAGE), stages=self.of)


def check_conversion(model: AnalysedModel, conversion: Conversion) -> None:
    """Raise UsageError unless every chain fits the graph, at its scale too, and the last one ends in the model's own logits."""
    for number, plan in enumerate(conversion.chains, start=1):
        wrong = refusal(model, plan.scale)
        if wrong:
            raise UsageError(f"plan: chain {number}: {wrong}")
        Effective(model, plan)
    last = conversion.chains[-1].taps[-1]
    if last != model.graph.output:
        raise UsageError(f"plan: the last tap is '{last}'; it must be the model's logits '{model.graph.output}'")
    if conversion.stages > MAX_STAGES:
        raise UsageError(f"plan: {conversion.stages} stages in all; at most {MAX_STAGES} are allowed")

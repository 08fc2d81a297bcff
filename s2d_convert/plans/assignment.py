"""What a plan means: in which stage every channel is computed, which can be other than zero, which see the image.

Node n computes unit u in stage ``e(n, u) = max(s(u), d(n))``, and an operator that mixes channels may connect input i to
output o only where ``e(i) <= e(o)``. All else follows from this rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Layout
from s2d_convert.channels.propagation import FREE
from s2d_convert.channels.rules import UNDEFINED_AT_ZERO, Array, Kind, keeps_zero
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.plan import MAX_STAGES, PRUNED, Conversion, Plan, check_plan

NEVER = 1 << 20  # the effective stage of a unit that no stage computes
ADDITIVE = ("Add", "Sum", "Sub")


class Effective:
    """Effective stages of every channel under one plan. Raises UsageError when the plan does not fit the graph."""

    def __init__(self, model: AnalysedModel, plan: Plan, *, check_taps: bool = True) -> None:
        self.model, self.graph, self.channels, self.plan = model, model.graph, model.channels, plan
        check_plan(model, plan)
        self._check_folded()
        stages = np.array([*plan.stages_of_units, 0], dtype=np.int64)  # FREE (-1) reads the last entry
        stages[:-1][stages[:-1] == PRUNED] = NEVER
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
        found: dict[str, int] = {}
        for stage, tap in enumerate(self.plan.taps, start=1):
            pending = [tap]
            while pending:
                node = self.graph.producer.get(pending.pop())
                if node is not None and node.name not in found:
                    found[node.name] = stage
                    pending.extend(self.graph.computed(node))
        return found

    def of(self, tensor: str) -> Array:
        """e per position of a tensor with a layout, int64 [C]; 0 for the image and constants, NEVER if pruned."""
        if tensor not in self._cache:
            layout = self.channels.layouts[tensor]
            if layout.roots == (tensor,):
                self._cache[tensor] = self._of_root(tensor, layout)
            else:
                tables = [self.of(root) for root in layout.roots]
                self._cache[tensor] = _gather(layout, tables, np.zeros(len(layout.root), dtype=np.int64))
        return self._cache[tensor]

    def _of_root(self, tensor: str, layout: Layout) -> Array:
        if tensor == self.graph.image:
            return np.zeros(len(layout.units), dtype=np.int64)
        depth = self.depth.get(self.graph.producer[tensor].name, NEVER)
        return np.maximum(self._stage_of_unit[layout.units], depth)

    def live(self, tensor: str) -> Array:
        """Which positions of a tensor can be other than zero, bool [C].

        A mixing row that may read no live channel is zero, bias included: that is what lets a residual block
        whose inner class has no unit in a stage vanish from it.
        """
        return self._shown(tensor, self._live_roots, constants=True)

    def _shown(self, tensor: str, roots: Mapping[str, Array], *, constants: bool) -> Array:
        """Booleans of roots as a view of them shows them, bool [C]; `constants`: whether constants other than zero count."""
        layout = self.channels.layouts[tensor]
        return _gather(layout, [roots[root] for root in layout.roots], (layout.fill != 0) & constants)

    def readable(self, tensor: str, stage: int) -> Array:
        """The positions of a tensor that exist by the end of `stage` and can be other than zero, bool [C]."""
        return (self.of(tensor) <= stage) & self.live(tensor)

    def sees(self, tensor: str, stage: int) -> Array:
        """Which of the readable positions depend on the image, bool [C]: a bias behind channels of zeros does not."""
        return self.readable(tensor, stage) & self._shown(tensor, self._seen_roots, constants=False)

    def mask(self, node: Node) -> Array:
        """M[o, i] = e(i) <= e(o) of a MIX node, bool [O, I], without columns that are always zero and pruned rows."""
        return self._mask(node, self.columns(node, self.live(node.inputs[0])))

    def _mask(self, node: Node, live: Array) -> Array:
        rows, columns = self.of(node.outputs[0]), self.columns(node, self.of(node.inputs[0]))
        return (columns[None, :] <= rows[:, None]) & (rows[:, None] < NEVER) & live[None, :]

    def levels(self, node: Node) -> tuple[tuple[Array, Array], ...]:
        """How a NORM or REDUCE node is computed: for every stage the positions that it reads and those that it makes.

        A channel that is zero because the plan took away what it was made of has no part in statistics, and stays zero.
        """
        out = node.outputs[0]
        made = self.of(out)
        if self.channels.roles[node.name].kind is Kind.REDUCE:
            return ((self.counted(node, int(made[0])), np.arange(len(made))),)
        live = self.live(out)
        stages = np.unique(made[live & (made < NEVER)]).tolist()
        return tuple((self.counted(node, k), np.flatnonzero(live & (made == k))) for k in stages)

    def counted(self, node: Node, stage: int) -> Array:
        """The input positions that a NORM or REDUCE node reads in a stage: what exists by then, constants included."""
        source = node.inputs[0]
        return np.flatnonzero((self.of(source) <= stage) & (self.live(source) | self._free(source)))

    def _free(self, tensor: str) -> Array:
        """Which positions belong to no unit: constants, zeros among them, and what is made of the image alone."""
        free: Array = self.channels.layouts[tensor].units == FREE
        return free

    def columns(self, node: Node, values: Array) -> Array:
        """Per-position `values` of a MIX node's input as per-column values [I]. A tensor of one unit may be read
        along any axis."""
        shape = self.graph.shapes[node.inputs[0]]
        axis = 0 if node.op in ("Conv", "ConvTranspose") else len(shape) - 1
        own = self.channels.layouts[node.inputs[0]].axis
        return values if own == axis else np.broadcast_to(values.max(keepdims=True), (shape[axis],))

    @cached_property
    def _live_roots(self) -> Mapping[str, Array]:
        """Liveness of every root, in one walk over the graph."""
        found: dict[str, Array] = {
            self.graph.image: np.ones(len(self.channels.layouts[self.graph.image].units), dtype=bool)
        }

        of = partial(self._shown, roots=found, constants=True)
        for node in self.graph.nodes:
            for name in node.outputs:
                if self.channels.is_root(name):
                    found[name] = self._live_output(node, name, of) & (self.of(name) < NEVER)
        return found

    @cached_property
    def _seen_roots(self) -> Mapping[str, Array]:
        """Which positions of every root the image reaches, in one walk over the graph."""
        found: dict[str, Array] = {self.graph.image: self._live_roots[self.graph.image]}

        of = partial(self._shown, roots=found, constants=False)
        for node in self.graph.nodes:
            for name in node.outputs:
                if self.channels.is_root(name):
                    found[name] = self._seen_output(node, name, of) & self._live_roots[name]
        return found

    def _seen_output(self, node: Node, name: str, of: Callable[[str], Array]) -> Array:
        kind, inputs = self.channels.roles[node.name].kind, self.graph.computed(node)
        units = self.channels.layouts[name].units
        if kind is Kind.MIX:
            stages = self.columns(node, self.of(inputs[0]))[self.columns(node, of(inputs[0]))]
            return np.asarray(self.of(name) >= stages.min(initial=NEVER))
        if kind in (Kind.NORM, Kind.REDUCE):
            seen, made = of(inputs[0]), self.of(name)
            reached = [k for k in np.unique(made).tolist() if k < NEVER and seen[self.counted(node, k)].any()]
            return np.isin(made, reached)
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            return np.repeat(of(inputs[0]).reshape(groups, -1).any(axis=1), len(units) // groups)
        if kind is Kind.MOVE:
            # Where a block of channels becomes one, a channel of the image may lie among those of a unit.
            seen, source = of(inputs[0]), self.channels.layouts[inputs[0]].units
            return np.isin(units, source[seen]) | (seen & self._free(inputs[0])).any()
        if kind in (Kind.MAP, Kind.JOIN):
            return np.asarray(np.stack([_spread(of(t), len(units)) for t in inputs]).any(axis=0))
        return np.full(len(units), any(t not in self.channels.layouts or of(t).any() for t in inputs))

    def _live_output(self, node: Node, name: str, of: Callable[[str], Array]) -> Array:
        kind = self.channels.roles[node.name].kind
        made = self.channels.layouts[name]
        inputs = self.graph.computed(node)
        if kind is Kind.MIX:
            return np.asarray(self._mask(node, self.columns(node, of(inputs[0]))).any(axis=1))
        if kind is Kind.NORM:
            return of(inputs[0]) | self._free(inputs[0])
        if kind is Kind.REDUCE:
            found = (self.of(inputs[0]) <= self.of(name)[:1]) & (of(inputs[0]) | self._free(inputs[0]))
            return np.full(len(made.units), found.any())
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            # A group of constants alone (channels of zeros) still makes its bias: no plan took anything from it.
            constant = self._free(inputs[0]).reshape(groups, -1).all(axis=1)
            read = of(inputs[0]).reshape(groups, -1).any(axis=1)
            return np.repeat(read | constant, len(made.units) // groups)
        if kind is Kind.MAP and keeps_zero(node, self.graph.constants):
            return _spread(of(inputs[0]), len(made.units))
        if kind is Kind.JOIN and node.op in ADDITIVE and len(inputs) == len(node.inputs):
            return np.asarray(np.stack([_spread(of(t), len(made.units)) for t in inputs]).any(axis=0))
        if kind in (Kind.MAP, Kind.JOIN) and node.op in UNDEFINED_AT_ZERO:
            return np.asarray(np.stack([_spread(of(t), len(made.units)) for t in inputs]).all(axis=0))
        if kind is Kind.JOIN and node.op == "Mul":
            return np.asarray(np.stack([_spread(of(t), len(made.units)) for t in inputs]).all(axis=0))
        if kind is Kind.MOVE:
            source = self.channels.layouts[inputs[0]]
            return np.isin(made.units, source.units[of(inputs[0])])
        return np.ones(len(made.units), dtype=bool)


def _spread(live: Array, count: int) -> Array:
    """Liveness over `count` channels: an operand of one unit may have its channels on another axis."""
    return live if len(live) == count else np.full(count, live.any())


def _gather(layout: Layout, tables: list[Array], constants: Array) -> Array:
    """Values per position of a view from the tables of its roots, `constants` where it shows a constant."""
    if len(tables) == 1 and len(tables[0]) == len(layout.root) and (layout.root >= 0).all():
        return tables[0][layout.position]
    values = constants.copy()
    for index, table in enumerate(tables):
        here = layout.root == index
        values[here] = table[layout.position[here]]
    return values


def check_conversion(model: AnalysedModel, conversion: Conversion) -> None:
    """Raise UsageError unless every chain fits the graph and the last one ends in the model's own logits."""
    for plan in conversion.chains:
        Effective(model, plan)
    last = conversion.chains[-1].taps[-1]
    if last != model.graph.output:
        raise UsageError(f"plan: the last tap is '{last}'; it must be the model's logits '{model.graph.output}'")
    if conversion.stages > MAX_STAGES:
        raise UsageError(f"plan: {conversion.stages} stages in all; at most {MAX_STAGES} are allowed")

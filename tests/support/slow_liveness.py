"""The reference for liveness: one plan, one boolean per channel, every rule spelt out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial

import numpy as np

from s2d_convert.channels.analysis import Layout
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.channels.movement import keeps_zero
from s2d_convert.channels.pointwise import UNDEFINED_AT_ZERO
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.assignment import NO_STAGE, Effective


class SlowLiveness:
    """What `Liveness` says of the plan of an `Effective`, of which only the effective stages are used."""

    def __init__(self, effective: Effective) -> None:
        self.graph, self.channels, self.stages = effective.graph, effective.channels, effective.of

    def live(self, tensor: str) -> Array:
        """Which channels can be other than zero, bool [C]."""
        return self._shown(tensor, roots=self._live_roots, constants=True)

    def seen(self, tensor: str) -> Array:
        """Which channels depend on the image, bool [C]."""
        return self._shown(tensor, roots=self._seen_roots, constants=False)

    def _shown(self, tensor: str, *, roots: Mapping[str, Array], constants: bool) -> Array:
        layout = self.channels.layouts[tensor]
        values = [
            bool(fill != 0) and constants if root < 0 else bool(roots[layout.roots[root]][position])
            for root, position, fill in zip(layout.root, layout.position, layout.fill, strict=True)
        ]
        return np.array(values, dtype=bool)

    @cached_property
    def _live_roots(self) -> Mapping[str, Array]:
        live = {self.graph.image: np.ones(len(self._layout(self.graph.image).units), dtype=bool)}
        for node in self.graph.nodes:
            for name in node.outputs:
                if self.channels.is_root(name):
                    live[name] = self._live_output(node, name, live) & (self.stages(name) < NO_STAGE)
        return live

    @cached_property
    def _seen_roots(self) -> Mapping[str, Array]:
        seen = {self.graph.image: self._live_roots[self.graph.image]}
        for node in self.graph.nodes:
            for name in node.outputs:
                if self.channels.is_root(name):
                    seen[name] = self._seen_output(node, name, seen) & self._live_roots[name]
        return seen

    def _layout(self, tensor: str) -> Layout:
        return self.channels.layouts[tensor]

    def _free(self, tensor: str) -> Array:
        return np.array(self._layout(tensor).units == FREE)

    def _live_output(self, node: Node, name: str, roots: Mapping[str, Array]) -> Array:
        of = partial(self._shown, roots=roots, constants=True)
        kind, made, inputs = self.channels.roles[node.name].kind, self._layout(name), self.graph.computed(node)
        count = len(made.units)
        if kind is Kind.MIX:
            return self._any_by_then(of(inputs[0]), inputs[0], name)
        if kind is Kind.NORM:
            return of(inputs[0]) | self._free(inputs[0])
        if kind is Kind.REDUCE:
            return self._any_by_then(of(inputs[0]) | self._free(inputs[0]), inputs[0], name)
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            constant = self._free(inputs[0]).reshape(groups, -1).all(axis=1)
            read = of(inputs[0]).reshape(groups, -1).any(axis=1)
            return np.repeat(read | constant, count // groups)
        if kind is Kind.MAP and keeps_zero(node, self.graph.constants):
            return _over(of(inputs[0]), count)
        operands = [_over(of(t), count) for t in inputs] if kind in (Kind.MAP, Kind.JOIN) else []
        if kind is Kind.JOIN and node.op in ("Add", "Sum", "Sub") and len(inputs) == len(node.inputs):
            return np.asarray(np.stack(operands).any(axis=0))
        if operands and (node.op in UNDEFINED_AT_ZERO or (kind is Kind.JOIN and node.op == "Mul")):
            return np.asarray(np.stack(operands).all(axis=0))
        if kind is Kind.MOVE:
            return np.isin(made.units, self._layout(inputs[0]).units[of(inputs[0])])
        return np.ones(count, dtype=bool)

    def _seen_output(self, node: Node, name: str, roots: Mapping[str, Array]) -> Array:
        of = partial(self._shown, roots=roots, constants=False)
        kind, inputs = self.channels.roles[node.name].kind, self.graph.computed(node)
        units = self._layout(name).units
        if kind in (Kind.MIX, Kind.NORM, Kind.REDUCE):
            return self._any_by_then(of(inputs[0]), inputs[0], name)
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            return np.repeat(of(inputs[0]).reshape(groups, -1).any(axis=1), len(units) // groups)
        if kind is Kind.MOVE:
            seen, source = of(inputs[0]), self._layout(inputs[0]).units
            return np.isin(units, source[seen]) | (seen & self._free(inputs[0])).any()
        if kind in (Kind.MAP, Kind.JOIN):
            return np.asarray(np.stack([_over(of(t), len(units)) for t in inputs]).any(axis=0))
        return np.full(len(units), any(t not in self.channels.layouts or of(t).any() for t in inputs))

    def _any_by_then(self, values: Array, source: str, name: str) -> Array:
        """Whether any input channel i with e(i) <= e(o) has its value set, bool [O]."""
        read = self.stages(source)[None, :] <= self.stages(name)[:, None]
        return np.asarray((read & values[None, :]).any(axis=1))


def _over(values: Array, count: int) -> Array:
    return values if len(values) == count else np.full(count, values.any())

"""Which channel classes a network can do without: the inside of a residual block, a branch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Layout
from s2d_convert.channels.propagation import FREE
from s2d_convert.channels.rules import UNDEFINED_AT_ZERO, Array, Kind, keeps_zero
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.assignment import ADDITIVE

WORD = 64


def optional_classes(model: AnalysedModel) -> Array:
    """For each class whether all logits still depend on the image when none of its units exists, bool [classes].

    This is `Effective.sees` of one plan per class, for all classes in one walk: bit k of the words [C, W] of a tensor
    says which of its channels are live, or seen, where class k is pruned.
    """
    walk = _Walk(model)
    for node in model.graph.nodes:
        for name in node.outputs:
            if model.channels.is_root(name):
                walk.live[name] = walk.output(node, name) & walk.kept[model.channels.layouts[name].units]
                walk.seen[name] = walk.seen_output(node, name) & walk.live[name]
    computed = model.channels.layouts[model.graph.output].root >= 0  # a logit may be a constant
    bits = np.bitwise_and.reduce(walk.seen_of(model.graph.output)[computed], axis=0)
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(model.channels.classes)].astype(bool)


class _Walk:
    """Liveness in as many plans at once as there are classes."""

    def __init__(self, model: AnalysedModel) -> None:
        self.graph, self.channels = model.graph, model.channels
        self.words = -(-len(model.channels.classes) // WORD)
        self.kept = self._always(model.channels.units + 1)  # by unit; FREE (-1) reads the last row
        for index, group in enumerate(model.channels.classes):
            self.kept[list(group.units), index // WORD] &= ~np.uint64(1 << index % WORD)
        self.live = {model.graph.image: self._always(len(model.channels.layouts[model.graph.image].units))}
        self.seen = dict(self.live)

    def _always(self, count: int) -> Array:
        return np.full((count, self.words), ~np.uint64(0))

    def of(self, tensor: str) -> Array:
        """The words of every channel of a tensor with a layout, uint64 [C, W]."""
        layout = self.channels.layouts[tensor]
        constants = np.where((layout.fill != 0)[:, None], ~np.uint64(0), np.uint64(0)).repeat(self.words, axis=1)
        return self._gathered(layout, self.live, constants)

    def seen_of(self, tensor: str) -> Array:
        """The same for which of them depend on the image; constants do not."""
        layout = self.channels.layouts[tensor]
        return self._gathered(layout, self.seen, np.zeros((len(layout.root), self.words), dtype=np.uint64))

    @staticmethod
    def _gathered(layout: Layout, tables: Mapping[str, Array], words: Array) -> Array:
        for index, root in enumerate(layout.roots):
            here = layout.root == index
            words[here] = tables[root][layout.position[here]]
        return words

    def seen_output(self, node: Node, name: str) -> Array:
        """The words of what of a node's output the image reaches; see `Effective._seen_output`."""
        kind, count = self.channels.roles[node.name].kind, len(self.channels.layouts[name].units)
        inputs = self.graph.computed(node)
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            merged = np.bitwise_or.reduce(self.seen_of(inputs[0]).reshape(groups, -1, self.words), axis=1)
            return merged.repeat(count // groups, axis=0)
        if kind is Kind.MOVE:
            words = self.seen_of(inputs[0])
            image = words[self.channels.layouts[inputs[0]].units == FREE]
            return self._moved(name, inputs[0], words) | np.bitwise_or.reduce(image, axis=0, initial=np.uint64(0))
        if kind in (Kind.MAP, Kind.JOIN):
            return np.bitwise_or.reduce([self._spread(self.seen_of(t), count) for t in inputs])
        if any(t not in self.channels.layouts for t in inputs):
            return self._always(count)
        return np.bitwise_or.reduce([self._spread(self.seen_of(t), 1)[0] for t in inputs])[None].repeat(count, axis=0)

    def _moved(self, name: str, source: str, words: Array) -> Array:
        table = np.zeros_like(self.kept)
        np.bitwise_or.at(table, self.channels.layouts[source].units, words)
        found: Array = table[self.channels.layouts[name].units]
        return found

    def output(self, node: Node, name: str) -> Array:
        """The words of what a node makes, before its own units are pruned; see `Effective._live_output`."""
        kind, count = self.channels.roles[node.name].kind, len(self.channels.layouts[name].units)
        inputs = self.graph.computed(node)
        if kind is Kind.MIX:
            return np.bitwise_or.reduce(self.of(inputs[0]), axis=0)[None].repeat(count, axis=0)
        if kind is Kind.GROUPED:
            groups = int(node.attrs["group"])
            merged = np.bitwise_or.reduce(self.of(inputs[0]).reshape(groups, -1, self.words), axis=1)
            constant = (self.channels.layouts[inputs[0]].units == FREE).reshape(groups, -1).all(axis=1)
            merged[constant] = ~np.uint64(0)
            return merged.repeat(count // groups, axis=0)
        if kind in (Kind.NORM, Kind.REDUCE):
            words = self.of(inputs[0])
            words[self.channels.layouts[inputs[0]].units == FREE] = ~np.uint64(0)
            return words if kind is Kind.NORM else self._spread(words, count)
        if kind is Kind.MOVE:
            return self._moved(name, inputs[0], self.of(inputs[0]))
        if kind not in (Kind.MAP, Kind.JOIN):
            return self._always(count)
        operands = [self._spread(self.of(t), count) for t in inputs]
        if node.op in UNDEFINED_AT_ZERO or (kind is Kind.JOIN and node.op == "Mul"):
            return np.bitwise_and.reduce(operands)
        additive = node.op in ADDITIVE and len(inputs) == len(node.inputs)
        if additive if kind is Kind.JOIN else keeps_zero(node, self.graph.constants):
            return np.bitwise_or.reduce(operands)
        return self._always(count)

    @staticmethod
    def _spread(words: Array, count: int) -> Array:
        return words if len(words) == count else np.bitwise_or.reduce(words, axis=0)[None].repeat(count, axis=0)

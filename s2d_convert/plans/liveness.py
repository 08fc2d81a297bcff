"""Which channels a plan leaves alive and which of them depend on the image, for any number of plans in one pass.

One plan is one bit: the words [C, W] of a tensor say, for every one of its C channels, in which plans it is live. An
`Effective` asks for its own plan alone, `optional_classes` for one plan per channel class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.channels.movement import keeps_zero
from s2d_convert.channels.pointwise import UNDEFINED_AT_ZERO
from s2d_convert.frontend.graph import Node

ADDITIVE = ("Add", "Sum", "Sub")
WORD = 64
NO_PLAN, ALL_PLANS = np.uint64(0), ~np.uint64(0)
Words = Array  # uint64 [C, W]


def words_of(bits: Array) -> Words:
    """Convert the booleans [C] of one plan to words, uint64 [C, 1]."""
    return np.where(bits, ALL_PLANS, NO_PLAN)[:, None]


def _all_plans(count: int, words: int) -> Words:
    return np.full((count, words), ALL_PLANS)


@dataclass(frozen=True, eq=False)
class Liveness:
    """Liveness of every channel of a model in some plans.

    `kept` gives, for a root, the words uint64 [C, W] of the channels that the plans compute at all, and `stages`, for a
    tensor, the effective stage of each channel, int64 [C]: the same in all plans that have the channel. `words` is W.
    """

    model: AnalysedModel
    kept: Callable[[str], Words]
    stages: Callable[[str], Array]
    words: int = 1

    def live(self, tensor: str) -> Words:
        """Return the plans in which each channel of a tensor with a layout can be other than zero, uint64 [C, W]."""
        return self._live.of(tensor)

    def seen(self, tensor: str) -> Words:
        """Return the plans in which each channel depends on the image, uint64 [C, W]. Constants do not, nor does a bias behind
        channels of zeros."""
        return self._seen.of(tensor)

    @cached_property
    def _live(self) -> Spread:
        return self._run(LIVE, self.kept, constants=True)

    @cached_property
    def _seen(self) -> Spread:
        return self._run(SEEN, self._live.of, constants=False)

    def _run(self, table: Mapping[Kind, Handler], most: Callable[[str], Words], *, constants: bool) -> Spread:
        """Go over the graph once; `most` limits the words of every root."""
        model = self.model
        spread = Spread(model, self.stages, self.words, constants, {})
        spread.roots[model.graph.image] = _all_plans(len(model.layout(model.graph.image).units), self.words)
        for node in model.graph.nodes:
            for name in node.outputs:
                if model.channels.is_root(name):
                    spread.roots[name] = table[model.kind(node)](spread, node, name) & most(name)
        return spread


@dataclass(frozen=True, eq=False)
class Spread:
    """One pass on its way: the words of all `roots` so far, and what the rules of the tables need.

    `constants` says whether constants other than zero count.
    """

    model: AnalysedModel
    stages: Callable[[str], Array]
    words: int
    constants: bool
    roots: dict[str, Words]

    def of(self, tensor: str) -> Words:
        """Return the words of a tensor with a layout, as its roots show them."""
        layout = self.model.layout(tensor)
        filled = np.zeros((len(layout.units), self.words), dtype=np.uint64)
        if self.constants and not layout.without_constants:
            filled[layout.fill != 0] = ALL_PLANS
        return layout.gather([self.roots[root] for root in layout.roots], filled)

    def count(self, tensor: str) -> int:
        """Return C, the number of channels of a tensor with a layout."""
        return len(self.model.layout(tensor).units)

    def free(self, tensor: str) -> Array:
        """Return which channels belong to no unit, bool [C]: constants, zeros among them, and what is made of the image alone."""
        free: Array = self.model.layout(tensor).units == FREE
        return free

    def source(self, node: Node) -> str:
        """Return the computed input of a node that has one."""
        return self.model.graph.computed(node)[0]

    def operands(self, node: Node, name: str) -> list[Words]:
        """Return the words of all computed inputs, spread over the channels of the output `name`."""
        return [_over(self.of(tensor), self.count(name)) for tensor in self.model.graph.computed(node)]


Handler = Callable[[Spread, Node, str], Words]


def _over(words: Words, count: int) -> Words:
    """Spread words over `count` channels, because an operand of one unit may have its channels on another axis."""
    return words if len(words) == count else np.bitwise_or.reduce(words, axis=0)[None].repeat(count, axis=0)


def _read_by_then(spread: Spread, node: Node, name: str, words: Words) -> Words:
    """Return, for every output channel o, in which plans any input channel i with e(i) <= e(o) has its bit in `words`."""
    stages, made = spread.stages(spread.source(node)), spread.stages(name)
    read = np.zeros((len(made), spread.words), dtype=np.uint64)
    for stage in np.unique(made).tolist():
        read[made == stage] = np.bitwise_or.reduce(words[stages <= stage], axis=0)
    return read


def _by_then(spread: Spread, node: Node, name: str) -> Words:
    """Mark an output channel where it may read any marked input channel."""
    return _read_by_then(spread, node, name, spread.of(spread.source(node)))


def _live_statistics(spread: Spread, node: Node, name: str) -> Words:
    """Mark what has statistics: all of it as soon as anything exists, constants included."""
    source = spread.source(node)
    words = spread.of(source)
    words[spread.free(source)] = ALL_PLANS
    return words if spread.model.kind(node) is Kind.NORM else _read_by_then(spread, node, name, words)


def _merged_groups(spread: Spread, node: Node, name: str) -> Words:
    """Mark a whole conv group where any channel that it reads is marked."""
    groups = int(node.attrs["group"])
    merged = np.bitwise_or.reduce(spread.of(spread.source(node)).reshape(groups, -1, spread.words), axis=1)
    return merged.repeat(spread.count(name) // groups, axis=0)


def _live_groups(spread: Spread, node: Node, name: str) -> Words:
    """As `_merged_groups`; a group that reads constants alone (channels of zeros) still makes its bias."""
    groups = int(node.attrs["group"])
    constant = spread.free(spread.source(node)).reshape(groups, -1).all(axis=1)
    words = _merged_groups(spread, node, name)
    words[constant.repeat(len(words) // groups)] = ALL_PLANS
    return words


def _moved(spread: Spread, node: Node, name: str) -> Words:
    """Mark every unit that the movement shows as its input does."""
    source = spread.source(node)
    table = np.zeros((spread.model.channels.units + 1, spread.words), dtype=np.uint64)  # FREE (-1) reads the last row
    np.bitwise_or.at(table, spread.model.layout(source).units, spread.of(source))
    shown: Words = table[spread.model.layout(name).units]
    return shown


def _seen_move(spread: Spread, node: Node, name: str) -> Words:
    """As `_moved`; where a block of channels becomes one, a channel of the image may lie among those of a unit."""
    source = spread.source(node)
    image = spread.of(source)[spread.free(source)]
    return _moved(spread, node, name) | np.bitwise_or.reduce(image, axis=0, initial=NO_PLAN)


def _any_operand(spread: Spread, node: Node, name: str) -> Words:
    """Mark a channel where any operand is marked."""
    return np.asarray(np.bitwise_or.reduce(spread.operands(node, name)))


def _everything(spread: Spread, node: Node, name: str) -> Words:
    """Mark every channel in every plan."""
    return _all_plans(spread.count(name), spread.words)


def _live_map(spread: Spread, node: Node, name: str) -> Words:
    """Take an operator that keeps zero, or is undefined at zero, for as live as its input, and any other for live everywhere."""
    if keeps_zero(node, spread.model.graph.constants) or node.op in UNDEFINED_AT_ZERO:
        return _any_operand(spread, node, name)
    return _everything(spread, node, name)


def _live_join(spread: Spread, node: Node, name: str) -> Words:
    """A product, or an operator undefined at zero, needs all its operands; a sum of computed operands needs any of
    them."""
    if node.op == "Mul" or node.op in UNDEFINED_AT_ZERO:
        return np.asarray(np.bitwise_and.reduce(spread.operands(node, name)))
    if node.op in ADDITIVE and len(spread.model.graph.computed(node)) == len(node.inputs):
        return _any_operand(spread, node, name)
    return _everything(spread, node, name)


def _seen_opaque(spread: Spread, node: Node, name: str) -> Words:
    """Mark all channels where any input is marked; an input without a layout counts as marked."""
    inputs = spread.model.graph.computed(node)
    if any(tensor not in spread.model.channels.layouts for tensor in inputs):
        return _everything(spread, node, name)
    return _over(np.concatenate([spread.of(tensor) for tensor in inputs]), 1).repeat(spread.count(name), axis=0)


# Both tables name every kind that a finished analysis has; TIE is none of them, see `kinds.FINAL_KINDS`.
LIVE: Mapping[Kind, Handler] = {
    Kind.MIX: _by_then,  # a row that may read no live channel is zero, bias included
    Kind.GROUPED: _live_groups,
    Kind.MAP: _live_map,
    Kind.JOIN: _live_join,
    Kind.NORM: _live_statistics,
    Kind.REDUCE: _live_statistics,
    Kind.MOVE: _moved,
    Kind.OPAQUE: _everything,
}
SEEN: Mapping[Kind, Handler] = {
    Kind.MIX: _by_then,
    Kind.GROUPED: _merged_groups,
    Kind.MAP: _any_operand,
    Kind.JOIN: _any_operand,
    Kind.NORM: _by_then,
    Kind.REDUCE: _by_then,
    Kind.MOVE: _seen_move,
    Kind.OPAQUE: _seen_opaque,
}


def optional_classes(model: AnalysedModel) -> Array:
    """Return, for each class, whether all logits still depend on the image when none of its units exists, bool [classes].

    This is `Effective.sees` of one plan per class: bit k stands for the plan in which class k is pruned.
    """
    channels = model.channels
    words = -(-len(channels.classes) // WORD)
    kept = _all_plans(channels.units + 1, words)  # by unit; FREE (-1) reads the last row
    for index, group in enumerate(channels.classes):
        kept[list(group.units), index // WORD] &= ~np.uint64(1 << index % WORD)
    liveness = Liveness(
        model,
        kept=lambda root: kept[model.layout(root).units],
        stages=lambda tensor: np.ones(len(model.layout(tensor).units), dtype=np.int64),  # plans of one stage
        words=words,
    )
    logits = model.layout(model.graph.output)
    seen = liveness.seen(model.graph.output)[logits.root >= 0]  # a logit may be a constant
    bits = np.bitwise_and.reduce(seen, axis=0)
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(channels.classes)].astype(bool)

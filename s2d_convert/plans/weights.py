"""The numbers of a staged network, apart from its graph: what training changes and export writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.channels.linear import mix_weights
from s2d_convert.frontend.graph import Graph, Node

Affine = tuple[Array, Array | None]


@dataclass(frozen=True, eq=False)
class ExitHead:
    """What makes logits of a tap: means over cells of `cell` (height, width) positions, over the whole map where it is
    None, then linear `layers` (weight [O, I], bias [O]) with a ReLU between two of them.

    The first weight is [*, C * cells]; the cells of one channel lie side by side, row by row.
    """

    layers: tuple[tuple[Array, Array], ...]
    cell: tuple[int, int] | None = None

    def first_weight(self, channels: int) -> Array:
        """Return the first layer's weight by channel, [O, C, cells]."""
        weight = self.layers[0][0]
        return weight.reshape(len(weight), channels, -1)


def linear_head(weight: Array, bias: Array) -> ExitHead:
    """Return the plain exit head: one linear layer on the mean of every channel."""
    return ExitHead(((weight, bias),))


@dataclass(frozen=True)
class Weights:
    """Weights by node and by tap.

    `mix`: node name -> (weight [O, I, *kernel], bias [O] or None) of every MIX and GROUPED node;
    `operands`: (node name, input index) -> array that replaces a constant input of another node;
    `heads`: tap -> its exit head;
    `temperatures`: per stage of the conversion, by which logits are divided before the softmax.
    """

    mix: Mapping[str, Affine]
    operands: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    heads: Mapping[str, ExitHead] = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()

    def operand(self, graph: Graph, node: Node, index: int) -> Array:
        """Return constant input `index` of a node."""
        replaced = self.operands.get((node.name, index))
        return graph.constants[node.inputs[index]] if replaced is None else replaced

    def temperature(self, stage: int) -> float:
        """Return the temperature of stage `stage` (1-based); 1 where none was calibrated."""
        return self.temperatures[stage - 1] if self.temperatures else 1.0

    def with_heads(self, heads: Mapping[str, ExitHead]) -> Weights:
        """Return the same weights with other exit heads."""
        return replace(self, heads={**self.heads, **heads})


class Hollow(np.ndarray[Any, Any]):
    """A shape and a type without values, in no memory. Stage files have hollow weights without their values."""

    @staticmethod
    def of(shape: Sequence[int]) -> Hollow:
        """Return a hollow float32 array."""
        return np.broadcast_to(np.float32(0), tuple(shape)).view(Hollow)


def hollow(weights: Weights, model: AnalysedModel, taps: Sequence[str]) -> Weights:
    """Return hollow weights, with plain exit heads for these taps, for stages that are looked at and not run."""
    classes, layouts = model.graph.classes, model.channels.layouts
    shapes = {tap: (classes, len(layouts[tap].units)) for tap in taps}
    heads = {tap: linear_head(Hollow.of(shape), np.zeros(classes, np.float32)) for tap, shape in shapes.items()}
    mix = {name: (Hollow.of(weight.shape), bias) for name, (weight, bias) in weights.mix.items()}
    return replace(weights, mix=mix, heads=heads)


def static_weights(graph: Graph, channels: Channels) -> Weights:
    """Return the weights of the static model, without exit heads."""
    mixing = (Kind.MIX, Kind.GROUPED)
    return Weights(
        {n.name: mix_weights(n, graph.constants) for n in graph.nodes if channels.roles[n.name].kind in mixing}
    )


def classifier_of(model: AnalysedModel) -> Node | None:
    """Return the one mixing node that makes the logits, through operators that only map or move; None if there is none."""
    node = model.graph.producer.get(model.graph.output)
    while node is not None and len(model.graph.computed(node)) == 1 and model.kind(node) in (Kind.MAP, Kind.MOVE):
        node = model.graph.producer.get(model.graph.computed(node)[0])
    return node if node is not None and model.kind(node) is Kind.MIX else None


def initial_head(model: AnalysedModel, tap: str, *, seed: int = 0) -> ExitHead:
    """Make a linear exit head for a tap, without data.

    Channels that the classifier reads too take its columns; the others are drawn at random, small.
    """
    units = model.channels.layouts[tap].units
    rng = np.random.default_rng([seed, len(tap), *tap.encode()])
    bias = np.zeros(model.graph.classes, dtype=np.float32)
    node = classifier_of(model)
    columns, source = np.zeros((model.graph.classes, 0), np.float32), np.zeros(0, units.dtype)
    if node is not None and node.inputs[0] in model.channels.layouts:
        own, own_bias = mix_weights(node, model.graph.constants)
        read = model.channels.layouts[node.inputs[0]].units
        if own.shape[:2] == (model.graph.classes, len(read)):
            columns, source = own.reshape(*own.shape[:2], -1).sum(axis=2), read
            bias = bias if own_bias is None else own_bias.astype(np.float32)
    known = np.isin(units, source) & (units != FREE)
    if known.all():
        weight = np.empty((model.graph.classes, len(units)), dtype=np.float32)
    else:
        weight = rng.normal(0.0, 0.1 / np.sqrt(len(units)), (model.graph.classes, len(units))).astype(np.float32)
    if known.any():
        order = source.argsort(kind="stable")
        keys, starts = np.unique(source[order], return_index=True)
        total = np.add.reduceat(columns[:, order], starts, axis=1)
        shared = np.bincount(units[known])[units[known]]
        weight[:, known] = total[:, np.searchsorted(keys, units[known])] / shared
    return linear_head(weight, bias)

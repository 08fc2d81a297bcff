"""Channel classes cut into groups, the units that matter most first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, ChannelClass
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Array, Kind
from s2d_convert.plans.liveness import optional_classes
from s2d_convert.plans.weights import Weights


def importance(model: AnalysedModel, weights: Weights) -> Array:
    """Return a score per unit, float64 [U]: squared norms of the rows that make it and of the columns that read it.

    Each norm is relative to its layer's mean, so that wide layers do not outvote narrow ones.
    """
    score = np.zeros(model.channels.units)
    for node in model.graph.nodes:
        if node.name not in weights.mix:
            continue
        weight = weights.mix[node.name][0]
        weight = weight.reshape(*weight.shape[:2], -1)
        # einsum adds up in float64 without a float64 copy of the weight, which a large Linear would feel
        _add(
            score,
            model.channels.layouts[node.outputs[0]].units,
            np.einsum("oik,oik->o", weight, weight, dtype=np.float64),
        )
        source = model.channels.layouts.get(node.inputs[0])
        if (
            model.channels.roles[node.name].kind is Kind.MIX
            and source is not None
            and len(source.units) == weight.shape[1]
        ):
            _add(score, source.units, np.einsum("oik,oik->i", weight, weight, dtype=np.float64))
    return score


def _add(score: Array, units: Array, energy: Array) -> None:
    known = units != FREE
    np.add.at(score, units[known], energy[known] / max(float(energy.mean()), 1e-12))


@dataclass(frozen=True)
class Division:
    """One class in the search: the units in order of importance, cut into groups; `optional` if a stage can do
    without the class."""

    group: ChannelClass
    chunks: tuple[tuple[int, ...], ...]
    optional: bool

    @property
    def levels(self) -> int:
        """How many groups there are."""
        return len(self.chunks)


def divide(
    model: AnalysedModel, weights: Weights, *, groups: int, block: int, score: Array | None = None
) -> tuple[Division, ...]:
    """Cut every splittable class into at most `groups` groups, of whole layout blocks where the class is wide enough.

    Units come in the order of `score`, float64 [U] (None: `importance`).
    """
    score = importance(model, weights) if score is None else score
    divisions = []
    optional = optional_classes(model)
    for index, group in enumerate(model.channels.classes):
        if group.splittable:
            order = sorted(group.units, key=lambda u: (-score[u], u))
            chunks = _chunks(order, group.width, groups, block)
            divisions.append(Division(group, chunks, bool(optional[index])))
    return tuple(divisions)


def _chunks(order: list[int], width: int, groups: int, block: int) -> tuple[tuple[int, ...], ...]:
    per_unit = max(1, width // len(order))
    step = max(1, block // per_unit) if width >= 2 * block else 1
    count = min(groups, max(1, len(order) // step)) if len(order) >= 2 else 1
    cuts = [round(len(order) * i / count / step) * step for i in range(count)] + [len(order)]
    return tuple(tuple(order[a:b]) for a, b in pairwise(cuts) if b > a)

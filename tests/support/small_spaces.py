"""Small spaces of plans, and conversions written by hand from their decisions."""

from __future__ import annotations

import nets
from chain_law import analysed
from text_nets import chain

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.space import CASCADE, LINKED, PlanSpace


def space_of(name: str, stages: int, groups: int = 4) -> PlanSpace:
    graph, channels, weights = analysed(nets.export(name))
    return PlanSpace(
        AnalysedModel(graph, channels),
        divide(AnalysedModel(graph, channels), weights, groups=groups, block=8),
        stages=stages,
    )


def by_hand(stages: int, *, kinds: tuple[int, ...] = (LINKED, CASCADE)) -> PlanSpace:
    """The space of `chain` with two groups per class: taps 'x' and 'f'."""
    graph, channels, weights = analysed(chain())
    divisions = divide(AnalysedModel(graph, channels), weights, groups=2, block=4)
    return PlanSpace(AnalysedModel(graph, channels), divisions, stages=stages, kinds=kinds)

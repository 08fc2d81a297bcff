"""Plans made by rule: even shares, whole depths, simple first chains, and random draws for training."""

from __future__ import annotations

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.errors import UsageError
from s2d_convert.latency.layout import layout_block
from s2d_convert.plans.decisions import Actions, random_actions
from s2d_convert.plans.divisions import divide, importance
from s2d_convert.plans.exit_points import NOWHERE
from s2d_convert.plans.macs import chain_macs, mac_shares
from s2d_convert.plans.plan import Conversion, Plan
from s2d_convert.plans.space import BLOCKS, CASCADE, PlanSpace
from s2d_convert.plans.weights import static_weights

SIMPLE_FRACTIONS = (0.25, 0.5, 0.75)  # of every class
SIMPLE_DEPTHS = (1.0, 0.75)  # of the candidate taps


def depth_plan(model: AnalysedModel, stages: int) -> Conversion:
    """Put exits at the taps nearest to equal shares of the multiply-accumulates; all units belong to stage 1."""
    taps = _space(model).taps
    if len(taps) < stages - 1:
        raise UsageError(f"--stages {stages}: the model has {len(taps)} candidate taps; fewer stages are possible")
    share = mac_shares(model, taps)
    chosen: list[str] = []
    for k in range(1, stages):
        first = taps.index(chosen[-1]) + 1 if chosen else 0
        free = taps[first : len(taps) - (stages - 1 - k)]  # leave one for every stage still to come
        chosen.append(min(free, key=lambda t: abs(share[t] - k / stages)))
    return Conversion((Plan((*chosen, model.graph.output), (1,) * model.channels.units),))


def width_plan(model: AnalysedModel, stages: int) -> Conversion:
    """Divide every class evenly among the stages, the most important units first; all taps are at the end."""
    taps = _space(model).taps
    if not taps:
        raise UsageError(f"--plan width: {NOWHERE}")
    score = importance(model, static_weights(model.graph, model.channels))
    owner = np.ones(model.channels.units, dtype=np.int64)
    for group in model.channels.classes:
        if group.splittable:
            order = np.array(sorted(group.units, key=lambda u: (-score[u], u)))
            owner[order] = 1 + np.arange(len(order)) * stages // len(order)
    return Conversion((Plan((*[taps[-1]] * (stages - 1), model.graph.output), tuple(owner.tolist())),))


def _space(model: AnalysedModel) -> PlanSpace:
    divisions = divide(model, static_weights(model.graph, model.channels), groups=4, block=layout_block())
    return PlanSpace(model, divisions, stages=2)


def random_plan(space: PlanSpace, rng: np.random.Generator) -> Conversion:
    """Draw a conversion from the space. A quarter have the same share of all classes, and a quarter have fewer blocks."""
    shape, kind = rng.random(), int(rng.choice(space.options_of_kind))
    if shape < 0.25:
        return space.decode(space.thinned(kind, rng.uniform(0.25, 0.75), rng.uniform(0.25, 1.0)))
    if shape < 0.5:
        taps = np.sort(rng.integers(0, len(space.taps), space.stages - 1))
        shares = np.sort(rng.random(space.stages - 1))
        return space.decode(space.actions(kind, taps.tolist(), shares.tolist()))
    return space.decode(random_actions(space, rng))


def simple_chains(space: PlanSpace, budget: float) -> dict[Conversion, Actions]:
    """Return simple first chains before the untouched model, with their decisions: several widths and depths, chains with
    fewer blocks, and the whole network at each scale.

    Chains with more multiply-accumulates than the budget allows are left out; if all have, the smallest one stays.
    """
    pairs = PlanSpace(space.model, space.divisions, stages=2, kinds=(CASCADE,), scales=space.scales)
    last = len(pairs.taps) - 1
    every = [
        pairs.actions(CASCADE, [round(depth * last)], [fraction])
        for depth in SIMPLE_DEPTHS
        for fraction in SIMPLE_FRACTIONS
    ]
    every += [pairs.thinned(CASCADE, keep, fraction) for keep in BLOCKS for fraction in (1.0, 0.5)]
    every += [pairs.actions(kind, [last], [1.0]) for kind in pairs.options_of_kind if kind != CASCADE]
    chains = {pairs.decode(actions): actions for actions in reversed(every)}
    cost = {c: chain_macs(space.model, c.chains[0]) for c in reversed(chains)}
    limit = max(budget * total_macs(space.graph), min(cost.values()) + 1)
    return {c: chains[c] for c in cost if cost[c] < limit}

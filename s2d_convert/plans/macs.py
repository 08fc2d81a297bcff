"""Multiply-accumulates of plans: what a chain costs, and how far through the model a tap is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.channels.kinds import Kind
from s2d_convert.channels.macs import PRODUCTS, macs_of, node_macs
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan


def mac_shares(model: AnalysedModel, taps: Sequence[str]) -> dict[str, float]:
    """Return, for each tap, the share (0 to 1) of the static multiply-accumulates that lie before it."""
    counts = node_macs(model.graph)
    total = max(1, sum(counts.values()))
    ones = (1,) * model.channels.units
    plans = (Effective(model, Plan((t,), ones), check_taps=False) for t in taps)
    return {t: sum(counts.get(n, 0) for n in plan.depth) / total for t, plan in zip(taps, plans, strict=True)}


def chain_macs(model: AnalysedModel, plan: Plan) -> int:
    """Count the multiply-accumulates per image of all stages of a chain without building them.

    Exit heads are left out. What linked stages compute without a reader is counted too.
    """
    model = at_scale(model, plan.scale)
    effective = Effective(model, plan)
    total = 0.0
    for node in model.graph.nodes:
        if node.op in PRODUCTS and node.name in effective.depth:
            role, out = model.channels.roles[node.name], node.outputs[0]
            made = effective.readable(out, plan.stages) if out in model.channels.layouts else np.ones(1, dtype=bool)
            share = (effective.mask(node) & made[:, None]).mean() if role.kind is Kind.MIX else made.mean()
            total += float(share) * macs_of(node, model.graph)
    return round(total)

"""What a search starts from, as decisions: the first chains that an allocation finds for a row of latencies, and early exits.

The latencies that it adds up are predicted: a dozen chains are measured, and what each kind of kernel costs is fitted to them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest

import numpy as np
import onnx

from s2d_convert.latency import LatencyMeter
from s2d_convert.latency.kernel_costs import KernelCosts
from s2d_convert.latency.kernels import Work, work_of
from s2d_convert.plans.allocation import Allocated
from s2d_convert.plans.decisions import Actions, random_actions
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.space import BLOCKS, CASCADE, LINKED, PlanSpace
from s2d_convert.plans.weights import Weights, hollow
from s2d_convert.slicing.chain import Chain, build_stages

WIDTHS = (0.25, 0.5, 0.75, 1.0)
EXIT_WIDTHS = (0.5, 1.0, 0.75, 0.25)  # the likeliest first
RANDOM_CHAINS = 6
SLIM = (0.85, 0.7, 0.55)


def pairs_of(space: PlanSpace) -> PlanSpace:
    """Return the part of a space with a chain of one stage before the untouched model."""
    return PlanSpace(space.model, space.divisions, stages=2, kinds=(CASCADE,), scales=space.scales)


def allocated(space: PlanSpace, rows: Sequence[Allocated], count: int, *, below: float = math.inf) -> list[Actions]:
    """Return up to `count` decisions for a search to start from: the rows, evenly spread, for every kind of the space.

    Cascades get two parts of them; linked chains, cascades at other scales and those into slimmer last chains one part each,
    as far as the space has them. The kinds take turns, and rows come from coarse to fine, so that a search that is short of
    time sees something of everything. below: first stages of a higher latency are of no use (`_useful`).
    """
    shares: list[tuple[int, Sequence[int]]] = [
        (2, [kind for kind in space.kinds if kind == CASCADE]),
        (1, [kind for kind in space.kinds if kind == LINKED]),
        (1, space.scaled_kinds),
        (1, space.slim_kinds),
    ]
    total = sum(parts for parts, kinds in shares if kinds)
    starts: list[Sequence[Actions]] = []
    for parts, kinds in shares:
        wanted = round(count * parts / total)
        by_kind = [
            [_first_stage(space, kind, row) for row in _spread(_useful(rows, space.scale_of(kind), below), wanted)]
            for kind in kinds
        ]
        starts.append(in_turn(by_kind)[:wanted])
    return in_turn(starts)


def _useful(rows: Sequence[Allocated], scale: float, below: float) -> Sequence[Allocated]:
    """Return the rows that can be of use to a first stage at a scale: those that cost less than `below` there, about, or else the
    fastest one. At a smaller scale even the whole network is cheaper, and only the wider half of them is worth trying."""
    usable = rows if scale < 1 else rows[1:] or rows  # the first row is the whole network
    within = [row for row in usable if row.latency * scale**2 < below] or usable[-1:]
    return within[: len(within) // 2 + 1] if scale < 1 else within


def exits_within(space: PlanSpace, latency: Callable[[Plan], float], budgets: Sequence[float]) -> list[Actions]:
    """Return decisions for early exits: per kind of the space, width and budget the first stage that ends at the last tap by
    which it costs less than the budget. Kinds take turns, those that read smaller images first.

    latency: predicts that of a chain of one stage, relative to static; it grows with the taps.
    """
    pairs = pairs_of(space)

    def last_within(kind: int, width: float, budget: float) -> int | None:
        own = kind if kind in space.scaled_kinds else CASCADE

        def cost(tap: int) -> float:
            return latency(pairs.decode(pairs.ending_at(own, tap, width)).chains[0])

        within = bisect_left(range(len(space.taps)), budget, key=cost)
        return within - 1 if within else None

    def of_kind(kind: int) -> list[Actions]:
        found = [(width, last_within(kind, width, budget)) for budget in budgets for width in EXIT_WIDTHS]
        return [space.ending_at(kind, tap, width) for width, tap in found if tap is not None]

    kinds = sorted(space.options_of_kind, key=lambda kind: (space.scale_of(kind), kind != CASCADE))
    return in_turn([of_kind(kind) for kind in kinds])


def in_turn(lists: Sequence[Sequence[Actions]]) -> list[Actions]:
    """Return the first ones of all lists, then the second ones, and so on, each of them once."""
    return list(dict.fromkeys(item for turn in zip_longest(*lists) for item in turn if item is not None))


def slim_lasts(space: PlanSpace, rows: Sequence[Allocated]) -> list[Plan]:
    """Return last chains that are not the whole model, near the latencies SLIM, from the widest to the slimmest."""
    pairs, taps = pairs_of(space), (space.graph.output,)
    near = [min(rows, key=lambda row, wanted=wanted: abs(row.latency - wanted)) for wanted in SLIM]  # type: ignore[misc]
    plans = [
        replace(pairs.decode(_first_stage(pairs, CASCADE, row)).chains[0], taps=taps) for row in near if row.error > 0
    ]
    return list(dict.fromkeys(plans))


def _spread(rows: Sequence[Allocated], count: int) -> list[Allocated]:
    chosen = sorted(set(np.linspace(0, len(rows) - 1, count).round().astype(int).tolist()))
    return [rows[i] for i in coarse_to_fine(chosen)]


def coarse_to_fine(items: Sequence[int]) -> list[int]:
    """Return the items in the order of a bisection: the middle one, those in the middle of the halves, and so on."""
    order, parts = list[int](), [items]
    while parts:
        part, *parts = parts
        if part:
            middle = len(part) // 2
            order.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return order


def _first_stage(space: PlanSpace, kind: int, row: Allocated) -> Actions:
    """Return the decisions nearest to a first stage with these levels at the last tap; further stages lie between it and
    the model."""
    count, full = space.stages - 1, [d.levels for d in space.divisions]
    levels = [
        [level + round((most - level) * stage / count) for level, most in zip(row.levels, full, strict=True)]
        for stage in range(count)
    ]
    return space.nearest(kind, [len(space.taps) - 1] * count, levels)


class LatencyModel:
    """Predicts the latency of the chains of one stage in a space, relative to static, from the work in their files.

    space: of pairs (`pairs_of`). block: channels per block of the blocked layout.
    """

    def __init__(self, space: PlanSpace, weights: Weights, costs: KernelCosts, *, block: int) -> None:
        self.space, self.weights, self.costs, self.block = space, weights, costs, block
        self._hollow = hollow(weights, space.model, space.taps)
        self._work = cache(self._work_of)

    @classmethod
    def fitted(cls, space: PlanSpace, weights: Weights, meter: LatencyMeter, *, block: int) -> LatencyModel:
        """Measure some chains of the space, and fit the costs to them."""
        model = cls(space, weights, KernelCosts({}), block=block)
        plans = [space.decode(actions).chains[0] for actions in model._samples()]
        ratios = [meter.measure([model._file(plan)]).ratios[0] for plan in plans]
        model.costs = KernelCosts.fit([model._work(plan) for plan in plans], ratios)
        return model

    def __call__(self, plan: Plan) -> float:
        return self.costs.predict(self._work(plan))

    def _samples(self) -> Sequence[Actions]:
        """Return the chains that are measured: of several widths, with fewer blocks, of half the depth, and random ones."""
        space, last = self.space, len(self.space.taps) - 1
        chains = [space.actions(CASCADE, [last], [width]) for width in WIDTHS]
        chains += [space.thinned(CASCADE, keep, width) for keep in BLOCKS for width in (1.0, 0.5)]
        chains += [space.actions(CASCADE, [last // 2], [width]) for width in (1.0, 0.5)]
        rng = np.random.default_rng(0)
        drawn = [random_actions(space, rng) for _ in range(RANDOM_CHAINS)]
        return list(dict.fromkeys([*chains, *((CASCADE, *actions[1:]) for actions in drawn)]))

    def _file(self, plan: Plan) -> bytes:
        return self._stage(plan, self.weights).SerializeToString()

    def _work_of(self, plan: Plan) -> Work:
        return work_of(self._stage(plan, self._hollow), block=self.block)

    def _stage(self, plan: Plan, weights: Weights) -> onnx.ModelProto:
        first, *_ = build_stages([Chain(self.space.model, plan, weights)])
        return first.model

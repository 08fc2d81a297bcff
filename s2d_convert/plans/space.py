"""The plans that the search chooses among, as a sequence of small decisions.

Decision 0 picks the kind: a *linked* chain, or a *cascade* (a pruned first chain, then the untouched
static model); behind these two, a cascade whose first chain reads the image smaller, for each scale, and one whose last chain
is not the whole model, for each of some slimmer ones. Then, for every stage but the last: its tap, and for every channel class
how many of its groups the stage has by then. Groups follow the layout block of onnxruntime's kernels; inside a class, the units
that matter most come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.kinds import Array
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.divisions import Division
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.macs import mac_shares
from s2d_convert.plans.plan import PRUNED, Conversion, Plan, identity_plan
from s2d_convert.plans.stage_choices import Choices, StageChoice

LINKED, CASCADE = 0, 1
KINDS = ("linked", "cascade")
Shape = Literal["any", "depth", "width"]
MAX_TAPS = 16
BLOCKS = (1 / 3, 1 / 2)  # shares of the blocks that simple conversions keep
MAX_TAP_SHARE = 0.97  # an exit on the untouched model behind this share of the MACs saves nothing
MIN_TAP_SHARE = 0.03  # a tap before this share of the MACs has seen too little to be worth an exit


class PlanSpace:
    """The search space of a model; satisfies `search.Space` for conversions.

    `sizes[i]` is the number of options of decision i; `allowed` and `decode` take the options chosen so far. With the
    shape "depth" every stage has whole classes, with "width" all taps are at the end.
    """

    def __init__(
        self,
        model: AnalysedModel,
        divisions: tuple[Division, ...],
        *,
        stages: int,
        kinds: Sequence[int] = (LINKED, CASCADE),
        shape: Shape = "any",
        scales: Sequence[float] = (),
        lasts: Sequence[Plan] = (),
    ) -> None:
        self.model, self.graph, self.channels = model, model.graph, model.channels
        self.divisions, self.stages = divisions, stages
        self.kinds, self.shape, self.scales, self.lasts = tuple(kinds), shape, tuple(scales), tuple(lasts)
        self.taps = _thinned(model, candidate_taps(model))
        per_stage = [len(self.taps), *(d.levels + 1 for d in divisions)]
        self.sizes: tuple[int, ...] = (len(KINDS) + len(self.scales) + len(self.lasts), *(per_stage * (stages - 1)))

    def restricted(self, kinds: Sequence[int], shape: Shape) -> PlanSpace:
        """Return the part of this space that has these kinds and this shape."""
        return PlanSpace(
            self.model, self.divisions, stages=self.stages,
            kinds=[k for k in kinds if k in self.kinds] or kinds, shape=shape, scales=self.scales, lasts=self.lasts,
        )  # fmt: skip

    def with_lasts(self, lasts: Sequence[Plan]) -> PlanSpace:
        """Return this space with slimmer last chains, from the widest to the slimmest; they end in the model's logits."""
        return PlanSpace(
            self.model,
            self.divisions,
            stages=self.stages,
            kinds=self.kinds,
            shape=self.shape,
            scales=self.scales,
            lasts=lasts,
        )

    @property
    def options_of_kind(self) -> tuple[int, ...]:
        """The options of decision 0 that are allowed: the kinds, and behind them cascades at each scale, and into each last
        chain."""
        cascades = range(len(KINDS), self.sizes[0]) if CASCADE in self.kinds else ()
        return (*self.kinds, *cascades)

    @property
    def scaled_kinds(self) -> tuple[int, ...]:
        """The options of decision 0 whose first chain reads the image smaller."""
        return tuple(k for k in self.options_of_kind if len(KINDS) <= k < len(KINDS) + len(self.scales))

    @property
    def slim_kinds(self) -> tuple[int, ...]:
        """The options of decision 0 whose last chain is not the whole model."""
        return tuple(k for k in self.options_of_kind if k >= len(KINDS) + len(self.scales))

    def scale_of(self, kind: int) -> float:
        """Return the scale of the first chain behind an option of decision 0."""
        return self.scales[kind - len(KINDS)] if kind in self.scaled_kinds else 1.0

    def last_of(self, kind: int) -> Plan:
        """Return the last chain behind an option of decision 0 that is a cascade."""
        slim = self.slim_kinds
        return self.lasts[slim.index(kind)] if kind in slim else identity_plan(self.model)

    @cached_property
    def _reach(self) -> tuple[frozenset[str], ...]:
        """Per tap the nodes that it depends on."""
        ones = (1,) * self.channels.units
        return tuple(frozenset(Effective(self.model, Plan((tap,), ones)).depth) for tap in self.taps)

    def allowed(self, prefix: tuple[int, ...]) -> Array:
        """Return the options that decision `len(prefix)` has, bool [sizes[len(prefix)]]; at least one is True."""
        mask = np.zeros(self.sizes[len(prefix)], dtype=bool)
        if not prefix:
            mask[list(self.options_of_kind)] = True
            return mask
        choices = Choices.read(prefix, len(self.divisions))
        before = choices.stages[-1] if choices.stages else None
        if not choices.unfinished:
            first = len(self.taps) - 1 if self.shape == "width" else 0
            mask[(before.exit if before else first) :] = True
            return mask
        exit, *levels = choices.unfinished
        division = self.divisions[len(levels)]
        if self.shape == "depth" or not self._computes(exit, division):
            mask[division.levels] = True  # all of it; if the stage never computes this class, one spelling only
            return mask
        low = before.levels[len(levels)] if before and self._computes(before.exit, division) else 0
        mask[max(low, 0 if division.optional else 1) :] = True
        return mask

    def _computes(self, exit: int, division: Division) -> bool:
        """Return whether a stage with this exit computes anything of the class of a division."""
        return not self._reach[exit].isdisjoint(division.group.producers)

    def decode(self, actions: tuple[int, ...]) -> Conversion:
        """Return the conversion of a full sequence of options. Stages that add nothing are dropped."""
        choices = Choices.read(actions, len(self.divisions))
        return self._conversion(tuple(dict.fromkeys(choices.stages)), choices.kind)

    def _conversion(self, choices: tuple[StageChoice, ...], kind: int) -> Conversion:
        final = len(choices) + 1 if kind == LINKED else PRUNED
        stages = np.ones(self.channels.units, dtype=np.int64)
        for index, division in enumerate(self.divisions):
            for level, chunk in enumerate(division.chunks):
                takers = (
                    stage
                    for stage, choice in enumerate(choices, start=1)
                    if level < choice.levels[index] and self._computes(choice.exit, division)
                )
                stages[list(chunk)] = next(takers, final)
        taps = tuple(self.taps[choice.exit] for choice in choices)
        units = tuple(stages.tolist())
        if kind == LINKED:
            return Conversion((self._alive(Plan((*taps, self.graph.output), units)),))
        first = self._alive(Plan(taps, units, self.scale_of(kind)))
        return Conversion((first, self.last_of(kind)))

    def _alive(self, plan: Plan) -> Plan:
        """Return the plan, with the first group of every class moved to stage 1 if a tap would show nothing of the image."""
        effective = Effective(self.model, plan, check_taps=False)
        if all(effective.sees(tap, s).any() for s, tap in enumerate(plan.taps, start=1)):
            return plan
        stages = list(plan.stages_of_units)
        for division in self.divisions:
            for unit in division.chunks[0]:
                stages[unit] = 1
        return replace(plan, stages_of_units=tuple(stages))

    def actions(self, kind: int, taps: Sequence[int], fractions: Sequence[float]) -> tuple[int, ...]:
        """Return the decisions nearest to these tap indices and these fractions of every class, valid step by step."""
        rows = [[max(1, round(fraction * d.levels)) for d in self.divisions] for fraction in fractions]
        return self.nearest(kind, taps, rows)

    def nearest(self, kind: int, taps: Sequence[int], levels: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the decisions nearest to these tap indices and levels, one row per stage but the last, valid step by step."""
        chosen: list[int] = [kind]
        for tap, row in zip(taps, levels, strict=True):
            for option in (tap, *row):
                allowed = np.flatnonzero(self.allowed(tuple(chosen)))
                chosen.append(int(allowed[np.abs(allowed - option).argmin()]))
        return tuple(chosen)

    def without(self, index: int) -> tuple[int, ...]:
        """Return the decisions for a first chain of the whole network without one optional class, before the untouched model."""
        levels = [0 if i == index else d.levels for i, d in enumerate(self.divisions)]
        return self.nearest(CASCADE, [len(self.taps) - 1] * (self.stages - 1), [levels] * (self.stages - 1))

    def narrowest(self, kind: int) -> tuple[int, ...]:
        """Return the decisions for the smallest first stage of a kind: the earliest tap, and as little of every class as
        allowed."""
        chosen: tuple[int, ...] = (kind,)
        while len(chosen) < len(self.sizes):
            chosen = (*chosen, int(np.flatnonzero(self.allowed(chosen))[0]))
        return chosen

    def thinned(self, kind: int, keep: float, fraction: float) -> tuple[int, ...]:
        """Return the decisions for a first stage that ends at the last tap with fewer blocks.

        Of the classes that the stage can do without (mostly the insides of residual blocks) it has the share `keep`, evenly
        spread; of all others it has the share `fraction`.
        """
        last = [len(self.taps) - 1] * (self.stages - 1)
        choices = Choices.read(self.actions(kind, last, self._fractions(fraction)), len(self.divisions))
        first = choices.stages[0]
        levels = list(first.levels)
        optional = [index for index, division in enumerate(self.divisions) if division.optional]
        for number, index in enumerate(optional):
            without = math.floor((number + 1) * keep) == math.floor(number * keep)
            if without and self.allowed(Choices(kind, (), (first.exit, *levels[:index])).actions())[0]:
                levels[index] = 0
        return replace(choices, stages=(replace(first, levels=tuple(levels)), *choices.stages[1:])).actions()

    def ending_at(self, kind: int, tap: int, fraction: float) -> tuple[int, ...]:
        """Return the decisions for a first stage that ends at a tap, with the same fraction of every class; further stages lie
        between it and the model."""
        return self.actions(kind, self._spread(tap), self._fractions(fraction))

    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Return simple conversions to start from and to compare with: depth splits, uniform widths, fewer blocks."""
        last = len(self.taps) - 1
        options = [(kind, tap, f) for kind in self.kinds for tap in range(len(self.taps)) for f in (1.0, 0.5)]
        options += [(kind, last, f) for kind in self.kinds for f in (0.25, 0.75)]
        sequences = [self.ending_at(*option) for option in options]
        sequences += [
            self.thinned(kind, keep, f) for kind in self.kinds for keep in BLOCKS for f in (1.0, 0.5)
            if kind == CASCADE or f < 1  # a linked stage 2 could add nothing to channels that stage 1 has whole
        ]  # fmt: skip
        sequences += [
            self.actions(k, [last] * (self.stages - 1), self._fractions(f))
            for k in self.options_of_kind if k >= len(KINDS) for f in (1.0, 0.5)
        ]  # fmt: skip
        return tuple(dict.fromkeys(sequences))

    def uniform(self) -> tuple[tuple[int, ...], ...]:
        """Return the baseline of uniform plans: every class divided at one fraction, all taps at the end."""
        levels = max((d.levels for d in self.divisions), default=1)
        last = [len(self.taps) - 1] * (self.stages - 1)
        grid = [(k, i / (2 * levels)) for k in self.kinds for i in range(1, 2 * levels)]
        return tuple(dict.fromkeys(self.actions(k, last, self._fractions(f)) for k, f in grid))

    def _spread(self, tap: int) -> list[int]:
        """Return the taps of all stages but the last when the first is at `tap`."""
        return [round(tap + (len(self.taps) - 1 - tap) * s / max(1, self.stages - 1)) for s in range(self.stages - 1)]

    def _fractions(self, first: float) -> list[float]:
        return [first + (1 - first) * s / max(1, self.stages - 1) for s in range(self.stages - 1)]


def depth_taps(model: AnalysedModel) -> tuple[str, ...]:
    """Return the taps at which an exit on the untouched model can save something: evenly spread, the very last left out."""
    taps = candidate_taps(model)
    share = mac_shares(model, taps)
    return _thinned(model, tuple(t for t in taps if share[t] <= MAX_TAP_SHARE) or taps)


def _thinned(model: AnalysedModel, taps: tuple[str, ...]) -> tuple[str, ...]:
    """Choose at most MAX_TAPS taps, evenly spread over the multiply-accumulates, none too early."""
    share = mac_shares(model, taps)
    late = [t for t in taps if share[t] >= MIN_TAP_SHARE] or list(taps[-1:])
    if len(late) <= MAX_TAPS:
        return tuple(late)
    marks = np.linspace(share[late[0]], share[late[-1]], MAX_TAPS)
    values = np.array([share[t] for t in late])
    return tuple(late[i] for i in sorted({int(np.abs(values - m).argmin()) for m in marks}))

"""Policies for a row of budgets, from confidences and answers: by budget, by accuracy, or with a bounded loss.

numpy only, no files, no clocks; used by the converter and by the calibration on a device, like `thresholds`.

Letters: S stages, B rows (images). Arguments of all functions: `confidence` [S, B]; `correct` [S, B], where every stage is right
(bool), or how often it can be expected to be (`expected`); `static` bool [B], where the static model is right; `cost` [S],
latency of every stage alone relative to the static model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import Policy
from s2d_runtime.thresholds import (
    NEVER_LEAVES,
    best_policy,
    budget_grid,
    budgets_from,
    cheapest_policy,
    exits,
    policy_at,
)

Array = NDArray[Any]

MAX_LOSS = 0.01  # of accuracy (or agreement) that most users take for speed
NO_GAIN = 0.98  # a mean latency above this share of the static one is no gain that anybody notices
MARGIN = 0.75  # of the loss that is allowed: the most that the default policy keeps from it for its uncertainty
SURE = 1.64  # standard errors: 95 % of one side


@dataclass(frozen=True)
class AskedFor:
    """What the user of a conversion asked for, as far as it says how policies are to be chosen again.

    exact: whether it was in exact mode, where few answers may differ from the static model's. loss: the loss within which the
    folder was to be as fast as possible; None where a budget or a promise was asked for.
    """

    exact: bool = False
    loss: float | None = None

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> AskedFor:
        """Read the free-form provenance of a manifest; what cannot be read counts as not recorded."""
        options = provenance.get("options")
        if not isinstance(options, Mapping):
            return cls()
        # A recorded mode of None is the usual one, which is exact mode without data; before there were modes none is recorded.
        mode = options.get("mode", "train") or ("train" if options.get("data") else "exact")
        loss = options.get("max_loss") if options.get("budget") is None and options.get("max_drop") is None else None
        return cls(mode == "exact", loss if isinstance(loss, float) and 0 <= loss < 1 else None)


def budget_row(confidence: Array, correct: Array, *, cost: Sequence[float], budget: float) -> list[Policy]:
    """Return the best policies for a row of budgets, ascending, `budget` among them.

    Thresholds aim one standard error below the budget, so that the budget also holds on images that were not
    calibrated on; where that cannot be reached, at the budget itself. Where nothing is clearly faster than the static model, no
    image leaves early.
    """
    budgets = budget_grid(confidence, cost, include=[budget])
    row = [safe_policy(confidence, correct, cost, one) for one in budgets]
    if no_gain(row):
        row = [never_early(confidence, correct, cost=cost, budget=one) for one in budgets]
    return row


def accurate_row(
    confidence: Array, correct: Array, static: Array, *, cost: Sequence[float], max_loss: float
) -> tuple[list[Policy], float]:
    """Return the best policies for a row of budgets, ascending, and the default budget.

    The default is that of the cheapest policy that loses at most `max_loss` against the static model. The loss is judged
    one standard error (of the paired comparison), but at most MARGIN of it, below `max_loss`, where that can be reached.
    """
    default = safely_cheapest(confidence, correct, static, cost=cost, max_loss=max_loss)
    budgets = [b for b in budget_grid(confidence, cost) if b != default.budget]
    others = [safe_policy(confidence, correct, cost, budget) for budget in budgets]
    row = sorted([default, *others], key=lambda policy: policy.budget)
    if no_gain(row):
        row = [never_early(confidence, correct, cost=cost, budget=policy.budget) for policy in row]
    return row, default.budget


def bounded_row(
    confidence: Array, correct: Array, static: Array, *, cost: Sequence[float], budget: float | None, max_loss: float
) -> tuple[list[Policy], float]:
    """Return policies whose loss with one standard error is at most `max_loss`, ascending by budget, and the default budget.

    budget None: that of the cheapest of them is the default. Where nothing is clearly faster, no image leaves early.
    """
    least = cheapest_within(confidence, correct, static, cost=cost, max_loss=max_loss)
    if not least.reached or no_gain([least]):
        default = 1.0 if budget is None else budget
        return [never_early(confidence, correct, cost=cost, budget=one) for one in sorted({1.0, default})], default
    default = least.budget if budget is None else budget
    budgets = budgets_from(least.expected_latency, include=[default])
    return [_served(least, confidence, correct, cost=cost, budget=one) for one in budgets], default


def _served(least: Policy, confidence: Array, correct: Array, *, cost: Sequence[float], budget: float) -> Policy:
    """Return the best policy for a budget, or the `least` one that is allowed where that is not right as often."""
    best = safe_policy(confidence, correct, cost, budget)
    if best.expected_accuracy >= least.expected_accuracy:
        return best
    return policy_at(confidence, correct, cost=cost, budget=budget, thresholds=least.thresholds)


def safely_cheapest(
    confidence: Array, correct: Array, static: Array, *, cost: Sequence[float], max_loss: float
) -> Policy:
    """Return the cheapest policy that loses at most `max_loss` against the static model, one standard error but at most MARGIN of
    it below it, where that can be reached."""
    safe = cheapest_within(confidence, correct, static, cost=cost, max_loss=max_loss, most=MARGIN)
    if safe.reached:
        return safe
    return cheapest_policy(confidence, correct, cost=cost, least_right=float(static.mean()) - max_loss)


def cheapest_within(
    confidence: Array,
    correct: Array,
    static: Array,
    *,
    cost: Sequence[float],
    max_loss: float,
    most: float = 1.0,
) -> Policy:
    """Return the cheapest policy whose loss, with its standard error or `most` of `max_loss`, is at most `max_loss`; with 1 it
    loses nothing at all where there are too few images to tell. `reached` is False where there is none that is faster than the
    static model."""
    least = float(static.mean()) - max_loss
    plain = cheapest_policy(confidence, correct, cost=cost, least_right=least)
    stage = exits(confidence, plain.thresholds)
    margin = loss_error(static.astype(float) - correct[stage, np.arange(stage.size)])
    return cheapest_policy(confidence, correct, cost=cost, least_right=least + min(margin, most * max_loss))


def loss_error(lost: Array) -> float:
    """Return the standard error of a mean loss, from the losses [B] of images.

    Where no image was lost or won, the rule of three says how many may still be.
    """
    return float(lost.std()) / math.sqrt(max(1, len(lost))) or 3 / (SURE * max(1, len(lost)))


def no_gain(policies: Sequence[Policy]) -> bool:
    """Return whether none of the policies is clearly faster than the static model, so that an early exit only risks answers."""
    return min(policy.expected_latency for policy in policies) > NO_GAIN


def never_early(confidence: Array, correct: Array, *, cost: Sequence[float], budget: float) -> Policy:
    """Return the policy at which no image leaves early."""
    thresholds = [NEVER_LEAVES] * (len(confidence) - 1)
    return policy_at(confidence, correct, cost=cost, budget=budget, thresholds=thresholds)


def safe_policy(confidence: Array, correct: Array, cost: Sequence[float], budget: float) -> Policy:
    """Return the best policy one standard error of the mean cost below the budget, or at the budget if that is out of reach."""
    best = best_policy(confidence, correct, cost=cost, budget=budget)
    margin = mean_cost(confidence, best.thresholds, cost)[1]
    careful = best_policy(confidence, correct, cost=cost, budget=budget - margin)
    chosen = careful if careful.reached else best
    return policy_at(confidence, correct, cost=cost, budget=budget, thresholds=chosen.thresholds)


def mean_cost(confidence: Array, thresholds: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """Return the mean latency, relative to the static model, and its standard error."""
    paid = np.cumsum(cost)[exits(confidence, thresholds)]
    return float(paid.mean()), float(paid.std() / math.sqrt(len(paid)))


def counted(policies: Sequence[Policy], confidence: Array, correct: Array, *, cost: Sequence[float]) -> list[Policy]:
    """Return policies that were chosen by expected answers with the share of their right answers counted. correct: bool."""
    again = (policy_at(confidence, correct, cost=cost, budget=p.budget, thresholds=p.thresholds) for p in policies)
    return [replace(c, reached=p.reached) for c, p in zip(again, policies, strict=True)]


def rounded(policy: Policy) -> Policy:
    """Return the policy with its measured shares rounded to what their number of images bears, as a manifest has it."""
    return replace(
        policy,
        expected_latency=round(policy.expected_latency, 5),
        expected_accuracy=round(policy.expected_accuracy, 5),
        disagreement=None if policy.disagreement is None else round(policy.disagreement, 5),
        exit_share=tuple(round(share, 5) for share in policy.exit_share),
    )

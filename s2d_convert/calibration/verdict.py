"""The verdict on a conversion in sentences: the loss, the gain, and what to do.

Everything is judged on the same images, on which nothing was trained or chosen. A loss is the mean over images of (the
static model is right) - (the conversion is right), so its standard error is that of a paired comparison.

Letters: S stages, B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from s2d_runtime import Manifest, Policy
from s2d_runtime.policies import MAX_LOSS, NO_GAIN, SURE, loss_error
from s2d_runtime.thresholds import exits

from s2d_convert.calibration.policies import Scores

HARDLY_FASTER = 0.9  # of static; a share of latency that a user hardly notices
LARGE_LOSS = 0.05
UNKNOWN = "worth a try; so few images cannot tell the loss any better"


@dataclass(frozen=True)
class Outcome:
    """The results of a policy on images.

    Mean and worst latency relative to static, the share of right answers, the loss against the static model with its
    standard error (as shares, not points), and the share of images that leave at each exit.
    """

    budget: float
    latency: float
    worst: float
    right: float
    loss: float
    loss_error: float
    exit_share: tuple[float, ...]

    @property
    def surely_lost(self) -> float:
        """The lower confidence limit of the loss, at least 0."""
        return max(0.0, self.loss - SURE * self.loss_error)

    def within(self, max_loss: float) -> bool:
        """Return whether the loss is at most `max_loss`, as far as the images show."""
        return self.loss <= max_loss


@dataclass(frozen=True)
class Verdict:
    """The verdict on a folder.

    `outcome` is that of the policy in use, `within` that of the cheapest policy with at most the allowed loss (None if there
    is none). `worse`: the static model is at least as fast and as accurate.
    """

    outcome: Outcome
    within: Outcome | None
    worse: bool
    sentences: tuple[str, ...]
    warning: str | None = None


def outcomes(
    policies: Sequence[Policy], scores: Scores, temperatures: Sequence[float], *, cost: Sequence[float]
) -> tuple[Outcome, ...]:
    """Return the outcomes of policies on the images of `scores`. cost: latency of every stage alone, relative to static."""
    static = scores.static_correct.astype(np.float64)
    confidence = scores.confidence(temperatures)
    return tuple(_outcome(policy, confidence, scores.correct, static, np.cumsum(cost)) for policy in policies)


def _outcome(
    policy: Policy,
    confidence: NDArray[np.float32],
    stage_right: NDArray[np.bool_],
    static: NDArray[np.float64],
    paid: NDArray[np.float64],
) -> Outcome:
    stage = exits(confidence, policy.thresholds)
    right = stage_right[stage, np.arange(stage.size)].astype(np.float64)
    lost = static - right
    return Outcome(
        policy.budget,
        float(paid[stage].mean()),
        float(paid[stage.max()]),
        float(right.mean()),
        float(lost.mean()),
        loss_error(lost),
        tuple((np.bincount(stage, minlength=len(paid)) / max(1, len(stage))).tolist()),
    )


def worth_showing(outcomes: Sequence[Outcome], chosen: float) -> tuple[Outcome, ...]:
    """Return the outcomes in order of latency, without duplicates and those that another one, or the static model, beats in
    latency and loss.

    The outcome of the budget `chosen` is always kept.
    """
    ranked = sorted(outcomes, key=lambda o: (o.latency, o.loss, o.budget != chosen))
    shown: list[Outcome] = []
    for outcome in ranked:
        beaten = any(k.loss <= outcome.loss for k in shown) or (outcome.latency >= 1 and outcome.loss >= 0)
        if outcome.budget == chosen or not beaten:
            shown.append(outcome)
    return tuple(o for o in shown if o.budget == chosen or not _same(o, shown, chosen))


def useful_policies(manifest: Manifest) -> list[Policy]:
    """Return the policies in order of latency, without those that are no faster and no more accurate than another one. The
    policy in use is always kept."""
    chosen, shown = manifest.default_policy, list[Policy]()
    ranked = sorted(manifest.policies, key=lambda p: (p.expected_latency, -p.expected_accuracy, p is not chosen))
    for policy in ranked:
        if policy is chosen or not any(p.expected_accuracy >= policy.expected_accuracy for p in shown):
            shown.append(policy)
    return shown


def _same(outcome: Outcome, others: Sequence[Outcome], chosen: float) -> bool:
    """Return whether the outcome equals that of the chosen budget."""
    return any(o.budget == chosen and (o.latency, o.loss) == (outcome.latency, outcome.loss) for o in others)


def verdict(
    outcomes: Sequence[Outcome], *, budget: float, max_loss: float = MAX_LOSS, target: str = "accuracy"
) -> Verdict:
    """Return the verdict on a folder that uses the policy of `budget`. target: accuracy or agreement."""
    chosen = next(o for o in outcomes if o.budget == budget)
    near = [o for o in outcomes if o.within(max_loss) and o.latency <= NO_GAIN]
    within = min(near, key=lambda o: (o.latency, o.loss), default=None)
    worse = chosen.latency >= NO_GAIN and chosen.loss >= 0
    return Verdict(
        chosen,
        within,
        worse,
        tuple(_sentences(chosen, within, max_loss=max_loss, target=target)),
        _warning(chosen, within, max_loss) if chosen.surely_lost > LARGE_LOSS else None,
    )


def _sentences(chosen: Outcome, within: Outcome | None, *, max_loss: float, target: str) -> list[str]:
    """Return sentences on what was lost and gained, whether it is worthwhile, and the cheapest policy within the allowed
    loss."""
    speed = f"takes {chosen.latency:.3f} of the static model's time on average ({1 / chosen.latency:.1f} times as fast)"
    sentences = [f"{loss_text(chosen, target)} and {speed}: {_worth(chosen, max_loss)}."]
    if chosen.exit_share[-1] == 1 and len(chosen.exit_share) > 1:
        sentences.append(
            "No image leaves early: no thresholds were found that are clearly faster and lose as little as that."
        )
    elif chosen.worst > NO_GAIN:
        sentences.append(f"An image that needs every stage takes {chosen.worst:.2f}.")
    if within is None:
        sentences.append(
            f"Within {points(max_loss)} of static nothing faster was found; more images or more time (--effort, --time) may help."
        )
    elif within.budget != chosen.budget:
        sentences.append(
            f"Within {points(max_loss)} of static the cheapest takes {within.latency:.2f}: --budget {within.budget:g} "
            f"({loss_text(within, target).lower()})."
        )
    return sentences


def _worth(outcome: Outcome, max_loss: float) -> str:
    if outcome.latency >= NO_GAIN:
        return "not worth it, the static model is as fast" if outcome.loss >= 0 else "more right, but not faster"
    if outcome.loss <= max_loss and outcome.latency > HARDLY_FASTER:
        return "hardly worth it, more time, more images or INT8 (--quantize int8) may gain more"
    if outcome.loss <= max_loss:
        return "worth deploying" if outcome.loss + SURE * outcome.loss_error <= 2 * max_loss else UNKNOWN
    if outcome.loss - outcome.loss_error <= max_loss:
        return UNKNOWN
    return "do not use this" if outcome.surely_lost > LARGE_LOSS else "worth it only where that loss is"


def _warning(chosen: Outcome, within: Outcome | None, max_loss: float) -> str:
    help_text = "more time (--effort, --time) or more images"
    if within is not None:
        help_text = (
            f"a larger budget (--budget {within.budget:g} keeps within {points(max_loss)} of static), {help_text}"
        )
    return f"at budget {chosen.budget:g} {points(chosen.loss)} are lost; what helps: {help_text}"


def loss_text(outcome: Outcome, target: str) -> str:
    """Return the loss with its standard error in words, such as: Loses 0.4 ± 0.2 points of accuracy."""
    error = f"{100 * outcome.loss_error:.1f}"
    if abs(outcome.loss) < 5e-5:
        return f"Loses nothing (± {error} points of {target})"
    verb = "Loses" if outcome.loss > 0 else "Gains"
    return f"{verb} {100 * abs(outcome.loss):.1f} ± {error} points of {target}"


def points(share: float) -> str:
    """Return a share as points, such as: 1 point."""
    value = f"{100 * share:.1f}".removesuffix(".0")
    return f"{value} point" if value == "1" else f"{value} points"

"""Policies whose answers may part from the static model's in a stated small share only, whatever the budget: those of exact
mode, where the last stage is the static model and not leaving early is always right. numpy only.

With data: the loss on the images, with one standard error, is at most `max_loss`. With made-up images the same holds on those
that the static model is sure of, and no threshold lies below its floor (`confidence_floor`). Where that leaves no policy that is
clearly faster than the static model, no image leaves early. A budget that cannot be kept in this way is not reached.

Letters: S stages, B rows (images).
"""

from __future__ import annotations

from collections.abc import Sequence

from s2d_runtime.policies import MAX_LOSS, bounded_row
from s2d_runtime.thresholds import observed

from s2d_convert.calibration.confidence_floor import above, floors, raised, sure_rows
from s2d_convert.calibration.policies import Chosen, Scores, told_of
from s2d_convert.data.labels import groups


def bounded_policies(
    scores: Scores,
    temperatures: Sequence[float],
    *,
    cost: Sequence[float],
    budget: float | None,
    max_loss: float = MAX_LOSS,
) -> Chosen:
    """Return policies that lose at most `max_loss`, for a row of budgets with `budget`, the default, among them.

    cost: of every stage, relative to the static model. budget None: the cheapest of them is the default.
    """
    confidence, right, static = scores.confidence(temperatures), scores.expected, scores.static_correct
    row, default = bounded_row(confidence, right, static, cost=cost, budget=budget, max_loss=max_loss)
    return Chosen(told_of(scores, row, confidence, cost=cost), default)


def careful_policies(
    scores: Scores,
    temperatures: Sequence[float],
    *,
    cost: Sequence[float],
    budget: float | None,
    max_loss: float = MAX_LOSS,
) -> Chosen:
    """Return the same from made-up images, with the floors of `confidence_floor`; the last stage is the static model."""
    confidence, agrees, task = scores.confidence(temperatures), scores.correct, scores.task
    lowest = floors(confidence, agrees, groups(scores.static_classes), classes=task.kinds(scores.logits.shape[2]))
    rows = sure_rows(scores.logits[-1], task)
    sure, as_last, right = confidence[:, rows], scores.as_last[:, rows], agrees[:, rows]
    static = scores.static_correct[rows]
    row, default = bounded_row(above(sure, lowest), right, static, cost=cost, budget=budget, max_loss=max_loss)
    return Chosen(tuple(observed(raised(policy, lowest), sure, as_last) for policy in row), default)

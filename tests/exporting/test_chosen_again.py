"""Policies of a folder that is calibrated or converted again are chosen as its conversion chose them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2d_convert.calibration.policies import Chosen, Scores
from s2d_convert.exporting.renewal import chosen_again

COST, BEFORE = (0.4, 0.8), 0.5


def scores(images: int = 400) -> Scores:
    """A first stage that is right, and sure, on three of four images; a last stage that is always right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, images)
    easy = rng.random(images) < 0.75
    first = np.where(easy[:, None], 4.0 * np.eye(2)[labels], 0.5 * np.eye(2)[1 - labels])
    last = 6.0 * np.eye(2)[labels]
    return Scores(np.stack([first, last]).astype(np.float32), labels, labels)


def again(asked: dict[str, Any] | None, budget: float | None = None) -> Chosen:
    """The policies of a folder whose conversion was asked for this, and whose default budget is BEFORE."""
    provenance = {} if asked is None else {"options": {"mode": "train", "data": "images", **asked}}
    manifest: Any = SimpleNamespace(provenance=provenance, default_budget=BEFORE)
    return chosen_again(manifest, scores(), (1.0, 1.0), cost=COST, budget=budget)


@pytest.mark.parametrize("loss", [0.01, 0.1])
def test_a_folder_without_a_budget_stays_within_its_loss(loss: float) -> None:
    """Its old default budget would lose more by now: such stages are dearer, or less right, than they were."""
    chosen = again({"budget": None, "max_loss": loss})
    default = next(p for p in chosen.policies if p.budget == chosen.default_budget)
    assert default.expected_accuracy >= 1 - loss
    kept = next(p for p in again(None).policies if p.budget == BEFORE)
    assert kept.expected_accuracy < 1 - loss


@pytest.mark.parametrize(
    ("asked", "budget", "default"),
    [
        (None, None, BEFORE),  # a folder that was only split
        ({"budget": 0.6, "max_loss": 0.01}, None, BEFORE),
        ({"budget": None, "max_drop": 0.01, "max_loss": 0.01}, None, BEFORE),
        ({"budget": None, "max_loss": 0.01}, 0.7, 0.7),
        ({"budget": None, "max_loss": 0.01, "mode": "exact"}, 0.7, 0.7),
    ],
)
def test_a_budget_stays_the_default(asked: dict[str, Any] | None, budget: float | None, default: float) -> None:
    assert again(asked, budget).default_budget == default


def test_exact_mode_keeps_its_loss_at_every_budget() -> None:
    chosen = again({"budget": None, "max_loss": 0.05, "mode": "exact"})
    assert all(policy.expected_accuracy >= 0.95 for policy in chosen.policies)

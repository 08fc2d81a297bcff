"""Made-up classifiers of which everything is known: the risk of a policy on the whole population is a count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2d_convert.calibration.risk_control import RiskBound, Tested, fixed_sequence, path, stage_losses
from s2d_convert.calibration.thresholds import confidences, exits, fit_temperature


@dataclass(frozen=True)
class Population:
    """logits: float32 [S, N, K]; said: int [N], the static model's answers; truth: int [N]; cost: [S]."""

    logits: NDArray[np.float32]
    said: NDArray[np.int64]
    truth: NDArray[np.int64]
    cost: tuple[float, ...]

    def losses(self, *, paired: bool) -> NDArray[np.int8]:
        """[S, N]: with labels (paired) or against the static model."""
        target = self.truth if paired else self.said
        return stage_losses(self.said == target, self.logits.argmax(axis=2) == target)


def population(seed: int, *, stages: int, exact: bool, rows: int = 4000, classes: int = 6) -> Population:
    """Stages that get better, on images of every difficulty; the last one is the static model where `exact`, else it
    answers like it on most images. Logits are three times too sure of themselves."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    ease = rng.gamma(1.2, 5.0, rows)
    shared = rng.normal(size=(rows, classes))
    everything = []
    for k in range(stages + 1):  # the last one: the static model
        skill = min(1.0, (k + 1) / stages)
        logits = 0.9 * shared + (1.1 - 0.8 * skill) * rng.normal(size=shared.shape)
        logits[np.arange(rows), truth] += ease * (0.5 + 0.5 * skill)
        everything.append(3 * logits)
    static = everything[stages - 1] if exact else everything[stages]
    cost = tuple(np.linspace(0.3, 0.6, stages).tolist())
    return Population(np.array(everything[:stages], np.float32), static.argmax(axis=1), truth, cost)


def draw(
    people: Population, risk_bound: RiskBound, rng: np.random.Generator, *, paired: bool, images: int
) -> tuple[float, Tested]:
    """(true risk of the cheapest policy that is kept after one draw of calibration images, NaN if none; the test)."""
    rows = rng.integers(0, len(people.truth), images)
    fit, test = rows[: images // 5], rows[images // 5 :]
    target = people.truth if paired else people.said
    losses = people.losses(paired=paired)
    temperatures = [fit_temperature(stage[fit], target[fit]) for stage in people.logits]
    walk = path(confidences(people.logits[:, fit], temperatures), losses[:, fit], cost=people.cost)
    confidence = confidences(people.logits[:, test], temperatures)
    tested = fixed_sequence(walk, confidence, losses[:, test], risk_bound, paired=paired)
    if not tested.kept:
        return np.nan, tested
    leave = exits(confidences(people.logits, temperatures), walk[tested.kept - 1].tolist())
    return float(losses[leave, np.arange(len(leave))].mean()), tested

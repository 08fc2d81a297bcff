"""The search by a learning controller: REINFORCE (Williams, 1992) with an LSTM as in S2DNAS (Yuan et al., ECCV 2020).

An evaluation takes about a second, so about a hundred must suffice. To learn from so few, the controller also imitates the
best plans so far (self-imitation: Oh et al., ICML 2018), first of all those that the search starts from. It shares the
proposals with neighbours of these plans, by how often either finds one that joins them: where good plans are rare, a step
from one of them is the better guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from s2d_convert.plans.decisions import Actions, Allowed, PlanT, Space, checked, neighbour
from s2d_convert.search.base import GIVE_UP, Book, Evaluate, Hooks, SearchResult, Trial
from s2d_convert.search.controller import LSTMController

CONTROLLER, NEIGHBOURS = 0, 1  # where a proposal comes from
# Of two proposals of either kind, how many join the best plans, before anything is known (docs/results.md).
EXPECTED = np.array([0.5, 1.5])


@dataclass(frozen=True)
class Settings:
    """How `reinforce` learns; the defaults are tuned for 60-150 evaluations of 15-40 decisions.

    `explore` is the probability that a decision is drawn uniformly; it falls to `explore_end` over the run.
    `baseline_decay` is the decay of the moving averages of the reward and its variance. The `elites` best plans are
    imitated with weights ``exp(-rank / elite_scale)``. These fall steeply, because with even weights mediocre plans would
    count as much as the best for most of a short run. A round has `batch` proposals: sequences that the controller draws, and
    changed elites (drawn with weights ``exp(-rank / parent_scale)``), at least one of each. After `patience` repeats in a row
    exploration rises; after `give_up` repeats the space is enumerated. The `warm_start` sequences are evaluated first and
    count; those that stay among the best are imitated, at first for `lessons` updates, without which the first proposals would be
    drawn evenly.
    """

    hidden: int = 64
    batch: int = 4
    lessons: int = 6
    learning_rate: float = 0.01
    clip: float = 1.0
    entropy: float = 0.01
    entropy_decay: float = 0.99
    explore: float = 0.1
    explore_end: float = 0.02
    baseline_decay: float = 0.8
    elites: int = 8
    elite_scale: float = 3.0
    parent_scale: float = 1.0
    imitation: float = 1.0
    patience: int = 12
    give_up: int = GIVE_UP
    warm_start: tuple[Actions, ...] = ()


def reinforce(
    space: Space[PlanT],
    evaluate: Evaluate[PlanT],
    *,
    evaluations: int,
    seed: int,
    settings: Settings | None = None,
    hooks: Hooks[PlanT] | None = None,
) -> SearchResult[PlanT]:
    """Search with an LSTM controller that learns to propose plans of high reward.

    Ends after `evaluations` distinct plans, when the space has no others, or when it is out of time.
    """
    book = Book(space, evaluate, method="reinforce", evaluations=evaluations, hooks=hooks)
    settings = settings or Settings()
    learner = _Learner(space, settings, seed)
    first = [checked(space, actions) for actions in settings.warm_start]
    book.look_ahead(first)
    for actions in first:
        book.visit_if_open(actions)
        if hooks is not None and hooks.starts_over():
            break
    for _ in range(settings.lessons if first and settings.imitation else 0):
        learner.learn([], book, explore=settings.explore)
    while not book.closed:
        explore, near = learner.exploration(book), list[Actions]()
        if book.stale < settings.give_up:
            near = learner.neighbours(book)
            proposals = learner.propose(explore, count=settings.batch - len(near))
        else:
            proposals = book.unmet()
        if not proposals:
            break
        book.look_ahead([*proposals, *near])
        episodes = learner.visit(book, proposals, CONTROLLER)
        learner.visit(book, near, NEIGHBOURS)
        learner.learn(episodes, book, explore=explore)
    return book.result()


class _Learner:
    """The controller with its optimizer and its moving averages."""

    def __init__(self, space: Space[Any], settings: Settings, seed: int) -> None:
        self.space, self.settings = space, settings
        self._rng = np.random.default_rng(seed)
        self._tried, self._joined = np.zeros(2), np.zeros(2)  # by the controller, and as neighbours
        self.controller = LSTMController(space.sizes, hidden=settings.hidden, seed=seed)
        self.allowed: Allowed = lru_cache(maxsize=2**16)(space.allowed)
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.controller.parameters(), lr=settings.learning_rate)
        self._entropy = settings.entropy
        self._mean: float | None = None
        self._variance: float | None = None

    def exploration(self, book: Book[Any]) -> float:
        """Return the probability of a uniform draw. It falls with the evaluations and rises while all plans are repeats."""
        s = self.settings
        usual = s.explore + (s.explore_end - s.explore) * len(book.distinct) / book.evaluations
        stuck = max(0, book.stale - s.patience) / max(1, s.give_up - s.patience)
        return min(1.0, usual + stuck)

    def propose(self, explore: float, *, count: int) -> Sequence[Actions]:
        """Draw sequences from the controller."""
        with torch.no_grad():
            drawn = self.controller.sample(self.allowed, generator=self._generator, count=count, explore=explore)
        return drawn.actions

    def neighbours(self, book: Book[Any]) -> list[Actions]:
        """Draw neighbours of the best plans so far, as many as they deserve; none before there are any plans."""
        elites = book.elites(self.settings.elites)
        if not elites:
            return []
        rates = (self._joined + EXPECTED) / (self._tried + 2)
        share = float(rates[NEIGHBOURS] / rates.sum())
        count = min(max(1, round(share * self.settings.batch)), self.settings.batch - 1)
        weights = np.exp(-np.arange(len(elites)) / self.settings.parent_scale)
        parents = self._rng.choice(len(elites), size=count, p=weights / weights.sum())
        return [neighbour(self.space, elites[i].actions, self._rng) for i in parents]

    def visit(self, book: Book[PlanT], proposals: Sequence[Actions], source: int) -> list[Trial[PlanT]]:
        """Evaluate proposals, and count those that join the best plans."""
        trials = [trial for trial in map(book.visit_if_open, proposals) if trial is not None]
        best = {trial.plan for trial in book.elites(self.settings.elites)}
        self._tried[source] += len(trials)
        self._joined[source] += sum(trial.plan in best and not trial.repeated for trial in trials)
        return trials

    def learn(self, episodes: Sequence[Trial[Any]], book: Book[Any], *, explore: float) -> None:
        """Update the controller once: towards episodes above the moving average, if there are any, and towards the best plans.

        explore: the value that the episodes were drawn with. The gradient is that of the mixture, so it stays on-policy.
        """
        s, count = self.settings, len(episodes)
        elites = book.elites(s.elites) if s.imitation else []
        scores = self.controller.log_prob([t.actions for t in [*episodes, *elites]], self.allowed, explore=explore)
        loss = torch.zeros(())
        if episodes:
            gain = (self._advantages(episodes) * scores.log_prob[:count]).mean()
            loss = -gain - self._entropy * scores.entropy[:count].mean()
        if elites:
            weights = torch.exp(-torch.arange(len(elites)) / s.elite_scale)
            loss = loss - s.imitation * (weights / weights.sum() * scores.log_prob[count:]).sum()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.controller.parameters(), s.clip)
        self._optimizer.step()
        self._entropy *= s.entropy_decay

    def _advantages(self, episodes: Sequence[Trial[Any]]) -> torch.Tensor:
        """Return how far each reward is above the moving average, in moving standard deviations, clipped to [-3, 3]."""
        rewards = np.array([t.evaluation.reward for t in episodes])
        keep = self.settings.baseline_decay
        self._mean = _moved(self._mean, float(rewards.mean()), keep)
        self._variance = _moved(self._variance, float(np.square(rewards - self._mean).mean()), keep)
        scaled = (rewards - self._mean) / (math.sqrt(self._variance) + 1e-8)
        return torch.as_tensor(np.clip(scaled, -3, 3), dtype=torch.float32)


def _moved(average: float | None, value: float, keep: float) -> float:
    return value if average is None else keep * average + (1 - keep) * value

"""Search over plans: REINFORCE with an LSTM policy, and the baselines that it has to beat.

The search knows neither models nor clocks. It gets a space (decisions, what is allowed, what a sequence of decisions
means) and `evaluate(plan)`, and asks for each distinct plan once: candidates that repeat cost nothing.

REINFORCE is Williams' (1992) with a moving baseline and an entropy bonus, as in S2DNAS (Yuan et al., ECCV 2020). Because
a candidate takes a second and a search affords a hundred of them, the policy also imitates the best trials so far
(self-imitation, Oh et al., ICML 2018), weighted by rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from s2d_convert.policy import Actions, LSTMPolicy

PlanT = TypeVar("PlanT", bound=Hashable)
DecodedT = TypeVar("DecodedT", bound=Hashable, covariant=True)
REWARD_EXPONENT = 2.0


class Space(Protocol[DecodedT]):
    """Plans as sequences of decisions; `sizes[t]` options at step t. Different sequences may mean one plan."""

    sizes: tuple[int, ...]

    def allowed(self, prefix: Actions) -> NDArray[np.bool_]:
        """Which options decision `len(prefix)` has; never none."""

    def decode(self, actions: Actions) -> DecodedT:
        """The plan that a whole sequence means."""


@dataclass(frozen=True)
class Evaluation:
    """What a plan is worth: accuracy in 0..1, latency relative to the static model, the reward of both, and details."""

    accuracy: float
    latency: float
    reward: float
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial(Generic[PlanT]):
    """One proposal of a method: its decisions and plan, its evaluation, whether the plan had been met before."""

    index: int
    method: str
    actions: Actions
    plan: PlanT
    evaluation: Evaluation
    repeated: bool
    seconds: float


@dataclass(frozen=True)
class SearchResult(Generic[PlanT]):
    """The trials of one method in order, and the best of them (the first, at equal reward)."""

    best: Trial[PlanT]
    trials: tuple[Trial[PlanT], ...]
    method: str


@dataclass(frozen=True)
class Settings:
    """How REINFORCE learns. `explore` is the chance that a decision is drawn evenly, from start to end; `elite` how many
    of the best trials are imitated, with weights that fall by rank over `elite_decay`; `patience` how many proposals in a
    row may be repeats before the space counts as exhausted."""

    learning_rate: float = 0.01
    batch: int = 4
    entropy: float = 0.01
    entropy_decay: float = 0.99
    explore: float = 0.1
    explore_end: float = 0.02
    baseline_decay: float = 0.8
    elite: int = 8
    elite_decay: float = 3.0
    imitation: float = 1.0
    clip: float = 1.0
    patience: int = 200


def reward(accuracy: float, latency: float, budget: float, exponent: float = REWARD_EXPONENT) -> float:
    """The reward of a candidate: its accuracy, less where even the best thresholds miss the budget."""
    return float(accuracy * min(1.0, budget / max(latency, 1e-9)) ** exponent)


OnTrial = Callable[[Trial[PlanT]], None]


class _Recorder(Generic[PlanT]):
    """Evaluates proposals of one method, each distinct plan once."""

    def __init__(
        self,
        space: Space[PlanT],
        evaluate: Callable[[PlanT], Evaluation],
        *,
        method: str,
        on_trial: OnTrial[PlanT] | None,
        known: Mapping[PlanT, Evaluation] | None,
    ) -> None:
        self.space, self.evaluate, self.method = space, evaluate, method
        self._on_trial, self._known = on_trial, dict(known or {})
        self.met: dict[PlanT, Evaluation] = {}
        self.trials: list[Trial[PlanT]] = []

    def __call__(self, actions: Actions) -> Trial[PlanT]:
        """The trial of one proposal; a plan in `known` is not evaluated, but counts as met from now on."""
        started = time.monotonic()
        plan = self.space.decode(actions)
        repeated = plan in self.met
        if not repeated:
            self.met[plan] = self._known[plan] if plan in self._known else self.evaluate(plan)
        seconds = time.monotonic() - started
        trial = Trial(len(self.trials), self.method, actions, plan, self.met[plan], repeated, seconds)
        self.trials.append(trial)
        if self._on_trial is not None and not repeated:
            self._on_trial(trial)
        return trial

    def result(self) -> SearchResult[PlanT]:
        """Everything so far."""
        best = max(self.trials, key=lambda t: t.evaluation.reward)
        return SearchResult(best, tuple(self.trials), self.method)


def reinforce(
    space: Space[PlanT],
    evaluate: Callable[[PlanT], Evaluation],
    *,
    evaluations: int,
    seed: int,
    settings: Settings | None = None,
    on_trial: OnTrial[PlanT] | None = None,
    known: Mapping[PlanT, Evaluation] | None = None,
    warm_start: Sequence[Actions] = (),
) -> SearchResult[PlanT]:
    """The best plan that a policy trained by REINFORCE found in `evaluations` distinct plans.

    `warm_start` are evaluated first and count. With `known` (of an interrupted run with the same seed) the search takes
    the same way without evaluating again.
    """
    chosen = settings or Settings()
    record = _Recorder(space, evaluate, method="reinforce", on_trial=on_trial, known=known)
    for actions in warm_start:
        if len(record.met) < evaluations:
            record(actions)
    learner = _Learner(space, chosen, seed)
    stale = 0
    while len(record.met) < evaluations and stale < chosen.patience:
        progress = len(record.met) / evaluations
        # A policy that only repeats itself is pushed to look elsewhere.
        push = max(0.0, stale - 5 * chosen.batch) / chosen.patience
        explore = min(1.0, chosen.explore + (chosen.explore_end - chosen.explore) * progress + push)
        fresh = []
        for actions in learner.propose(explore):
            if len(record.met) >= evaluations:
                break
            fresh.append(record(actions))
            stale = stale + 1 if fresh[-1].repeated else 0
        learner.learn(fresh, record.trials, explore)
    return record.result()


class _Learner:
    """The policy and its optimiser."""

    def __init__(self, space: Space[Any], settings: Settings, seed: int) -> None:
        self.space, self.settings = space, settings
        self.policy = LSTMPolicy(space.sizes, seed=seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=settings.learning_rate)
        self.entropy = settings.entropy
        self.baseline: float | None = None
        self.variance: float | None = None

    def propose(self, explore: float) -> tuple[Actions, ...]:
        """A batch of sequences."""
        with torch.no_grad():
            drawn = self.policy.sample(
                self.space.allowed, generator=self.generator, count=self.settings.batch, explore=explore
            )
        return drawn.actions

    def learn(self, fresh: Sequence[Trial[Any]], trials: Iterable[Trial[Any]], explore: float) -> None:
        """One step on the new trials (policy gradient) and on the best ones so far (imitation)."""
        advantage = torch.tensor(self._advantages([t.evaluation.reward for t in fresh]), dtype=torch.float32)
        best = {t.plan: t for t in sorted(trials, key=lambda t: t.evaluation.reward)}
        elite = sorted(best.values(), key=lambda t: -t.evaluation.reward)[: self.settings.elite]
        weight = torch.exp(-torch.arange(len(elite)) / self.settings.elite_decay)
        sequences = [t.actions for t in (*fresh, *elite)]
        scored = self.policy.log_prob(sequences, self.space.allowed, explore=explore)
        count = len(fresh)
        gradient = (advantage * scored.log_prob[:count]).mean()
        imitation = (weight / weight.sum() * scored.log_prob[count:]).sum()
        bonus = self.entropy * scored.entropy[:count].mean()
        self.optimizer.zero_grad()
        (-gradient - self.settings.imitation * imitation - bonus).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.clip)
        self.optimizer.step()
        self.entropy *= self.settings.entropy_decay

    def _advantages(self, rewards: Sequence[float]) -> NDArray[np.float64]:
        """Rewards relative to the moving baseline, in units of their moving spread, clipped."""
        values, keep = np.array(rewards), self.settings.baseline_decay
        mean = float(values.mean())
        self.baseline = mean if self.baseline is None else keep * self.baseline + (1 - keep) * mean
        spread = float(np.square(values - self.baseline).mean())
        self.variance = spread if self.variance is None else keep * self.variance + (1 - keep) * spread
        advantages: NDArray[np.float64] = np.clip((values - self.baseline) / (np.sqrt(self.variance) + 1e-8), -3, 3)
        return advantages


def random_actions(space: Space[Any], rng: np.random.Generator) -> Actions:
    """A sequence whose every decision is drawn evenly from what is allowed."""
    actions: Actions = ()
    while len(actions) < len(space.sizes):
        actions = (*actions, int(rng.choice(np.flatnonzero(space.allowed(actions)))))
    return actions


def random_search(
    space: Space[PlanT],
    evaluate: Callable[[PlanT], Evaluation],
    *,
    evaluations: int,
    seed: int,
    on_trial: OnTrial[PlanT] | None = None,
    known: Mapping[PlanT, Evaluation] | None = None,
) -> SearchResult[PlanT]:
    """The best of `evaluations` distinct plans drawn at random."""
    record = _Recorder(space, evaluate, method="random", on_trial=on_trial, known=known)
    rng = np.random.default_rng(seed)
    stale = 0
    while len(record.met) < evaluations and stale < Settings.patience:
        stale = stale + 1 if record(random_actions(space, rng)).repeated else 0
    return record.result()


def evaluate_all(
    space: Space[PlanT],
    evaluate: Callable[[PlanT], Evaluation],
    proposals: Iterable[Actions],
    *,
    method: str,
    on_trial: OnTrial[PlanT] | None = None,
    known: Mapping[PlanT, Evaluation] | None = None,
) -> SearchResult[PlanT]:
    """The best of the given proposals (at least one)."""
    record = _Recorder(space, evaluate, method=method, on_trial=on_trial, known=known)
    for actions in proposals:
        record(actions)
    return record.result()

"""Searches over a space of plans; they know neither models nor clocks, only ``evaluate(plan)`` and its reward.

`reinforce` is REINFORCE (Williams, 1992) with an LSTM policy as in S2DNAS (Yuan et al., ECCV 2020), made frugal: it also
imitates the best plans so far (self-imitation: Oh et al., ICML 2018), because at three seconds per evaluation a hundred
rewards must do. `random_search` and `evaluate_all` are the baselines. All of them keep one book: a plan is evaluated once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from s2d_convert.policy import Actions, Allowed, LSTMPolicy

PlanT = TypeVar("PlanT")
PlanT_co = TypeVar("PlanT_co", covariant=True)

AHEAD = 16  # proposals of random search that are drawn at once
MAX_ENUMERATED = 5000  # action strings that are looked through, at most, before a space counts as exhausted


class Space(Protocol[PlanT_co]):
    """Plans as sequences of decisions; different sequences may stand for equal plans. Plans are hashable."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of every decision."""

    def allowed(self, prefix: Actions, /) -> NDArray[np.bool_]:
        """Options of decision `len(prefix)`, bool [sizes[len(prefix)]], at least one True."""

    def decode(self, actions: Actions, /) -> PlanT_co:
        """The plan that a full sequence stands for."""


@dataclass(frozen=True)
class Evaluation:
    """What a plan is worth; latency is relative to the static model, `info` is anything JSON can hold."""

    accuracy: float
    latency: float
    reward: float
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"evaluation: got the reward {self.reward} ({self}); expected a finite number")


@dataclass(frozen=True)
class Trial(Generic[PlanT]):
    """One proposal of a search; `repeated` if its plan had been met before, `seconds` is what evaluating took."""

    index: int
    method: str
    actions: Actions
    plan: PlanT
    evaluation: Evaluation
    repeated: bool
    seconds: float


@dataclass(frozen=True)
class SearchResult(Generic[PlanT]):
    """All trials in order, and the best: highest reward, then lowest latency, then first met."""

    best: Trial[PlanT]
    trials: tuple[Trial[PlanT], ...]
    method: str


@dataclass(frozen=True)
class Settings:
    """How `reinforce` learns; the defaults are tuned for 60-150 evaluations of 15-40 decisions.

    `explore` is the chance that a decision is drawn evenly, falling to `explore_end` over the run. `baseline_decay` belongs
    to the moving averages of reward and spread. The `elites` best plans are imitated with weights
    ``exp(-rank / elite_scale)``: steep, because a flat elite holds mediocre plans for most of a short run. After
    `patience` repeats in a row exploration rises; after `give_up` the space is gone through in order.
    """

    hidden: int = 64
    batch: int = 4
    learning_rate: float = 0.01
    clip: float = 1.0
    entropy: float = 0.01
    entropy_decay: float = 0.99
    explore: float = 0.1
    explore_end: float = 0.02
    baseline_decay: float = 0.8
    elites: int = 8
    elite_scale: float = 3.0
    imitation: float = 1.0
    patience: int = 12
    give_up: int = 80


# May have a method `ahead(plans)`: then it is told which plans come next, so that it can evaluate them side by side.
Evaluate = Callable[[PlanT], Evaluation]
OnTrial = Callable[[Trial[PlanT]], None]


def reward(
    accuracy: float,
    latency: float,
    budget: float,
    *,
    worst: float = 0.0,
    max_latency: float = math.inf,
    exponent: float = 2.0,
) -> float:
    """The accuracy, times ``(budget / latency) ** exponent`` where the latency misses the budget.

    A plan whose `worst` latency is over `max_latency` gets less than any plan within it: from just below 0 down to -1, the
    less the further over, so that a search that knows no plan within the bound is led towards it.
    """
    if worst > max_latency:
        return max_latency / worst - 1
    return accuracy if latency <= budget else accuracy * (budget / latency) ** exponent


def trial_to_json(trial: Trial[Any], plan_json: Any) -> dict[str, Any]:
    """One line of the search trace; floats in full, so that `evaluation_from_json` gives the same evaluation back."""
    value = trial.evaluation
    return {
        "method": trial.method,
        "index": trial.index,
        "actions": list(trial.actions),
        "plan": plan_json,
        "accuracy": value.accuracy,
        "latency": value.latency,
        "reward": value.reward,
        "info": dict(value.info),
        "repeated": trial.repeated,
        "seconds": trial.seconds,
    }


def evaluation_from_json(entry: Mapping[str, Any]) -> Evaluation:
    """The evaluation in a line of the trace, for `known`."""
    return Evaluation(entry["accuracy"], entry["latency"], entry["reward"], entry["info"])


def reinforce(
    space: Space[PlanT],
    evaluate: Evaluate[PlanT],
    *,
    evaluations: int,
    seed: int,
    settings: Settings | None = None,
    on_trial: OnTrial[PlanT] | None = None,
    warm_start: Sequence[Actions] = (),
    known: Mapping[PlanT, Evaluation] | None = None,
) -> SearchResult[PlanT]:
    """The trials of an LSTM policy that learns to propose plans of high reward.

    Ends after `evaluations` distinct plans, or when the space has no other. The `warm_start` sequences are evaluated
    first (and count); those that stay among the best are imitated. A plan in `known` takes its evaluation from there but
    counts like any other, so a run that was killed goes through the same trials when it is started again with the
    same seed and what it knew.
    """
    book = _Book(space, evaluate, method="reinforce", evaluations=evaluations, on_trial=on_trial, known=known)
    learner = _Learner(space, settings or Settings(), seed)
    first = [_checked(space, actions) for actions in warm_start]
    book.look_ahead(first)
    for actions in first:
        book.visit_if_open(actions)
    while not book.closed:
        explore = learner.exploration(book)
        proposals = learner.propose(explore) if book.stale < learner.settings.give_up else book.unmet()
        if not proposals:
            break
        book.look_ahead(proposals)
        episodes = [t for t in map(book.visit_if_open, proposals) if t is not None]
        learner.learn(episodes, book, explore=explore)
    return book.result()


def random_search(
    space: Space[PlanT],
    evaluate: Evaluate[PlanT],
    *,
    evaluations: int,
    seed: int,
    on_trial: OnTrial[PlanT] | None = None,
    known: Mapping[PlanT, Evaluation] | None = None,
) -> SearchResult[PlanT]:
    """The trials of proposals whose every decision is drawn evenly from what is allowed; ends like `reinforce`."""
    book = _Book(space, evaluate, method="random", evaluations=evaluations, on_trial=on_trial, known=known)
    rng = np.random.default_rng(seed)
    drawn: list[Actions] = []
    while not book.closed:
        if not drawn and book.stale < Settings.give_up:  # what is drawn does not hang on what was found
            drawn = [random_actions(space, rng) for _ in range(AHEAD)]
            book.look_ahead(drawn)
        proposals = [drawn.pop(0)] if book.stale < Settings.give_up else book.unmet()
        if not proposals:
            break
        book.visit_if_open(proposals[0])
    return book.result()


def evaluate_all(
    space: Space[PlanT],
    evaluate: Evaluate[PlanT],
    sequences: Sequence[Actions],
    *,
    method: str,
    on_trial: OnTrial[PlanT] | None = None,
    known: Mapping[PlanT, Evaluation] | None = None,
) -> SearchResult[PlanT]:
    """The trials of the given sequences, in order."""
    book = _Book(space, evaluate, method=method, evaluations=len(sequences), on_trial=on_trial, known=known)
    wanted = [_checked(space, actions) for actions in sequences]
    book.look_ahead(wanted)
    for actions in wanted:
        book.visit_if_open(actions)
    return book.result()


def random_actions(space: Space[Any], rng: np.random.Generator) -> Actions:
    """A sequence whose every decision is drawn evenly from what is allowed."""
    actions: Actions = ()
    for _ in space.sizes:
        actions = (*actions, int(rng.choice(np.flatnonzero(space.allowed(actions)))))
    return actions


def _checked(space: Space[Any], actions: Sequence[int]) -> Actions:
    """The sequence itself, once every decision of it is allowed."""
    sequence = tuple(int(a) for a in actions)
    if len(sequence) != len(space.sizes):
        raise ValueError(f"sequence {sequence}: got {len(sequence)} decisions; expected {len(space.sizes)}")
    for step, option in enumerate(sequence):
        choices = np.flatnonzero(space.allowed(sequence[:step])).tolist()
        if option not in choices:
            raise ValueError(f"sequence {sequence}: got option {option} at decision {step}; allowed are {choices}")
    return sequence


def _merit(trial: Trial[Any]) -> tuple[float, float]:
    return trial.evaluation.reward, -trial.evaluation.latency


def ranked(results: Sequence[SearchResult[PlanT]]) -> list[Trial[PlanT]]:
    """The first trial of every distinct plan of several searches, best first."""
    first: dict[PlanT, Trial[PlanT]] = {}
    for trial in (t for result in results for t in result.trials):
        first.setdefault(trial.plan, trial)
    return sorted(first.values(), key=_merit, reverse=True)


class _Book(Generic[PlanT]):
    """What a search has met: trials, distinct plans, and how long nothing was new."""

    def __init__(
        self,
        space: Space[PlanT],
        evaluate: Evaluate[PlanT],
        *,
        method: str,
        evaluations: int,
        on_trial: OnTrial[PlanT] | None,
        known: Mapping[PlanT, Evaluation] | None,
    ) -> None:
        if evaluations < 1:
            raise ValueError(f"search: got evaluations={evaluations}; expected at least 1")
        self.evaluations, self.method = evaluations, method
        self.trials: list[Trial[PlanT]] = []
        self.distinct: dict[PlanT, Trial[PlanT]] = {}
        self.stale = 0
        self._ahead = getattr(evaluate, "ahead", None)
        self._evaluate, self._on_trial, self._known = evaluate, on_trial, known if known is not None else {}
        self._decode = lru_cache(maxsize=None)(space.decode)
        self._rest = islice(_sequences(space, ()), MAX_ENUMERATED)

    @property
    def closed(self) -> bool:
        """Whether all evaluations are spent."""
        return len(self.distinct) >= self.evaluations

    def visit_if_open(self, actions: Actions) -> Trial[PlanT] | None:
        """The next trial, with this sequence; None when all evaluations are spent."""
        if self.closed:
            return None
        plan = self._decode(actions)
        repeated = plan in self.distinct
        value, seconds = self._value(plan)
        trial = Trial(len(self.trials), self.method, actions, plan, value, repeated, seconds)
        self.stale = self.stale + 1 if repeated else 0
        self.distinct.setdefault(plan, trial)
        self.trials.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    def look_ahead(self, proposals: Sequence[Actions]) -> None:
        """Tell `evaluate`, if it asks for that, which plans it will be asked for next."""
        if self._ahead is not None:
            plans = dict.fromkeys(map(self._decode, proposals))
            new = [plan for plan in plans if plan not in self.distinct and plan not in self._known]
            self._ahead(new[: self.evaluations - len(self.distinct)])

    def _value(self, plan: PlanT) -> tuple[Evaluation, float]:
        """The plan's evaluation, and the seconds that it took now."""
        if plan in self.distinct:
            return self.distinct[plan].evaluation, 0.0
        if plan in self._known:
            return self._known[plan], 0.0
        started = time.perf_counter()
        return self._evaluate(plan), time.perf_counter() - started

    def unmet(self) -> list[Actions]:
        """A sequence whose plan was not met yet, found by going through the space in order; empty if there is none."""
        return list(islice((s for s in self._rest if self._decode(s) not in self.distinct), 1))

    def elites(self, count: int) -> list[Trial[PlanT]]:
        """The best distinct plans, best first."""
        return sorted(self.distinct.values(), key=_merit, reverse=True)[:count]

    def result(self) -> SearchResult[PlanT]:
        """The finished book."""
        if not self.trials:
            raise ValueError(f"search '{self.method}': got nothing to evaluate; expected at least one sequence")
        return SearchResult(max(self.trials, key=_merit), tuple(self.trials), self.method)


def _sequences(space: Space[Any], prefix: Actions) -> Iterator[Actions]:
    """All sequences that begin with `prefix`, in order."""
    if len(prefix) == len(space.sizes):
        yield prefix
        return
    for option in np.flatnonzero(space.allowed(prefix)).tolist():
        yield from _sequences(space, (*prefix, option))


class _Learner:
    """The policy, its optimizer and its moving averages."""

    def __init__(self, space: Space[Any], settings: Settings, seed: int) -> None:
        self.settings = settings
        self.policy = LSTMPolicy(space.sizes, hidden=settings.hidden, seed=seed)
        self.allowed: Allowed = lru_cache(maxsize=2**16)(space.allowed)
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=settings.learning_rate)
        self._entropy = settings.entropy
        self._mean: float | None = None
        self._variance: float | None = None

    def exploration(self, book: _Book[Any]) -> float:
        """The chance that a decision is drawn evenly: falls with the evaluations, rises while nothing is new."""
        s = self.settings
        usual = s.explore + (s.explore_end - s.explore) * len(book.distinct) / book.evaluations
        stuck = max(0, book.stale - s.patience) / max(1, s.give_up - s.patience)
        return min(1.0, usual + stuck)

    def propose(self, explore: float) -> Sequence[Actions]:
        """A batch of sequences drawn from the policy."""
        with torch.no_grad():
            drawn = self.policy.sample(
                self.allowed, generator=self._generator, count=self.settings.batch, explore=explore
            )
        return drawn.actions

    def learn(self, episodes: Sequence[Trial[Any]], book: _Book[Any], *, explore: float) -> None:
        """One update: towards the episodes that did better than the moving average, and towards the best plans so far.

        `explore` is the one that the episodes were drawn with: the gradient is that of the mixture, so it stays on policy.
        """
        s, count = self.settings, len(episodes)
        elites = book.elites(s.elites) if s.imitation else []
        scores = self.policy.log_prob([t.actions for t in [*episodes, *elites]], self.allowed, explore=explore)
        gain = (self._advantages(episodes) * scores.log_prob[:count]).mean()
        loss = -gain - self._entropy * scores.entropy[:count].mean()
        if elites:
            weights = torch.exp(-torch.arange(len(elites)) / s.elite_scale)
            loss = loss - s.imitation * (weights / weights.sum() * scores.log_prob[count:]).sum()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), s.clip)
        self._optimizer.step()
        self._entropy *= s.entropy_decay

    def _advantages(self, episodes: Sequence[Trial[Any]]) -> torch.Tensor:
        """By how much each reward is above the moving average, in moving standard deviations, cut at 3."""
        rewards = np.array([t.evaluation.reward for t in episodes])
        keep = self.settings.baseline_decay
        self._mean = _moved(self._mean, float(rewards.mean()), keep)
        self._variance = _moved(self._variance, float(np.square(rewards - self._mean).mean()), keep)
        scaled = (rewards - self._mean) / (math.sqrt(self._variance) + 1e-8)
        return torch.as_tensor(np.clip(scaled, -3, 3), dtype=torch.float32)


def _moved(average: float | None, value: float, keep: float) -> float:
    return value if average is None else keep * average + (1 - keep) * value

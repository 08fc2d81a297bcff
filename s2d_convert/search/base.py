"""What all searches over a space of plans share, and the two that do not learn: random search and a given list.

A search knows neither models nor clocks. It knows only ``evaluate(plan)`` and the reward that this returns.

`random_search` and `evaluate_all` are the baselines of `reinforce`. All searches record their trials in a `Book`, which
evaluates every plan only once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Generic

import numpy as np

from s2d_convert.plans.decisions import Actions, PlanT, Space, checked, random_actions

AHEAD = 16  # proposals that random search draws at once
GIVE_UP = 80  # repeats in a row after which the space is enumerated
MAX_ENUMERATED = 5000  # sequences that are enumerated, at most, before a space counts as exhausted


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a plan. The latency is relative to the static model's; `info` is any JSON-able data."""

    accuracy: float
    latency: float
    reward: float
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"evaluation: got the reward {self.reward} ({self}); expected a finite number")


@dataclass(frozen=True)
class Trial(Generic[PlanT]):
    """One proposal of a search. `repeated`: its plan was proposed before; `seconds`: the time that the evaluation took."""

    index: int
    method: str
    actions: Actions
    plan: PlanT
    evaluation: Evaluation
    repeated: bool
    seconds: float


@dataclass(frozen=True)
class SearchResult(Generic[PlanT]):
    """All trials in order, and the best one: highest reward, then lowest latency, then earliest."""

    best: Trial[PlanT]
    trials: tuple[Trial[PlanT], ...]
    method: str


# May have a method `ahead(plans)`, which announces the plans that come next, so that they can be evaluated in parallel.
Evaluate = Callable[[PlanT], Evaluation]
OnTrial = Callable[[Trial[PlanT]], None]


@dataclass(frozen=True)
class Hooks(Generic[PlanT]):
    """The caller's part in a search.

    on_trial: called after every trial. known: evaluations of plans, which are taken from there but count like any other; so
    an interrupted search repeats the same trials when it is started again with the evaluations that it had made. out_of_time:
    whether to end after the current plan. starts_over: whether to leave the plans that a search starts from for those that it
    proposes itself.
    """

    on_trial: OnTrial[PlanT] = lambda _trial: None
    known: Mapping[PlanT, Evaluation] = field(default_factory=dict)
    out_of_time: Callable[[], bool] = lambda: False
    starts_over: Callable[[], bool] = lambda: False


def reward(
    accuracy: float,
    latency: float,
    budget: float,
    *,
    worst: float = 0.0,
    max_latency: float = math.inf,
    exponent: float = 2.0,
) -> float:
    """Return the accuracy, times ``(budget / latency) ** exponent`` where the latency exceeds the budget.

    A plan whose `worst` latency exceeds `max_latency` gets less than any plan within the limit: between 0 and -1, lower the
    further it exceeds. This leads a search that has no plan within the limit towards it.
    """
    if worst > max_latency:
        return max_latency / worst - 1
    return accuracy if latency <= budget else accuracy * (budget / latency) ** exponent


def speed_reward(
    accuracy: float, latency: float, least_right: float, *, worst: float = 0.0, max_latency: float = math.inf
) -> float:
    """Return the saved share of the static latency if the accuracy is at least `least_right`.

    A plan that is less accurate gets less than any plan that is accurate enough: -1 minus the missing accuracy. `worst` and
    `max_latency` are those of `reward`.
    """
    if worst > max_latency:
        return max_latency / worst - 3
    return 1 - latency if accuracy >= least_right - 1e-9 else accuracy - least_right - 1


def trial_to_json(trial: Trial[Any], plan_json: Any) -> dict[str, Any]:
    """Return one line of the search trace. Floats keep all digits, so that `evaluation_from_json` restores them exactly."""
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
    """Return the evaluation in a line of the search trace, for the `known` of `Hooks`."""
    return Evaluation(entry["accuracy"], entry["latency"], entry["reward"], entry["info"])


def random_search(
    space: Space[PlanT],
    evaluate: Evaluate[PlanT],
    *,
    evaluations: int,
    seed: int,
    hooks: Hooks[PlanT] | None = None,
) -> SearchResult[PlanT]:
    """Evaluate plans whose every decision is drawn uniformly from the allowed options. Ends like `reinforce`."""
    book = Book(space, evaluate, method="random", evaluations=evaluations, hooks=hooks)
    rng = np.random.default_rng(seed)
    drawn: list[Actions] = []
    while not book.closed:
        if not drawn and book.stale < GIVE_UP:  # draws do not depend on results, so they can be made ahead
            drawn = [random_actions(space, rng) for _ in range(AHEAD)]
            book.look_ahead(drawn)
        proposals = [drawn.pop(0)] if book.stale < GIVE_UP else book.unmet()
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
    hooks: Hooks[PlanT] | None = None,
) -> SearchResult[PlanT]:
    """Evaluate the plans of the given sequences, in order."""
    book = Book(space, evaluate, method=method, evaluations=len(sequences), hooks=hooks)
    proposals = [checked(space, actions) for actions in sequences]
    book.look_ahead(proposals)
    for actions in proposals:
        book.visit_if_open(actions)
    return book.result()


def _merit(trial: Trial[Any]) -> tuple[float, float]:
    return trial.evaluation.reward, -trial.evaluation.latency


def ranked(results: Sequence[SearchResult[PlanT]]) -> list[Trial[PlanT]]:
    """Return the first trial of every distinct plan of several searches, best first."""
    first: dict[PlanT, Trial[PlanT]] = {}
    for trial in (t for result in results for t in result.trials):
        first.setdefault(trial.plan, trial)
    return sorted(first.values(), key=_merit, reverse=True)


class Book(Generic[PlanT]):
    """The record of a search: trials, distinct plans, and the number of repeats since the last new plan (`stale`)."""

    def __init__(
        self,
        space: Space[PlanT],
        evaluate: Evaluate[PlanT],
        *,
        method: str,
        evaluations: int,
        hooks: Hooks[PlanT] | None = None,
    ) -> None:
        if evaluations < 1:
            raise ValueError(f"search: got evaluations={evaluations}; expected at least 1")
        self.evaluations, self.method, self._hooks = evaluations, method, hooks or Hooks()
        self.trials: list[Trial[PlanT]] = []
        self.distinct: dict[PlanT, Trial[PlanT]] = {}
        self.stale = 0
        self._ahead = getattr(evaluate, "ahead", None)
        self._evaluate = evaluate
        self._decode = lru_cache(maxsize=None)(space.decode)
        self._rest = islice(_sequences(space, ()), MAX_ENUMERATED)

    @property
    def closed(self) -> bool:
        """Whether all evaluations, or all time, are spent."""
        return len(self.distinct) >= self.evaluations or (bool(self.distinct) and self._hooks.out_of_time())

    def visit_if_open(self, actions: Actions) -> Trial[PlanT] | None:
        """Evaluate a sequence as the next trial and return the trial, or None when all evaluations are spent."""
        if self.closed:
            return None
        plan = self._decode(actions)
        repeated = plan in self.distinct
        value, seconds = self._value(plan)
        trial = Trial(len(self.trials), self.method, actions, plan, value, repeated, seconds)
        self.stale = self.stale + 1 if repeated else 0
        self.distinct.setdefault(plan, trial)
        self.trials.append(trial)
        self._hooks.on_trial(trial)
        return trial

    def look_ahead(self, proposals: Sequence[Actions]) -> None:
        """Announce the new plans among `proposals` to `evaluate`, if it has a method `ahead`."""
        if self._ahead is not None:
            plans = dict.fromkeys(map(self._decode, proposals))
            new = [plan for plan in plans if plan not in self.distinct and plan not in self._hooks.known]
            self._ahead(new[: self.evaluations - len(self.distinct)])

    def _value(self, plan: PlanT) -> tuple[Evaluation, float]:
        """Return the plan's evaluation and the seconds that it took, 0 where it was known."""
        if plan in self.distinct:
            return self.distinct[plan].evaluation, 0.0
        if plan in self._hooks.known:
            return self._hooks.known[plan], 0.0
        started = time.perf_counter()
        return self._evaluate(plan), time.perf_counter() - started

    def unmet(self) -> list[Actions]:
        """Return the next sequence of the space, in order, whose plan is new, as a list of one; [] if there is none."""
        return list(islice((s for s in self._rest if self._decode(s) not in self.distinct), 1))

    def elites(self, count: int) -> list[Trial[PlanT]]:
        """Return the best distinct plans, best first."""
        return sorted(self.distinct.values(), key=_merit, reverse=True)[:count]

    def result(self) -> SearchResult[PlanT]:
        """Return all trials and the best one. Raises ValueError if there are none."""
        if not self.trials:
            raise ValueError(f"search '{self.method}': got nothing to evaluate; expected at least one sequence")
        return SearchResult(max(self.trials, key=_merit), tuple(self.trials), self.method)


def _sequences(space: Space[Any], prefix: Actions) -> Iterator[Actions]:
    """Yield all sequences that begin with `prefix`, in order."""
    if len(prefix) == len(space.sizes):
        yield prefix
        return
    for option in np.flatnonzero(space.allowed(prefix)).tolist():
        yield from _sequences(space, (*prefix, option))

"""Which of a few conversions is trained for long: decided by short trainings of their first chains.

Solved weights rank chains well, and a chain that starts from them shows after some steps of its own how far it will get.
So the search's favourites and a few simple chains are trained shortly, the best third goes on, and so
forth: successive halving (Jamieson & Talwalkar, AISTATS 2016, arXiv 1502.07943).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from s2d_convert.channels.analysis import Channels
from s2d_convert.conversion.context import Job
from s2d_convert.plans.decisions import Actions
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import KINDS
from s2d_convert.search.base import Evaluation, Trial, evaluation_from_json, trial_to_json

METHOD = "finals"
ROUNDS = (0.25, 1.0)  # shares of the steps that a short training has
KEPT = 3  # one of so many goes on to the next round
FAVOURITES = 2  # plans of every kind that the search sends
ChainT = TypeVar("ChainT")


def halving(candidates: Sequence[ChainT], worth: Callable[[ChainT, int], tuple[float, ...]], *, rounds: int) -> ChainT:
    """Return the best candidate: in every round, `worth(candidate, round)` of those still there decides which third goes
    on.

    The first of equals wins, and at least one goes on.
    """
    left = list(candidates)
    for number in range(rounds):
        scores = [worth(candidate, number) for candidate in left]
        order = sorted(range(len(left)), key=scores.__getitem__, reverse=True)
        left = [left[i] for i in order[: math.ceil(len(left) / KEPT)]]
    return left[0]


def favourites(trace: Iterable[Mapping[str, Any]], channels: Channels) -> dict[Conversion, Actions]:
    """Return the best plans of every kind in a search's trace, with their decisions; all scales together are one kind."""
    best: dict[int, dict[Conversion, Actions]] = {kind: {} for kind in range(len(KINDS) + 1)}
    for line in sorted(trace, key=lambda line: (-line["reward"], line["latency"])):
        some = best[min(line["actions"][0], len(KINDS))]
        if len(some) < FAVOURITES:
            some.setdefault(Conversion.from_json(line["plan"], channels), tuple(line["actions"]))
    return {conversion: actions for some in best.values() for conversion, actions in some.items()}


class Finals:
    """Short trainings of conversions, kept in the run folder: the trace says what they were worth, a file what they are.

    `train(conversion, before, after, steps)` trains a first chain so many steps on from the file of the round before (None:
    from the start) and leaves it in the file `after`, whole or not at all; `worth(conversion, file)` says what it is
    worth then. `place` is where the files lie: equal conversions that are trained there are trained once.
    """

    def __init__(
        self,
        job: Job,
        contenders: Mapping[Conversion, Actions],
        *,
        train: Callable[[Conversion, Path | None, Path, int], None],
        worth: Callable[[Conversion, Path], Evaluation],
        place: Path | None = None,
    ) -> None:
        self.job, self.train, self.worth, self.place = job, train, worth, place or job.run.path
        self.contenders, self._actions = tuple(contenders), contenders
        job.run.rewrite_trace()
        self._known = {
            (Conversion.from_json(line["plan"], job.ready.channels), line["info"]["round"]): evaluation_from_json(line)
            for line in job.run.trace()
            if line["method"] == METHOD
        }

    def best(self) -> tuple[Conversion, Evaluation, Path]:
        """Return the conversion that won, what it was worth after its last short training, and the file that this left."""
        last = len(ROUNDS) if self.job.options.work.trial_steps else 1
        won = halving(self.contenders, lambda c, number: self._merit(c, number + 1), rounds=last)
        return won, self._value(won, last), self._file(won, last)

    def _file(self, conversion: Conversion, number: int) -> Path:
        return self.place / f"{METHOD}-{conversion.digest()}-{number}"

    def _merit(self, conversion: Conversion, number: int) -> tuple[float, float]:
        """Return the reward, and of equal ones the lower latency: easy data gives many plans the same answers."""
        value = self._value(conversion, number)
        return value.reward, -value.latency

    def _value(self, conversion: Conversion, number: int) -> Evaluation:
        if (conversion, number) not in self._known:
            self._known[conversion, number] = self._play(conversion, number)
        return self._known[conversion, number]

    def _play(self, conversion: Conversion, number: int) -> Evaluation:
        """Round `number`, counted from 1, of one conversion."""
        job, started, file = self.job, time.perf_counter(), self._file(conversion, number)
        if not file.exists():
            before = self._file(conversion, number - 1) if number > 1 else None
            self.train(conversion, before, file, math.ceil(ROUNDS[number - 1] * job.options.work.trial_steps))
        value = self.worth(conversion, file)
        value = replace(value, info={**value.info, "round": number})
        seconds = time.perf_counter() - started
        trial = Trial(len(self._known), METHOD, self._actions[conversion], conversion, value, False, seconds)
        job.run.append_trace(trial_to_json(trial, conversion.to_json(job.ready.channels)))
        job.reporter.note(
            f"finals, plan {self.contenders.index(conversion) + 1} of {len(self.contenders)}, round {number}: reward "
            f"{value.reward:.4f} ({job.ready.target} of stage 1 {value.info['exit_accuracy'][0]:.2f}, latency "
            f"{value.info['stage_latency'][0]:.3f})"
        )
        return value

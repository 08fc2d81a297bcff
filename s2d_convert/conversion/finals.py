"""Finals: short trainings that decide which of a few conversions is trained for long.

Solved weights rank chains well, and a few training steps show how far a chain that starts from them will get. So the best
plans of the search and a few simple chains are trained briefly, the best third is trained further, and so on: successive
halving (Jamieson & Talwalkar, AISTATS 2016, arXiv 1502.07943).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from s2d_convert.channels.analysis import Channels
from s2d_convert.conversion.context import Job
from s2d_convert.conversion.exact import DEPTH_METHOD
from s2d_convert.conversion.explore import choose
from s2d_convert.conversion.options import PLANS
from s2d_convert.conversion.run_folder import ALLOCATED, FINALS
from s2d_convert.conversion.training_steps import tried_out, try_out
from s2d_convert.conversion.worst_case import keeps_max_latency
from s2d_convert.conversion.worth import Cost, trained_worth
from s2d_convert.plans.decisions import Actions
from s2d_convert.plans.heuristics import simple_chains
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.search.base import Evaluation, Trial, evaluation_from_json, trial_to_json
from s2d_convert.search.evaluate import StageLatency

METHOD = "finals"
ROUNDS = (0.25, 1.0)  # steps of each round, as shares of a short training's
KEPT = 3  # one in KEPT candidates stays for the next round
SOLVED_BEFORE_TRAINING, SOLVED_ALONE = 0.5, 0.8  # of the first round's time: full solves, where trainings follow or not
LEFT_BY_FINETUNING = 0.75  # of the answers of a chain in the finals that part from the static model's
FAVOURITES = 2  # plans of every kind that enter from the search
ChainT = TypeVar("ChainT")


def halving(candidates: Sequence[ChainT], worth: Callable[[ChainT, int], tuple[float, ...]], *, rounds: int) -> ChainT:
    """Return the best candidate. In every round, the third with the highest `worth(candidate, round)` stays.

    The first of equals wins, and at least one stays.
    """
    remaining = list(candidates)
    for number in range(rounds):
        scores = [worth(candidate, number) for candidate in remaining]
        order = sorted(range(len(remaining)), key=scores.__getitem__, reverse=True)
        remaining = [remaining[i] for i in order[: math.ceil(len(remaining) / KEPT)]]
    return remaining[0]


def favourites(trace: Iterable[Mapping[str, Any]], channels: Channels) -> dict[Conversion, Actions]:
    """Return the FAVOURITES best plans of every kind in a search's trace, with their decisions.

    The kinds are linked chains, cascades, cascades at any smaller scale, and those into any slimmer last chain.
    """
    best: dict[object, dict[Conversion, Actions]] = {}
    for line in sorted(trace, key=lambda line: (-line["reward"], line["latency"])):
        conversion = Conversion.from_json(line["plan"], channels)
        first, last = conversion.chains[0], conversion.chains[-1]
        slim = last is not first and set(last.stages_of_units) != {1}
        of_kind = best.setdefault((len(conversion.chains), first.scale < 1, slim), {})
        if len(of_kind) < FAVOURITES:
            of_kind.setdefault(conversion, tuple(line["actions"]))
    return {conversion: actions for of_kind in best.values() for conversion, actions in of_kind.items()}


class Finals:
    """Short trainings of conversions. Their evaluations are kept in the trace of the run folder, their weights in files.

    `train(conversion, before, after, steps, seconds)` trains a first chain for so many steps and so many seconds at most, from
    the previous round's file `before` (None in the first round), and writes it to the file `after`, completely or not at all.
    `worth(conversion, file)` then evaluates it. `place` is the folder of the files; equal conversions in one folder are
    trained once.
    """

    def __init__(
        self,
        job: Job,
        contenders: Mapping[Conversion, Actions],
        *,
        train: Callable[[Conversion, Path | None, Path, int, float], None],
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
        """Return the winner, its evaluation after its last short training, and the file with its weights."""
        last = len(ROUNDS) if self.job.work.trial_steps else 1
        winner = halving(self._entered(), lambda c, number: self._merit(c, number + 1), rounds=last)
        return winner, self._value(winner, last), self._file(winner, last)

    def _entered(self) -> list[Conversion]:
        """Return the contenders that have played the first round; where time is limited, as many as half of it allows."""
        entered: list[Conversion] = []
        for contender in self.contenders:
            if not entered or self.job.clock.left(self.job.timetable.first_round) > 0:
                self._value(contender, 1)
                entered.append(contender)
        return entered

    def _seconds(self, number: int) -> float:
        """Return how long the next contender of a round may take, so that all of them end in time."""
        times, most = self.job.timetable, len(self.contenders)
        until, entered = (times.first_round, most) if number == 1 else (times.finals, math.ceil(most / KEPT))
        played = sum(n == number for _, n in self._known)
        return self.job.clock.left(until) / max(1, entered - played)

    def _file(self, conversion: Conversion, number: int) -> Path:
        return self.place / f"{METHOD}-{conversion.digest()}-{number}"

    def _merit(self, conversion: Conversion, number: int) -> tuple[float, float]:
        """Return the reward and, to break ties, the negative latency: on easy data many plans give the same answers."""
        value = self._value(conversion, number)
        return value.reward, -value.latency

    def _value(self, conversion: Conversion, number: int) -> Evaluation:
        if (conversion, number) not in self._known:
            self._known[conversion, number] = self._play(conversion, number)
        return self._known[conversion, number]

    def _play(self, conversion: Conversion, number: int) -> Evaluation:
        """Train and evaluate one conversion in round `number`, counted from 1."""
        job, started, file = self.job, time.perf_counter(), self._file(conversion, number)
        if not file.exists():
            before = self._file(conversion, number - 1) if number > 1 else None
            steps = math.ceil(ROUNDS[number - 1] * job.work.trial_steps)
            self.train(conversion, before, file, steps, self._seconds(number))
        value = self.worth(conversion, file)
        value = replace(value, info={**value.info, "round": number})
        seconds = time.perf_counter() - started
        trial = Trial(len(self._known), METHOD, self._actions[conversion], conversion, value, False, seconds)
        job.run.append_trace(trial_to_json(trial, conversion.to_json(job.ready.channels)))
        done = self.contenders.index(conversion) + 1 if number == 1 else len(self.contenders)
        job.reporter.progress(done, len(self.contenders), "plans tried out", math.nan)
        job.reporter.detail(
            f"plan {self.contenders.index(conversion) + 1} of {len(self.contenders)}, round {number}: reward "
            f"{value.reward:.4f} ({job.ready.target} of stage 1 {value.info['exit_accuracy'][0]:.2f}, latency "
            f"{value.info['stage_latency'][0]:.3f})"
        )
        return value


def play_finals(
    job: Job,
    space: PlanSpace,
    first: Conversion,
    latency: StageLatency,
    *,
    place: Path | None = None,
    least: float = -math.inf,
) -> tuple[Conversion, Path | None] | None:
    """Return the plan that is best after short trainings, and the file from which its training continues.

    The candidates are the search's choice, its other favourites and, if it did not start from an allocation, simple chains. A
    written plan has no rivals. Candidates that cannot reach the reward `least` do not take part; None if there is no other.
    """
    options, run, channels = job.options, job.run, job.ready.channels
    if options.plan not in PLANS:
        return first, None
    job.reporter.step("finals")
    done = run.read_json(FINALS)
    if done is None:
        others = (METHOD, DEPTH_METHOD)
        rivals = favourites((line for line in run.trace() if line["method"] not in others), channels)
        allocated = run.read_json(ALLOCATED)  # they stand in the trace
        if options.plan in ("search", "cascade") and CASCADE in space.kinds and not allocated:
            rivals = {**rivals, **simple_chains(space, options.budget or 1.0)}
        contenders = {first: rivals.get(first, ())}
        contenders |= {c: actions for c, actions in rivals.items() if c != first and keeps_max_latency(job, c)}
        if options.budget is None:  # the reward is what is saved, at most all that comes behind the first exit
            contenders = {c: actions for c, actions in contenders.items() if 1 - latency(c)[0] > least}
        if not contenders:
            return None
        afford_solves(job, len(contenders))
        winner, value, file = finals_of(job, contenders, latency.of_stages, place).best()
        done = {"plan": winner.to_json(channels), "evaluation": asdict(value), "file": file.name}
        run.write_json(FINALS, done)
    conversion = Conversion.from_json(done["plan"], channels)
    choose(job, conversion, Evaluation(**done["evaluation"]))
    return conversion, (place or run.path) / done["file"]


def afford_solves(job: Job, contenders: int) -> None:
    """Let the full solves of so many contenders take their share of the first round's time, where time is limited."""
    took = [
        line["seconds"] - line["info"].get("measure_s", 0.0)
        for line in job.run.trace()
        if line["method"] not in (METHOD, DEPTH_METHOD) and line["seconds"] > 0
    ]
    if job.clock.limited and took:
        share = SOLVED_BEFORE_TRAINING if job.work.trial_steps else SOLVED_ALONE
        seconds = share * job.clock.left(job.timetable.first_round) / contenders
        job.ready.solver.afford(seconds, rough_seconds=float(np.median(took)))


def finals_of(job: Job, contenders: Mapping[Conversion, Actions], cost: Cost, place: Path | None = None) -> Finals:
    """Return finals between these conversions. All trainings start from solved weights."""

    def worth(conversion: Conversion, file: Path) -> Evaluation:
        left = LEFT_BY_FINETUNING if job.work.trial_steps else 1.0
        return trained_worth(job, conversion, tried_out(job, conversion.chains[0], file), cost, left=left)

    def train(conversion: Conversion, before: Path | None, after: Path, steps: int, seconds: float) -> None:
        try_out(job, conversion.chains[0], before, after, steps=steps, seconds=seconds)

    return Finals(job, contenders, train=train, worth=worth, place=place)

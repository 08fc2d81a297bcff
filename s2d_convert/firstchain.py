"""Which first chain stands before the untouched model in exact mode: by short trainings of the chains themselves.

A supernet says little about a first chain of a deep network before it was trained for long (ResNet-56 after 300 steps: 17 % of
the answers, whatever the chain), while a chain that starts from the static model's weights shows after 200 steps of its
own what it is good for (75 %). So a few simple chains are trained shortly, the best third goes on, and so forth:
successive halving (Jamieson & Talwalkar, AISTATS 2016, arXiv 1502.07943).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from s2d_convert.exact import cascade_worth
from s2d_convert.export import Part, build_stages, read_part, write_bytes
from s2d_convert.latency import Meter
from s2d_convert.plan import Conversion
from s2d_convert.prepare import Job
from s2d_convert.search import Evaluation, Trial, evaluation_from_json, trial_to_json
from s2d_convert.space import CASCADE, PlanSpace, total_macs
from s2d_convert.table import Table

METHOD = "cascade"
FRACTIONS = (0.25, 0.5, 0.75)  # of every class
DEPTHS = (1.0, 0.75)  # of the candidate taps
BLOCKS = (1 / 3, 0.5)  # of the residual blocks
ROUNDS = (0.25, 1.0)  # shares of the steps that a short training has
KEPT = 3  # one of so many goes on to the next round
ChainT = TypeVar("ChainT")


def halving(candidates: Sequence[ChainT], worth: Callable[[ChainT, int], float], *, rounds: int) -> ChainT:
    """The best candidate: in every round, `worth(candidate, round)` of those still there decides which third goes on.

    The first of equals wins, and at least one goes on.
    """
    left = list(candidates)
    for number in range(rounds):
        scores = [worth(candidate, number) for candidate in left]
        order = sorted(range(len(left)), key=lambda i: (-scores[i], i))
        left = [left[i] for i in order[: math.ceil(len(left) / KEPT)]]
    return left[0]


def simple_chains(space: PlanSpace) -> tuple[tuple[int, ...], ...]:
    """The decisions behind simple first chains: uniform ones of several widths and depths, and such with fewer blocks."""
    last = len(space.taps) - 1
    grid = [(round(depth * last), fraction) for depth in DEPTHS for fraction in FRACTIONS]
    uniform = [space.actions(CASCADE, [tap], [fraction]) for tap, fraction in grid]
    shorter = [_with_fewer_blocks(space, keep, fraction) for keep in BLOCKS for fraction in (1.0, 0.5)]
    return tuple(dict.fromkeys([*uniform, *shorter]))


def _with_fewer_blocks(space: PlanSpace, keep: float, fraction: float) -> tuple[int, ...]:
    """As uniform, but of the classes that can be left out, a block's inside mostly, only so many stay, evenly spread."""
    actions = list(space.actions(CASCADE, [len(space.taps) - 1], [fraction]))
    optional = [place for place, division in enumerate(space.divisions) if division.optional]
    for number, place in enumerate(optional):
        if math.floor((number + 1) * keep) == math.floor(number * keep):
            actions[2 + place] = 0  # behind the kind and the tap
    return tuple(actions)


class Trials:
    """Short trainings of first chains, kept in the run folder: the trace has what they were worth, a file what they are.

    `compact` makes the file of a first chain that nobody has trained yet, `train(part, steps)` trains one.
    """

    def __init__(
        self,
        job: Job,
        space: PlanSpace,
        meter: Meter | Table,
        *,
        compact: Callable[[Conversion], bytes],
        train: Callable[[Part, int], Part],
    ) -> None:
        self.job, self.space, self.meter, self.compact, self.train = job, space, meter, compact, train
        job.run.rewrite_trace()
        self._known = {
            line["index"]: evaluation_from_json(line) for line in job.run.trace() if line["method"] == METHOD
        }
        every = simple_chains(space)
        macs = {actions: self._macs(actions) for actions in every}
        affordable = tuple(a for a in every if macs[a] < job.options.budget * total_macs(space.graph))
        self._actions = affordable or (min(every, key=lambda a: macs[a]),)

    def best(self) -> tuple[Conversion, Evaluation]:
        """The conversion whose first chain won, and what it was worth after its last short training."""
        chosen = halving(range(len(self._actions)), lambda i, number: self._worth(i, number).reward, rounds=len(ROUNDS))
        return self.space.decode(self._actions[chosen]), self._worth(chosen, len(ROUNDS) - 1)

    def _macs(self, actions: tuple[int, ...]) -> int:
        ready, chain = self.job.ready, self.space.decode(actions).chains[0]
        return sum(stage.macs for stage in build_stages([Part(ready.graph, ready.channels, chain, ready.weights)]))

    def file(self, conversion: Conversion) -> Path:
        """Where the first chain of a conversion is kept."""
        return self.job.run.path / f"{METHOD}-{conversion.digest()}.onnx"

    def _worth(self, chain: int, number: int) -> Evaluation:
        index = number * len(self._actions) + chain
        if index in self._known:
            return self._known[index]
        job, started = self.job, time.perf_counter()
        conversion = self.space.decode(self._actions[chain])
        file = self.file(conversion)
        if not file.exists():
            write_bytes(file, self.compact(conversion))
        part = self.train(read_part(file), max(1, round(ROUNDS[number] * job.options.work.trial_steps)))
        (stage,) = build_stages([part])
        write_bytes(file, stage.model.SerializeToString())
        value = cascade_worth(job, self.meter, conversion, part)
        trial = Trial(index, METHOD, self._actions[chain], conversion, value, False, time.perf_counter() - started)
        job.run.append_trace(trial_to_json(trial, conversion.to_json(job.ready.channels)))
        self._known[index] = value
        job.reporter.note(
            f"first chain {chain + 1} of {len(self._actions)}, round {number + 1}: reward {value.reward:.4f} "
            f"({job.ready.target} of the chain {value.info['exit_accuracy'][0]:.2f}, latency "
            f"{value.info['stage_latency'][0]:.3f})"
        )
        return value

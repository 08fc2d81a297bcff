"""A measurement that contradicts itself is repeated, so that noise chooses no policy; all clocks are made up."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from s2d_convert.exporting.steady import TRIES, Costs, contradicts, latency_by_stages, other_seconds, steadily

TRUE = (0.3, 0.4)


@dataclass(frozen=True)
class Said:
    """What a made-up measurement says."""

    exit_share: tuple[float, ...]
    mean_latency: float
    batch: int = 1


class Machine:
    """A machine whose stages cost TRUE, and whose clock is wrong by these factors, one per measurement of the stages."""

    def __init__(self, factors: Sequence[float], *, folder: float = 1.0) -> None:
        self._factors: Iterator[float] = iter(factors)
        self.folder = folder
        self.chosen_by: list[Costs] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.others: Iterator[float] = itertools.repeat(0.0)

    def costs(self) -> Costs:
        factor = next(self._factors)
        return tuple(factor * cost for cost in TRUE)

    def deliver(self, cost: Costs) -> Said:
        self.chosen_by.append(cost)
        share = (0.75, 0.25)
        return Said(share, self.folder * latency_by_stages(TRUE, share))

    def run(self) -> Said:
        return steadily(self.costs, self.deliver, note=self.notes.append, warn=self.warnings.append, other=self._other)

    def _other(self) -> float:
        return next(self.others)


def test_what_agrees_is_measured_once() -> None:
    machine = Machine([1.05])
    assert machine.run().mean_latency == pytest.approx(0.4)
    assert len(machine.chosen_by) == 1
    assert (machine.notes, machine.warnings) == ([], [])


def test_a_noisy_timing_does_not_choose_the_policy() -> None:
    """The field report: 0.683 expected, 0.401 measured."""
    machine = Machine([1.7, 1.0, 1.02])
    machine.run()
    assert machine.chosen_by[-1] == pytest.approx(tuple(1.02 * cost for cost in TRUE))  # the median of the three
    assert machine.notes[0].startswith("mean latency 0.680 by the times of the stages, 0.400 measured: they contradict")
    assert len(machine.notes) == 2
    assert machine.warnings == []


def test_a_machine_that_stays_busy_is_told_with_its_numbers() -> None:
    machine = Machine([1.0] * TRIES, folder=1.5)
    machine.run()
    assert len(machine.chosen_by) == TRIES
    (text,) = machine.warnings
    assert text.startswith("the machine is busy: mean latency 0.400 by the times of the stages, 0.600 measured")
    assert f"after {TRIES} tries" in text


def test_other_programs_that_run_all_the_time_are_told() -> None:
    machine = Machine([1.0])
    machine.others = iter([100.0, 1e6])
    machine.run()
    (text,) = machine.notes
    assert text.startswith("other programs used ")
    assert "% of this machine while latencies were measured" in text
    assert machine.warnings == []


@pytest.mark.parametrize("others", [(100.0, 100.0), (math.nan, math.nan)], ids=["idle", "unknown"])
def test_a_machine_without_other_programs_is_not_told(others: tuple[float, float]) -> None:
    machine = Machine([1.0])
    machine.others = iter(others)
    machine.run()
    assert machine.notes == []


def test_own_work_is_no_other_program() -> None:
    """Where the system tells: what this process computes is not counted, and nothing is counted twice."""
    if math.isnan(before := other_seconds()):
        pytest.skip("this system does not tell")
    spent = sum(os.times()[:2])
    while sum(os.times()[:2]) < spent + 0.3:
        pass
    assert other_seconds() >= before - 0.1


def test_what_contradicts() -> None:
    assert not contradicts(Said((0.5, 0.5), 0.54), (0.3, 0.4))  # 0.5 by the stages
    assert contradicts(Said((0.5, 0.5), 0.56), (0.3, 0.4))
    assert contradicts(Said((0.5, 0.5), 0.44), (0.3, 0.4))
    assert not contradicts(Said((0.5, 0.5), 0.9, batch=8), (0.3, 0.4))

"""Repeat measurements that contradict each other, so that noise does not choose the policies.

Thresholds are chosen by the latencies of the stages, then the folder is measured with them. On a busy machine one of the two
can be far off, and thresholds chosen by it are wrong. Both are ratios to the static model, which is timed in turn, so the two
mean latencies can be compared. Where other programs run all the time, both can be wrong alike: they take caches and memory from a
large model more than from a small stage. So their share of the machine is told. The caller measures.

Letters: S stages.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

APART = 0.1  # relative difference at which two mean latencies contradict each other
TRIES = 4
DISTURBED = 0.2  # share of the machine that other programs use, from which on a measurement is told to be disturbed
CPU_TIMES, BUSY_TIMES = Path("/proc/stat"), (0, 1, 2, 5, 6, 7)  # the columns of Linux but for idle, waiting and guests

Costs = tuple[float, ...]  # latency of every stage alone, relative to the static model [S]


class Timed(Protocol):
    """A measurement of a folder: the share of images per exit, the mean latency relative to static, and images per call."""

    @property
    def exit_share(self) -> tuple[float, ...]:
        """The share of images that leave at every stage [S]."""

    @property
    def mean_latency(self) -> float:
        """The mean latency, relative to the static model."""

    @property
    def batch(self) -> int:
        """Images per call when latency is measured."""


MeasuredT = TypeVar("MeasuredT", bound=Timed)


def latency_by_stages(cost: Sequence[float], exit_share: Sequence[float]) -> float:
    """Return the mean latency that the stages' costs give with these shares of exits."""
    return float(np.dot(np.cumsum(cost), exit_share))


def contradicts(measured: Timed, cost: Sequence[float]) -> bool:
    """Return whether a measured mean latency differs from that of the stages' costs.

    Batches are never compared, because the rows that stay in a batch cost more than their share.
    """
    expected = latency_by_stages(cost, measured.exit_share)
    return measured.batch == 1 and abs(measured.mean_latency - expected) > APART * expected


def other_seconds() -> float:
    """Return the core seconds that other programs have used on this machine so far; NaN where that is not known."""
    try:
        ticks = CPU_TIMES.read_text(encoding="ascii").partition("\n")[0].split()[1:]
        busy = sum(int(ticks[column]) for column in BUSY_TIMES) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float("nan")
    return busy - sum(os.times()[:4])


def steadily(
    measure_costs: Callable[[], Costs],
    deliver: Callable[[Costs], MeasuredT],
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    other: Callable[[], float] = other_seconds,
) -> MeasuredT:
    """Measure the stages, deliver policies chosen by that, and repeat until both measurements agree; return the last one.

    `deliver(cost)` chooses the policies, writes them, and measures the folder. From the second time on, `cost` is the median of
    all measurements. If they still differ after TRIES, `warn` is called. other: the core seconds of other programs so far.
    """
    started, before = time.monotonic(), other()
    measured = _repeated(measure_costs, deliver, note=note, warn=warn)
    share = (other() - before) / max((time.monotonic() - started) * (os.cpu_count() or 1), 1e-9)
    if share > DISTURBED:
        note(
            f"other programs used {100 * share:.0f} % of this machine while latencies were measured, which makes them less "
            "certain; s2d calibrate measures anew when the machine is idle"
        )
    return measured


def _repeated(
    measure_costs: Callable[[], Costs],
    deliver: Callable[[Costs], MeasuredT],
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> MeasuredT:
    costs: list[Costs] = []
    while True:
        costs.append(measure_costs())
        cost = tuple(np.median(costs, axis=0).tolist())
        measured = deliver(cost)
        if not contradicts(measured, cost):
            return measured
        apart = (
            f"mean latency {latency_by_stages(cost, measured.exit_share):.3f} by the times of the stages, "
            f"{measured.mean_latency:.3f} measured"
        )
        if len(costs) == TRIES:
            break
        note(f"{apart}: they contradict each other, both are measured again")
    warn(
        f"the machine is busy: {apart}, and still apart after {TRIES} tries. Policies were chosen by the median of the tries; "
        "s2d calibrate sets them anew when the machine is idle"
    )
    return measured

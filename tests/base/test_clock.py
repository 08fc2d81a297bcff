"""The clock of a conversion, with a watch that the test sets, and durations as people write them."""

from __future__ import annotations

import math

import pytest

from s2d_convert.base.clock import Clock, as_duration, parse_duration

DURATIONS = {
    "90s": 90, "10m": 600, "1h30m": 5400, " 2H ": 7200, "1.5m": 90, "10": None, "": None, "m": None, "5m10": None, "-5m": None,
}  # fmt: skip


class Watch:
    """A watch that shows what it is set to."""

    def __init__(self) -> None:
        self.shows = 100.0

    def __call__(self) -> float:
        return self.shows


def test_shares_of_the_time_run_out_one_after_the_other() -> None:
    watch = Watch()
    clock = Clock(60, now=watch)
    assert (clock.left(0.5), clock.left()) == (30, 60)
    watch.shows += 40
    assert (clock.spent(), clock.left(0.5), clock.left()) == (40, 0, 20)
    clock.add(15)
    assert clock.left() == 5, "interrupted runs count"
    clock.stop()
    assert clock.limited
    assert clock.left() == 0


def test_without_a_limit_there_is_always_time_until_the_clock_is_stopped() -> None:
    clock = Clock()
    assert (clock.limited, clock.left(0.1)) == (False, math.inf)
    clock.stop()
    assert (clock.limited, clock.left()) == (True, 0)


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_durations_are_said_in_large_units() -> None:
    assert [as_duration(s) for s in (45, 89, 90, 600, 5400, 9000)] == [
        "45 s",
        "89 s",
        "2 min",
        "10 min",
        "1.5 h",
        "2.5 h",
    ]

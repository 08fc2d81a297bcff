"""The time that a conversion was given, and how much of it is left.

A conversion does not know beforehand how fast a machine is, so every step asks how long it may go on.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

UNITS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Clock:
    """The time since the work began, and of all the time that it may take. Without `seconds` there is no limit."""

    def __init__(self, seconds: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._used, self._now = math.inf if seconds is None else seconds, 0.0, now
        self._started = now()

    def stop(self) -> None:
        """Let no time be left, from now on."""
        self.seconds = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.seconds)

    def add(self, used: float) -> None:
        """Count `used` seconds more: those of interrupted runs."""
        self._used += used

    def spent(self) -> float:
        """Return the seconds that were spent so far."""
        return self._used + self._now() - self._started

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until so large a share of the time is spent, at least 0; infinity without a limit."""
        return max(0.0, share * self.seconds - self.spent()) if self.limited else math.inf


@dataclass(frozen=True)
class Timetable:
    """Until which shares of a limited time the parts of a conversion may go on, in their order.

    first_round: that of the finals. The time that is left after the training is for writing and measuring.
    """

    heads: float
    search: float
    first_round: float
    finals: float
    training: float


def parse_duration(text: str) -> float | None:
    """Return the seconds of a text such as `90s`, `10m` or `1h30m`, None if it is no duration."""
    match = DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in zip(match.groups(), "hms", strict=True) if number)


def as_duration(seconds: float) -> str:
    """Return seconds in the largest units that say them shortly: `45 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""The messages of a running conversion: the protocol of its listeners, its steps in plain words, and the plan ahead.

A step has a short name, which code and tests use, and words for users (`STEPS`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

# The steps of a conversion in words that a newcomer knows, in the order in which they can occur.
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "load": "reading the model",
        "data": "reading the images",
        "static check": "checking the model on the images",
        "heads": "training early exits",
        "search": "choosing among plans",
        "finals": "trying out the best plans",
        "fine-tune": "training the chosen plan",
        "export": "writing the stages",
        "quantize": "changing the arithmetic",
        "measure": "measuring the result",
    }
)


def in_words(step: str) -> str:
    """Return the words for a step, or its name if it is not in the table."""
    return STEPS.get(step, step)


@dataclass(frozen=True)
class PlannedStep:
    """A step that is still to come, by its short name, and how long it will take (NaN: not known)."""

    name: str
    seconds: float = math.nan


def seconds_in_all(steps: Sequence[PlannedStep]) -> float:
    """Return the seconds of all steps together; those of unknown length count nothing. NaN if none is known."""
    known = [step.seconds for step in steps if math.isfinite(step.seconds)]
    return sum(known) if known else math.nan


class Reporter(Protocol):
    """A receiver of a conversion's progress."""

    def plan(self, steps: Sequence[PlannedStep], *, memory_bytes: int | None = None) -> None:
        """Report the steps to come, before anything long. memory_bytes: the most that they will take, None if not known."""

    def step(self, name: str) -> None:
        """Report that a new step begins."""

    def note(self, text: str) -> None:
        """Report a result that the user should know."""

    def detail(self, text: str) -> None:
        """Report a result for those who know the method."""

    def warn(self, text: str) -> None:
        """Report a warning."""

    def progress(self, done: int, total: int, what: str, seconds_left: float, *, detail: str = "") -> None:
        """Report the progress of the running step.

        what: what is counted. seconds_left: until the step is done, NaN if unknown. detail: for those who know the method.
        """

"""Plans as sequences of decisions, which is how searches see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Actions = tuple[int, ...]
Allowed = Callable[[Actions], NDArray[np.bool_]]

PlanT = TypeVar("PlanT")
PlanT_co = TypeVar("PlanT_co", covariant=True)


class Space(Protocol[PlanT_co]):
    """Plans as sequences of decisions; different sequences may stand for equal plans. Plans are hashable."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of every decision."""

    def allowed(self, prefix: Actions, /) -> NDArray[np.bool_]:
        """Return the allowed options of decision `len(prefix)`, bool [sizes[len(prefix)]], at least one True."""

    def decode(self, actions: Actions, /) -> PlanT_co:
        """Return the plan of a full sequence of options."""


def random_actions(space: Space[Any], rng: np.random.Generator) -> Actions:
    """Draw a sequence, every decision evenly among the allowed options."""
    actions: Actions = ()
    for _ in space.sizes:
        actions = (*actions, int(rng.choice(np.flatnonzero(space.allowed(actions)))))
    return actions


def neighbour(space: Space[Any], actions: Actions, rng: np.random.Generator) -> Actions:
    """Change one or two decisions of a sequence, half of them by one step (most options are ordered), the others evenly; later
    ones that no longer are allowed are drawn anew."""
    drawn = rng.choice(len(actions), size=min(len(actions), int(rng.integers(1, 3))), replace=False)
    near: Actions = ()
    for index, action in enumerate(actions):
        allowed = np.flatnonzero(space.allowed(near))
        if index in drawn:
            steps = allowed[np.abs(allowed - action) == 1]
            allowed = steps if len(steps) and rng.random() < 0.5 else allowed
        kept = index not in drawn and action in allowed
        near = (*near, action if kept else int(rng.choice(allowed)))
    return near


def checked(space: Space[Any], actions: Sequence[int]) -> Actions:
    """Return the sequence as a tuple of ints. Raises ValueError if a decision is not allowed."""
    sequence = tuple(int(a) for a in actions)
    if len(sequence) != len(space.sizes):
        raise ValueError(f"sequence {sequence}: got {len(sequence)} decisions; expected {len(space.sizes)}")
    for step, option in enumerate(sequence):
        choices = np.flatnonzero(space.allowed(sequence[:step])).tolist()
        if option not in choices:
            raise ValueError(f"sequence {sequence}: got option {option} at decision {step}; allowed are {choices}")
    return sequence

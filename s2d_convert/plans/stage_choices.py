"""The decisions of a plan by name, and the one codec from and to the flat sequences that searches see."""

from __future__ import annotations

from dataclasses import dataclass

from s2d_convert.plans.decisions import Actions


@dataclass(frozen=True)
class StageChoice:
    """What is decided for one stage: `exit`, the index of its tap among the taps of the space, and for every division
    how many of its groups this stage and those before it have (`levels`)."""

    exit: int
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Choices:
    """A sequence of decisions, or the beginning of one.

    `kind` is linked or cascade, `stages` what is decided for all finished stages but the last of the chain, and
    `unfinished` the exit and the first levels of the stage that the sequence breaks off in.
    """

    kind: int
    stages: tuple[StageChoice, ...]
    unfinished: Actions = ()

    @staticmethod
    def read(actions: Actions, divisions: int) -> Choices:
        """Read a sequence of at least one decision, for a space with so many divisions."""
        per_stage = 1 + divisions
        rows = [actions[start : start + per_stage] for start in range(1, len(actions), per_stage)]
        unfinished = rows.pop() if rows and len(rows[-1]) < per_stage else ()
        return Choices(actions[0], tuple(StageChoice(row[0], tuple(row[1:])) for row in rows), tuple(unfinished))

    def actions(self) -> Actions:
        """Return the flat sequence: the kind, then stage by stage the exit and the levels."""
        stages = (number for stage in self.stages for number in (stage.exit, *stage.levels))
        return (self.kind, *stages, *self.unfinished)

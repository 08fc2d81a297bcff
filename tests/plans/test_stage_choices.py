"""Decisions by name: a worked example, and there and back for every beginning of a sequence."""

from __future__ import annotations

import numpy as np
import pytest
from small_spaces import space_of

from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.space import CASCADE
from s2d_convert.plans.stage_choices import Choices, StageChoice


def test_a_sequence_of_three_stages_and_two_divisions() -> None:
    choices = Choices(CASCADE, (StageChoice(3, (1, 0)), StageChoice(5, (2, 4))))
    assert choices.actions() == (CASCADE, 3, 1, 0, 5, 2, 4)
    assert Choices.read((CASCADE, 3, 1, 0, 5, 2, 4), 2) == choices


def test_a_beginning_keeps_what_is_not_finished() -> None:
    assert Choices.read((CASCADE,), 2) == Choices(CASCADE, ())
    assert Choices.read((CASCADE, 3, 1), 2) == Choices(CASCADE, (), (3, 1))
    assert Choices.read((CASCADE, 3, 1, 0), 2) == Choices(CASCADE, (StageChoice(3, (1, 0)),))
    assert Choices.read((CASCADE, 3, 1, 0, 5), 2) == Choices(CASCADE, (StageChoice(3, (1, 0)),), (5,))


@pytest.mark.parametrize("stages", [2, 3])
def test_every_beginning_comes_back(stages: int) -> None:
    space = space_of("resnet_option_a", stages)
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = random_actions(space, rng)
        for length in range(1, len(actions) + 1):
            assert Choices.read(actions[:length], len(space.divisions)).actions() == actions[:length]

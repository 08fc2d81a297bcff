"""Every table over the kinds of nodes is exhaustive, so that a new kind cannot be forgotten anywhere."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from s2d_convert.channels.kinds import FINAL_KINDS, Kind
from s2d_convert.channels.propagation import FOLLOW
from s2d_convert.network.masks import SHOWN
from s2d_convert.plans.liveness import LIVE, SEEN
from s2d_convert.slicing.demand import READ
from s2d_convert.slicing.split import EMIT


def test_passes_follow_every_kind() -> None:
    assert set(FOLLOW) == set(Kind)


@pytest.mark.parametrize("table", [LIVE, SEEN, READ, EMIT, SHOWN], ids=["live", "seen", "read", "emit", "shown"])
def test_what_comes_after_the_analysis_knows_every_kind_that_it_ends_with(table: Iterable[Kind]) -> None:
    assert set(table) == FINAL_KINDS == set(Kind) - {Kind.TIE}

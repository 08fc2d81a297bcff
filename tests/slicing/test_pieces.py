"""How channels are brought together from pieces, and what each way costs in nodes."""

from __future__ import annotations

import numpy as np
import pytest
from chain_law import analysed
from text_nets import chain

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.demand import Demand
from s2d_convert.slicing.pieces import Piece, Pieces

STAGES = (*[1] * 4, *[2] * 4, *[1] * 16, *[1] * 5)  # of `chain`: half of conv a in each stage, all else in the first


@pytest.fixture
def pieces() -> Pieces:
    """Stage 1 has channels 2, 0, 3, 1 of x, in that order; stage 2 has the other four."""
    graph, channels, _ = analysed(chain())
    pieces = Pieces(Demand(AnalysedModel(graph, channels), Plan(("y", "logits"), STAGES)), 1)
    for stage, positions in ((1, [2, 0, 3, 1]), (2, [4, 5, 6, 7])):
        builder = pieces.stages[stage - 1]
        name = builder.op("Relu", [builder.take_image(graph)], "x", pieces.shape("x", 4))
        pieces.keep("x", stage, name, np.array(positions))
    return pieces


def made(pieces: Pieces, stage: int) -> list[str]:
    """The operators that a stage has, behind the one that made its piece."""
    return [node.op for node in pieces.stages[stage - 1].nodes][1:]


def test_a_piece_knows_where_its_positions_lie() -> None:
    piece = Piece("x", np.array([2, 0, 5]), 1)
    assert piece.index.tolist() == [1, -1, 0, -1, -1, 2]


def test_any_order_costs_nothing(pieces: Pieces) -> None:
    name, order = pieces.fetch(1, "x", np.arange(4))
    assert (name, order.tolist()) == (pieces["x", 1].name, [2, 0, 3, 1])
    assert made(pieces, 1) == []


def test_few_runs_are_sliced_and_joined(pieces: Pieces) -> None:
    _, order = pieces.fetch(1, "x", np.array([0, 3, 2]), ordered=True)
    assert order.tolist() == [0, 3, 2]
    assert made(pieces, 1) == ["Slice", "Slice", "Concat"]


def test_many_runs_are_gathered(pieces: Pieces) -> None:
    _, order = pieces.fetch(1, "x", np.arange(4), ordered=True)
    assert order.tolist() == [0, 1, 2, 3]
    assert made(pieces, 1) == ["Gather"]


def test_a_piece_of_an_earlier_stage_becomes_a_link(pieces: Pieces) -> None:
    _, order = pieces.fetch(2, "x", np.arange(8))
    assert order.tolist() == [2, 0, 3, 1, 4, 5, 6, 7]
    assert made(pieces, 2) == ["Concat"]
    first, second = pieces.stages
    assert list(first.links_out) == list(second.links_in) == [pieces["x", 1].name]


def test_a_channel_that_is_wanted_twice_is_taken_in_turns(pieces: Pieces) -> None:
    segments, order = pieces.arrange("x", np.array([1, 1, 0]))
    assert [(piece is pieces["x", 1], index) for piece, index in segments] == [(True, [1, 3]), (True, [3])]
    assert order == [0, 1, 1]

"""What stages compute and read, worked out by hand on one small net."""

from __future__ import annotations

import numpy as np
import onnx
from chain_law import analysed
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.plans.plan import PRUNED, Plan
from s2d_convert.slicing.demand import Demand

STREAM, INSIDE, LOGITS = (1, 1, 2, 2), (1, 1, 1, 2, 2, 2), (1, 1, 1)  # the units of `residual`


def demand_of(model: onnx.ModelProto, taps: tuple[str, ...], stages: tuple[int, ...]) -> Demand:
    graph, channels, _ = analysed(model)
    return Demand(AnalysedModel(graph, channels), Plan(taps, stages))


def both(*tensors: str) -> set[tuple[str, int]]:
    return {(tensor, stage) for tensor in tensors for stage in (1, 2)}


def test_both_stages_of_a_block_make_their_halves_of_it() -> None:
    demand = demand_of(residual(), ("y", "logits"), (*STREAM, *INSIDE, *LOGITS))
    assert demand.pieces() == {
        ("image", 0), *both("s", "x", "a", "r", "b", "t", "y"), ("p", 2), ("f", 2), ("logits", 2),
    }  # fmt: skip


def test_nothing_is_asked_of_a_stage_that_has_no_unit_of_a_block() -> None:
    demand = demand_of(residual(), ("y", "logits"), (*STREAM, *[2] * 6, *LOGITS))
    wanted = demand.pieces()
    assert {("s", 1), ("x", 1), ("y", 1), ("b", 2)} <= wanted
    assert wanted.isdisjoint({("a", 1), ("r", 1), ("b", 1)})


def test_what_no_logits_depend_on_is_not_computed() -> None:
    demand = demand_of(residual(), ("x", "logits"), (*[1] * 4, *[PRUNED] * 6, *LOGITS))
    assert {tensor for tensor, _ in demand.pieces()} == {"image", "s", "x", "t", "y", "p", "f", "logits"}


def test_positions_of_a_view_lead_to_the_stages_of_its_roots() -> None:
    demand = demand_of(residual(), ("y", "logits"), (*STREAM, *INSIDE, *LOGITS))
    sources = demand.sources("x", np.array([3, 0, 1]))
    assert [(root, stage, index.tolist()) for root, stage, index in sources] == [("x", 2, [0]), ("x", 1, [1, 2])]


def test_what_a_stage_makes_and_may_read() -> None:
    demand = demand_of(residual(), ("y", "logits"), (*STREAM, *INSIDE, *LOGITS))
    node = demand.graph.producer["a"]
    assert demand.made(node, 1).tolist() == [0, 1, 2]
    assert demand.made(node, 2).tolist() == [3, 4, 5]
    assert demand.readable("x", 1).tolist() == [0, 1]
    assert demand.readable("x", 2).tolist() == [0, 1, 2, 3]


def test_constants_and_zeros_come_from_nowhere() -> None:
    padded = net(
        """g (float[N,3,8,8] image) => (float[N,3] logits) {
            a = Conv(image, wa)  x = Relu(a)
            pads = Constant<value = int64[8] {0,0,0,0,0,2,0,0}>()  z = Pad(x, pads)  b = Conv(z, wb)
            p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(2, 3, 3, 3), wb=(4, 4, 3, 3), wl=(3, 4),
    )  # fmt: skip
    demand = demand_of(padded, ("logits",), (1,) * 9)
    sources = demand.sources("z", np.arange(4))
    assert [(root, stage, index.tolist()) for root, stage, index in sources] == [("x", 1, [0, 1]), ("", 0, [2, 3])]
    assert demand.readable("z", 1).tolist() == [0, 1]


def test_a_grouped_conv_reads_whole_groups() -> None:
    grouped = net(
        """g (float[N,3,8,8] image) => (float[N,3] logits) {
            a = Conv(image, wa)  b = Conv<group=2>(a, wb)
            p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), wb=(6, 2, 3, 3), wl=(3, 6),
    )  # fmt: skip
    demand = demand_of(grouped, ("b", "logits"), (2, 1, *LOGITS))  # one unit per conv group
    groups = demand.group_columns(demand.graph.producer["b"], 1)
    assert {group: columns.tolist() for group, columns in groups.items()} == {1: [2, 3]}


def test_a_flatten_moves_whole_channels() -> None:
    demand = demand_of(chain(), ("f", "logits"), (*[1] * 8, *[1] * 4, *[2] * 12, *[1] * 5))
    node = demand.graph.producer["f"]
    assert demand.moved(node, 1).tolist() == [0, 1, 2, 3]
    kept = demand.moved_places(node, np.array([2, 0, 3, 1]), (4,))
    assert kept is not None
    assert kept.tolist() == [2, 0, 3, 1]

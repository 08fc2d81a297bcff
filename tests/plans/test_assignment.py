"""The effective-stage rule on one small net, worked out by hand: e(n, u) = max(s(u), d(n))."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from chain_law import analysed
from text_nets import net, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.assignment import NO_STAGE, Effective, check_conversion
from s2d_convert.plans.plan import PRUNED, Conversion, Plan

# Units of `residual`: 0-3 the stream (stem s, b and their sum), 4-9 the inside of the block (a), 10-12 the logits.
STREAM, INSIDE, LOGITS = (1, 1, 2, 2), (1, 1, 1, 2, 2, 2), (1, 1, 1)


def model_of(model: onnx.ModelProto) -> AnalysedModel:
    graph, channels, _ = analysed(model)
    return AnalysedModel(graph, channels)


def maker(model: AnalysedModel, tensor: str) -> Node:
    return model.graph.producer[tensor]


def half() -> Effective:
    """Half of everything in stage 1, which ends behind the block; the classifier belongs to stage 2."""
    return Effective(model_of(residual()), Plan(("y", "logits"), (*STREAM, *INSIDE, *LOGITS)))


def test_depth_is_the_first_stage_whose_tap_needs_a_node() -> None:
    effective = half()
    depth = {effective.graph.producer[name].name: 1 for name in ("s", "x", "a", "r", "b", "t", "y")}
    depth |= {effective.graph.producer[name].name: 2 for name in ("p", "f", "logits")}
    assert effective.depth == depth


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("image", (0, 0, 0)),  # the image is there before any stage
        ("s", STREAM),
        ("a", INSIDE),
        ("y", STREAM),
        ("f", (2, 2, 2, 2)),  # no earlier tap needs the pooling, so all of it waits for stage 2
        ("logits", (2, 2, 2)),
    ],
)
def test_the_later_of_unit_and_node_decides(tensor: str, expected: tuple[int, ...]) -> None:
    assert half().of(tensor).tolist() == list(expected)


def test_a_link_goes_from_no_later_stage_to_an_earlier_one() -> None:
    effective = half()
    into = effective.mask(maker(effective.model, "a"))
    assert into.tolist() == [[True, True, False, False]] * 3 + [[True] * 4] * 3
    out_of = effective.mask(maker(effective.model, "b"))
    assert out_of.tolist() == [[True, True, True, False, False, False]] * 2 + [[True] * 6] * 2


def test_what_a_tap_can_read() -> None:
    effective = half()
    assert effective.readable("y", 1).tolist() == [True, True, False, False]
    assert effective.readable("y", 2).all()
    assert effective.sees("y", 1).tolist() == [True, True, False, False]


def test_a_pruned_block_is_zero_bias_included() -> None:
    plan = Plan(("logits",), (1, 1, 1, 1, *[PRUNED] * 6, 1, 1, 1))
    effective = Effective(model_of(residual()), plan)
    assert (effective.of("a") == NO_STAGE).all()
    assert not effective.live("b").any()  # it has a bias, but nothing that it may read
    assert effective.live("y").all()  # the way around the block is still there
    assert not effective.mask(maker(effective.model, "b")).any()


def normalised() -> onnx.ModelProto:
    """conv(8) -> norm over neighbouring channels -> conv(4) -> pooled linear(5)."""
    return net(
        """g (float[N,3,8,8] image) => (float[N,5] logits) {
            a = Conv(image, wa)  x = LRN<size=3>(a)  b = Conv(x, wb)
            p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 3, 3), wb=(4, 8, 3, 3), wl=(5, 4),
    )  # fmt: skip


def test_a_norm_reads_what_exists_by_then_and_makes_what_is_its_stage_s() -> None:
    stages = (1, 1, 1, 2, 2, PRUNED, 2, 1, *[1] * 4, *[1] * 5)
    effective = Effective(model_of(normalised()), Plan(("b", "logits"), stages))
    levels = effective.levels(maker(effective.model, "x"))
    assert [(read.tolist(), made.tolist()) for read, made in levels] == [
        ([0, 1, 2, 7], [0, 1, 2, 7]),
        ([0, 1, 2, 3, 4, 6, 7], [3, 4, 6]),
    ]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan(("y", "logits"), (2, 2, 2, 2, *INSIDE, *LOGITS)), "stage 1 has no channel of its tap 'y'"),
        (Plan(("logits",), (1, 1, 1, 1, *INSIDE, *LOGITS)), "given to stage 2, but there are only 1 taps"),
        (Plan(("logits",), (1, 1)), "2 units, but the model has 13"),
    ],
)
def test_plans_that_do_not_fit(plan: Plan, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Effective(model_of(residual()), plan)


def test_a_tap_that_shows_only_a_bias_is_refused() -> None:
    text = """g (float[N,3,8,8] image) => (float[N,3] logits) {
        a = Conv(image, wa)  r = Relu(a)  b = Conv(r, wb)  c = Sigmoid(b)
        p = GlobalAveragePool(c)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
    }"""
    model = model_of(net(text, wa=(4, 3, 3, 3), wb=(6, 4, 3, 3), wl=(3, 6)))
    with pytest.raises(UsageError, match="nothing of the image reaches tap 'c' of stage 1"):
        Effective(model, Plan(("c", "logits"), (*[2] * 4, *[1] * 6, *[1] * 3)))


def test_conversions_end_in_the_logits_and_have_few_stages() -> None:
    model = model_of(residual())
    units = model.channels.units
    with pytest.raises(UsageError, match="must be the model's logits 'logits'"):
        check_conversion(model, Conversion((Plan(("y",), (1,) * units),)))
    whole = Plan(("logits",), (1,) * units)
    check_conversion(model, Conversion((whole,) * 4))
    with pytest.raises(UsageError, match="5 stages in all; at most 4"):
        check_conversion(model, Conversion((whole,) * 5))


def test_a_pruned_unit_belongs_to_no_stage_wherever_it_is_read() -> None:
    stages = np.array((*STREAM, *INSIDE, *LOGITS))
    stages[1] = PRUNED
    effective = Effective(model_of(residual()), Plan(("y", "logits"), tuple(stages.tolist())))
    for tensor in ("s", "b", "y"):
        assert effective.of(tensor).tolist() == [1, NO_STAGE, 2, 2]
        assert effective.live(tensor).tolist() == [True, False, True, True]

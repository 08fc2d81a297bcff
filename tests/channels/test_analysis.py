"""Worked examples of the channel analysis: a small net in, its units and classes out."""

from __future__ import annotations

import onnx
import pytest
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import Channels, analyse
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Kind
from s2d_convert.frontend.load import graph_from_proto


def channels_of(model: onnx.ModelProto) -> Channels:
    return analyse(graph_from_proto(model))


def widths(channels: Channels) -> list[tuple[int, int, bool]]:
    """(units, nodes that make them, splittable) of every class."""
    return [(len(c.units), len(c.producers), c.splittable) for c in channels.classes]


def test_a_chain_has_one_class_per_conv_and_fixed_logits() -> None:
    assert widths(channels_of(chain())) == [(8, 1, True), (16, 1, True), (5, 1, False)]


def test_a_residual_add_ties_the_stream_position_by_position() -> None:
    channels = channels_of(residual())
    assert widths(channels) == [(4, 2, True), (6, 1, True), (3, 1, False)]
    assert channels.layouts["t"].units.tolist() == channels.layouts["s"].units.tolist()


def test_the_image_needs_no_unit() -> None:
    assert set(channels_of(chain()).layouts["image"].units.tolist()) == {FREE}


def test_a_padded_shortcut_ties_only_the_channels_that_are_there() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) <int64[8] pads = {0,1,0,0,0,1,0,0}> {
                a = Conv(image, wa)  x = Relu(a)  q = Pad(x, pads)  b = Conv<pads=[1,1,1,1]>(x, wb)
                t = Add(b, q)  p = GlobalAveragePool(t)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wb=(6, 4, 3, 3), wl=(2, 6),
        )
    )  # fmt: skip
    stream = channels.layouts["a"].units.tolist()
    assert channels.layouts["b"].units.tolist()[1:5] == stream
    assert widths(channels) == [(4, 2, True), (2, 1, True), (2, 1, False)]
    assert channels.layouts["q"].units.tolist() == [FREE, *stream, FREE]


def test_a_sum_takes_its_units_from_whichever_operand_has_one() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) <int64[8] pads = {0,1,0,0,0,1,0,0}> {
                a = Conv(image, wa)  q = Pad(a, pads)  b = Conv(a, wb)  t = Add(q, b)
                p = GlobalAveragePool(t)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wb=(6, 4, 1, 1), wl=(2, 6),
        )
    )  # fmt: skip
    assert channels.layouts["t"].units.tolist() == channels.layouts["b"].units.tolist()
    assert FREE not in channels.layouts["t"].units


def test_depthwise_channels_are_those_of_their_input() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  d = Conv<group=4>(a, wd)
                p = GlobalAveragePool(d)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wd=(4, 1, 3, 3), wl=(2, 4),
        )
    )  # fmt: skip
    assert channels.layouts["d"].units.tolist() == channels.layouts["a"].units.tolist()
    assert [r.kind for r in channels.roles.values()].count(Kind.GROUPED) == 1


def test_grouped_channels_live_and_die_by_groups() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  d = Conv<group=2>(a, wd)
                p = GlobalAveragePool(d)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wd=(6, 2, 3, 3), wl=(2, 6),
        )
    )  # fmt: skip
    first, second = channels.layouts["a"].units[0], channels.layouts["a"].units[2]
    assert channels.layouts["a"].units.tolist() == [first, first, second, second]
    assert channels.layouts["d"].units.tolist() == [first] * 3 + [second] * 3


def test_a_gate_belongs_to_the_channels_that_it_scales() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  q = GlobalAveragePool(a)  r = Conv(q, wr)  u = Relu(r)  e = Conv(u, we)
                s = Sigmoid(e)  m = Mul(a, s)  p = GlobalAveragePool(m)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wr=(2, 4, 1, 1), we=(4, 2, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    assert channels.layouts["e"].units.tolist() == channels.layouts["a"].units.tolist()
    assert widths(channels) == [(4, 2, True), (2, 1, True), (2, 1, False)]


def test_a_channel_shuffle_is_a_view_that_costs_nothing() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,4,4] image) => (float[N,2] logits) <int64[5] five = {0,2,3,4,4}, int64[4] four = {0,6,4,4}> {
                a = Conv(image, wa)  q = Reshape(a, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  x = Reshape(t, four)
                b = Conv(x, wb)  p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(6, 3, 1, 1), wb=(4, 6, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    view = channels.layouts["x"]
    assert view.roots == ("a",)
    assert view.position.tolist() == [0, 3, 1, 4, 2, 5]


def test_flatten_repeats_a_channel_for_every_place() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,2,2] image) => (float[N,2] logits) {
                a = Conv(image, wa)  f = Flatten(a)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(3, 3, 1, 1), wl=(2, 12),
        )
    )  # fmt: skip
    units = channels.layouts["a"].units.tolist()
    assert channels.layouts["f"].units.tolist() == [u for u in units for _ in range(4)]


def test_an_operator_that_mixes_channels_otherwise_is_opaque_and_says_why() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  n = Hardmax<axis=1>(a)  b = Conv(n, wb)
                p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wb=(6, 4, 1, 1), wl=(2, 6),
        )
    )  # fmt: skip
    (reason,) = [role.reason for role in channels.roles.values() if role.kind is Kind.OPAQUE]
    assert "Hardmax" in reason
    assert widths(channels) == [(1, 2, False), (6, 1, True), (2, 1, False)]


def test_a_norm_over_the_channels_keeps_them_apart() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  n = LRN<size=3>(a)  b = Conv(n, wb)
                p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wb=(6, 4, 1, 1), wl=(2, 6),
        )
    )  # fmt: skip
    assert channels.layouts["n"].units.tolist() == channels.layouts["a"].units.tolist()
    assert [role.kind for role in channels.roles.values()].count(Kind.NORM) == 1


def test_what_is_spread_over_all_channels_is_anchored_and_ties_nothing() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  m = ReduceMean<axes=[1]>(a)  s = Sigmoid(m)  n = Mul(a, s)
                p = GlobalAveragePool(n)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    assert len(set(channels.layouts["n"].units.tolist())) == 4
    assert set(channels.layouts["s"].units.tolist()) == {FREE}


@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_is_a_norm_only_over_the_channels(axis: int) -> None:
    channels = channels_of(
        net(
            f"""g (float[N,3,8,8] image) => (float[N,2] logits) {{
                a = Conv(image, wa)  n = Softmax<axis={axis}>(a)
                p = GlobalAveragePool(n)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }}""",
            wa=(4, 3, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    assert channels.classes[0].splittable
    assert [role.kind for role in channels.roles.values()][1] == (Kind.NORM if axis == 1 else Kind.MAP)


def test_a_concat_is_a_view_of_its_parts() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  b = Conv(a, wb)  c = Concat<axis=1>(b, a)
                d = Conv(c, wd)  p = GlobalAveragePool(d)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(3, 3, 1, 1), wb=(2, 3, 1, 1), wd=(4, 5, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    view = channels.layouts["c"]
    assert not channels.is_root("c")
    assert view.roots == ("b", "a")
    assert view.root.tolist() == [0, 0, 1, 1, 1]
    assert view.position.tolist() == [0, 1, 0, 1, 2]
    assert view.units.tolist() == [*channels.layouts["b"].units.tolist(), *channels.layouts["a"].units.tolist()]
    assert widths(channels) == [(3, 1, True), (2, 1, True), (4, 1, True), (2, 1, False)]


def test_a_split_gives_two_views_and_divides_a_class() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  l, r = Split<axis=1>(a, sizes)  b = Conv(r, wb)  t = Add(l, b)
                p = GlobalAveragePool(t)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""".replace("=> (float[N,2] logits) {", "=> (float[N,2] logits) <int64[2] sizes = {2,3}> {"),
            wa=(5, 3, 1, 1), wb=(2, 3, 1, 1), wl=(2, 2),
        )
    )  # fmt: skip
    left, right = channels.layouts["l"], channels.layouts["r"]
    assert (left.roots, left.position.tolist()) == (("a",), [0, 1])
    assert (right.roots, right.position.tolist()) == (("a",), [2, 3, 4])
    # The left part is added to what the second conv makes, the right one stands alone.
    assert channels.layouts["b"].units.tolist() == left.units.tolist()
    assert widths(channels) == [(2, 2, True), (3, 1, True), (2, 1, False)]


def test_ties_found_late_reach_back() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  b = Conv(a, wb)  c = Conv(b, wc)  t = Add(a, b)  u = Add(t, c)
                p = GlobalAveragePool(u)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 3, 1, 1), wb=(4, 4, 1, 1), wc=(4, 4, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    assert widths(channels) == [(4, 3, True), (2, 1, False)]
    assert [channels.layouts[n].units.tolist() for n in "abctu"] == [[0, 1, 2, 3]] * 5


def test_a_class_is_named_after_its_first_producer_and_knows_its_units() -> None:
    graph = graph_from_proto(residual())
    channels = analyse(graph)
    stem, inner, last = channels.classes
    assert stem.name == graph.producer["s"].name
    assert stem.producers == (graph.producer["s"].name, graph.producer["b"].name)
    assert (stem.width, inner.width, last.width) == (4, 6, 3)
    assert channels.class_of.tolist() == [0] * 4 + [1] * 6 + [2] * 3


def test_logits_that_come_straight_from_a_conv_are_fixed() -> None:
    channels = channels_of(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                a = Conv(image, wa)  b = Conv(a, wb)  p = GlobalAveragePool(b)  logits = Flatten(p)
            }""",
            wa=(4, 3, 1, 1), wb=(2, 4, 1, 1),
        )
    )  # fmt: skip
    assert widths(channels) == [(4, 1, True), (2, 1, False)]

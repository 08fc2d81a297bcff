"""Cutting by hand: what a stage contains, what it hands on, and how many parameters it has."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
from chain_law import analysed, run_chain
from helpers import assert_close, random_images, run
from onnx import numpy_helper
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.plan import Plan, identity_plan
from s2d_convert.plans.weights import Weights, linear_head
from s2d_convert.slicing.split import StageModel, split

# Of the net `chain`: half of the first conv and a quarter of the second in stage 1, the logits (fixed) anywhere.
NARROW = (1,) * 4 + (2,) * 4 + (1,) * 4 + (2,) * 12 + (1,) * 5


def ops(stage: StageModel) -> list[str]:
    return [node.op_type for node in stage.model.graph.node]


def conv_shapes(stage: StageModel) -> list[tuple[int, ...]]:
    """The weight shape of every Conv of a stage, in order."""
    sizes = {i.name: tuple(i.dims) for i in stage.model.graph.initializer}
    return [sizes[node.input[1]] for node in stage.model.graph.node if node.op_type == "Conv"]


def halves(graph: Graph, channels: Channels, tap: str) -> Plan:
    """Two stages: the first half of every splittable class is in stage 1."""
    stages = [1] * channels.units
    for group in channels.classes:
        if group.splittable:
            for unit in group.units[len(group.units) // 2 :]:
                stages[unit] = 2
    return Plan((tap, graph.output), tuple(stages))


def test_weights_lose_the_rows_of_other_stages_and_the_columns_of_later_ones() -> None:
    graph, channels, weights = analysed(chain())
    first, second = split(graph, channels, Plan(("y", "logits"), NARROW), weights)
    assert conv_shapes(first) == [(4, 3, 3, 3), (4, 4, 3, 3)]
    assert conv_shapes(second) == [(4, 3, 3, 3), (12, 8, 3, 3)]


def test_parameters_and_macs_by_hand() -> None:
    graph, channels, weights = analysed(chain())
    first, second = split(graph, channels, Plan(("y", "logits"), NARROW), weights)
    # The convs have no bias, the exit head (4 channels, 5 classes) has one; each stage has its temperature.
    assert first.parameters == 4 * 3 * 9 + 4 * 4 * 9 + (5 * 4 + 5) + 1
    assert second.parameters == 4 * 3 * 9 + 12 * 8 * 9 + 5 * 16 + 1
    # Maps of 6x6 after the first conv and of 4x4 after the second.
    assert first.macs == 4 * 3 * 9 * 36 + 4 * 4 * 9 * 16 + 5 * 4
    assert second.macs == 4 * 3 * 9 * 36 + 12 * 8 * 9 * 16 + 5 * 16


def test_one_stage_has_the_static_parameters_and_a_temperature() -> None:
    graph, channels, weights = analysed(residual())
    (stage,) = split(graph, channels, identity_plan(AnalysedModel(graph, channels)), weights)
    assert stage.parameters == sum(value.size for value in graph.constants.values()) + 1
    assert (stage.image, stage.links_in, stage.links_out) == (True, (), ())


def test_links_are_what_later_stages_read_and_nothing_else() -> None:
    graph, channels, weights = analysed(chain())
    first, second = split(graph, channels, Plan(("y", "logits"), NARROW), weights)
    # The second conv reads the first ReLU; the pooling that only the last stage has reads the second one.
    assert first.links_out == (("x.s1", (4, 6, 6)), ("y.s1", (4, 4, 4)))
    assert second.links_in == ("x.s1", "y.s1")
    assert second.links_out == ()
    assert [o.name for o in first.model.graph.output] == ["output", "confidence", "x.s1", "y.s1"]


def test_a_pooled_tap_hands_on_the_pooled_vector() -> None:
    graph, channels, weights = analysed(chain())
    first, _ = split(graph, channels, Plan(("f", "logits"), NARROW), weights)
    assert first.links_out == (("x.s1", (4, 6, 6)), ("f.s1", (4,)))


def test_a_stage_by_depth_alone_does_not_take_the_image() -> None:
    graph, channels, weights = analysed(chain())
    first, second = split(graph, channels, Plan(("x", "logits"), (1,) * channels.units), weights)
    assert (first.image, second.image) == (True, False)
    assert second.links_in == ("x.s1",)


def test_a_link_may_skip_a_stage() -> None:
    graph, channels, weights = analysed(chain())
    stages = [1] * 4 + [3] * 4 + [1] * 4 + [2] * 4 + [3] * 8 + [1] * 5
    first, second, third = split(graph, channels, Plan(("y", "y", "logits"), tuple(stages)), weights)
    assert second.links_in == ("x.s1", "y.s1")
    assert third.links_in == ("x.s1", "y.s1", "y.s2")
    assert dict(first.links_out) == {"x.s1": (4, 6, 6), "y.s1": (4, 4, 4)}
    assert conv_shapes(second) == [(4, 4, 3, 3)]  # it reads the first conv of stage 1 and makes none of its own


def test_a_vanished_block_leaves_neither_conv_nor_add_in_stage_1() -> None:
    graph, channels, weights = analysed(residual())
    stream, inner, logits = channels.classes
    stages = np.ones(channels.units, dtype=int)
    stages[list(inner.units)] = 2
    stages[list(stream.units[2:])] = 2
    plan = Plan(("y", "logits"), tuple(stages.tolist()))
    first, second = split(graph, channels, plan, weights)
    assert ops(first)[:3] == ["Conv", "Relu", "Relu"]  # the stem, its ReLU and the one after the Add that vanished
    assert conv_shapes(first) == [(2, 3, 3, 3)]
    # Stage 2 makes the other half of the stream; the block writes only there.
    assert conv_shapes(second) == [(2, 3, 3, 3), (6, 4, 3, 3), (2, 6, 3, 3)]
    assert len(logits.units) == 3


def test_a_block_that_is_pruned_is_in_no_stage() -> None:
    model = residual()
    graph, channels, weights = analysed(model)
    stages = np.ones(channels.units, dtype=int)
    stages[list(channels.classes[1].units)] = 0
    (stage,) = split(graph, channels, Plan(("logits",), tuple(stages.tolist())), weights)
    assert conv_shapes(stage) == [(4, 3, 3, 3)]
    assert "Add" not in ops(stage)


@pytest.mark.parametrize(("tap", "pooled"), [("y", True), ("f", False)])
def test_a_head_is_linear_on_the_pooled_tap(tap: str, pooled: bool) -> None:
    model = chain()
    graph, channels, weights = analysed(model)
    rng = np.random.default_rng(0)
    head = (rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=5).astype(np.float32))
    first, _ = split(graph, channels, Plan((tap, "logits"), NARROW), weights.with_heads({tap: linear_head(*head)}))
    assert ops(first).count("GlobalAveragePool") == 1
    feeds = random_images(model, 3, 0)
    answer = run(first.model, feeds)
    features = answer[f"{tap}.s1"].mean((2, 3)) if pooled else answer[f"{tap}.s1"]
    assert_close(answer["output"], features @ head[0][:, :4].T + head[1])


def test_a_head_that_was_not_given_starts_from_the_classifier() -> None:
    graph, channels, weights = analysed(chain())
    first, _ = split(graph, channels, Plan(("y", "logits"), NARROW), weights)
    (gemm,) = [node for node in first.model.graph.node if node.op_type == "Gemm"]
    stored = {i.name: numpy_helper.to_array(i) for i in first.model.graph.initializer}
    assert_close(stored[gemm.input[1]], graph.constants["wl"][:, :4])


def test_a_head_reads_the_columns_of_its_own_channels() -> None:
    model = chain()
    graph, channels, weights = analysed(model)
    head = (np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32), np.zeros(5, np.float32))
    plan = Plan(("y", "logits"), (2, 1) * 4 + (2,) * 12 + (1,) * 4 + (1,) * 5)  # the last four channels of the tap
    first, _ = split(graph, channels, plan, weights.with_heads({"y": linear_head(*head)}))
    answer = run(first.model, random_images(model, 3, 0))
    assert_close(answer["output"], answer["y.s1"].mean((2, 3)) @ head[0][:, 12:].T)


@pytest.mark.parametrize("family", ["resnet_option_a", "wide_resnet", "densenet"])
def test_width_plans_of_plain_families_need_no_gather(family: str) -> None:
    graph, channels, weights = analysed(nets.export(family))
    for stage in split(
        graph, channels, halves(graph, channels, candidate_taps(AnalysedModel(graph, channels))[-1]), weights
    ):
        assert "Gather" not in ops(stage)


def test_a_grouped_conv_over_channels_of_zeros_still_makes_its_bias() -> None:
    model = net(
        """g (float[N,3,8,8] image) => (float[N,2] logits) {
            a = Conv(image, wa)  x = Relu(a)  k = Constant<value_ints=[0, 1, 0, 0, 0, 1, 0, 0]>()  z = Pad(x, k)
            d = Conv<group=6>(z, wd, bd)  y = Relu(d)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 1, 1), wd=(6, 1, 3, 3), bd=(6,), wl=(2, 6),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    feeds = random_images(model, 2, 0)
    for taps in (("logits",), ("x", "logits")):
        stages = split(graph, channels, Plan(taps, (1,) * channels.units), weights)
        assert_close(run_chain(stages, feeds)[-1]["output"], run(model, feeds)["logits"])


def test_a_grouped_conv_keeps_whole_groups() -> None:
    model = net(
        """g (float[N,3,8,8] image) => (float[N,2] logits) {
            a = Conv(image, wa)  x = Relu(a)  d = Conv<group=4>(x, wd)  y = Relu(d)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 1, 1), wd=(12, 2, 3, 3), wl=(2, 12),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    # One unit per group: groups 0 and 3 in stage 1, 1 and 2 in stage 2.
    first, second = split(graph, channels, Plan(("y", "logits"), (1, 2, 2, 1, 1, 1)), weights)
    for stage, kept in ((first, [0, 1, 2, 9, 10, 11]), (second, [3, 4, 5, 6, 7, 8])):
        assert conv_shapes(stage) == [(4, 3, 1, 1), (6, 2, 3, 3)]
        grouped = [node for node in stage.model.graph.node if node.op_type == "Conv"][1]
        assert next(a.i for a in grouped.attribute if a.name == "group") == 2
        stored = {i.name: numpy_helper.to_array(i) for i in stage.model.graph.initializer}
        assert_close(stored[grouped.input[1]], graph.constants["wd"][kept])
    feeds = random_images(model, 2, 0)
    answers = run_chain((first, second), feeds)
    whole = run(with_output(model, "y"), feeds)["y"]
    assert_close(answers[0]["y.s1"], whole[:, [0, 1, 2, 9, 10, 11]])


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of the model with one more output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_a_temperature_changes_the_confidence_and_not_the_output() -> None:
    model = chain()
    graph, channels, weights = analysed(model)
    warm = Weights(weights.mix, temperatures=(1.0, 2.5))
    feeds = random_images(model, 3, 0)
    last = run_chain(split(graph, channels, Plan(("y", "logits"), NARROW), warm), feeds)[-1]
    plain = run_chain(split(graph, channels, Plan(("y", "logits"), NARROW), weights), feeds)[-1]
    assert_close(last["output"], plain["output"])
    assert_close(last["confidence"], softmax(plain["output"] / 2.5).max(axis=1))
    assert_close(plain["confidence"], softmax(plain["output"]).max(axis=1))


def test_probabilities_stay_probabilities_at_every_exit() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,2] y) {
            a = Conv(image, wa)  x = Relu(a)  p = GlobalAveragePool(x)  f = Flatten(p)
            logits = Gemm<transB=1>(f, wl)  y = Softmax<axis=-1>(logits)
        }""",
        wa=(4, 3, 3, 3), wl=(2, 4),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    stages = split(graph, channels, Plan(("x", "logits"), (1, 1, 2, 2, 1, 1)), weights)
    feeds = random_images(model, 3, 0)
    answers = run_chain(stages, feeds)
    for answer in answers:
        assert_close(answer["output"].sum(axis=1), np.ones(3))
        assert_close(answer["confidence"], answer["output"].max(axis=1))
    assert_close(answers[-1]["output"], run(model, feeds)["y"])


def test_stages_of_a_second_chain_are_numbered_on_and_take_their_own_temperature() -> None:
    graph, channels, weights = analysed(chain())
    (stage,) = split(
        graph,
        channels,
        identity_plan(AnalysedModel(graph, channels)),
        Weights(weights.mix, temperatures=(1.0, 4.0)),
        first_stage=2,
    )
    assert stage.model.graph.name == "stage2"
    (inverse,) = [i for i in stage.model.graph.initializer if i.name == "inverse_temperature"]
    assert numpy_helper.to_array(inverse).tolist() == [0.25]


def test_a_plan_of_another_model_is_refused() -> None:
    graph, channels, weights = analysed(chain())
    with pytest.raises(UsageError, match="another model's plan"):
        split(graph, channels, Plan(("logits",), (1,) * 3), weights)


def test_a_link_that_a_sum_of_its_own_stage_reads_is_a_copy() -> None:
    # onnxruntime 1.32 fuses the Add into the other convolution and can forget that this one's result is an output.
    model = net(
        """g (float[N,3,8,8] image) => (float[N,4] logits) {
            a = Conv(image, wa)  b = Conv(image, wb)  t = Add(a, b)  x = Relu(t)
            d = Conv(a, wd)  s = Add(d, x)  p = GlobalAveragePool(s)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 1, 1), wb=(8, 3, 1, 1), wd=(8, 8, 1, 1), wl=(4, 8),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    stages = split(graph, channels, Plan(("x", "logits"), (1,) * channels.units), weights)
    makers = {name: node.op_type for node in stages[0].model.graph.node for name in node.output}
    assert {name: makers[name] for name, _ in stages[0].links_out} == {"a.s1": "Identity", "x.s1": "Relu"}
    feeds = random_images(model, 2, 0)
    assert_close(run_chain(stages, feeds)[-1]["output"], run(model, feeds)["logits"])

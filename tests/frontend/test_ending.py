"""Operators after the logits: every exit answers in the form of the static model, and the logits can still be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import analysed, run_chain
from helpers import Array, assert_close, random_images, run
from patterns.base import Weight, ending, number
from s2d_runtime import Dispatcher

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.errors import ModelError
from s2d_convert.frontend import StaticModel, graph_from_proto
from s2d_convert.plans.heuristics import depth_plan
from s2d_convert.slicing.split import split
from s2d_convert.slicing.stage_graph import LOGITS, with_logits
from s2d_convert.workflows.split_model import SplitOptions, split_model

LINEAR = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  "
NUMBERS: dict[str, Weight] = {
    "low": number(1e-3), "high": number(1 - 1e-3), "hundred": number(100), "tiny": number(1e-12), "one": [1], "two": [2],
}  # fmt: skip


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def l2(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


# Text behind the linear layer's q, the same in numpy, and the kind that it is.
ENDS: dict[str, tuple[str, Callable[[Array], Array], str]] = {
    "clip": (
        "k = Softmax<axis=1>(q)  logits = Clip(k, low, high)",
        lambda x: np.clip(softmax(x), 1e-3, 1 - 1e-3),
        "probabilities",
    ),
    "percent": ("k = Softmax<axis=1>(q)  logits = Mul(k, hundred)", lambda x: 100 * softmax(x), "probabilities"),
    "log": (
        "k = Softmax<axis=1>(q)  l = Add(k, low)  logits = Log(l)",
        lambda x: np.log(softmax(x) + 1e-3),
        "log_probabilities",
    ),
    "exp of log": ("k = LogSoftmax<axis=1>(q)  logits = Exp(k)", softmax, "probabilities"),
    "Softmax twice": (
        "k = Softmax<axis=1>(q)  logits = Softmax<axis=1>(k)",
        lambda x: softmax(softmax(x)),
        "probabilities",
    ),
    "temperature before, percent behind": (
        "t = Div(q, hundred)  k = Softmax<axis=1>(t)  logits = Mul(k, hundred)",
        lambda x: 100 * softmax(x),
        "probabilities",
    ),
    "L2 norm": ("logits = LpNormalization<axis=1>(q)", l2, "logits"),
    "L2 norm as torch writes it": (
        "n = ReduceL2<axes=[1], keepdims=1>(q)  m = Clip(n, tiny)  h = Shape(q)  l = Expand(m, h)  logits = Div(q, l)",
        l2,
        "logits",
    ),
    "Softmax in parts": (
        """m = ReduceMax<axes=[1], keepdims=1>(q)  d = Sub(q, m)  l = Exp(d)
        t = ReduceSum<keepdims=1>(l, one)  logits = Div(l, t)""",
        softmax,
        "probabilities",
    ),
    "further axes": ("k = Softmax<axis=1>(q)  p = Mul(k, hundred)  logits = Unsqueeze(p, two)",
                     lambda x: 100 * softmax(x)[..., None], "probabilities"),
}  # fmt: skip


def model_ending_in(end: str) -> onnx.ModelProto:
    text = ENDS[end][0] if end in ENDS else end
    shape = "N,10,1" if end == "further axes" else ""
    return ending(LINEAR + text, given=NUMBERS, logits=shape)


@pytest.mark.parametrize("end", list(ENDS))
def test_every_exit_answers_in_the_words_of_the_static_model(end: str) -> None:
    _, reference, kind = ENDS[end]
    model = model_ending_in(end)
    graph, channels, weights = analysed(model)
    assert graph.output_kind == kind
    assert graph.classes == 10
    (plan,) = depth_plan(AnalysedModel(graph, channels), 2).chains
    stages = split(graph, channels, plan, weights)
    feeds = random_images(model, 5, 0)
    static = run(model, feeds)["logits"]
    told = run_chain(tuple(replace(stage, model=with_logits(stage.model)) for stage in stages), feeds)
    for answers in told:
        assert_close(answers["output"], reference(answers[LOGITS]))
        assert_close(answers["confidence"], softmax(answers[LOGITS]).max(axis=1))
    assert_close(told[-1]["output"], static)
    assert_close(StaticModel(graph).logits(feeds["image"]), told[-1][LOGITS])
    assert_close(StaticModel(graph).outputs(feeds["image"]), static)


def test_a_plain_softmax_is_read_as_it_always_was() -> None:
    model = model_ending_in("logits = Softmax<axis=1>(q)")
    graph, channels, weights = analysed(model)
    assert graph.tells_logits
    (plan,) = depth_plan(AnalysedModel(graph, channels), 2).chains
    for stage in split(graph, channels, plan, weights):
        assert with_logits(stage.model) is stage.model


def test_a_scale_of_the_logits_stays_a_part_of_the_network() -> None:
    graph = graph_from_proto(model_ending_in("logits = Mul(q, hundred)"))
    assert (graph.output, graph.tail) == ("logits", ())


def test_the_folder_answers_likewise_in_batches(tmp_path: Path) -> None:
    model = model_ending_in("percent")
    onnx.save(model, str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, out=tmp_path / "out"))
    images = random_images(model, 6, 0)["image"]
    with Dispatcher(tmp_path / "out") as runner:
        assert_close(runner(images, exits=False).output, run(model, {"image": images})["logits"])
        early = runner(images, thresholds=[0.0])
    assert (early.stage == 1).all()
    assert_close(early.output.sum(axis=1), np.full(6, 100, np.float32))


TWO_HEADS = LINEAR + "w = Mul(wl, hundred)  v = Gemm<transB=1>(f, w)  a = Softmax<axis=1>(q)  b = Softmax<axis=1>(v)  "
AVERAGES = {
    "of heads": TWO_HEADS + "logits = Mean(a, b)",
    "of places": "c = Conv(z, wc)  k = Softmax<axis=1>(c)  g = GlobalAveragePool(k)  logits = Flatten(g)",
    "over a new axis": TWO_HEADS
    + """c = Unsqueeze(a, zero)  d = Unsqueeze(b, zero)  h = Concat<axis=0>(c, d)
    logits = ReduceMean<axes=[0], keepdims=0>(h)""",
}


@pytest.mark.parametrize("average", list(AVERAGES))
def test_averages_of_probabilities_are_probabilities_from_every_exit(average: str) -> None:
    model = ending(AVERAGES[average], NUMBERS, wc=(10, 16, 1, 1), zero=[0])
    graph, channels, weights = analysed(model)
    assert (graph.output_kind, [n.op for n in graph.tail]) == ("probabilities", ["Softmax"])
    (plan,) = depth_plan(AnalysedModel(graph, channels), 2).chains
    feeds = random_images(model, 5, 0)
    early, last = run_chain(split(graph, channels, plan, weights), feeds)
    static = run(model, feeds)["logits"]
    assert_close(early["output"].sum(axis=1), np.ones(5, np.float32))
    assert_close(last["output"], static)
    assert_close(last["confidence"], static.max(axis=1))
    assert_close(StaticModel(graph).outputs(feeds["image"]), static)


@pytest.mark.parametrize(
    ("end", "shape"),
    [
        ("logits = Mul(a, b)", ""),  # no longer probabilities
        ("logits = Slice(a, one, ten, one)", "N,9"),  # one class is left out
        ("logits = Concat<axis=1>(a, b)", "N,20"),
    ],
)
def test_what_else_is_made_of_probabilities_is_refused(end: str, shape: str) -> None:
    model = ending(TWO_HEADS + end, NUMBERS, logits=shape, ten=[10])
    with pytest.raises(ModelError, match=r"\(Softmax\): .*'logits'.*no function of the logits of one layer.*--output"):
        graph_from_proto(model)


def test_a_part_of_the_probabilities_is_refused_though_the_rest_is_nearly_nothing() -> None:
    rare = np.array([-60.0, *[0.0] * 9], np.float32)  # the class that is left out is that of no image here
    text = f"{LINEAR} u = Add(q, rare)  k = Softmax<axis=1>(u)  logits = Slice(k, one, ten, one)"
    model = ending(text, NUMBERS, logits="N,9", ten=[10], rare=rare)
    sums = run(model, random_images(model, 5, 0))["logits"].sum(axis=1)
    assert np.allclose(sums, 1)
    with pytest.raises(ModelError, match=r"\(Softmax\): .*'logits'.*no function of the logits of one layer"):
        graph_from_proto(model)


def test_an_end_that_turns_the_order_of_the_classes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'logits' is not largest for the class whose logit in 'q' is"):
        graph_from_proto(model_ending_in("k = LogSoftmax<axis=1>(q)  logits = Neg(k)"))

"""Networks that give labels, each by itself: a Sigmoid is set aside and put back behind every exit, and one label will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import run_chain
from helpers import Array, assert_close, random_images, run
from patterns.base import Weight, ending, number
from s2d_runtime import Dispatcher

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend import StaticModel, graph_from_proto
from s2d_convert.plans.heuristics import depth_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import read_chain
from s2d_convert.slicing.split import split
from s2d_convert.slicing.stage_graph import LOGITS, with_logits
from s2d_convert.workflows.split_model import SplitOptions, split_model

LINEAR = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  "
ONE = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, w1)  "
NUMBERS: dict[str, Weight] = {
    "low": number(1e-3), "high": number(1 - 1e-3), "hundred": number(100), "one": [1], "two": [2], "w1": (1, 16),
}  # fmt: skip


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))), np.float32)


# Text, shape of the output, option, the answer from the logits, and the kind that it is.
ENDS: dict[str, tuple[str, str, str | None, Callable[[Array], Array], str]] = {
    "Sigmoid": (LINEAR + "logits = Sigmoid(q)", "N,10", None, sigmoid, "sigmoid"),
    "clip": (
        LINEAR + "k = Sigmoid(q)  logits = Clip(k, low, high)", "N,10", None,
        lambda x: np.clip(sigmoid(x), 1e-3, 1 - 1e-3), "sigmoid",
    ),
    "further axes": (
        LINEAR + "k = Sigmoid(q)  logits = Unsqueeze(k, two)", "N,10,1", None, lambda x: sigmoid(x)[..., None], "sigmoid",
    ),
    "logits of labels": (LINEAR + "logits = Identity(q)", "N,10", "multi", lambda x: x, "sigmoid_logits"),
    "one Sigmoid": (ONE + "logits = Sigmoid(q)", "N,1", None, sigmoid, "sigmoid"),
    "one logit": (ONE + "logits = Identity(q)", "N,1", None, lambda x: x, "sigmoid_logits"),
    "one Sigmoid without an axis": (
        ONE + "k = Sigmoid(q)  logits = Squeeze(k, one)", "N", None, lambda x: sigmoid(x)[:, 0], "sigmoid",
    ),
    "Sigmoid behind the lost axis": (
        ONE + "k = Squeeze(q, one)  logits = Sigmoid(k)", "N", None, lambda x: sigmoid(x)[:, 0], "sigmoid",
    ),
    "one logit without an axis": (
        ONE + "logits = Squeeze(q, one)", "N", None, lambda x: x[:, 0], "sigmoid_logits",
    ),
}  # fmt: skip


def model_ending_in(end: str) -> onnx.ModelProto:
    text, shape, _, _, _ = ENDS[end]
    return ending(text, given=NUMBERS, logits=shape)


@pytest.mark.parametrize("end", list(ENDS))
def test_every_exit_answers_as_the_static_model_and_is_as_sure_as_its_least_sure_label(end: str) -> None:
    _, _, option, reference, kind = ENDS[end]
    model = model_ending_in(end)
    graph = graph_from_proto(model, labels=option)
    assert graph.output_kind == kind
    assert graph.task.several
    analysed = AnalysedModel.of(graph)
    (plan,) = depth_plan(analysed, 2).chains
    weights = replace(static_weights(graph, analysed.channels), temperatures=(2.5, 0.7))
    stages = split(graph, analysed.channels, plan, weights)
    feeds = random_images(model, 5, 0)
    static = run(model, feeds)["logits"]
    told = run_chain(tuple(replace(stage, model=with_logits(stage.model)) for stage in stages), feeds)
    for answers, temperature in zip(told, (2.5, 0.7), strict=True):
        logits = answers.get(LOGITS, answers["output"])
        assert_close(answers["output"], reference(logits))
        p = sigmoid(logits.reshape(5, -1) / temperature)
        assert_close(answers["confidence"], np.maximum(p, 1 - p).min(axis=1))
        assert_close(answers["confidence"], graph.task.confidence(logits.reshape(5, -1), temperature))
    assert_close(told[-1]["output"], static)
    assert_close(StaticModel(graph).outputs(feeds["image"]), static)
    assert_close(reference(StaticModel(graph).logits(feeds["image"])), static)


@pytest.mark.parametrize(
    "end", ["clip", "logits of labels", "one Sigmoid without an axis", "one logit without an axis"]
)
def test_the_folder_answers_likewise_and_its_stages_are_read_back(end: str, tmp_path: Path) -> None:
    _, _, option, reference, kind = ENDS[end]
    model = model_ending_in(end)
    onnx.save(model, str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, labels=option, out=tmp_path / "out"))
    images = random_images(model, 6, 0)["image"]
    with Dispatcher(tmp_path / "out") as runner:
        assert runner.manifest.output.kind == kind
        assert_close(runner(images, exits=False).output, run(model, {"image": images})["logits"])
        early = runner(images, thresholds=[0.0])
        assert runner(images[:0]).output.shape == (0, *early.output.shape[1:])
    assert (early.stage == 1).all()
    again = read_chain(tmp_path / "out" / "stage1.onnx", labels="multi").model.graph
    assert again.task.several
    assert_close(reference(StaticModel(again).logits(images)), early.output)


def test_where_a_sigmoid_is_meant_as_one_class_of_many_the_largest_logit_wins() -> None:
    model = model_ending_in("Sigmoid")
    graph = graph_from_proto(model, labels="classes")
    assert (graph.output_kind, graph.task.several) == ("logits", False)
    analysed = AnalysedModel.of(graph)
    (plan,) = depth_plan(analysed, 2).chains
    stages = split(graph, analysed.channels, plan, static_weights(graph, analysed.channels))
    feeds = random_images(model, 5, 0)
    told = run_chain(tuple(replace(stage, model=with_logits(stage.model)) for stage in stages), feeds)
    for answers in told:
        assert_close(answers["output"], sigmoid(answers[LOGITS]))
        e = np.exp(answers[LOGITS])
        assert_close(answers["confidence"], (e / e.sum(axis=1, keepdims=True)).max(axis=1))
    assert_close(told[-1]["output"], run(model, feeds)["logits"])


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        (LINEAR + "k = Sigmoid(q)  logits = Mul(k, hundred)", None, "other numbers than probabilities of its labels"),
        (ONE + "logits = Identity(q)", "classes", "K >= 2"),
    ],
)
def test_answers_that_are_no_labels_are_refused(text: str, labels: str | None, message: str) -> None:
    model = ending(text, given=NUMBERS, logits="N,1" if text.startswith(ONE) else "")
    with pytest.raises(ModelError, match=message):
        graph_from_proto(model, labels=labels)


def test_a_softmax_gives_no_labels() -> None:
    with pytest.raises(UsageError, match=r"--labels multi: .*Softmax"):
        graph_from_proto(ending(LINEAR + "logits = Softmax<axis=1>(q)", given=NUMBERS), labels="multi")


def test_a_gate_at_the_end_is_no_sigmoid_of_labels() -> None:
    graph = graph_from_proto(ending(LINEAR + "k = Sigmoid(q)  logits = Mul(q, k)", given=NUMBERS))
    assert (graph.output_kind, graph.tail) == ("logits", ())

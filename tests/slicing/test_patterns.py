"""One tiny net for each pattern that breaks importers, through the laws; what is valid ONNX must convert."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from chain_law import analysed, check_chain_law, possible_taps, run_chain
from helpers import Array, assert_close, open_session, run
from patterns import PATTERNS

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.channels.kinds import RULES
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.split import split
from s2d_convert.workflows.inspect import describe

# The check of the chain law tells logits from probabilities, but not from their logarithms.
CHAINED = [name for name in PATTERNS if "LogSoftmax" not in name]
each_pattern = pytest.mark.parametrize("name", PATTERNS)


@cache
def built(name: str) -> bytes:
    return bytes(PATTERNS[name]().SerializeToString())


def model_of(name: str) -> onnx.ModelProto:
    return onnx.load_from_string(built(name))


def image_of(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The input that is neither an initializer nor left unread."""
    constants = {initializer.name for initializer in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    (image,) = [i for i in model.graph.input if i.name in read - constants]
    return image


def without_unread_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the checks of other tests can feed; loading drops the same inputs."""
    constants = {initializer.name for initializer in model.graph.initializer}
    kept = [i for i in model.graph.input if i.name in constants or i.name == image_of(model).name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def images(model: onnx.ModelProto, batch: int) -> Array:
    """Images that differ in colour and contrast, the first ones the same whatever the batch."""
    shape = [d.dim_value for d in image_of(model).type.tensor_type.shape.dim[1:]]
    rng = np.random.default_rng(0)
    rows = [rng.uniform(0.3, 1.2) * (rng.normal(size=shape) + rng.normal(size=(1, 1, shape[-1]))) for _ in range(batch)]
    return np.stack(rows).astype(np.float32)


def static_answer(model: onnx.ModelProto, feed: Array) -> Array:
    """The model's answer image by image: the batch may be fixed to 1, and then no other is allowed."""
    session = open_session(model)
    feeds = {i.name: np.zeros((1, 4), np.float32) for i in session.get_inputs()}
    rows = [run(session, feeds | {image_of(model).name: feed[i : i + 1]}) for i in range(len(feed))]
    return np.concatenate([row[model.graph.output[0].name] for row in rows])


def is_possible(graph: Graph, channels: Channels, plan: Plan) -> bool:
    """Whether exits may stand where the plan has them: not where windows are rows of the batch, for one."""
    try:
        Effective(AnalysedModel(graph, channels), plan)
    except UsageError:
        return False
    return True


def test_every_channel_rule_has_a_net() -> None:
    models = [model_of(name) for name in PATTERNS]
    ops = {node.op_type for m in models for part in (m.graph, *m.functions) for node in part.node}
    assert sorted(RULES.keys() - ops) == [], (
        "operators with a rule and without a pattern; add one to tests/support/patterns"
    )


@each_pattern
def test_the_model_is_valid_and_runs(name: str) -> None:
    model = model_of(name)
    onnx.checker.check_model(model, full_check=True)
    assert len([n for n in model.graph.node if "Conv" in n.op_type]) >= 2
    answer = static_answer(model, images(model, 3))
    assert answer.size == 30
    assert np.isfinite(answer).all()
    assert 1e-3 < np.abs(answer).max() < 100
    assert answer.reshape(3, 10).std(axis=0).max() > 1e-3, "all images get the same answer"


@each_pattern
def test_identity_law(name: str) -> None:
    model = model_of(name)
    graph, channels, weights = analysed(model)
    onnx.checker.check_model(graph.to_model(), full_check=True)
    (stage,) = split(graph, channels, Plan((graph.output,), (1,) * channels.units), weights)
    for batch in (1, 3):
        feed = images(model, batch)
        assert_close(run(stage.model, {graph.image: feed})["output"], static_answer(model, feed), what="identity")


@each_pattern
def test_depth_law(name: str) -> None:
    model = model_of(name)
    graph, channels, weights = analysed(model)
    feed = images(model, 2)
    expected = static_answer(model, feed)
    taps = possible_taps(graph, channels)
    for tap in taps[:: max(1, len(taps) // 4)]:
        plan = Plan((tap, graph.output), (1,) * channels.units)
        if not is_possible(graph, channels, plan):
            continue
        stages = split(graph, channels, plan, weights)
        last = run_chain(stages, {graph.image: feed})[-1]["output"]
        assert_close(last, expected, what=f"depth exit at {tap}")


@pytest.mark.parametrize("name", CHAINED)
def test_chain_law(name: str) -> None:
    for seed in range(3):
        check_chain_law(without_unread_inputs(model_of(name)), seed)


@each_pattern
def test_what_splits_by_channels(name: str) -> None:
    graph, channels, _ = analysed(model_of(name))
    told = describe(AnalysedModel(graph, channels))
    opaque = [(found["op"], found["reason"]) for found in told["opaque"]]
    assert told["splittable_macs"] >= PATTERNS[name].splits, opaque

"""Random plans and the check that everything rests on: a chain of stage files equals one masked forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from helpers import assert_close, open_session, random_images, run

from s2d_convert.channels.analysis import AnalysedModel, Channels, analyse
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.channels.kinds import Kind
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.exit_points import pooled_axis
from s2d_convert.plans.plan import PRUNED, Plan
from s2d_convert.plans.weights import Weights, static_weights
from s2d_convert.slicing.split import StageModel, split


def analysed(model: onnx.ModelProto) -> tuple[Graph, Channels, Weights]:
    """Graph, channels and static weights of a model."""
    graph = graph_from_proto(model)
    channels = analyse(graph)
    return graph, channels, static_weights(graph, channels)


def possible_taps(graph: Graph, channels: Channels) -> list[str]:
    """Every tensor that an exit head can read, whether a sensible tap or not."""
    inner = [o for node in graph.nodes for o in node.outputs if o != graph.output]
    return [t for t in inner if pooled_axis(AnalysedModel(graph, channels), t) is not None]


def random_plan(graph: Graph, channels: Channels, seed: int, *, prune: bool = True) -> Plan:
    """A valid plan: any taps in any order, units of every splittable class in any stage or in none."""
    rng = np.random.default_rng(seed)
    taps = possible_taps(graph, channels)
    while True:
        stages = int(rng.integers(1, 5)) if taps else 1
        picked = tuple(taps[i] for i in np.sort(rng.integers(0, max(1, len(taps)), stages - 1))) if taps else ()
        owner = np.ones(channels.units, dtype=np.int64)
        for group in channels.classes:
            if group.splittable:
                low = PRUNED if prune and rng.random() < 0.3 else 1
                whole = rng.random() < 0.2
                owner[list(group.units)] = rng.integers(low, stages + 1, size=1 if whole else len(group.units))
        plan = Plan((*picked, graph.output), tuple(owner.tolist()))
        try:
            Effective(AnalysedModel(graph, channels), plan)
        except UsageError:  # a tap without a live channel: draw again
            continue
        return plan


def run_chain(
    stages: tuple[StageModel, ...], feeds: dict[str, np.ndarray], *, optimise: bool = True
) -> list[dict[str, np.ndarray]]:
    """The outputs of every stage, links handed on by name; all of them float32, as the manifest says."""
    values = dict(feeds)
    answers = []
    for stage in stages:
        assert {o.type.tensor_type.elem_type for o in stage.model.graph.output} == {onnx.TensorProto.FLOAT}
        wanted = {i.name for i in stage.model.graph.input}
        assert wanted == {*stage.links_in, *([next(iter(feeds))] if stage.image else [])}
        session = open_session(stage.model, optimise=optimise)
        answers.append(run(session, {name: values[name] for name in wanted}))
        values.update(answers[-1])
    return answers


def answers_of_logits(graph: Graph, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What a model makes of its logits [B, K], and how sure it is [B]."""
    end = graph.tail[0].op if graph.tail else ""
    if end == "Sigmoid":
        shares = torch.sigmoid(logits)
        return shares.numpy(), torch.maximum(shares, 1 - shares).amin(dim=1).numpy()
    sure = torch.softmax(logits, dim=1).amax(dim=1).numpy()
    if not end:
        return logits.numpy(), sure
    assert graph.tells_logits, "other ends have tests of their own"
    return (torch.log_softmax if end == "LogSoftmax" else torch.softmax)(logits, dim=1).numpy(), sure


def check_chain_law(
    model: onnx.ModelProto, plan_seed: int, *, batch: int = 2, rel: float = 1e-4, scale: float = 1.0
) -> None:
    """Law 2: for a random plan, the stage files in onnxruntime equal one masked forward pass in torch, at every exit;
    law 4: the parameters of all stages are at most the static ones and the exit heads'."""
    graph, channels, weights = analysed(model)
    small = at_scale(AnalysedModel(graph, channels), scale)
    graph, channels = small.graph, small.channels
    plan = random_plan(graph, channels, plan_seed)
    net = StagedNet(AnalysedModel(graph, channels), weights, taps=list(dict.fromkeys(plan.taps[:-1]))).eval()
    stages = split(graph, channels, plan, weights)
    feeds = random_images(model, batch, plan_seed)
    answers = run_chain(stages, feeds)
    with torch.no_grad():
        expected = net(torch.from_numpy(feeds[graph.image]), net.masks(Effective(AnalysedModel(graph, channels), plan)))
    for stage, (answer, logits) in enumerate(zip(answers, expected, strict=True), start=1):
        wanted, sure = answers_of_logits(graph, logits)
        assert_close(answer["output"].reshape(batch, -1), wanted, rel=rel, what=f"exit {stage} of {plan.stages}")
        assert_close(answer["confidence"], sure, rel=rel, what=f"confidence {stage}")
    check_size_law(graph, channels, weights, stages, plan)


def check_size_law(
    graph: Graph, channels: Channels, weights: Weights, stages: tuple[StageModel, ...], plan: Plan
) -> None:
    """Law 4: nothing is stored or computed twice inside a chain."""
    (static,) = split(graph, channels, Plan((graph.output,), (1,) * channels.units), weights)
    heads = sum(graph.classes * (len(channels.layouts[tap].units) + 1) for tap in plan.taps[:-1])
    # A norm over the channels of all stages so far has the scales of all of them in each stage.
    norms = [n for n in graph.nodes if channels.roles[n.name].kind is Kind.NORM]
    shared = sum(graph.constants[name].size for n in norms for name in n.inputs if name in graph.constants)
    allowed = static.parameters + heads + 2 * len(stages) + (len(stages) - 1) * shared
    assert sum(stage.parameters for stage in stages) <= allowed
    assert sum(stage.macs for stage in stages) <= static.macs + heads


def check_identity_law(model: onnx.ModelProto) -> None:
    """Law 1: one stage with nothing pruned is the static model."""
    graph, channels, weights = analysed(model)
    (stage,) = split(graph, channels, Plan((graph.output,), (1,) * channels.units), weights)
    for batch in (1, 3):
        feeds = random_images(model, batch, batch)
        assert_close(run(stage.model, feeds)["output"], static_answer(model, feeds), what="identity")


def check_depth_law(model: onnx.ModelProto) -> None:
    """Exits by depth leave the last stage exactly the static model, wherever they are."""
    graph, channels, weights = analysed(model)
    feeds = random_images(model, 2, 0)
    expected = static_answer(model, feeds)
    taps = possible_taps(graph, channels)
    for tap in taps[:: max(1, len(taps) // 4)]:
        stages = split(graph, channels, Plan((tap, graph.output), (1,) * channels.units), weights)
        assert_close(run_chain(stages, feeds)[-1]["output"], expected, what=f"depth exit at {tap}")


def static_answer(model: onnx.ModelProto, feeds: dict[str, Any]) -> object:
    return next(iter(run(model, feeds).values()))

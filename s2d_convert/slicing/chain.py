"""From a conversion to a folder: build the stage models, run them, and write everything whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import MOST_THREADS, Running, run_stages
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.data.images import Images
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import graph_from_proto, load_graph
from s2d_convert.frontend.proto import set_nodes
from s2d_convert.frontend.reference import to_logits
from s2d_convert.plans.plan import Plan, identity_plan
from s2d_convert.plans.weights import Weights, static_weights
from s2d_convert.slicing.split import OUTPUT, StageModel, split
from s2d_convert.slicing.stage_graph import LOGITS, with_logits

RUN_BATCH = 64


@dataclass(frozen=True)
class Chain:
    """One chain as it is trained and exported: a plan with weights, on the static graph or on a smaller one cut from it.

    `model` becomes the model at the scale of the plan. Raises UsageError for a scale that it cannot have.
    """

    model: AnalysedModel
    plan: Plan
    weights: Weights

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", at_scale(self.model, self.plan.scale))


def chains_of(model: AnalysedModel, plans: Sequence[Plan], weights: Weights) -> list[Chain]:
    """Return chains of the same model, all with these weights."""
    return [Chain(model, plan, weights) for plan in plans]


def build_stages(chains: Sequence[Chain], *, weights: str = "float32") -> tuple[StageModel, ...]:
    """Return the stage models of all chains, in order; `weights` is the type that their weights are stored in."""
    models: list[StageModel] = []
    for chain in chains:
        models += split(chain.model.graph, chain.model.channels, chain.plan, chain.weights, first_stage=len(models) + 1)
    if weights == "float16":
        for stage in models:
            store_as_float16(stage.model)
    return tuple(models)


def store_as_float16(model: onnx.ModelProto) -> None:
    """Store the weights of a stage in half the bytes, in place. They are cast back when a session is made, so that
    inputs, outputs and speed stay what they were. Weights that float16 cannot hold stay as they are."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        with np.errstate(over="ignore"):
            small = numpy_helper.to_array(weight).astype(np.float16)
        if np.isfinite(small).all():
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(small, f"{name}.half"))
            casts.append(
                onnx.helper.make_node("Cast", [weight.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
            )
    set_nodes(model.graph, [*casts, *model.graph.node])
    onnx.checker.check_model(model)


def read_chain(path: Path, *, labels: str | None = None) -> Chain:
    """Read a stage file as a chain of its own, which trains faster because the channels that the stage lacks are gone.
    labels: as `Graph.labels` of the model that it is a stage of."""
    return _whole(load_graph(path, output=OUTPUT, labels=labels))


def chain_from_bytes(data: bytes, *, labels: str | None = None) -> Chain:
    """Return the chain of `read_chain` for a stage file in memory."""
    return _whole(graph_from_proto(onnx.load_model_from_string(data), output=OUTPUT, labels=labels))


def _whole(graph: Graph) -> Chain:
    model = AnalysedModel.of(graph)
    return Chain(model, identity_plan(model), static_weights(graph, model.channels))


def stage_logits(
    graph: Graph, models: Sequence[StageModel], images: Images, *, provider: str = "CPUExecutionProvider"
) -> Array:
    """Return the logits float32 [S, B, K] of every stage on all images, computed by onnxruntime from the stage models."""
    running = Running(threads=min(os.cpu_count() or 1, MOST_THREADS), provider=provider)
    sessions = [running.session(with_logits(m.model).SerializeToString()) for m in models]
    batch = graph.batch_of(RUN_BATCH)
    return session_logits(sessions, images, image=graph.image, kind=graph.output_kind, batch=batch)


def session_logits(
    sessions: Sequence[ort.InferenceSession], images: Images, *, image: str, kind: str, batch: int = RUN_BATCH
) -> Array:
    """Return the logits float32 [S, B, K] of every stage on all images. image: the name of the stages' image input; kind:
    what their outputs are."""
    batches = []
    for rows in slices(len(images), batch):
        values = {image: np.ascontiguousarray(images.batch(rows))}
        batches.append(np.stack([_logits(made, kind) for _, made in run_stages(sessions, values)]))
    return np.concatenate(batches, axis=1)


def _logits(made: Mapping[str, Array], kind: str) -> Array:
    """Return the logits [B, K] of a stage that made these outputs."""
    return made[LOGITS] if LOGITS in made else to_logits(made[OUTPUT], kind)

"""The least that must be pruned to meet a budget, found by halving with every step measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from s2d_convert.channels.analysis import analyse
from s2d_convert.errors import ModelError, S2DError
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import load_graph
from s2d_convert.latency import LatencyMeter

HALVINGS = 6


@dataclass(frozen=True)
class Pruned:
    """A pruned model, the share of channels that was asked for (0 to 1), and its latency relative to the static model."""

    model: onnx.ModelProto
    ratio: float
    latency: float


def prune_at(prune: Callable[[float], onnx.ModelProto], ratio: float, meter: LatencyMeter) -> Pruned:
    """Return the model pruned by a ratio, with its latency. Raises ModelError unless it passes the loader's checks."""
    smaller = prune(ratio)
    check(smaller)
    return Pruned(smaller, ratio, meter.measure([smaller.SerializeToString()]).ratios[0])


def least_pruned(
    prune: Callable[[float], onnx.ModelProto], meter: LatencyMeter, *, budget: float, most: Pruned
) -> Pruned:
    """Return the model with the smallest ratio that meets the budget. `most` is the one with the largest ratio, and the
    result where even that does not meet it."""
    if most.latency > budget:
        return most
    low, high, best = 0.0, most.ratio, most
    for _ in range(HALVINGS):
        tried = prune_at(prune, (low + high) / 2, meter)
        if tried.latency <= budget:
            high, best = tried.ratio, tried
        else:
            low = tried.ratio
    return best


def with_own_weights(graph: Graph) -> onnx.ModelProto:
    """Return the model with a name for every node and a copy of its own of every constant that several nodes share.

    Equal constants are one in a loaded graph, while the nodes that share it may be pruned to different widths.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.to_model())
    weights = {weight.name: weight for weight in model.graph.initializer}
    used: set[str] = set()
    for number, (node, proto) in enumerate(zip(graph.nodes, model.graph.node, strict=True)):
        proto.name = node.name
        for place, name in enumerate(proto.input):
            if name in used:
                copy = model.graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = proto.input[place] = f"{name}/{number}.{place}"
            elif name in weights:
                used.add(name)
    return model


def check(model: onnx.ModelProto) -> None:
    """Raise ModelError unless the model passes the loader's own checks."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "pruned.onnx"
        onnx.save(model, str(path))
        try:
            analyse(load_graph(path, output=model.graph.output[0].name))
        except S2DError as error:
            raise ModelError(f"the pruned model is not valid any more: {error}") from error

"""Structured pruning by the `onnxsim` package (0.8 and newer), which works on ONNX files and needs no labels.

Channels are ranked by the norm of their weights times that of what flows through them on some images (structured Wanda).
What is left is then fitted to the original's answers by the package itself: block by block with gradient steps, and layer by
layer in closed form; of the two, the one that agrees more with the original on other images is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from benchmarks.least_pruning import check, least_pruned, prune_at, with_own_weights
from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import make_session
from s2d_convert.data.images import Images
from s2d_convert.errors import ModelError
from s2d_convert.frontend.graph import Graph
from s2d_convert.latency import LatencyMeter

try:
    import onnxsim
except ImportError:  # an extra of `make bench`
    onnxsim = None

AVAILABLE = hasattr(onnxsim, "apply_structured_wanda_pruning_cpp")
MOST = 0.95  # the largest share of channels to prune
CALIBRATION_IMAGES, BATCH = 512, 64
ITERATIONS, RATE = 300, 2e-2  # of the block-wise tuning, as the package's documentation has them

Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class PrunedAndTuned:
    """A pruned model after the package's own tuning, and how it came about."""

    model: onnx.ModelProto
    facts: dict[str, Any]


def prune_to(graph: Graph, images: Images, meter: LatencyMeter, *, budget: float) -> PrunedAndTuned:
    """Return the least pruned model within the budget (or the most pruned one), tuned without labels.

    images: unlabelled ones suffice; 512 calibrate, as many others choose between the ways of tuning. Raises ModelError
    where the package prunes nothing, or leaves something that is not the same kind of network.
    """
    model = with_own_weights(graph)
    fit, choose = feeds(graph, images, 0), feeds(graph, images, CALIBRATION_IMAGES)
    prune = partial(pruned, model, fit)
    most = prune_at(prune, MOST, meter)
    if not _differs(model, most.model):
        raise ModelError("onnxsim finds no layer to prune")
    best = least_pruned(prune, meter, budget=budget, most=most)
    tuned, facts = fitted(model, best.model, fit, choose)
    return PrunedAndTuned(tuned, {"ratio": best.ratio, "latency": best.latency, **facts})


def feeds(graph: Graph, images: Images, start: int) -> Feeds:
    """Return batches of images from `start` on, fewer where there are no more; the first ones again where there are none."""
    begin = start if start < len(images) else 0
    count = min(CALIBRATION_IMAGES, len(images) - begin)
    rows = (np.arange(begin, begin + count)[part] for part in slices(count, BATCH))
    return [{graph.image: np.ascontiguousarray(images.batch(part))} for part in rows]


def pruned(model: onnx.ModelProto, calibration: Feeds, ratio: float) -> onnx.ModelProto:
    """Return the model without the share `ratio` of the channels of every chain of layers that the package can follow."""
    smaller = onnxsim.apply_structured_wanda_pruning_cpp(model, list(calibration), sparsity=ratio)
    del smaller.graph.value_info[:]  # shapes from before
    return onnx.shape_inference.infer_shapes(smaller)


def fitted(
    original: onnx.ModelProto, smaller: onnx.ModelProto, calibration: Feeds, choose: Feeds
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the pruned model after the better of the package's two ways of tuning, or as it is where neither helps."""
    by_layer = onnxsim.apply_pruning_finetune(original, smaller, calibration_data=list(calibration))
    by_block, blocks = onnxsim.apply_block_finetune_all_blocks(
        original, smaller, calibration_data=list(calibration), num_iterations=ITERATIONS, learning_rate=RATE
    )
    ways = {"none": smaller, "by layer": by_layer, "by block": by_block}
    reached = {}
    for way, model in ways.items():
        check(model)
        reached[way] = agreement(original, model, choose)
    best = max(reached, key=lambda way: reached[way])
    # Blocks whose inner width has changed are not tuned by 0.8.1; their number tells how much of the network was.
    facts = {
        "tuning": best,
        "agreement": reached,
        "blocks": len(blocks),
        "blocks tuned": sum(b.trained for b in blocks),
    }
    return ways[best], facts


def agreement(original: onnx.ModelProto, model: onnx.ModelProto, images: Feeds) -> float:
    """Return the share of images to which both give the same class."""
    sessions = [make_session(m.SerializeToString()) for m in (original, model)]
    same = [
        np.equal(*(session.run(None, dict(feed))[0].reshape(len(batch), -1).argmax(axis=1) for session in sessions))
        for feed in images
        for batch in feed.values()
    ]
    return float(np.concatenate(same).mean())


def _differs(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Return whether any weight has another shape."""
    shapes = [{w.name: tuple(w.dims) for w in m.graph.initializer} for m in (model, other)]
    return shapes[0] != shapes[1]

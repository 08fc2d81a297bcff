"""What the dispatcher adds to the stages: measured once, and counted in every candidate's latency."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from text_nets import chain, residual

from s2d_convert.base.sessions import ONE_THREAD
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.conversion.context import Prepared
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.exporting.overhead import dispatch_overhead
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.latency.meter import Timing
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.search.evaluate import StageLatency


def prepared(model: Any) -> Any:
    """As much of a `Prepared` as timing needs."""
    graph = graph_from_proto(model)
    channels = analyse(graph)
    shape = graph.shapes[graph.image]
    preprocess = make_preprocess("raw", size=(shape[1], shape[2]), channels=shape[0])
    pixels = np.zeros((4, *shape), dtype=np.float32)
    images = Images(pixels, preprocess, np.arange(4), np.zeros(4, dtype=np.int64), "labelled")
    ready: Any = SimpleNamespace(graph=graph, channels=channels, weights=static_weights(graph, channels))
    ready.model = AnalysedModel(graph, channels)
    ready.dataset = SimpleNamespace(calib=images)
    return ready


def space_of(ready: Prepared, **limits: Any) -> PlanSpace:
    divisions = divide(ready.model, ready.weights, groups=2, block=4)
    return PlanSpace(ready.model, divisions, stages=limits.pop("stages", 2), **limits)


@pytest.mark.parametrize("build", [chain, residual])
def test_the_overhead_is_found(build: Any) -> None:
    ready = prepared(build())
    first, further = dispatch_overhead(ready.model, ready.weights, ready.dataset.calib.batch(np.arange(1)), ONE_THREAD)
    assert np.isfinite([first, further]).all()
    assert first >= 0
    assert further >= 0


def test_a_candidate_pays_for_the_dispatcher() -> None:
    ready = prepared(chain())
    space = space_of(ready)
    meter: Any = SimpleNamespace(measure=lambda models: Timing((0.6, 2.0), 2.0, (0.3, 1.0)[: len(models)]))
    latency = StageLatency(ready.model, ready.weights, meter, overhead_ms=(0.2, 0.1))
    conversion = space.decode(space.actions(CASCADE, [0], [0.5]))
    assert latency(conversion) == pytest.approx((0.4, 1.05))

"""The static model as the reference: its answers in onnxruntime, and the check that it works on the data at hand."""

from __future__ import annotations

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import ONE_THREAD, Running
from s2d_convert.frontend.graph import Graph

SMALLEST = 1e-30  # keeps the logarithm of a probability that underflowed finite


def to_logits(output: Array, kind: str) -> Array:
    """Logits [B, K] (up to a constant per row) from a model's output of any kind and any trailing unit axes."""
    flat = output.reshape(len(output), -1) if len(output) else output.reshape(0, output.size or 1)
    return np.log(np.maximum(flat, SMALLEST)) if kind == "probabilities" else flat


class StaticModel:
    """The simplified static model in onnxruntime."""

    def __init__(self, graph: Graph, running: Running = ONE_THREAD) -> None:
        self.graph = graph
        self._session = running.session(graph.to_model().SerializeToString())

    def outputs(self, images: Array) -> Array:
        """What the model answers, as it comes."""
        result: Array = self._session.run(None, {self.graph.image: images})[0]
        return result

    def logits(self, images: Array) -> Array:
        """Logits float32 [B, K]."""
        return to_logits(self.outputs(images), self.graph.output_kind)

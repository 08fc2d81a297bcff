"""The static model as the reference: its answers in onnxruntime, and the check that it works on the data at hand."""

from __future__ import annotations

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import ONE_THREAD, Running
from s2d_convert.frontend.graph import Graph

SMALLEST = 1e-30  # keeps the logarithm of a probability that underflowed finite


def to_logits(output: Array, kind: str) -> Array:
    """Return logits [B, K] (of classes up to a constant per row) from a model's output of any kind and any trailing unit axes."""
    flat = output.reshape(len(output), -1) if len(output) else output.reshape(0, output.size or 1)
    if kind == "sigmoid":
        return np.log(np.maximum(flat, SMALLEST)) - np.log(np.maximum(1 - flat, SMALLEST))
    return np.log(np.maximum(flat, SMALLEST)) if kind == "probabilities" else flat


class StaticModel:
    """The simplified static model in onnxruntime."""

    def __init__(self, graph: Graph, running: Running = ONE_THREAD) -> None:
        self.graph = graph
        whole = graph.to_model()
        self._answer, self._logits = whole.graph.output[0].name, whole.graph.output[0].name
        if not graph.tells_logits:
            whole.graph.output.extend(graph.to_logits_model().graph.output)
            self._logits = graph.output
        self._session = running.session(whole.SerializeToString())

    def outputs(self, images: Array) -> Array:
        """Return the outputs of the model, as they come."""
        return self._run(self._answer, images)

    def logits(self, images: Array) -> Array:
        """Return the logits, float32 [B, K]."""
        return to_logits(self._run(self._logits, images), self.graph.logits_kind)

    def _run(self, output: str, images: Array) -> Array:
        result: Array = self._session.run([output], {self.graph.image: images})[0]
        return result

"""The static model as the reference: its answers in onnxruntime, and the check that it works on the data at hand."""

from __future__ import annotations

from s2d_runtime.expected import to_logits

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import ONE_THREAD, Running
from s2d_convert.frontend.graph import Graph

__all__ = ["StaticModel", "to_logits"]


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

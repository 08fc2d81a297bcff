"""Stands in for `triton_python_backend_utils` where there is no Triton: stage models run in onnxruntime, in this process.

What goes over the edge is as Triton has it: tensors by name, a confidence of [B, 1], failures as responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort


@dataclass(frozen=True)
class Tensor:
    """A named array."""

    name: str
    array: Any

    def as_numpy(self) -> Any:
        """The array."""
        return self.array


@dataclass(frozen=True)
class TritonError:
    """A message and one of Triton's codes."""

    text: str
    number: int
    INVALID_ARG = 3
    UNAVAILABLE = 14

    def message(self) -> str:
        """The text."""
        return self.text

    def code(self) -> int:
        """The number."""
        return self.number


@dataclass(frozen=True)
class InferenceResponse:
    """Tensors, or an error."""

    output_tensors: Sequence[Tensor] = ()
    error_: TritonError | None = None

    def has_error(self) -> bool:
        """Whether it failed."""
        return self.error_ is not None

    def error(self) -> TritonError | None:
        """Why it failed."""
        return self.error_


@dataclass(frozen=True)
class ClientRequest:
    """A request as the front model gets it."""

    image: Tensor
    parameters_: str = ""
    wanted: Sequence[str] = ("output", "stage", "confidence")

    def parameters(self) -> str:
        """JSON."""
        return self.parameters_

    def requested_output_names(self) -> Sequence[str]:
        """What the client asks for."""
        return self.wanted


@dataclass
class Metric:
    """A series of a metric; its value is in what the server exports."""

    exported: dict[str, float]
    key: str

    def increment(self, value: float) -> None:
        """Add to it."""
        self.exported[self.key] += value

    def set(self, value: float) -> None:
        """Replace it."""
        self.exported[self.key] = value


@dataclass
class FakeTriton:
    """A repository that is served in this process; `rows` counts the rows that every model was given, `exported` has the
    metrics of its models, such as `s2d_images_total 1` for stage 1."""

    repository: Path
    broken: str = ""  # a model that answers every request with an error
    rows: Counter[str] = field(default_factory=Counter)
    exported: dict[str, float] = field(default_factory=dict)

    def module(self) -> ModuleType:
        """What the front model imports."""
        module = ModuleType("triton_python_backend_utils")
        vars(module).update(
            Tensor=Tensor,
            TritonError=TritonError,
            InferenceResponse=lambda output_tensors=(), error=None: InferenceResponse(output_tensors, error),
            InferenceRequest=self._request,
            PreferredMemory=lambda kind: kind,
            MetricFamily=self._metrics(),
            TRITONSERVER_MEMORY_CPU="cpu",
            get_input_tensor_by_name=lambda request, name: _named([request.image], name),
            get_output_tensor_by_name=lambda response, name: _named(response.output_tensors, name),
        )
        return module

    def _metrics(self) -> type:
        exported = self.exported

        class MetricFamily:
            COUNTER, GAUGE = 0, 1

            def __init__(self, *, name: str, description: str, kind: int) -> None:
                assert description
                assert kind == (self.COUNTER if name.endswith("_total") else self.GAUGE)
                self.name = name

            def Metric(self, *, labels: Mapping[str, str]) -> Metric:
                assert set(labels) == {"model", "stage"}
                key = f"{self.name} {labels['stage']}"
                exported[key] = 0
                return Metric(exported, key)

        return MetricFamily

    def _request(
        self, *, model_name: str, requested_output_names: Sequence[str], inputs: Sequence[Tensor], preferred_memory: str
    ) -> _StageRequest:
        assert preferred_memory == "cpu"
        return _StageRequest(self, model_name, requested_output_names, {t.name: t.array for t in inputs})


@dataclass(frozen=True)
class _StageRequest:
    triton: FakeTriton
    model: str
    wanted: Sequence[str]
    values: Mapping[str, Any]

    async def async_exec(self) -> InferenceResponse:
        """Run the stage file."""
        self.triton.rows[self.model] += len(next(iter(self.values.values())))
        if self.model == self.triton.broken:
            return InferenceResponse((), TritonError("no memory", TritonError.UNAVAILABLE))
        path = self.triton.repository / self.model / "1" / "model.onnx"
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert {node.name for node in session.get_inputs()} == set(self.values)
        found = dict(zip(self.wanted, session.run(list(self.wanted), dict(self.values)), strict=True))
        return InferenceResponse([Tensor(name, a[:, None] if a.ndim == 1 else a) for name, a in found.items()])


def _named(tensors: Sequence[Tensor], name: str) -> Tensor:
    (found,) = [tensor for tensor in tensors if tensor.name == name]
    assert isinstance(found.array, np.ndarray)
    return found

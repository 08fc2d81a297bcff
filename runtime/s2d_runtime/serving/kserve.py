"""A KServe model that answers from an exported folder. Needs the extra `s2d-runtime[kserve]`.

    python -m s2d_runtime.serving.kserve --model_dir OUT --model_name model --http_port 8080 --grpc_port 8081

All options of KServe's own server are there too. That server listens on all interfaces, as a pod has to; on a machine
of your own keep its ports behind a firewall.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import to_http_parameters

from s2d_runtime.dispatcher import Dispatcher
from s2d_runtime.serving import v2


class StagedModel(Model):  # type: ignore[misc]  # KServe is not there when types are checked
    """One exported folder as a KServe model; opened by `load`."""

    def __init__(
        self, name: str, folder: str, *, budget: float | None = None, threads: int = 1, max_batch: int = v2.MAX_BATCH
    ) -> None:
        super().__init__(name)
        self._folder, self._budget, self._threads, self._max_batch = folder, budget, threads, max_batch
        self._runner: Dispatcher | None = None

    def load(self) -> bool:
        """Open the folder. Raises DispatcherError."""
        self._runner = Dispatcher(self._folder, budget=self._budget, threads=self._threads)
        self.ready = True
        return True

    def get_input_types(self) -> list[dict[str, Any]]:
        """The tensors of a request, for the metadata."""
        return [] if self._runner is None else list(map(_metadata, v2.inputs_of(self._runner.manifest)))

    def get_output_types(self) -> list[dict[str, Any]]:
        """The tensors of an answer, for the metadata."""
        return [] if self._runner is None else list(map(_metadata, v2.outputs_of(self._runner.manifest)))

    async def predict(
        self, payload: Any, headers: Mapping[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> InferResponse:
        """The answer to a V2 request; what is wrong with one is told in a sentence, with 400 or INVALID_ARGUMENT."""
        if self._runner is None or not isinstance(payload, InferRequest):
            raise InvalidInput("the V1 protocol is not served; use /v2/models/NAME/infer or gRPC")
        try:
            tensors = {tensor.name: _array(tensor) for tensor in payload.inputs}
            parameters = _parameters(payload.parameters or {})
            found = await asyncio.to_thread(v2.answer, self._runner, tensors, parameters, max_batch=self._max_batch)
        except v2.BadRequest as error:
            raise InvalidInput(str(error)) from error
        wanted = {output.name for output in payload.request_outputs or ()} or set(found)
        return InferResponse(
            response_id=payload.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=[_output(name, array) for name, array in found.items() if name in wanted],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def stop(self) -> None:
        """Let go of the sessions."""
        if self._runner is not None:
            self._runner.close()
        self.ready = False


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    """The array of a tensor. Raises BadRequest."""
    try:
        array: np.ndarray[Any, Any] = tensor.as_numpy()
    except (ValueError, TypeError, OverflowError) as error:
        expected = f"{tensor.datatype} {list(tensor.shape)}, as its own datatype and shape say"
        raise v2.BadRequest(f"input '{tensor.name}': got other data ({error}); expected {expected}") from error
    return array


def _parameters(raw: Any) -> dict[str, Any]:
    """The parameters of a request; None is one that came in a type which KServe's gRPC definition does not have."""
    return {**dict.fromkeys(raw), **to_http_parameters(raw)}


def _output(name: str, array: np.ndarray[Any, Any]) -> InferOutput:
    output = InferOutput(name=name, shape=list(array.shape), datatype=v2.DATATYPES[array.dtype.name])
    output.set_data_from_numpy(array)  # as bytes; KServe makes a list of it where the client wants JSON
    return output


def _metadata(info: v2.TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": info.datatype, "shape": list(info.shape)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one folder until stopped."""
    parser = argparse.ArgumentParser(
        parents=[model_server.parser], description="Serve a folder that s2d-convert wrote."
    )
    parser.add_argument("--model_dir", required=True, help="the folder that s2d-convert wrote")
    parser.add_argument("--budget", type=float, help="another of the calibrated budgets; default: the manifest's")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime per stage; default: 1")
    parser.add_argument("--max_batch", type=int, default=v2.MAX_BATCH, help="images in one request at most")
    options = parser.parse_args(arguments)
    model = StagedModel(
        options.model_name,
        options.model_dir,
        budget=options.budget,
        threads=options.threads,
        max_batch=options.max_batch,
    )
    model.load()
    ModelServer().start([model])


if __name__ == "__main__":
    main()

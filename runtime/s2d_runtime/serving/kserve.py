"""A KServe model for an exported folder. Needs the extra `s2d-runtime[kserve]`.

    python -m s2d_runtime.serving.kserve --model_dir OUT --model_name model --http_port 8080 --grpc_port 8081

All options of KServe's own server are available too. That server listens on all interfaces, as a pod must; on other machines
keep its ports behind a firewall. KServe's gRPC definition has no floating-point parameters, so in gRPC a request's budget is
a string, such as "0.5".
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from s2d_runtime.dispatcher import Dispatcher
from s2d_runtime.serving import v2
from s2d_runtime.serving.options import AUDIT, needs_extra

try:
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
    from kserve.errors import InvalidInput
    from kserve.protocol.infer_type import to_http_parameters

    from s2d_runtime.serving.drift import process_wide
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(needs_extra(missing, "kserve"))

ROWS = 64  # default for the largest number of images in one request


class StagedModel(Model):  # type: ignore[misc]  # KServe is not installed when types are checked
    """An exported folder as a KServe model. `load` opens it."""

    def __init__(
        self,
        name: str,
        folder: str,
        *,
        budget: float | None = None,
        threads: int = 1,
        rows: int = ROWS,
        audit: float = AUDIT,
    ) -> None:
        super().__init__(name)
        self._folder, self._budget, self._threads, self._rows = folder, budget, threads, rows
        self._audit = audit
        self._runner: Dispatcher | None = None

    def load(self) -> bool:
        """Open the folder. Raises DispatcherError."""
        self._runner = Dispatcher(self._folder, budget=self._budget, threads=self._threads)
        process_wide().watch(self.name, self._runner, audit=self._audit)
        self.ready = True
        return True

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the tensors of a request, for the metadata."""
        return self._about()["inputs"]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the tensors of an answer, for the metadata."""
        return self._about()["outputs"]

    def _about(self) -> dict[str, Any]:
        if self._runner is None:
            return {"inputs": [], "outputs": []}
        return v2.model_metadata(self._runner.manifest, name=self.name)

    async def predict(
        self, payload: Any, headers: Mapping[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> InferResponse:
        """Answer a V2 request. A faulty one gets an error of one sentence, with status 400 or INVALID_ARGUMENT."""
        if self._runner is None or not isinstance(payload, InferRequest):
            raise InvalidInput("the V1 protocol is not served; use /v2/models/NAME/infer or gRPC")
        try:
            call = v2.parse(_request(payload), self._runner.manifest, most_rows=self._rows)
        except v2.RequestError as error:
            raise InvalidInput(str(error)) from error
        answer = await asyncio.to_thread(self._runner, call.images, budget=call.budget)
        return InferResponse(
            response_id=payload.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=[_output(tensor) for tensor in v2.response(call, answer, name=self.name)["outputs"]],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def stop(self) -> None:
        """Release the sessions."""
        if self._runner is not None:
            process_wide().forget(self.name)
            self._runner.close()
        self.ready = False


def _request(payload: InferRequest) -> dict[str, Any]:
    """Return KServe's request in the V2 protocol's JSON form."""
    raw = payload.parameters or {}
    return {
        "id": payload.id,
        # None is a value of a type that KServe's gRPC definition does not have.
        "parameters": {**dict.fromkeys(raw), **to_http_parameters(raw)},
        "inputs": [
            {"name": t.name, "datatype": t.datatype, "shape": t.shape, "data": _data(t)} for t in payload.inputs
        ],
        "outputs": [{"name": output.name} for output in payload.request_outputs or ()],
    }


def _data(tensor: Any) -> Any:
    """Return the content of a tensor as an array. Raises RequestError."""
    try:
        return tensor.as_numpy()
    except (ValueError, TypeError, OverflowError) as error:
        message = f"inputs: '{tensor.name}' is no {tensor.datatype} of shape {list(tensor.shape)} ({error})"
        raise v2.RequestError(400, message) from error


def _output(tensor: Mapping[str, Any]) -> InferOutput:
    """Return a tensor of the answer as bytes. KServe converts it to a list if the client wants JSON."""
    output = InferOutput(name=tensor["name"], shape=tensor["shape"], datatype=tensor["datatype"])
    output.set_data_from_numpy(tensor["data"].reshape(tensor["shape"]))
    return output


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command: KServe's own options and those of a folder."""
    made = argparse.ArgumentParser(parents=[model_server.parser], description="Serve a folder that s2d-convert wrote.")
    made.add_argument("--model_dir", required=True, help="the folder that s2d-convert wrote")
    made.add_argument("--budget", type=float, help="another of the calibrated budgets; default: the manifest's")
    made.add_argument("--threads", type=int, default=1, help="threads of onnxruntime per stage; default: 1")
    made.add_argument("--rows", type=int, default=ROWS, help=f"most images in one request; default: {ROWS}")
    made.add_argument("--audit", type=float, default=AUDIT, help=f"share of images to audit; default: {AUDIT}")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one folder until stopped."""
    options = parser().parse_args(arguments)
    model = StagedModel(
        options.model_name,
        options.model_dir,
        budget=options.budget,
        threads=options.threads,
        rows=options.rows,
        audit=options.audit,
    )
    model.load()
    ModelServer().start([model])


if __name__ == "__main__":
    main()

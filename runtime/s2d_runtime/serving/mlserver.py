"""An MLServer runtime for an exported folder. Needs the extra `s2d-runtime[mlserver]`.

model-settings.json::

    {"name": "model", "implementation": "s2d_runtime.serving.mlserver.StagedModel",
     "parameters": {"uri": "OUT", "extra": {"budget": 0.5, "threads": 1, "rows": 64, "audit": 0.002}}}

All of `extra` is optional. MLServer's REST takes JSON tensors only; gRPC takes bytes. Its gRPC definition has no
floating-point parameters, so in gRPC a request's budget is a string, such as "0.5".
"""

from __future__ import annotations

import asyncio
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError, ModelNotReady
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

from s2d_runtime.dispatcher import Dispatcher, DispatcherError
from s2d_runtime.serving import v2
from s2d_runtime.serving.drift import process_wide
from s2d_runtime.serving.options import AUDIT

EXTRAS = ("budget", "threads", "rows", "audit")
ROWS = 64  # default for the largest number of images in one request


class StagedModel(MLModel):  # type: ignore[misc]  # MLServer is not installed when types are checked
    """One exported folder as an MLServer model."""

    _runner: Dispatcher | None = None

    async def load(self) -> bool:
        """Open the folder that `parameters.uri` names. Raises DispatcherError, which ends the loading."""
        parameters = self.settings.parameters
        extra: dict[str, Any] = dict(getattr(parameters, "extra", None) or {})
        if unknown := sorted(set(extra) - set(EXTRAS)):
            raise DispatcherError(f"parameters.extra: got {unknown}; expected are {', '.join(EXTRAS)}")
        if parameters is None or not parameters.uri:
            raise DispatcherError("parameters.uri: missing; give the folder that s2d-convert wrote")
        self._rows, audit = int(extra.pop("rows", ROWS)), float(extra.pop("audit", AUDIT))
        self._runner = runner = await asyncio.to_thread(Dispatcher, parameters.uri, **extra)
        process_wide().watch(self.name, runner, audit=audit)
        about = v2.model_metadata(runner.manifest, name=self.name)
        self.inputs = [MetadataTensor(**tensor) for tensor in about["inputs"]]
        self.outputs = [MetadataTensor(**tensor) for tensor in about["outputs"]]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request. A faulty one gets an error of one sentence, with status 400 or INVALID_ARGUMENT."""
        if self._runner is None:
            raise ModelNotReady(self.name)
        try:
            call = v2.parse(_request(payload), self._runner.manifest, most_rows=self._rows)
            answer = await asyncio.to_thread(self._runner, call.images, budget=call.budget)
        except v2.RequestError as error:
            raise MLServerError(str(error), status_code=error.status) from error
        except DispatcherError as error:
            raise MLServerError(str(error), status_code=500) from error
        found = v2.response(call, answer, name=self.name)
        arrays = ((tensor["name"], tensor["data"].reshape(tensor["shape"])) for tensor in found["outputs"])
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            id=payload.id,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in arrays],
        )

    async def unload(self) -> bool:
        """Release the sessions."""
        if self._runner is not None:  # None if the folder could not be opened
            process_wide().forget(self.name)
            self._runner.close()
        return True


def _request(payload: InferenceRequest) -> dict[str, Any]:
    """Return MLServer's request in the V2 protocol's JSON form. Values that it cannot express are None."""
    return {
        "id": payload.id,
        "parameters": dict(payload.parameters or ()),  # not model_dump, which drops what has no value
        "inputs": [
            {"name": t.name, "datatype": str(t.datatype), "shape": t.shape, "data": t.data.root} for t in payload.inputs
        ],
        "outputs": [{"name": output.name} for output in payload.outputs or ()],
    }

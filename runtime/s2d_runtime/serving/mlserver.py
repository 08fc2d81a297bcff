"""An MLServer runtime that answers from an exported folder. Needs the extra `s2d-runtime[mlserver]`.

model-settings.json::

    {"name": "model", "implementation": "s2d_runtime.serving.mlserver.StagedModel",
     "parameters": {"uri": "OUT", "extra": {"budget": 0.5, "threads": 1, "max_batch": 256}}}

All of `extra` may be left out. MLServer's REST takes JSON tensors only; gRPC takes bytes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError, MLServerError, ModelNotReady
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, RequestInput

from s2d_runtime.dispatcher import Dispatcher, DispatcherError
from s2d_runtime.serving import v2

EXTRAS = ("budget", "threads", "max_batch")


class StagedModel(MLModel):  # type: ignore[misc]  # MLServer is not there when types are checked
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
        self._max_batch = int(extra.pop("max_batch", v2.MAX_BATCH))
        self._runner = runner = await asyncio.to_thread(Dispatcher, parameters.uri, **extra)
        self.inputs = [_metadata(info) for info in v2.inputs_of(runner.manifest)]
        self.outputs = [_metadata(info) for info in v2.outputs_of(runner.manifest)]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answer to a request; what is wrong with one is told in a sentence, with 400 or INVALID_ARGUMENT."""
        if self._runner is None:
            raise ModelNotReady(self.name)
        parameters = dict(payload.parameters or ())  # not model_dump, which drops what has no value
        try:
            tensors = {tensor.name: _array(tensor) for tensor in payload.inputs}
            found = await asyncio.to_thread(v2.answer, self._runner, tensors, parameters, max_batch=self._max_batch)
        except v2.BadRequest as error:
            raise InferenceError(str(error)) from error
        except DispatcherError as error:
            raise MLServerError(str(error), status_code=500) from error
        wanted = {output.name for output in payload.outputs or ()} or set(found)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            id=payload.id,
            outputs=[NumpyCodec.encode_output(name, found[name]) for name in found if name in wanted],
        )

    async def unload(self) -> bool:
        """Let go of the sessions."""
        if self._runner is not None:  # a folder that could not be opened is unloaded too
            self._runner.close()
        return True


def _array(tensor: RequestInput) -> np.ndarray[Any, Any]:
    """The array of a tensor. Raises BadRequest."""
    try:
        array: np.ndarray[Any, Any] = NumpyCodec.decode_input(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        expected = f"{tensor.datatype} {list(tensor.shape)}, as its own datatype and shape say"
        raise v2.BadRequest(f"input '{tensor.name}': got other data ({error}); expected {expected}") from error
    return array


def _metadata(info: v2.TensorInfo) -> MetadataTensor:
    return MetadataTensor(name=info.name, datatype=info.datatype, shape=list(info.shape))

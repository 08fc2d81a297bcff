"""The front model of a Triton repository, which calls the stage models and answers every row once.

`s2d export --triton` copies this file as model.py, beside dispatcher.py and manifest.json, which have the exit rule and the
policies. This package does not import it. Rows of a request that stay go on together, and Triton's dynamic batcher batches
them with those of other requests. A request may have a parameter `budget`; the default is the parameter `budget` of
config.pbtxt, or else the manifest's.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

if TYPE_CHECKING:
    from s2d_runtime.dispatcher import Manifest, Stage

Array = NDArray[Any]
OUTPUT, STAGE, CONFIDENCE = "output", "stage", "confidence"


class StageError(Exception):
    """A stage model failed. `error`: Triton's error."""

    def __init__(self, number: int, error: Any) -> None:
        super().__init__(f"stage {number}: {error.message()}")
        self.error = error


class TritonPythonModel:
    """The class that Triton's Python backend expects in model.py."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the manifest beside this file. Raises ValueError, which makes Triton reject the model."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self._name = args["model_name"]
        self._rules = load_dispatcher(folder / "dispatcher.py")
        self._manifest: Manifest = self._rules.Manifest.load(folder)
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._budget: Any = parameters.get("budget", {}).get("string_value", self._manifest.default_budget)
        self._limits({})  # a faulty budget raises now, not in the first request
        self._count_exits()

    def _count_exits(self) -> None:
        """Make the metrics of this model, which Triton exports with its own."""
        policy = self._manifest.policy_for(float(self._budget))
        kinds = pb_utils.MetricFamily
        images = kinds(name="s2d_images_total", description="Images by the stage that answered.", kind=kinds.COUNTER)
        expected = kinds(
            name="s2d_expected_exit_share", description="Share of images per stage at calibration.", kind=kinds.GAUGE
        )
        labels = [{"model": self._name, "stage": str(number + 1)} for number in range(len(policy.exit_share))]
        self._families = (images, expected)  # a metric ends with its family
        self._images = [images.Metric(labels=one) for one in labels]
        self._expected = [expected.Metric(labels=one) for one in labels]
        for gauge, share in zip(self._expected, policy.exit_share, strict=True):
            gauge.set(share)

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request. All requests run concurrently."""
        return list(await asyncio.gather(*map(self._respond, requests)))

    async def _respond(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, self._manifest.input.name).as_numpy()
        try:
            limits = self._limits(json.loads(request.parameters() or "{}"))
            found = await self._dispatch(images, limits)
        except ValueError as error:
            return _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        except StageError as error:
            return _failure(str(error), error.error.code())
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, found[name]) for name in found if name in wanted])

    def _limits(self, parameters: Mapping[str, Any]) -> list[np.float32]:
        """Return the thresholds of a request, rounded to float32 for the exit rule. Raises ValueError."""
        budget = parameters.get("budget", self._budget)
        if isinstance(budget, str):  # not every client can send a number
            with contextlib.suppress(ValueError):  # other texts raise the manifest's own error below
                budget = float(budget)
        policy = self._manifest.policy_for(budget)
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            return [np.float32(threshold) for threshold in policy.thresholds]

    async def _dispatch(self, images: Array, limits: Sequence[np.float32]) -> dict[str, Array]:
        """Return the answers for images [B, ...], in order: output [B, ...], stage and confidence [B, 1]."""
        rows, lengths = len(images), [n or 0 for n in self._manifest.output.shape[1:]]
        output = np.empty((rows, *lengths), np.float32)
        stages, confidence = np.empty((rows, 1), np.int64), np.empty((rows, 1), np.float32)
        values = {self._manifest.input.name: images}
        here = np.arange(rows)  # the images of the rows of `values`
        for number, stage in enumerate(self._manifest.stages, start=1):
            values |= await self._call(number, stage, values)
            sure = values[CONFIDENCE].reshape(-1)
            last = number == len(self._manifest.stages)
            leaving = np.ones(len(here), np.bool_) if last else self._rules.leaves(sure, limits[number - 1])
            gone = here[leaving]
            # Triton gives a row without axes one of length 1.
            output[gone] = values[OUTPUT][leaving].reshape(len(gone), *lengths)
            stages[gone], confidence[gone, 0] = number, sure[leaving]
            if len(gone):
                self._images[number - 1].increment(len(gone))
            if leaving.all():
                break
            if leaving.any():
                here, values = here[~leaving], {name: value[~leaving] for name, value in values.items()}
        return {OUTPUT: output, STAGE: stages, CONFIDENCE: confidence}

    async def _call(self, number: int, stage: Stage, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run a stage model and return its outputs by name. Raises StageError."""
        read_later = {name for later in self._manifest.stages[number:] for name in later.links_in}
        fetches = [OUTPUT, CONFIDENCE, *(link.name for link in stage.links_out if link.name in read_later)]
        reads = [*([self._manifest.input.name] if stage.image else []), *stage.links_in]
        request = pb_utils.InferenceRequest(
            model_name=f"{self._name}_stage{number}",
            requested_output_names=fetches,
            inputs=[pb_utils.Tensor(name, values[name]) for name in reads],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = await request.async_exec()
        if response.has_error():
            raise StageError(number, response.error())
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in fetches}


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(" ".join(message.split()), code))


def load_dispatcher(path: Path) -> ModuleType:
    """Load dispatcher.py as a module.

    It imports onnxruntime, which Triton's Python lacks, because the C++ backend runs the stages. No session is opened here, so
    a module with the bare names stands in for onnxruntime.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        names = ("onnxruntime", "onnxruntime.capi", "onnxruntime.capi.onnxruntime_pybind11_state")
        sys.modules.update({name: ModuleType(name) for name in names})
    spec = importlib.util.spec_from_file_location("s2d_dispatcher", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file; export the repository again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module

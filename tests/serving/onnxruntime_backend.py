"""Test-only: a Python-based Triton backend that stands in for the C++ onnxruntime backend, which no wheel carries.

Like the real one it runs 1/model.onnx of the model, and refuses a config.pbtxt that does not say what the file says:
names, types, and shapes with the batch in front and after `reshape`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TYPES = {
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_UINT8": "tensor(uint8)",
}


class TritonPythonModel:
    """What Triton looks for in the model.py of a Python-based backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model; raises ValueError where file and configuration differ."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for side, nodes in (("input", self._session.get_inputs()), ("output", self._session.get_outputs())):
            found = {node.name: (node.type, [d if isinstance(d, int) else -1 for d in node.shape]) for node in nodes}
            told = {entry["name"]: (TYPES[entry["data_type"]], shape_of(entry, config)) for entry in config[side]}
            if found != told:
                raise ValueError(f"{side}: the file has {found}, config.pbtxt says {told}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run all requests of a dynamic batch in one call, as the real backend does."""
        inputs = [node.name for node in self._session.get_inputs()]
        parts = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in inputs] for r in requests]
        names = [node.name for node in self._session.get_outputs()]
        joined = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(inputs)}
        found = self._session.run(names, joined)
        ends = np.cumsum([len(part[0]) for part in parts])[:-1]
        split = [np.split(array, ends) for array in found]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, rows[i])
                    for name, rows in zip(names, split, strict=True)
                    if name in request.requested_output_names()
                ]
            )
            for i, request in enumerate(requests)
        ]


def shape_of(entry: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    """The shape that the file has, going by the configuration."""
    dims = entry["reshape"]["shape"] if "reshape" in entry else entry["dims"]
    return [-1] * bool(config["max_batch_size"]) + [int(d) for d in dims]

"""The V2 inference protocol (KServe, "Open Inference"): requests become calls of a dispatcher, answers become responses.

Values only: no sockets, no web framework, nothing but numpy. A server does

    request, binary = v2.decode(body, header_bytes)       # or gets the dict from its own stack
    call = v2.parse(request, dispatcher.manifest, most_rows=64, binary=binary)
    answer = dispatcher(call.images, budget=call.budget)
    body, header_bytes = v2.encode(v2.response(call, answer, name="resnet"), binary=call.binary)

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and Triton's extension for binary
tensors. Whatever is wrong with a request is a `RequestError`: the HTTP status and one sentence.
"""

from __future__ import annotations

import contextlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import CONFIDENCE, OUTPUT, Answer, DispatcherError, Manifest

VERSION = "1"  # of every model: a folder has no versions
STAGE = "stage"
OUTPUTS = (OUTPUT, CONFIDENCE, STAGE)
DATATYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "uint8": "UINT8",
    "int64": "INT64",
}
EXTENSIONS = ("binary_tensor_data",)
LONGEST_ID = 1024

Array = NDArray[Any]


class RequestError(ValueError):
    """A request cannot be served. The message is one sentence; `status` is the HTTP status.

    retry_after_s: when to try again, if the server is at fault.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True, eq=False)
class Call:
    """A request in values: images [B, ...] in the form that the static model takes, and a budget (None: the server's).

    outputs: the names of the requested outputs, in order; binary: those that are requested as raw bytes over HTTP.
    """

    images: Array
    budget: float | None = None
    id: str | None = None
    outputs: tuple[str, ...] = OUTPUTS
    binary: frozenset[str] = frozenset()


def decode(body: bytes, header_bytes: int | None = None) -> tuple[Mapping[str, Any], memoryview]:
    """Return the JSON object in an HTTP body, and the raw bytes after it (binary tensors; empty without `header_bytes`).

    header_bytes: the value of the HTTP header Inference-Header-Content-Length. Raises RequestError.
    """
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        _refuse("Inference-Header-Content-Length", header_bytes, f"the JSON part's length, within {len(body)} bytes")
    view = memoryview(body)
    end = len(body) if header_bytes is None else header_bytes
    try:
        request = json.loads(bytes(view[:end]), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RequestError(400, f"the body is not valid JSON: {problem}") from error
    if not isinstance(request, Mapping):
        _refuse("the body", request, "a JSON object")
    return request, view[end:]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def check_encoding(encoding: str | None) -> None:
    """Raise RequestError for a compressed body. encoding: the header Content-Encoding, if there is one."""
    if (encoding or "identity").strip().lower() != "identity":
        raise RequestError(
            415, f"Content-Encoding: got {str(encoding)[:80]!r}; expected none, send the body uncompressed"
        )


def parse(request: Mapping[str, Any], manifest: Manifest, *, most_rows: int, binary: bytes | memoryview = b"") -> Call:
    """Parse a V2 inference request. Raises RequestError. No large array is made before everything is checked.

    A tensor's `data` may be a list (flat or nested), a numpy array, or bytes in little-endian order. Instead, the tensor may
    have the parameter `binary_data_size`; `binary` then holds exactly its bytes. Unknown parameters are ignored, because
    gateways add their own.
    """
    if not isinstance(request, Mapping):
        _refuse("the request", request, "an object")
    identity = request.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= LONGEST_ID):
        _refuse("id", identity, f"a text of at most {LONGEST_ID} characters")
    parameters = _parameters(request, "")
    inputs = request.get("inputs")
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or len(inputs) != 1:
        raise RequestError(400, f"inputs: expected a list with the one tensor '{manifest.input.name}'")
    outputs, raw = _wanted(request.get("outputs"), everything_raw=parameters.get("binary_data_output") is True)
    return Call(
        images=_images(inputs[0], manifest, most_rows=most_rows, binary=binary),
        budget=budget_of(parameters, manifest),
        id=identity,
        outputs=outputs,
        binary=raw,
    )


def _parameters(holder: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        _refuse(f"{place}parameters", found, "an object")
    return found


def budget_of(parameters: Mapping[str, Any], manifest: Manifest) -> float | None:
    """Return the budget that a request's parameters ask for, None without one. Raises RequestError.

    The first gRPC definition of the protocol has no floating-point parameters. With servers that follow it, a number arrives
    as None, which is rejected, and a string as it is, which is accepted.
    """
    if "budget" not in parameters:
        return None
    value = parameters["budget"]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # other texts are rejected below
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse("parameters.budget", value, "a number above 0 and at most 1, or a text that says it")
    try:
        manifest.policy_for(value)
        return float(value)
    except (DispatcherError, OverflowError) as error:
        raise RequestError(400, f"parameters.{error}") from error


def _wanted(found: object, *, everything_raw: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of the requested outputs, and of those that are requested as raw bytes."""
    if found is None or found == []:
        return OUTPUTS, frozenset(OUTPUTS if everything_raw else ())
    if not isinstance(found, Sequence) or isinstance(found, str):
        _refuse("outputs", found, "a list of objects that have a name")
    names: list[str] = []
    raw: set[str] = set()
    for i, item in enumerate(found):
        if not isinstance(item, Mapping):
            _refuse(f"outputs[{i}]", item, "an object that has a name")
        name = item.get("name")
        if name not in OUTPUTS or name in names:
            _refuse(f"outputs[{i}].name", name, f"one of {', '.join(OUTPUTS)}, each once")
        names.append(name)
        if _parameters(item, f"outputs[{i}].").get("binary_data", everything_raw) is True:
            raw.add(name)
    return tuple(names), frozenset(raw)


def _images(tensor: object, manifest: Manifest, *, most_rows: int, binary: bytes | memoryview) -> Array:
    """Return the batch of images in a V2 tensor, after checking its declaration and its values."""
    wanted, place = manifest.input, "inputs[0]"
    if not isinstance(tensor, Mapping):
        _refuse(place, tensor, "an object with name, datatype, shape and data")
    if tensor.get("name") != wanted.name:
        _refuse(f"{place}.name", tensor.get("name"), f"'{wanted.name}'")
    if tensor.get("datatype") != DATATYPES[wanted.dtype]:
        _refuse(f"{place}.datatype", tensor.get("datatype"), f"'{DATATYPES[wanted.dtype]}'")
    shape = _shape(tensor.get("shape"), wanted.shape[1:], most_rows=most_rows)
    size = _parameters(tensor, f"{place}.").get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise RequestError(400, f"{place}: expected either data or the parameter binary_data_size")
    data = tensor.get("data")
    if size is not None:
        if isinstance(size, bool) or size != len(binary):
            _refuse(f"{place}.parameters.binary_data_size", size, f"the {len(binary)} bytes behind the JSON part")
        data = binary
    elif len(binary):
        raise RequestError(400, f"{len(binary)} bytes behind the JSON part belong to no tensor; leave them out")
    dtype = np.dtype(wanted.dtype)
    if isinstance(data, bytes | bytearray | memoryview):
        images = _from_bytes(data, dtype, shape)
    else:
        images = _from_numbers(data, dtype, shape)
    if not np.isfinite(images).all():
        raise RequestError(400, f"{place}.data: NaN or a number beyond {wanted.dtype}; expected finite numbers")
    return images


def _shape(found: object, lengths: Sequence[int | None], *, most_rows: int) -> tuple[int, ...]:
    """Return the declared shape [B, ...] if it fits the model and the limit."""
    text = f"[B, {', '.join(map(str, lengths))}]"
    if not isinstance(found, Sequence) or isinstance(found, str):
        _refuse("inputs[0].shape", found, f"{text}, the batch first")
    shape = tuple(found)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape) or shape[1:] != tuple(lengths):
        _refuse("inputs[0].shape", list(found), f"{text}, the batch first")
    if shape[0] > most_rows:
        _refuse("inputs[0].shape", list(found), f"{text} with at most {most_rows} rows; send several requests")
    return shape


def _from_bytes(data: bytes | bytearray | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise RequestError(400, f"inputs[0]: got {len(data)} bytes; expected {expected} for the shape {list(shape)}")
    # The copy is aligned and in the machine's byte order, and the body can be freed.
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _from_numbers(data: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    place, count = "inputs[0].data", math.prod(shape)
    if not isinstance(data, list | tuple | np.ndarray):
        _refuse(place, data, f"a list of {count} numbers")
    try:
        found = np.asarray(data)
    except ValueError as error:  # ragged, or nested too deeply
        raise RequestError(400, f"{place}: lists of different lengths; expected {count} numbers") from error
    if found.size != count or (found.ndim != 1 and found.shape != shape):
        raise RequestError(
            400, f"{place}: got shape {list(found.shape)}; expected {count} numbers, flat or as {list(shape)}"
        )
    if found.dtype.kind not in "fiu":
        raise RequestError(400, f"{place}: expected numbers; true, null, texts and whole numbers beyond 2**64 are none")
    if dtype.kind in "iu" and count:
        limits = np.iinfo(dtype)
        if found.dtype.kind == "f" or found.min() < limits.min or found.max() > limits.max:
            raise RequestError(400, f"{place}: expected whole numbers from {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):  # overflows become infinite, and are rejected
        return np.ascontiguousarray(found, dtype).reshape(shape)


def response(call: Call, answer: Answer, *, name: str, budget: float | None = None) -> dict[str, Any]:
    """Return the V2 inference response. Every tensor's `data` is a flat numpy array, for `encode` or `tolist()`.

    budget: that of the policy which served the call; it becomes a parameter of the response.
    """
    tensors = {OUTPUT: answer.output, CONFIDENCE: answer.confidence, STAGE: answer.stage}
    found: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if call.id is not None:
        found["id"] = call.id
    if budget is not None:
        found["parameters"] = {"budget": budget}
    found["outputs"] = [
        {
            "name": output,
            "datatype": DATATYPES[tensors[output].dtype.name],
            "shape": list(tensors[output].shape),
            "data": tensors[output].ravel(),
        }
        for output in call.outputs
    ]
    return found


def encode(answered: Mapping[str, Any], *, binary: frozenset[str] = frozenset()) -> tuple[bytes, int | None]:
    """Return the HTTP body of a response, and the length of its JSON part if outputs follow it as raw bytes, else None.

    Raises RequestError if an answer in JSON would be NaN or infinite, which JSON cannot express.
    """
    outputs, raw = [], []
    for tensor in answered["outputs"]:
        data = tensor["data"]
        entry = {key: value for key, value in tensor.items() if key != "data"}
        if tensor["name"] in binary:
            raw.append(data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = data.tolist()
        outputs.append(entry)
    try:
        header = json.dumps({**answered, "outputs": outputs}, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        message = "the model answered NaN or an infinity, which JSON cannot say; ask for binary_data"
        raise RequestError(500, message) from error
    return b"".join([header, *raw]), len(header) if raw else None


def server_metadata(version: str) -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {"name": "s2d-runtime", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(manifest: Manifest, *, name: str) -> dict[str, Any]:
    """Return the answer to GET /v2/models/NAME. -1 stands for the batch. The parameters include the calibrated budgets."""
    image, lengths = manifest.input, [n if n is not None else -1 for n in manifest.output.shape]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "s2d_onnxruntime",
        "inputs": [{"name": image.name, "datatype": DATATYPES[image.dtype], "shape": [-1, *image.shape[1:]]}],
        "outputs": [
            {"name": OUTPUT, "datatype": "FP32", "shape": lengths},
            {"name": CONFIDENCE, "datatype": "FP32", "shape": [-1]},
            {"name": STAGE, "datatype": "INT64", "shape": [-1]},
        ],
        "parameters": {
            "kind": manifest.output.kind,
            "stages": len(manifest.stages),
            "budgets": sorted(policy.budget for policy in manifest.policies),
            "default_budget": manifest.default_budget,
        },
    }


def _refuse(place: str, got: object, expected: str) -> NoReturn:
    raise RequestError(400, f"{place}: got {reprlib.repr(got)}; expected {expected}")

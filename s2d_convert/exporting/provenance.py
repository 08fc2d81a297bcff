"""What a manifest records about the model that it was made from.

Provenance is free-form and untrusted. Reading it gives values of the right types, or an error of one sentence.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from s2d_runtime import Manifest
from s2d_runtime.names import CLASS_NAMES

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import DataError, ModelError, OutputError

HASHED_BYTES = 2**20  # read at once
LARGEST = 2**63  # upper limit of a number in a manifest


@dataclass(frozen=True)
class Origin:
    """The static model as the manifest records it, with None and 0 for what is not recorded.

    Its file and hash; the requested image size (H, W) and output; its multiply-accumulates per image and its parameters;
    the data and seed of the conversion, and whether it was in exact mode.
    """

    model: str | None
    sha256: str | None
    size: tuple[int, int] | None
    output: str | None
    macs: int
    parameters: int
    data: str | None
    seed: int
    exact: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Origin:
        """Read the provenance of a manifest. Raises OutputError that names the faulty field."""
        recorded = manifest.provenance
        options = _value(recorded, "options", Mapping, "an object") or {}
        size = options.get("size") or recorded.get("input_size")
        return cls(
            model=_value(recorded, "model", str, "a path"),
            sha256=_value(recorded, "model_sha256", str, "64 hexadecimal digits"),
            size=None if size is None else _size(size),
            output=_value(options, "output", str, "a name") or _value(recorded, "output_name", str, "a name"),
            macs=_count(recorded, "static_macs"),
            parameters=_count(recorded, "static_parameters"),
            data=_value(options, "data", str, "a path"),
            seed=_count(options, "seed"),
            exact="mode" in options and bool((options["mode"] or _usual_mode(options)) == "exact"),
        )

    def find(self, asked: Path | None, folder: Path) -> Path:
        """Return the static model's file: `asked`, or else the recorded one. Raises ModelError when it does not exist or is
        not the model that `folder` was made from."""
        path = asked or Path(self.model or "")
        try:
            exists = path.is_file()
            digest = model_sha256(path) if exists else ""
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: cannot be read ({error}); give the static model with --model MODEL.onnx"
            ) from error
        if not exists:
            raise ModelError(f"{path}: the static model is not there; give it with --model MODEL.onnx")
        if digest != self.sha256:
            raise ModelError(
                f"{path}: not the model that {folder} was made from; give that one with --model MODEL.onnx"
            )
        return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, which need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest()


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model, which covers its file and all files with external weights. Raises OSError."""
    file_hash = sha256_of(path)
    try:
        model = onnx.load(path, load_external_data=False, format="protobuf")
    except DecodeError:  # not a model; the loader gives the better message
        return file_hash
    external = (t for t in _tensors(model.graph) if onnx.external_data_helper.uses_external_data(t))
    files = sorted({onnx.external_data_helper.ExternalDataInfo(tensor).location for tensor in external})
    if not files:
        return file_hash
    return hashlib.sha256(
        " ".join([file_hash, *(sha256_of(path.parent / file) for file in files)]).encode()
    ).hexdigest()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a graph: initializers, and attributes of its nodes, including those in branches."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def recorded_preprocess(manifest: Manifest) -> Preprocess:
    """Return the preprocessing that a manifest records. Raises DataError when it has none, or one whose result the stages
    do not take."""
    if manifest.preprocess is None:
        raise DataError(
            "the manifest records no preprocessing (the model was only split); convert it, or use the dispatcher directly"
        )
    preprocess = Preprocess.from_json(manifest.preprocess)
    produced, expected = (preprocess.dtype, *preprocess.input_shape), (manifest.input.dtype, *manifest.input.shape[1:])
    if produced != expected:
        raise DataError(
            f"preprocess: makes {produced[0]} {list(produced[1:])} of an image, but the stages take {expected[0]} "
            f"{list(expected[1:])}; the manifest was changed, convert again"
        )
    return preprocess


def _usual_mode(options: Mapping[str, Any]) -> str:
    """Return the mode of a conversion that was not asked for one."""
    return "train" if options.get("data") else "exact"


def _value(record: Mapping[str, Any], name: str, kind: Any, expected: str) -> Any:
    """Return the value of a field, None where it is missing. Raises OutputError when it has another type than `kind`."""
    value = record.get(name)
    if value is not None and not isinstance(value, kind):
        _refuse(name, value, expected)
    return value


def _size(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 2**16 for n in value)):
        _refuse("size", value, "two whole numbers (height, width)")
    return value[0], value[1]


def _count(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name, 0)
    if type(value) is not int or not 0 <= value < LARGEST:
        _refuse(name, value, "a whole number of at least 0")
    return int(value)


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise OutputError(f"manifest.json: provenance, {name}: got {reprlib.repr(value)}; expected {expected}")


def recorded_names(names: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the entry of the provenance with the names of classes, none if they are not known."""
    return {} if names is None else {CLASS_NAMES: list(names)}


def model_facts(model: AnalysedModel) -> dict[str, int]:
    """Return the static model's multiply-accumulates per image and its number of parameters."""
    parameters = sum(int(v.size) for v in model.graph.constants.values() if v.dtype == np.float32 and v.ndim)
    return {"static_macs": total_macs(model.graph), "static_parameters": parameters}

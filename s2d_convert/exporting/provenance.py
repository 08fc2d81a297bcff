"""What a manifest records of the model that it was made from. Free-form parts of a folder, which nobody trusts: whatever
stands there, a reader gets values of the right types or one sentence."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from s2d_runtime import Manifest

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import DataError, ModelError, OutputError

HASHED_BYTES = 2**20  # at once
LARGEST = 2**63  # of a number in a manifest


@dataclass(frozen=True)
class Origin:
    """The static model as the manifest names it: its file and hash, the image size (H, W) and the output that were asked
    for, its multiply-accumulates per image and parameters, the data and seed of the conversion, and whether it was in exact
    mode; None and 0 where nothing is recorded."""

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
        """Return what a manifest records. Raises OutputError that names the place."""
        recorded = manifest.provenance
        options = _value(recorded, "options", Mapping, "an object") or {}
        given = options.get("size") or recorded.get("input_size")
        return cls(
            model=_value(recorded, "model", str, "a path"),
            sha256=_value(recorded, "model_sha256", str, "64 hexadecimal digits"),
            size=None if given is None else _size(given),
            output=_value(options, "output", str, "a name") or _value(recorded, "output_name", str, "a name"),
            macs=_count(recorded, "static_macs"),
            parameters=_count(recorded, "static_parameters"),
            data=_value(options, "data", str, "a path"),
            seed=_count(options, "seed"),
            exact="mode" in options and bool((options["mode"] or _usual_mode(options)) == "exact"),
        )

    def find(self, asked: Path | None, folder: Path) -> Path:
        """Return the static model's file: the one asked for, or the recorded one. Raises ModelError when there is none, or
        when it is another model than `folder` was made from."""
        path = asked or Path(self.model or "")
        try:
            there = path.is_file()
            digest = model_sha256(path) if there else ""
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: cannot be read ({error}); give the static model with --model MODEL.onnx"
            ) from error
        if not there:
            raise ModelError(f"{path}: the static model is not there; give it with --model MODEL.onnx")
        if digest != self.sha256:
            raise ModelError(
                f"{path}: not the model that {folder} was made from; give that one with --model MODEL.onnx"
            )
        return path


def sha256_of(path: Path) -> str:
    """Return the hash of a file, which need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest()


def model_sha256(path: Path) -> str:
    """Return the hash of a model: of its file and, where its weights lie in files beside it, of those too. Raises
    OSError."""
    own = sha256_of(path)
    try:
        model = onnx.load(path, load_external_data=False, format="protobuf")
    except DecodeError:  # no model at all, which a reader says better
        return own
    outside = (t for t in _tensors(model.graph) if onnx.external_data_helper.uses_external_data(t))
    files = sorted({onnx.external_data_helper.ExternalDataInfo(tensor).location for tensor in outside})
    if not files:
        return own
    return hashlib.sha256(" ".join([own, *(sha256_of(path.parent / file) for file in files)]).encode()).hexdigest()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors that a graph holds: initializers, and what its nodes have as attributes, branches included."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def recorded_preprocess(manifest: Manifest) -> Preprocess:
    """Return the preprocessing that a manifest records. Raises DataError when it has none, or one that makes other input
    than the stages take."""
    if manifest.preprocess is None:
        raise DataError(
            "the manifest records no preprocessing (the model was only split); convert it, or use the dispatcher directly"
        )
    found = Preprocess.from_json(manifest.preprocess)
    made, wanted = (found.dtype, *found.input_shape), (manifest.input.dtype, *manifest.input.shape[1:])
    if made != wanted:
        raise DataError(
            f"preprocess: makes {made[0]} {list(made[1:])} of an image, but the stages take {wanted[0]} {list(wanted[1:])}; "
            "the manifest was changed, convert again"
        )
    return found


def _usual_mode(options: Mapping[str, Any]) -> str:
    """Return the mode of a conversion that was not asked for one."""
    return "train" if options.get("data") else "exact"


def _value(record: Mapping[str, Any], name: str, kind: Any, expected: str) -> Any:
    """Return a value of the kind, or None where there is none."""
    found = record.get(name)
    if found is not None and not isinstance(found, kind):
        _refuse(name, found, expected)
    return found


def _size(found: Any) -> tuple[int, int]:
    if not (isinstance(found, list) and len(found) == 2 and all(type(n) is int and 0 < n < 2**16 for n in found)):
        _refuse("size", found, "two whole numbers (height, width)")
    return found[0], found[1]


def _count(record: Mapping[str, Any], name: str) -> int:
    found = record.get(name, 0)
    if type(found) is not int or not 0 <= found < LARGEST:
        _refuse(name, found, "a whole number of at least 0")
    return int(found)


def _refuse(name: str, found: object, expected: str) -> NoReturn:
    raise OutputError(f"manifest.json: provenance, {name}: got {reprlib.repr(found)}; expected {expected}")


def model_facts(model: AnalysedModel) -> dict[str, int]:
    """Return the static model's multiply-accumulates per image and its number of parameters."""
    parameters = sum(int(v.size) for v in model.graph.constants.values() if v.dtype == np.float32 and v.ndim)
    return {"static_macs": total_macs(model.graph), "static_parameters": parameters}

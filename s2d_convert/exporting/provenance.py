"""What a manifest records about the model that it was made from.

Provenance is free-form and untrusted. Reading it gives values of the right types, or an error of one sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from s2d_runtime import DispatcherError, Manifest
from s2d_runtime.dispatcher import check_range, read_typed, refuse
from s2d_runtime.names import CLASS_NAMES
from s2d_runtime.policies import AskedFor

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import ModelError, OutputError

FIRST_NETWORK = "first_network"  # the entry on the user's own network that is chain 1: its file and hash
HASHED_BYTES = 2**20  # read at once


@dataclass(frozen=True)
class _Options:
    """The options of a conversion that a manifest records. `mode`, `budget`, `max_loss` and `max_drop` are those that AskedFor
    reads."""

    size: tuple[int, ...] | None = None
    output: str | None = None
    data: str | None = None
    seed: int = 0
    mode: str | None = "train"
    budget: float | None = None
    max_loss: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        _check_size("provenance.options.size", self.size)
        check_range("provenance.options.seed", self.seed, low=0)


@dataclass(frozen=True)
class _Recorded:
    """The fields of a manifest's provenance that are read; a folder that was only split has no options."""

    model: str | None = None
    model_sha256: str | None = None
    input_size: tuple[int, ...] | None = None
    output_name: str | None = None
    static_macs: int = 0
    static_parameters: int = 0
    options: _Options | None = None

    def __post_init__(self) -> None:
        _check_size("provenance.input_size", self.input_size)
        check_range("provenance.static_macs", self.static_macs, low=0)
        check_range("provenance.static_parameters", self.static_parameters, low=0)


def _check_size(place: str, size: tuple[int, ...] | None) -> None:
    if size is not None and not (len(size) == 2 and all(0 < n < 2**16 for n in size)):
        refuse(place, list(size), "two whole numbers (height, width)")


@dataclass(frozen=True)
class Origin:
    """The static model as the manifest records it, with None and 0 for what is not recorded.

    Its file and hash; the requested image size (H, W) and output; its multiply-accumulates per image and its parameters;
    the data and seed of the conversion, whether it was in exact mode, and the loss within which it was to be as fast as possible
    (None: a budget or a promise was asked for).
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
    loss: float | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Origin:
        """Read the provenance of a manifest. Raises OutputError that names the faulty field."""
        try:
            recorded: _Recorded = read_typed(_Recorded, manifest.provenance, "provenance", whole=False)
        except DispatcherError as error:
            raise OutputError(f"manifest.json: {error}") from error
        options = recorded.options or _Options()
        size, asked_for = options.size or recorded.input_size, AskedFor.of(manifest.provenance)
        return cls(
            model=recorded.model,
            sha256=recorded.model_sha256,
            size=None if size is None else (size[0], size[1]),
            output=options.output or recorded.output_name,
            macs=recorded.static_macs,
            parameters=recorded.static_parameters,
            data=options.data,
            seed=options.seed,
            exact=asked_for.exact,
            loss=asked_for.loss,
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
    return Preprocess.recorded(manifest)


def recorded_names(names: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the entry of the provenance with the names of classes, none if they are not known."""
    return {} if names is None else {CLASS_NAMES: list(names)}


def model_facts(model: AnalysedModel) -> dict[str, int]:
    """Return the static model's multiply-accumulates per image and its number of parameters."""
    parameters = sum(int(v.size) for v in model.graph.constants.values() if v.dtype == np.float32 and v.ndim)
    return {"static_macs": total_macs(model.graph), "static_parameters": parameters}

"""Weights that lie beside an ONNX file.

What onnxruntime reads is read: also through the links of a hub's cache (a folder of names that link to a folder of contents) and
files with several hard links. What a stranger's file may not do is reach out of its own folder: a location has to be relative,
without `..`, and has to end, all links followed, in the folder of the model or in the one where the model's own link ends.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import graphs, tensors

Extent = tuple[Path, int, int | None]  # a file, an offset, and a length in bytes if the model tells it


def read_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Take the weights that lie beside the file `path` into `model`, in place. Raises ModelError, naming tensor and file."""
    for tensor in _all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        tensor.raw_data = _read(tensor, path, _extent(tensor, path))
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from tensors(graph)
    for function in model.functions:
        yield from (a.t for node in function.node for a in node.attribute if a.HasField("t"))


def _extent(tensor: onnx.TensorProto, path: Path) -> Extent:
    """Return where the bytes of a tensor lie, if that is a place that the file may name."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    numbers = [facts.get(key, default) for key, default in (("offset", "0"), ("length", ""))]
    if not location or any(text and not (text.isascii() and text.isdecimal()) for text in numbers):
        raise ModelError(f"{path}: does not say where the weight '{tensor.name}' lies; export it again")
    relative = PurePosixPath(location)
    if relative.is_absolute() or ".." in relative.parts or PureWindowsPath(location).is_absolute():
        raise ModelError(
            f"{path}: the weight '{tensor.name}' lies at '{location}', outside of the model's folder, where a model file may "
            "not reach; put the weights beside the file and save it again"
        )
    target = (path.parent / relative).resolve()
    roots = {path.parent.resolve(), path.resolve().parent}
    if not any(target.is_relative_to(root) for root in roots):
        raise ModelError(
            f"{path}: the weight '{tensor.name}' lies at '{location}', a link out of the model's folder; put a copy of "
            f"'{target.name}' there"
        )
    return target, int(numbers[0]), int(numbers[1]) if numbers[1] else None


def _read(tensor: onnx.TensorProto, path: Path, extent: Extent) -> bytes:
    target, offset, length = extent
    location = next(entry.value for entry in tensor.external_data if entry.key == "location")
    if not os.path.isfile(target):  # noqa: PTH113 - a Path raises for names that are too long
        raise ModelError(
            f"{path}: the file '{location}' with the weight '{tensor.name}' is missing; put it beside the model"
        )
    wanted = _size(tensor) if length is None else length
    try:
        with target.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(-1 if wanted is None else wanted)
    except OSError as error:
        raise ModelError(f"{path}: the file '{location}' cannot be read ({error.strerror})") from error
    if len(data) != (_size(tensor) or len(data)) or len(data) != (wanted or len(data)):
        raise ModelError(
            f"{path}: the file '{location}' has {len(data)} bytes of the weight '{tensor.name}' where {_size(tensor)} are "
            "expected; it is cut off or belongs to another model: copy it again"
        )
    return data


def _size(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes of a tensor; None for types that are packed or unknown."""
    if tensor.data_type not in WHOLE_BYTES:
        return None
    return math.prod(tensor.dims) * WHOLE_BYTES[tensor.data_type]


WHOLE_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT8: 1,
    TensorProto.UINT8: 1, TensorProto.INT16: 2, TensorProto.UINT16: 2, TensorProto.INT32: 4, TensorProto.UINT32: 4,
    TensorProto.INT64: 8, TensorProto.UINT64: 8, TensorProto.BOOL: 1,
}  # fmt: skip

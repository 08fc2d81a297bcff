"""Load an ONNX file as a `Graph` that is simple enough to reason about.

What is read is checked and normalised (`normalize` lists the passes), its one image input gets a concrete shape, onnxruntime
simplifies it, and the batch is freed. The result answers as the file does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from s2d_convert.base.sessions import first_line, quiet_session, save
from s2d_convert.data.class_names import names_in_metadata
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.batch.freeing import free_batch, has_other_rows, is_plain
from s2d_convert.frontend.build import graph_of
from s2d_convert.frontend.equivalence import (
    DoesNotRunError,
    are_probabilities,
    ask_file,
    check_rows,
    check_same,
    kind_of_end,
    kind_of_label_end,
)
from s2d_convert.frontend.external_data import read_external_data
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.inputs import PROBE_BATCH, Image, fix_image, with_free_names
from s2d_convert.frontend.normalize import REPAIRS, normalised, passes
from s2d_convert.frontend.proto import checkable, copy_of, label, opset_of
from s2d_convert.frontend.simplify import Inferred, optimised

# Operators that read places in the batch, or states of its images.
HOLDING = ("GRU", "GatherElements", "GatherND", "LSTM", "RNN", "ScatterElements", "ScatterND")
OTHER_BATCH = 11  # for a second look, where shapes show the first one elsewhere than on axis 0


def load_graph(
    path: str | Path, *, size: tuple[int, int] | None = None, output: str | None = None, labels: str | None = None
) -> Graph:
    """Return the simplified graph of an ONNX file.

    size: (H, W), for a dynamic spatial size. output: one of several outputs, or any inner tensor. labels: "classes" if an image
    has one class, "multi" if it has any number of labels; None: "multi" if the model ends in a Sigmoid or in one number.

    Raises ModelError when the file is not a static CNN classifier with one image input, UsageError when `size`, `output` or
    `labels` does not fit it.
    """
    model = read_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    graph = graph_from_proto(model, size=size, output=output, labels=labels, file=Path(path))
    return replace(graph, class_names=names_in_metadata(metadata, graph.classes))


def read_model(path: str | Path) -> onnx.ModelProto:
    """Return the checked protobuf of an ONNX file, external data included: what onnxruntime loads, loads. Raises ModelError."""
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 - a Path raises for names that are too long
        raise ModelError(f"{path}: no such file; give the path of an ONNX model")
    try:
        model = normalised(onnx.load(str(path), format="protobuf", load_external_data=False), REPAIRS)
        read_external_data(model, path)
        onnx.checker.check_model(checkable(model))
    except (DecodeError, onnx.checker.ValidationError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a valid ONNX model ({first_line(error)}); export it again") from error
    if not model.graph.node:
        raise ModelError(f"{path}: not a valid ONNX model (its graph has no nodes); export it again")
    return model


def graph_from_proto(
    model: onnx.ModelProto,
    *,
    size: tuple[int, int] | None = None,
    output: str | None = None,
    labels: str | None = None,
    file: Path | None = None,
) -> Graph:
    """Return the simplified graph of a model in memory; see `load_graph`.

    `file` is where the model was read from: it may be changed then, and must answer as the file does.
    """
    source_opset = opset_of(model)
    half = any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    model = normalised(model if file else copy_of(model), passes(output))
    image = fix_image(model, size)
    answers = ask_file(file, image, model.graph.output[0].name) if file else None
    image = with_free_names(model, image)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.onnx"
        save(model, source)
        del model  # large models should not lie in memory twice
        simple = _simplified(source, image, size)
        model, inferred = simple.model, simple.inferred
        _check_output(model, inferred)
        shapes, folded = free_batch(model, image.batch, inferred.shapes, simple.other)
        with quiet_session(model) as session:
            rows = _check_rows(session, simple, source, size)
            _check_shape(rows, shapes, model.graph.output[0].name)
            if answers is not None:
                check_same(session, answers, half=half)
    graph = graph_of(model, shapes, labels=labels, probabilities=are_probabilities(rows))
    if not graph.tells_logits:
        look = kind_of_label_end if graph.task.several else kind_of_end
        graph = replace(graph, output_kind=look(model, graph.output, image.shape))
    return replace(
        graph, half=half, folded=folded, types=MappingProxyType(inferred.types), image_type=image.type,
        image_axis=image.axis, source_opset=source_opset,
    )  # fmt: skip


# --- simplification ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Simplified:
    """A model after simplification, its batch still of one length, and what is known of its tensors. `other` has the shapes
    for a second length, where one look does not tell which axis is the batch."""

    model: onnx.ModelProto
    image: Image
    inferred: Inferred
    other: Mapping[str, tuple[int, ...]] | None


def _simplified(source: Path, image: Image, size: tuple[int, int] | None) -> _Simplified:
    """Return the normalised model in the file `source` after onnxruntime has simplified it."""
    try:
        model, inferred = optimised(source, image.batch)
    except ModelError as error:
        if size is None:
            raise
        raise _unfit_size(size, error) from error
    empty = [label(n) for n in model.graph.node for o in n.output if o and 0 in inferred.shapes[o]]
    if size is not None and empty:
        raise UsageError(
            f"--size {size[0]}x{size[1]}: nothing is left of the image at node {empty[0]}; choose a larger one"
        )
    other = None
    if not is_plain(model, image.batch, inferred.shapes) or (
        image.batch == 1 and has_other_rows(model, inferred.shapes)
    ):
        other = _shapes_of_another_batch(source, image)
        if image.batch == 1 and other is not None and _stays(model, inferred.shapes, other):
            other = None  # a Reshape that names the batch of one hides where it goes
    return _Simplified(model, image, inferred, other)


def _stays(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether the shape of something that is computed does not change with the batch."""
    return any(o and shapes[o] == other.get(o) for n in model.graph.node for o in n.output)


def _unfit_size(size: tuple[int, int], error: ModelError) -> UsageError:
    return UsageError(
        f"--size {size[0]}x{size[1]}: the model does not take images of this size ({error}); choose another one"
    )


def _shapes_of_another_batch(source: Path, image: Image) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes for another length of the batch; None where a file that names its own allows no other."""
    try:
        return optimised(_with_batch(source, image.name, OTHER_BATCH), OTHER_BATCH)[1].shapes
    except ModelError:
        if image.batch == PROBE_BATCH:
            raise
        return None


def _with_batch(path: Path, image: str, batch: int) -> Path:
    """Return the same file with another length of the batch."""
    model = onnx.load(str(path))
    (value,) = (i for i in model.graph.input if i.name == image)
    value.type.tensor_type.shape.dim[0].dim_value = batch
    save(model, path)
    return path


# --- checks -----------------------------------------------------------------------------------------


def _check_output(model: onnx.ModelProto, inferred: Inferred) -> None:
    """Raise ModelError where what comes out cannot be handed on."""
    name = model.graph.output[0].name
    if name in inferred.types:
        raise ModelError(f"'{name}' has type {inferred.types[name]}; float32 is expected: choose another --output")
    if inferred.shapes[name] == ():
        raise ModelError(
            f"output '{name}' is one number for the whole batch; logits of shape (N, K) are expected: choose them with --output"
        )


def _check_rows(
    session: ort.InferenceSession, simple: _Simplified, source: Path, size: tuple[int, int] | None
) -> np.ndarray:
    """Return what the freed model answers to some images. Raises ModelError unless it answers each for itself, and not the
    same to all where inputs are lost."""
    try:
        answers = check_rows(session, simple.image.shape)
    except ModelError as error:
        holders = _batch_holders(simple, source)
        if not holders and size is not None and isinstance(error, DoesNotRunError):
            raise _unfit_size(size, error) from error
        if not holders:
            raise
        raise ModelError(
            f"nodes {', '.join(holders)}: they read a constant that depends on the length of the batch; export the model without "
            "(no assignments to slices, no states of recurrent layers, torch's affine_grid with dynamo=True)"
        ) from error
    unread = simple.image.unread
    if unread and bool((answers == answers[:1]).all()):
        raise ModelError(
            f"inputs {', '.join(repr(i.name) for i in unread)}: the file asks for them, no node reads them, and the answers do "
            "not depend on the image: the export has lost what they should feed; freeze the variables before it"
        )
    return answers


def _check_shape(answers: np.ndarray, shapes: Mapping[str, tuple[int, ...]], output: str) -> None:
    """Raise ModelError where answers have another shape than the one that was worked out."""
    if answers.shape[1:] != shapes[output][1:]:
        raise ModelError(
            f"output '{output}' has the shape {('N', *answers.shape[1:])} where {('N', *shapes[output][1:])} is expected: which "
            "axis is the batch cannot be told; export the model with a dynamic batch"
        )


def _batch_holders(simple: _Simplified, source: Path) -> list[str]:
    """Return the nodes with a constant that is another one when the batch has another length; where the file was made for
    one length alone, those whose constants have to name it."""
    constants = {i.name: i.SerializeToString() for i in simple.model.graph.initializer}
    if simple.image.batch != PROBE_BATCH:
        nodes = [n for n in simple.model.graph.node if n.op_type in HOLDING]
        return [label(n) for n in nodes if any(name in constants for name in n.input[1:])]
    try:
        other, _ = optimised(_with_batch(source, simple.image.name, OTHER_BATCH), OTHER_BATCH)
    except ModelError:
        return []
    values = {i.name: i.SerializeToString() for i in other.graph.initializer}
    changed = {name for name, value in constants.items() if values.get(name, value) != value}
    return [label(n) for n in simple.model.graph.node if changed.intersection(n.input)]

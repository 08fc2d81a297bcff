"""Load an ONNX file as a `Graph` that is simple enough to reason about.

What is read is checked, its one image input gets a concrete shape, the choice of an output is made, and then `simplify` and
`batch` bring it into the form that `graph` describes. The result answers as the file does.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx
from google.protobuf.message import DecodeError

from s2d_convert.base.sessions import first_line, quiet_session, save
from s2d_convert.errors import ModelError
from s2d_convert.frontend.build import graph_of
from s2d_convert.frontend.dynamic_batch import free_batch, is_plain
from s2d_convert.frontend.equivalence import ask_file, check_rows, check_same, kind_of_end
from s2d_convert.frontend.graph import RESERVED, Graph
from s2d_convert.frontend.inputs import PROBE_BATCH, choose_output, fix_input
from s2d_convert.frontend.normalize import normalised
from s2d_convert.frontend.proto import copy_of, without_weights
from s2d_convert.frontend.simplify import optimised

OTHER_BATCH = 11  # for a second look, where shapes show the first one elsewhere than on axis 0
KNOWN_DOMAINS = ("ai.onnx", "com.microsoft")


def load_graph(path: str | Path, *, size: tuple[int, int] | None = None, output: str | None = None) -> Graph:
    """The simplified graph of an ONNX file.

    `size` (H, W) fixes a dynamic spatial size; `output` picks one of several outputs.
    Raises ModelError when the file is not a static CNN classifier with one image input, UsageError when `size` or `output`
    does not fit it.
    """
    return graph_from_proto(read_model(path), size=size, output=output, file=Path(path))


def read_model(path: str | Path) -> onnx.ModelProto:
    """The checked protobuf of an ONNX file, external data included. Raises ModelError, naming all nodes that are not ONNX's."""
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 - a Path raises for names that are too long
        raise ModelError(f"{path}: no such file; give the path of an ONNX model")
    try:
        model = onnx.load(str(path), format="protobuf")
        onnx.checker.check_model(without_weights(model))
    except (DecodeError, onnx.checker.ValidationError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a valid ONNX model ({first_line(error)}); export it again") from error
    if not model.graph.node:
        raise ModelError(f"{path}: not a valid ONNX model (its graph has no nodes); export it again")
    _refuse_foreign(path, model)
    return model


def _refuse_foreign(path: Path, model: onnx.ModelProto) -> None:
    """Raise ModelError naming all nodes of other domains than those that come with onnxruntime, which names only one."""
    own = {(f.domain, f.name) for f in model.functions}
    foreign = [
        f"node '{n.name or n.output[0]}' ({n.domain}.{n.op_type})"
        for n in model.graph.node
        if not n.domain.startswith(KNOWN_DOMAINS) and n.domain and (n.domain, n.op_type) not in own
    ]
    if foreign:
        raise ModelError(
            f"{path}: {len(foreign)} nodes are not of ONNX and have no definition in the file: {', '.join(foreign)}; "
            "export the model with standard operators"
        )


def graph_from_proto(
    model: onnx.ModelProto,
    *,
    size: tuple[int, int] | None = None,
    output: str | None = None,
    file: Path | None = None,
) -> Graph:
    """The simplified graph of a model in memory; see `load_graph`.

    `file` is where the model was read from: it may be changed then, and must answer as the file does.
    """
    half = any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    model = normalised(model if file else copy_of(model))
    choose_output(model, output)
    image, batch, image_type = fix_input(model, size)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.onnx"
        save(model, source)
        shape, logits = _image_shape(model, image), model.graph.output[0].name
        del model  # large models should not lie in memory twice
        asked = ask_file(file, image, shape, logits) if file else None
        model, found = optimised(source, batch)
        other = None
        if batch == PROBE_BATCH and not is_plain(model, batch, found.shapes):
            other = optimised(_with_batch(source, image, OTHER_BATCH), OTHER_BATCH)[1].shapes
        shapes, folded = free_batch(model, batch, found.shapes, other)
    with quiet_session(model) as session:
        check_rows(session, shape)
        if asked is not None:
            check_same(session, asked, half=half)
    for value in (image, model.graph.output[0].name):
        if value in found.types:
            raise ModelError(f"'{value}' has type {found.types[value]}; float32 is expected: choose another --output")
    if image in RESERVED:
        raise ModelError(
            f"input '{image}': the stages have an output or a constant of this name; rename it in the model"
        )
    types = MappingProxyType(found.types)
    graph = graph_of(model, shapes)
    if not graph.tells_logits:
        graph = replace(graph, output_kind=kind_of_end(model, graph.output, shape))
    return replace(graph, half=half, folded=folded, types=types, image_type=image_type)


def _image_shape(model: onnx.ModelProto, image: str) -> tuple[int, ...]:
    """The shape of the image once it is fixed, without the batch."""
    (value,) = (i for i in model.graph.input if i.name == image)
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])


def _with_batch(path: Path, image: str, batch: int) -> Path:
    """The same file with another length of the batch."""
    model = onnx.load(str(path))
    (value,) = (i for i in model.graph.input if i.name == image)
    value.type.tensor_type.shape.dim[0].dim_value = batch
    save(model, path)
    return path

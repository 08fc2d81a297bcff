"""The passes that onnxruntime and onnx do for us: basic optimisations, and shapes.

The heavy lifting (constant folding, fusing BatchNormalization into Conv, removing what does nothing) is left to
onnxruntime's basic graph optimisations, which only emit standard ONNX operators; what it leaves behind in the batch axis,
`batch.freeing` frees.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from s2d_convert.base.sessions import first_line, quiet_options, save
from s2d_convert.errors import ModelError
from s2d_convert.frontend.batch.freeing import is_plain
from s2d_convert.frontend.proto import attributes_of, label, opset_of, without_weights


class Inferred(NamedTuple):
    """Concrete shapes, batch included, of the image and of every node output, and the types of those not float32."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, Any]


def optimised(path: Path, batch: int) -> tuple[onnx.ModelProto, Inferred]:
    """Return the model of a file after onnxruntime's basic optimisations (standard operators only), its shapes and types."""
    simple, inferred = _folded(path, ())
    if is_plain(simple, batch, inferred.shapes):
        return simple, inferred
    # This fusion turns a Linear over places into a Gemm with the places folded into the batch.
    return _folded(path, ("MatMulAddFusion",))


def _folded(path: Path, without: tuple[str, ...]) -> tuple[onnx.ModelProto, Inferred]:
    """Return the optimised model, its shapes and types. Lengths that a model asks for become constants, also where onnx alone
    knows them: onnxruntime infers no shapes behind operators that are functions, such as MeanVarianceNormalization."""
    simple = with_floor_pools(_optimised(path, without))
    inferred = infer(simple)
    if not _put_lengths(simple, inferred.shapes):
        return simple, inferred
    known = path.with_name("lengths.onnx")  # beside the weights of the source, as the optimised model
    save(simple, known)
    simple = with_floor_pools(_optimised(known, without))
    return simple, infer(simple)


def _put_lengths(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Put constants in place of Shape nodes; return whether there were any."""
    asking = [n for n in model.graph.node if n.op_type == "Shape" and n.input[0] in shapes]
    for node in asking:
        attributes, shape = attributes_of(node), np.array(shapes[node.input[0]], np.int64)
        lengths = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
        model.graph.initializer.append(numpy_helper.from_array(lengths, node.output[0]))
        model.graph.node.remove(node)
    return bool(asking)


def _optimised(path: Path, without: tuple[str, ...]) -> onnx.ModelProto:
    target = path.with_name("simplified.onnx")  # beside the weights of the source, which it may name
    options = quiet_options()
    options.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without))
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ModelError(f"onnxruntime cannot load the model ({first_line(error)}); check it there first") from error
    simplified = onnx.load(str(target))
    foreign = [n for n in simplified.graph.node if n.domain not in ("", "ai.onnx")]
    if foreign:
        names = ", ".join(f"'{n.name or n.output[0]}' ({n.domain}.{n.op_type})" for n in foreign)
        raise ModelError(f"operators outside the ONNX standard are not supported: {names}; export without them")
    decided = [label(n) for n in simplified.graph.node if n.op_type == "If"]
    if decided:
        raise ModelError(
            f"nodes {', '.join(decided)}: which branch is taken depends on the image; export the model traced, with one branch"
        )
    version = opset_of(simplified)
    del simplified.opset_import[:]
    simplified.opset_import.append(onnx.helper.make_opsetid("", version))
    return simplified


def with_floor_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with pools that round down and pad more instead of rounding up, in place.

    onnx counts a last window that starts in the padding, onnxruntime leaves it out: shapes would be wrong.
    """
    for node in model.graph.node:
        attributes = attributes_of(node)
        if node.op_type not in ("MaxPool", "AveragePool") or not attributes.get("ceil_mode", 0):
            continue
        shape = infer(model).shapes[node.input[0]][2:]
        pads = _floor_pads(attributes, shape)
        if pads is None:
            continue
        kept = [a for a in node.attribute if a.name not in ("ceil_mode", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])
    return model


def _floor_pads(attributes: dict[str, Any], shape: tuple[int, ...]) -> list[int] | None:
    """Return the pads with which rounding down gives what rounding up gave; None where padding would be counted."""
    rank = len(shape)
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("count_include_pad", 0):
        return None
    kernel, strides = attributes["kernel_shape"], attributes.get("strides", [1] * rank)
    pads, dilations = attributes.get("pads", [0] * 2 * rank), attributes.get("dilations", [1] * rank)
    low, high = list(pads[:rank]), []
    for axis, length in enumerate(shape):
        span, step = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        count = -(-(length + low[axis] + pads[rank + axis] - span) // step) + 1
        if (count - 1) * step >= length + low[axis]:
            count -= 1
        high.append(max(0, (count - 1) * step + span - length - low[axis]))
        if high[-1] >= kernel[axis]:  # onnxruntime refuses such pads
            return None
    return low + high


def infer(model: onnx.ModelProto) -> Inferred:
    """Return the shapes and types of a model whose input has a fixed shape. Raises ModelError where they are not static."""
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes cannot be inferred ({first_line(error)}); export with fixed shapes") from error
    shapes, types = {}, {}
    others = []
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if not value.type.HasField("tensor_type"):
            others.append(value.name)
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
        if value.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
            types[value.name] = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if others:
        raise ModelError(
            f"{', '.join(others)}: sequences and optional values are not supported; export with tensors only"
        )
    missing = [n.name or o for n in model.graph.node for o in n.output if o and o not in shapes]
    if missing:
        raise ModelError(
            f"nodes {', '.join(missing)}: shapes are not static after simplification; export with fixed shapes"
        )
    return Inferred(shapes, types)

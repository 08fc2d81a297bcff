"""Other forms of the same file: lengths of axes, versions, outputs, functions, layout, and operators spelled otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graph_changes.base import Subject, UnfitError, all_nodes, change, lengths_of, put_behind, set_nodes

SYMBOLS = ("N", "batch", "batch_size", "unk__123", "?", "None", "-1", "s77", "s77 - 1", "image batch", "é", "H")
node = helper.make_node


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _has_any_batch(subject: Subject) -> bool:
    dims = _dims(subject.image)
    return bool(dims) and not (dims[0].HasField("dim_value") and dims[0].dim_value > 0)


def _set(dim: onnx.TensorShapeProto.Dimension, how: str) -> None:
    """Write a length as a symbol, -1, 0 or nothing."""
    dim.Clear()
    if how == "-1":
        dim.dim_value = -1
    elif how == "0":
        dim.dim_value = 0
    elif how:
        dim.dim_param = how


@change
def batch_written_otherwise(s: Subject) -> None:
    if not _has_any_batch(s):
        raise UnfitError
    how = s.rng.choice((*SYMBOLS, "-1", "0", ""))
    for value in (s.image, *s.graph.output):
        if _dims(value):
            _set(_dims(value)[0], how)


@change
def batch_fixed(s: Subject) -> None:
    if not _has_any_batch(s) or s.transposed:
        raise UnfitError
    _dims(s.image)[0].dim_value = s.rng.choice((1, 1, 2, 3, 5, 8))
    for value in s.graph.output:
        value.type.tensor_type.ClearField("shape")
    del s.graph.value_info[:]


@change
def size_of_the_image_left_open(s: Subject) -> None:
    """Height, width and perhaps the channels too; what is then said with `--size`."""
    dims = _dims(s.image)
    if len(dims) != 4 or any(d.dim_value <= 0 for d in dims[1:]):
        raise UnfitError
    lengths = [d.dim_value for d in dims]
    channels_last = s.transposed or lengths[3] in (1, 3, 4)
    s.size = (lengths[1], lengths[2]) if channels_last else (lengths[2], lengths[3])
    one = s.rng.random() < 0.2
    for axis in (1, 2) if channels_last else (2, 3):
        _set(dims[axis], "same" if one else s.rng.choice(("height", "width", "", "-1")))
    if s.rng.random() < 0.3:
        _set(dims[3 if channels_last else 1], s.rng.choice(("channels", "")))
    if one and _has_any_batch(s):
        _set(dims[0], "same")
    for value in s.graph.output:
        value.type.tensor_type.ClearField("shape")
    del s.graph.value_info[:]


@change
def outputs_without_shapes(s: Subject) -> None:
    for value in s.graph.output:
        how = s.rng.choice(("shape", "symbols", "values"))
        if how == "shape":
            value.type.tensor_type.ClearField("shape")
        for dim in _dims(value):
            _set(dim, {"symbols": f"o{s.rng.randrange(3)}", "values": ""}.get(how, ""))


@change
def shapes_written_down(s: Subject) -> None:
    """Shape inference has put its findings into the file."""
    if s.model.functions:
        raise UnfitError
    try:
        s.model = onnx.shape_inference.infer_shapes(s.model)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise UnfitError from error


@change
def ir_version(s: Subject) -> None:
    least = 8 if s.model.functions else 3
    s.model.ir_version = s.rng.randint(least, 11)
    if s.model.ir_version < 4:
        listed = {i.name for i in s.graph.input}
        s.graph.input.extend(
            helper.make_tensor_value_info(i.name, i.data_type, i.dims)
            for i in s.graph.initializer
            if i.name not in listed
        )


@change
def opset(s: Subject) -> None:
    """A newer opset, by the converter that comes with onnx. It makes a Resize with other coordinates of an Upsample."""
    if s.model.functions or s.opset >= 21 or s.opset < 9 or any(n.op_type == "Upsample" for n in s.graph.node):
        raise UnfitError
    try:
        model = onnx.version_converter.convert_version(s.model, s.rng.randint(s.opset + 1, min(25, s.opset + 6)))
        onnx.checker.check_model(model, full_check=True)
    except (
        RuntimeError,
        onnx.version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
    ) as error:
        raise UnfitError from error
    s.model = model


@change
def further_outputs(s: Subject) -> None:
    """Features, their mean, the class, its place, a shape: the logits then are chosen with `--output`."""
    if s.opset < 13:
        raise UnfitError
    s.output = s.output or s.graph.output[0].name
    lengths = lengths_of(s)
    new: list[tuple[str, int]] = []
    inner = sorted(set(lengths) - {s.output, *(i.name for i in s.graph.input)})
    if not inner:
        raise UnfitError
    tensor = s.rng.choice(inner)
    if s.rng.random() < 0.6 and all(o.name != tensor for o in s.graph.output):
        new.append((tensor, TensorProto.FLOAT))
    if s.rng.random() < 0.5:
        op = s.rng.choice(("ArgMax", "Shape", "Softmax", "Hardmax"))
        new.append((s.fresh("further"), TensorProto.INT64 if op in ("ArgMax", "Shape") else TensorProto.FLOAT))
        axis: dict[str, Any] = {} if op == "Shape" else {"axis": 1}
        s.graph.node.append(node(op, [s.output], [new[-1][0]], **axis))
    for name, elements in new:
        value = onnx.ValueInfoProto(name=name)
        value.type.tensor_type.elem_type = elements
        if s.rng.random() < 0.5:
            s.graph.output.append(value)
        else:
            s.graph.output.insert(0, value)


@change
def a_function_of_the_file(s: Subject) -> None:
    """One node called through a function of the model."""
    plain = [n for n in s.graph.node if not n.domain and n.op_type not in ("If", "Constant") and all(n.input)]
    if s.model.ir_version < 8 or not plain or any(o.domain == "ai.onnx" for o in s.model.opset_import):
        raise UnfitError
    chosen = s.rng.choice(plain)
    inner = onnx.NodeProto.FromString(chosen.SerializeToString())
    inner.input[:] = [f"i{k}" for k in range(len(chosen.input))]
    inner.output[:] = [f"o{k}" for k in range(len(chosen.output))]
    name = f"Call{len(s.model.functions)}"
    imports = [o for o in s.model.opset_import if o.domain in ("", "ai.onnx")]
    s.model.functions.append(
        helper.make_function("of.the.file", name, list(inner.input), list(inner.output), [inner], imports)
    )
    if all(o.domain != "of.the.file" for o in s.model.opset_import):
        s.model.opset_import.append(helper.make_opsetid("of.the.file", 1))
    chosen.op_type, chosen.domain = name, "of.the.file"
    del chosen.attribute[:]


@change
def channels_last(s: Subject) -> None:
    """The image as TensorFlow has it: a Transpose comes first."""
    dims = _dims(s.image)
    if s.transposed or s.size or len(dims) != 4 or any(d.dim_value <= 0 for d in dims[1:]):
        raise UnfitError
    s.transposed = True
    image, (channels, height, width) = s.image.name, [d.dim_value for d in dims[1:]]
    put_behind(s, image, lambda a, b: [node("Transpose", [a], [b], perm=[0, 3, 1, 2])])
    for dim, length in zip(dims[1:], (height, width, channels), strict=True):
        dim.dim_value = length


@change
def image_of_doubles(s: Subject) -> None:
    if s.image.type.tensor_type.elem_type != TensorProto.FLOAT or s.opset < 9:
        raise UnfitError
    image = s.image
    put_behind(s, image.name, lambda a, b: [node("Cast", [a], [b], to=TensorProto.FLOAT)])
    image.type.tensor_type.elem_type = TensorProto.DOUBLE


# --- operators spelled otherwise --------------------------------------------------------------------


def _one(s: Subject, op: str) -> tuple[int, onnx.NodeProto]:
    nodes = [(i, n) for i, n in enumerate(s.graph.node) if n.op_type == op and not n.domain]
    if not nodes:
        raise UnfitError
    return s.rng.choice(nodes)


def _instead(s: Subject, index: int, *nodes: onnx.NodeProto) -> None:
    every = list(s.graph.node)
    set_nodes(s.graph, [*every[:index], *nodes, *every[index + 1 :]])


def _value(s: Subject, name: str) -> np.ndarray:
    for i in s.graph.initializer:
        if i.name == name:
            return numpy_helper.to_array(i)
    raise UnfitError


@change
def relu_spelled_otherwise(s: Subject) -> None:
    index, old = _one(s, "Relu")
    kind = s.rng.choice(("Max", "Clip", "LeakyRelu", "PRelu", "Where"))
    if s.opset < 12:
        raise UnfitError
    a, b = old.input[0], old.output[0]
    zero = s.constant(np.zeros((), np.float32))
    if kind == "Where":
        mask = s.fresh(f"{b}_mask")
        return _instead(s, index, node("Greater", [a, zero], [mask]), node("Where", [mask, a, zero], [b]))
    if kind == "LeakyRelu":
        return _instead(s, index, node("LeakyRelu", [a], [b], alpha=0.0))
    more = {"Max": [zero], "Clip": [zero], "PRelu": [s.constant(np.zeros(1, np.float32))]}[kind]
    _instead(s, index, node(kind, [a, *more], [b]))


@change
def gemm_spelled_otherwise(s: Subject) -> None:
    """A MatMul and an Add, or the weight the other way round, or alpha and beta."""
    index, old = _one(s, "Gemm")
    attrs = {a.name: helper.get_attribute_value(a) for a in old.attribute}
    if any(attrs.get(k, 1.0) != 1.0 for k in ("alpha", "beta")) or attrs.get("transA", 0) or s.opset < 13:
        raise UnfitError
    weight = _value(s, old.input[1])
    plain = np.ascontiguousarray(weight.T if attrs.get("transB", 0) else weight)
    bias = list(old.input[2:3])
    a, b = old.input[0], old.output[0]
    kind = s.rng.choice(("MatMul", "turned", "alpha"))
    if kind == "MatMul":
        inner = s.fresh(f"{b}_product") if bias else b
        adds = [node("Add", s.rng.choice(([inner, *bias], [*bias, inner])), [b])] if bias else []
        return _instead(s, index, node("MatMul", [a, s.constant(plain)], [inner]), *adds)
    if kind == "turned":
        return _instead(s, index, node("Gemm", [a, s.constant(plain), *bias], [b], transB=0))
    half = s.constant(plain * np.float32(0.5))
    _instead(s, index, node("Gemm", [a, half, *bias], [b], alpha=2.0))


@change
def bias_of_a_conv_added(s: Subject) -> None:
    index, old = _one(s, "Conv")
    if len(old.input) < 3 or s.opset < 7:
        raise UnfitError
    bias, places = _value(s, old.input[2]), _value(s, old.input[1]).ndim - 2
    column = bias.reshape(-1, *(1,) * places)
    inner, b = s.fresh(f"{old.output[0]}_product"), old.output[0]
    bare = onnx.NodeProto.FromString(old.SerializeToString())
    del bare.input[2:]
    bare.output[:] = [inner]
    operands = [inner, s.constant(column[None] if s.rng.random() < 0.5 else column)]
    _instead(s, index, bare, node("Add", operands[:: s.rng.choice((1, -1))], [b]))


@change
def attributes_spelled_out(s: Subject) -> None:
    """Defaults that are written down, and the shape of the kernel left away."""
    for old in s.graph.node:
        have = {a.name for a in old.attribute}
        if old.op_type == "Conv":
            if "kernel_shape" in have and s.rng.random() < 0.5:
                old.attribute.remove(next(a for a in old.attribute if a.name == "kernel_shape"))
            if "group" not in have:
                old.attribute.append(helper.make_attribute("group", 1))
            if "auto_pad" not in have and s.rng.random() < 0.5:
                old.attribute.append(helper.make_attribute("auto_pad", "NOTSET"))
        if old.op_type == "Gemm" and "alpha" not in have:
            old.attribute.append(helper.make_attribute("alpha", 1.0))


@change
def global_pool_spelled_otherwise(s: Subject) -> None:
    index, old = _one(s, "GlobalAveragePool")
    a, b = old.input[0], old.output[0]
    if not 11 <= s.opset < 18:
        raise UnfitError
    axes = s.rng.choice(([2, 3], [-1, -2], [-2, -1]))
    _instead(s, index, node("ReduceMean", [a], [b], axes=axes, keepdims=1))


@change
def absent_inputs_named_by_nothing(s: Subject) -> None:
    """An optional input that is absent may be an empty name at the end."""
    found = [n for n in all_nodes(s.graph) if n.op_type in ("Conv", "Gemm") and len(n.input) == 2 and not n.domain]
    if not found or s.opset < 11:
        raise UnfitError
    s.rng.choice(found).input.append("")

"""From the ONNX file that a user brings to one with few forms: float32, a recent opset, folded constants.

Every step takes and gives an `onnx.ModelProto`. The heavy lifting (constant folding, fusing BatchNormalization into
Conv, removing what does nothing) is left to onnxruntime's basic graph optimisations, which only emit standard ONNX
operators; what it leaves behind in the batch axis, `batch` frees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from s2d_convert.base.sessions import first_line, quiet_options
from s2d_convert.errors import ModelError
from s2d_convert.frontend.dynamic_batch import is_plain, label

MIN_OPSET = 13
SMALL = 1024  # elements of a constant that may be a shape or the like
TRAINING_MODE_OPSET = 14  # before, further outputs of a BatchNormalization were what put it into training mode
SPARE_OUTPUTS = ("Dropout", "LayerNormalization", "MaxPool")  # that have outputs which nobody needs to name
FREE_INITIALIZERS = 4  # the IR version since which initializers need not be inputs too
UPGRADE_OPSET = 17
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
# Numbers of another width than float32; they are converted, and the widths of weights can be chosen at export.
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")
OTHER_FLOATS = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def refuse_quantised(model: onnx.ModelProto) -> None:
    """Raise ModelError for a model with quantised operators."""
    found = [n for n in model.graph.node if n.op_type in QUANTISED]
    if found:
        raise ModelError(
            f"node {label(found[0])} and {len(found) - 1} more: the model is quantised; "
            "convert the float32 model first and quantise the exported stages afterwards"
        )


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph, some of which may be its own: protobuf frees those that are deleted."""
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


# --- before onnxruntime -----------------------------------------------------------------------------


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large constants are inputs: what is left is quick to check and to infer shapes of."""
    fresh = onnx.ModelProto(ir_version=max(model.ir_version, FREE_INITIALIZERS), opset_import=model.opset_import)
    fresh.functions.extend(model.functions)
    graph = fresh.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    constants = {i.name for i in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in constants)
    for constant in model.graph.initializer:
        if constant.data_type in (TensorProto.FLOAT, *OTHER_FLOATS) and np.prod(constant.dims) > SMALL:
            graph.input.append(onnx.helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
        else:
            graph.initializer.append(constant)
    return fresh


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without constants among the inputs, without shapes that were written down when the batch had another
    length, and without what nobody reads of an operator's further outputs (the mask of a Dropout, the places of a
    MaxPool), in place."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, FREE_INITIALIZERS)
    read = {o.name for o in model.graph.output}.union(*map(names_read, model.graph.node))
    for node in (n for n in model.graph.node if n.op_type in SPARE_OUTPUTS):
        while len(node.output) > 1 and node.output[-1] not in read:
            del node.output[-1]
    return model


def refuse_training(model: onnx.ModelProto) -> None:
    """Raise ModelError for a model that was exported for training: its answers depend on the other images."""
    found = [n for n in model.graph.node if n.op_type == "BatchNormalization" and len(n.output) > 1]
    if found and opset_of(model) < TRAINING_MODE_OPSET:
        names = ", ".join(map(label, found))
        raise ModelError(f"nodes {names}: normalisation as in training; export the model for inference (model.eval())")


def with_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float16 and float64 number and type turned into float32, in place."""
    _round_constants(model.graph)
    for graph in _graphs(model.graph):
        for tensor in (*graph.initializer, *_tensors(graph)):
            if tensor.data_type in OTHER_FLOATS:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in (a for n in graph.node for a in n.attribute if a.name in TYPE_ATTRIBUTES):
            if attribute.i in OTHER_FLOATS:
                attribute.i = TensorProto.FLOAT
    return model


def _round_constants(graph: onnx.GraphProto) -> None:
    """Take the casts of float32 constants to another width now: they round."""
    constants = {i.name: i for i in graph.initializer}
    casts = [
        (n, a.i)
        for n in graph.node
        if n.op_type == "Cast" and n.input[0] in constants
        for a in n.attribute
        if a.name == "to" and a.i in OTHER_FLOATS
    ]
    for node, to in casts:
        value = numpy_helper.to_array(constants[node.input[0]]).astype(OTHER_FLOATS[to])
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
        graph.node.remove(node)


def with_plain_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without If nodes that are decided already, CastLike and GroupNormalization, in place: onnxruntime
    trips over the first, does not fold the second, and puts the third into words whose shapes nobody infers."""
    kinds = _types(model) if any(n.op_type == "CastLike" for n in model.graph.node) else {}
    known = {i.name: i for i in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
        if node.op_type == "If" and node.input[0] in known:
            nodes.extend(_taken_branch(model, node, bool(numpy_helper.to_array(known[node.input[0]]).reshape(-1)[0])))
        elif node.op_type == "CastLike":
            to = kinds.get(node.input[1], 0)
            if not to:
                raise ModelError(f"node {label(node)}: the type of its second input is not known; export with types")
            nodes.append(onnx.helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=to))
        elif node.op_type == "GroupNormalization":
            nodes.extend(_plain_group_norm(model, node))
        else:
            nodes.append(node)
    set_nodes(model.graph, nodes)
    return model


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of everything that shape inference can tell the type of."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return found | {i.name: i.data_type for i in model.graph.initializer}


def _taken_branch(model: onnx.ModelProto, node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """The nodes of the branch that an If takes, and one more for each of its outputs."""
    wanted = "then_branch" if condition else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == wanted)
    # Two branches may use the same names; what they take from outside keeps its own.
    own = {i.name for i in branch.initializer} | {name for n in branch.node for name in n.output if name}
    renamed = {name: f"{node.output[0]}/{name}" for name in own}
    for constant in branch.initializer:
        fresh = model.graph.initializer.add()
        fresh.CopyFrom(constant)
        fresh.name = renamed[constant.name]
    nodes = []
    for inner in branch.node:
        taken, made = ([renamed.get(name, name) for name in side] for side in (inner.input, inner.output))
        nodes.append(onnx.helper.make_node(inner.op_type, taken, made, name=inner.name, domain=inner.domain))
        nodes[-1].attribute.extend(inner.attribute)
    pairs = zip(branch.output, node.output, strict=True)
    ends = [onnx.helper.make_node("Identity", [renamed.get(a.name, a.name)], [b]) for a, b in pairs]
    return [*nodes, *ends]


def _plain_group_norm(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A GroupNormalization as an InstanceNormalization of groups; until opset 20 its scale and bias go by group."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    groups, (data, scale, bias), out = attributes["num_groups"], node.input, node.output[0]

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{out}.{name}"))
        return f"{out}.{name}"

    def make(op: str, inputs: list[str], name: str, **more: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [name], name=f"{node.name or out}.{op}.{name[-1]}", **more)

    by_group = opset_of(model) < 21
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    norm = [f"{out}.g", scale, bias] if by_group else [f"{out}.g", constant("ones", ones), constant("zeros", zeros)]
    nodes = [
        make("Reshape", [data, constant("grouped", np.array([0, groups, -1]))], f"{out}.g"),
        make("InstanceNormalization", norm, f"{out}.n", epsilon=attributes.get("epsilon", 1e-5)),
        make("Shape", [data], f"{out}.s"),
        make("Reshape", [f"{out}.n", f"{out}.s"], out if by_group else f"{out}.r"),
    ]
    if by_group:
        return nodes
    column = constant("column", np.array([-1, 1, 1]))
    return [
        *nodes,
        make("Reshape", [scale, column], f"{out}.f"),
        make("Reshape", [bias, column], f"{out}.b"),
        make("Mul", [f"{out}.r", f"{out}.f"], f"{out}.m"),
        make("Add", [f"{out}.m", f"{out}.b"], out),
    ]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the branches of its If and Loop nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def names_read(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, those that its branches take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names.update(name for graph in _graphs(attribute.g) for inner in graph.node for name in inner.input)
            names.update(output.name for graph in _graphs(attribute.g) for output in graph.output)
    return names


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    return (a.t for n in graph.node for a in n.attribute if a.HasField("t"))


def with_recent_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, upgraded if its opset is older than 13. Raises ModelError where that is not possible."""
    version = opset_of(model)
    if version >= MIN_OPSET:
        return model
    try:
        upgraded = onnx.version_converter.convert_version(model, UPGRADE_OPSET)
    except RuntimeError as error:
        raise ModelError(
            f"opset {version} could not be upgraded to {UPGRADE_OPSET} ({first_line(error)}); "
            f"export the model with opset {MIN_OPSET} or newer"
        ) from error
    _keep_old_coordinates(model, upgraded)
    return upgraded


def _keep_old_coordinates(model: onnx.ModelProto, upgraded: onnx.ModelProto) -> None:
    """Before opset 11 Upsample and Resize counted from the corners of pixels; the converter forgets to say so."""
    if opset_of(model) > 10:
        return
    for node in (n for n in upgraded.graph.node if n.op_type == "Resize"):
        kept = [a for a in node.attribute if a.name not in ("coordinate_transformation_mode", "nearest_mode")]
        del node.attribute[:]
        node.attribute.extend(kept)
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            node.attribute.append(onnx.helper.make_attribute(name, value))


# --- onnxruntime ------------------------------------------------------------------------------------


class Inferred(NamedTuple):
    """Concrete shapes, batch included, of the image and of every node output, and the types of those not float32."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, Any]


def optimised(path: Path, batch: int) -> tuple[onnx.ModelProto, Inferred]:
    """The model of a file after onnxruntime's basic optimisations (standard operators only), its shapes and types."""
    simple = with_floor_pools(_optimised(path, ()))
    found = infer(simple)
    if is_plain(simple, batch, found.shapes):
        return simple, found
    # This fusion turns a Linear over places into a Gemm with the places folded into the batch.
    simple = with_floor_pools(_optimised(path, ("MatMulAddFusion",)))
    return simple, infer(simple)


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
    version = opset_of(simplified)
    del simplified.opset_import[:]
    simplified.opset_import.append(onnx.helper.make_opsetid("", version))
    return simplified


def with_floor_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with pools that round down and pad more instead of rounding up, in place.

    onnx counts a last window that starts in the padding, onnxruntime leaves it out: shapes would be wrong.
    """
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
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
    """The pads with which rounding down gives what rounding up gave; None where padding would be counted."""
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
    """The shapes and types of a model whose input has a fixed shape. Raises ModelError where they are not static."""
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

"""Passes over a new file: refuse what cannot be converted, remove what is not read, and unify float types and opsets.

Each takes an `onnx.ModelProto`, changes it in place if it can, and returns it.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from s2d_convert.base.sessions import first_line
from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import (
    FREE_INITIALIZERS,
    attributes_of,
    computed_names,
    graphs,
    label,
    names_read,
    opset_of,
    set_nodes,
    tensors,
)

MIN_OPSET = 13
DEFAULT_DOMAIN = "ai.onnx"  # another name of ""
KNOWN_DOMAINS = ("ai.onnx", "com.microsoft")
LOOPS = ("Loop", "Scan")
UPGRADE_OPSET = 17
TRAINING_MODE_OPSET = 14  # before, further outputs of a BatchNormalization were what put it into training mode
SPARE_OUTPUTS = ("Dropout", "LayerNormalization", "MaxPool")  # that have outputs which nobody needs to name
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
# Numbers of another width than float32; they are converted, and the widths of weights can be chosen at export.
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")
OTHER_FLOATS = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}


def with_one_default_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its standard operators in the domain "", which some writers spell `ai.onnx`, in place."""
    if any(o.domain == DEFAULT_DOMAIN for o in model.opset_import):
        version = opset_of(model)
        kept = [(o.domain, o.version) for o in model.opset_import if o.domain not in ("", DEFAULT_DOMAIN)]
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in [("", version), *kept])
    for owner in model.functions:
        for imported in owner.opset_import:
            imported.domain = "" if imported.domain == DEFAULT_DOMAIN else imported.domain
    nodes = (node for graph in graphs(model.graph) for node in graph.node)
    for node in chain(nodes, *(owner.node for owner in model.functions)):
        node.domain = "" if node.domain == DEFAULT_DOMAIN else node.domain
    return model


def with_sorted_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each node behind those that it reads from, as onnxruntime sorts them itself; where they are so
    already, nothing moves. A circle stays as it is."""
    for graph in list(graphs(model.graph)):
        nodes = list(graph.node)
        pending = {name for n in nodes for name in n.output if name}
        ordered: list[onnx.NodeProto] = []
        while nodes:
            waiting = []
            for node in nodes:
                if pending.intersection(names_read(node)):
                    waiting.append(node)
                else:
                    ordered.append(node)
                    pending.difference_update(node.output)
            if len(waiting) == len(nodes):
                return model
            nodes = waiting
        if any(a is not b for a, b in zip(ordered, graph.node, strict=True)):
            set_nodes(graph, ordered)
    return model


def with_graph_name(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a name for its graph, which the standard asks for and onnxruntime does not."""
    model.graph.name = model.graph.name or "graph"
    return model


def refuse_foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model itself. Raises ModelError naming all nodes of other domains than those that come with onnxruntime,
    which names only one."""
    foreign = [
        f"node '{n.name or n.output[0]}' ({n.domain}.{n.op_type})"
        for n in model.graph.node
        if n.domain and not n.domain.startswith(KNOWN_DOMAINS)
    ]
    if foreign:
        raise ModelError(
            f"{len(foreign)} nodes are not of ONNX and have no definition in the file: {', '.join(foreign)}; export the model "
            "with standard operators"
        )
    return model


def refuse_control_flow(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model itself. Raises ModelError naming all nodes that repeat a part of it or hold something else than
    tensors."""
    loops = [label(n) for n in model.graph.node if n.op_type in LOOPS]
    if loops:
        raise ModelError(
            f"nodes {', '.join(loops)}: loops are not supported; export the model traced, not scripted, so that its loops are "
            "unrolled"
        )
    sequences = [label(n) for n in model.graph.node if "Sequence" in n.op_type or "Optional" in n.op_type]
    if sequences:
        raise ModelError(
            f"nodes {', '.join(sequences)}: sequences and optional values are not supported; export the model with tensors only "
            "(Split and Concat in place of lists of tensors)"
        )
    return model


def refuse_quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model itself. Raises ModelError when it has quantised operators."""
    quantised = [n for n in model.graph.node if n.op_type in QUANTISED]
    if quantised:
        raise ModelError(
            f"node {label(quantised[0])} and {len(quantised) - 1} more: the model is quantised; "
            "convert the float32 model first and quantise the exported stages afterwards"
        )
    return model


def refuse_training(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model itself. Raises ModelError when it was exported for training: its answers depend on the other images,
    or on chance. (What has the statistics of a weight is a constant: weight standardisation is written so.)"""
    old, constants = opset_of(model) < TRAINING_MODE_OPSET, {i.name: i for i in model.graph.initializer}
    images = computed_names(model.graph)
    norms = [n for n in model.graph.node if n.op_type == "BatchNormalization" and _trains(n, old=old)]
    norms = [n for n in norms if n.input[0] in images]
    if norms:
        names = ", ".join(map(label, norms))
        raise ModelError(f"nodes {names}: normalisation as in training; export the model for inference (model.eval())")
    dropouts = [n for n in model.graph.node if n.op_type == "Dropout" and len(n.input) > 2 and n.input[2] in constants]
    dropouts = [n for n in dropouts if numpy_helper.to_array(constants[n.input[2]]).any()]
    if dropouts:
        names = ", ".join(map(label, dropouts))
        raise ModelError(f"nodes {names}: dropout as in training; export the model for inference (model.eval())")
    return model


def _trains(node: onnx.NodeProto, *, old: bool) -> bool:
    """Return whether a BatchNormalization takes the statistics of the batch."""
    if old:
        return len(node.output) > 1
    return bool(attributes_of(node).get("training_mode", 0))


def without_spare_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove constants from the inputs, recorded shapes (which may be of another batch), and further outputs that no node reads
    (the mask of a Dropout, the indices of a MaxPool), in place; return the model."""
    _forget_shapes(model)
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


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Take away what is written down about shapes of anything but the inputs, in place."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def with_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every float16 and float64 number and type turned into float32, in place."""
    _round_constants(model.graph)
    for graph in graphs(model.graph):
        for tensor in (*graph.initializer, *tensors(graph)):
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


def with_recent_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, upgraded if its opset is older than 13. Raises ModelError where that is not possible."""
    version = opset_of(model)
    if version >= MIN_OPSET:
        return model
    try:
        upgraded = onnx.version_converter.convert_version(model, UPGRADE_OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"opset {version} could not be upgraded to {UPGRADE_OPSET} ({first_line(error)}); "
            f"export the model with opset {MIN_OPSET} or newer"
        ) from error
    _forget_shapes(upgraded)  # the converter has inferred them from a batch of -1, or of another length
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

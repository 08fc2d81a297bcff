"""The same graph for a smaller image: it takes the image in its full size and begins by resizing it.

Nodes, names and weights stay those of the original graph, so that plans and weights fit both; only shapes differ. Constants
that hold the size of a map are replaced where their meaning is clear (a pool over the whole map, a Reshape that does not touch
the map). Whether the other nodes work at another size is found out by trying.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from s2d_convert.base.sessions import first_line, quiet_options
from s2d_convert.errors import ModelError
from s2d_convert.frontend.batch.freeing import whole_scale
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.frontend.inputs import PROBE_BATCH
from s2d_convert.frontend.proto import FLOATS, SMALL, attributes_of, copy_of, label, set_nodes
from s2d_convert.frontend.simplify import infer

GLOBAL_POOLS = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}
MAKERS_OF_MAPS = ("AveragePool", "Conv", "MaxPool")
AXES_OF_MAPS = 4  # batch, channels, height, width
SMALLEST_MAP = 2  # rows or columns of a map below which a side tells no stride

Shape = tuple[int, ...]


class FixedSizeError(ModelError):
    """A graph does not take images of another size; the message says which node holds it."""


def image_sides(graph: Graph) -> tuple[int, int]:
    """Return the height and width of the image."""
    height, width = (n for axis, n in enumerate(graph.shapes[graph.image]) if axis != graph.image_axis)
    return height, width


def total_strides(graph: Graph) -> tuple[int, int]:
    """Return how many rows and columns of the image one of the coarsest map stands for, as far as they divide."""
    strides = [1, 1]
    for node in graph.nodes:
        shape = graph.shapes[node.outputs[0]]
        if node.op not in MAKERS_OF_MAPS or len(shape) != AXES_OF_MAPS - 1:
            continue
        for axis, (side, length) in enumerate(zip(image_sides(graph), shape[1:], strict=True)):
            if length >= SMALLEST_MAP and side % length == 0:
                strides[axis] = max(strides[axis], side // length)
    return strides[0], strides[1]


def resized(graph: Graph, sides: tuple[int, int], *, scale: float) -> Graph:
    """Return the same graph behind a resizing of its image to `sides` (height, width); `scale` is what it is remembered by.

    Raises FixedSizeError where it does not take such images, or would not answer as many logits.
    """
    if graph.folded:
        raise FixedSizeError("it has rows that are not those of the batch (windows, places...)")
    model, constants = _of_another_size(graph, sides)
    renewed = _renewed_reshapes(graph, model, constants)
    shapes = _inferred(graph, model, constants | renewed)
    _run(graph, model, constants | renewed)
    return _behind_resizing(graph, model, sides, scale=scale, shapes=shapes, renewed=renewed)


def _of_another_size(graph: Graph, sides: tuple[int, int]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the skeleton for images of these sides, pools over whole maps made global, and its constants."""
    model = copy_of(graph.skeleton)
    (image,) = (i for i in model.graph.input if i.name == graph.image)
    for axis, length in zip(_spatial_axes(graph), sides, strict=True):
        image.type.tensor_type.shape.dim[axis + 1].dim_value = length
    for node in model.graph.node:
        if node.op_type in GLOBAL_POOLS and _is_over_whole_map(node, graph.shapes):
            node.op_type = GLOBAL_POOLS[node.op_type]
            del node.attribute[:]
    return model, dict(graph.constants)


def _spatial_axes(graph: Graph) -> list[int]:
    return [axis for axis in range(3) if axis != graph.image_axis]


def _is_over_whole_map(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> bool:
    """Return whether a pool takes the whole map, without padding that it would count."""
    source, attributes = shapes.get(node.input[0], ()), attributes_of(node)
    return (
        len(node.output) == 1
        and len(source) == AXES_OF_MAPS - 1
        and source[1:] == tuple(attributes.get("kernel_shape", ()))
        and not any(attributes.get("pads", ()))
        and attributes.get("dilations", [1, 1]) == [1, 1]
    )


# --- what holds a size ------------------------------------------------------------------------------


def _renewed_reshapes(
    graph: Graph, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return new targets, by name, of the Reshapes to a map whose height and width are numbers, as in a channel shuffle.

    They are put into the model. One that is renewed lets the shapes behind it be known, so they are found one after the other.
    """
    renewed: dict[str, np.ndarray] = {}
    made = {graph.image}
    for node in model.graph.node:
        earlier, made = made, made.union(node.output)
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if target is None or target.size < AXES_OF_MAPS or min(target[-2:]) < 1 or max(target[-2:]) == 1:
            continue
        every = _known_shapes(graph, model, {**constants, **renewed})
        shapes = {name: shape for name, shape in every.items() if name in earlier}  # those behind follow the old target
        sides = _sides_instead_of(tuple(target[-2:].tolist()), graph.shapes, shapes)
        if sides is not None and node.input[0] in shapes:
            node.input[1] = f"{node.output[0]}.shape"
            renewed[node.input[1]] = np.array([*target[:-2].tolist(), *sides], dtype=np.int64)
    return renewed


def _sides_instead_of(
    sides: tuple[int, int], before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> tuple[int, int] | None:
    """Return the height and width, in the image's other size, of the maps that had these `sides`; None where they differ."""
    others = {
        shape[-2:]
        for name, shape in after.items()
        if len(before.get(name, ())) >= AXES_OF_MAPS - 1 and before[name][-2:] == sides
    }
    if len(others) != 1:
        return None
    height, width = others.pop()
    return height, width


# --- trying -----------------------------------------------------------------------------------------


def _light(
    graph: Graph, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the model with its large constants as inputs, and what to feed them with: large models need not be copied."""
    light, feeds = copy_of(model), {}
    for name, value in constants.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        if kind in FLOATS and value.size > SMALL:
            light.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
            feeds[name] = value
        else:
            light.graph.initializer.append(numpy_helper.from_array(value, name))
    return light, feeds


def _with_batch(graph: Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    (image,) = (i for i in model.graph.input if i.name == graph.image)
    image.type.tensor_type.shape.dim[0].dim_value = PROBE_BATCH
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(graph.output, onnx.TensorProto.FLOAT, None))
    return model


def _known_shapes(graph: Graph, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Return the shapes, batch included, as far as they can be inferred."""
    light = _with_batch(graph, _light(graph, model, constants)[0])
    values = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    known = {}
    for value in (*values.input, *values.value_info):
        dims = value.type.tensor_type.shape.dim  # none where nothing is known
        if dims and all(d.HasField("dim_value") for d in dims):
            known[value.name] = tuple(d.dim_value for d in dims)
    return known


def _inferred(graph: Graph, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Return the shapes of all computed tensors, without the batch. Raises FixedSizeError where a node does not bear the size."""
    light = _with_batch(graph, _light(graph, model, constants)[0])
    try:
        shapes = infer(light).shapes
    except ModelError as error:
        raise _unfit(error) from error
    for node in model.graph.node:
        for name in node.output:
            if name not in graph.shapes:
                continue
            shape, before = shapes[name], graph.shapes[name]
            if len(shape) != len(before) + 1 or shape[0] != PROBE_BATCH or 0 in shape:
                raise FixedSizeError(f"node {label(node)} would make {list(shape[1:])} of the image")
    if shapes[graph.output][1:] != graph.shapes[graph.output]:
        raise FixedSizeError(
            f"it would answer {list(shapes[graph.output][1:])} instead of {list(graph.shapes[graph.output])}"
        )
    return {name: shapes[name][1:] for name in graph.shapes}


def _run(graph: Graph, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> None:
    """Raise FixedSizeError unless onnxruntime runs the model on an image."""
    light, feeds = _light(graph, model, constants)
    (image,) = (i for i in model.graph.input if i.name == graph.image)
    shape = [d.dim_value for d in image.type.tensor_type.shape.dim[1:]]
    try:
        session = ort.InferenceSession(light.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"])
        session.run(None, {**feeds, graph.image: noise((1, *shape))})
    except Exception as error:
        raise _unfit(error) from error


def _unfit(error: Exception) -> FixedSizeError:
    """Return the error for a model whose nodes do not fit together any more, from a library's message."""
    node = re.search(r"op_type:(\w+)|running (\w+) node", str(error))
    kind = next(filter(None, node.groups()), "") if node else ""
    return FixedSizeError(f"a node ({kind}) holds the size of a map" if kind else first_line(error))


# --- the graph --------------------------------------------------------------------------------------


def _behind_resizing(
    graph: Graph,
    model: onnx.ModelProto,
    sides: tuple[int, int],
    *,
    scale: float,
    shapes: dict[str, Shape],
    renewed: dict[str, np.ndarray],
) -> Graph:
    """Return the graph of a model for images of these sides, which takes full-size images."""
    small = _unique(graph, f"{graph.image}.resized")
    resize, constants = resizing(graph, sides, small)
    protos = {node.output[0]: node for node in model.graph.node}
    nodes = [_renewed(node, protos[node.outputs[0]], {graph.image: small}) for node in graph.nodes]
    for proto in model.graph.node:
        proto.input[:] = [small if name == graph.image else name for name in proto.input]
    first = onnx.helper.make_node(resize.op, resize.inputs, resize.outputs, name=resize.name, **resize.attrs)
    set_nodes(model.graph, [first, *model.graph.node])
    del model.graph.input[:]
    model.graph.input.extend(graph.skeleton.graph.input)
    return replace(
        graph,
        nodes=(resize, *nodes),
        constants=MappingProxyType({**graph.constants, **constants, **renewed}),
        shapes=MappingProxyType({**shapes, small: shapes[graph.image], graph.image: graph.shapes[graph.image]}),
        skeleton=model,
        scale=scale,
    )


def _renewed(node: Node, proto: onnx.NodeProto, names: Mapping[str, str]) -> Node:
    """Return a node as it is in the model of another size, reading other `names`."""
    inputs = tuple(names.get(name, name) for name in proto.input)
    attrs: Mapping[str, Any] = node.attrs if proto.op_type == node.op else MappingProxyType({})
    return replace(node, op=proto.op_type, inputs=inputs, attrs=attrs)


def _unique(graph: Graph, name: str) -> str:
    taken = {*graph.shapes, *graph.constants, *graph.tail_shapes}
    while name in taken:
        name += "_"
    return name


def resizing(graph: Graph, sides: tuple[int, int], out: str) -> tuple[Node, dict[str, np.ndarray]]:
    """Return the node that makes the tensor `out` of the image, with these sides, and its constants.

    Linear without smoothing: it is the fastest, and networks answer better on what it makes than on smoothed images
    (docs/experiments.md). Half of each side is the mean of 2 x 2 pixels.
    """
    scales = np.ones(AXES_OF_MAPS, dtype=np.float32)
    for axis, length, wanted in zip(_spatial_axes(graph), image_sides(graph), sides, strict=True):
        scales[axis + 1] = whole_scale(length, wanted)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    name = _unique(graph, f"{out}.scales")
    return Node(out, "Resize", (graph.image, "", name), (out,), MappingProxyType(attrs)), {name: scales}

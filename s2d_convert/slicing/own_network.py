"""A network of the user's own as the first stage: it takes the static model's input and answers in the static model's form.

In front of it comes what turns the model's input into its own: a resizing, one linear map of the colours, and the order of the
axes, each only where the two differ. Behind it stands the model's tail, so that the stage answers as all others do.

Letters: C channels of the static model's input, D channels of the network's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import compose, numpy_helper
from s2d_runtime.preprocess import LUMA

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import ONE_THREAD
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_size import image_sides
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import ModelError, S2DError, UsageError
from s2d_convert.frontend.batch.freeing import whole_scale
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import graph_from_proto, load_graph
from s2d_convert.frontend.proto import opset_of, set_nodes
from s2d_convert.frontend.reference import to_logits
from s2d_convert.plans.plan import FirstNetwork, identity_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import Chain

PREFIX = "first/"  # of all names of the network
ANSWER = f"{PREFIX}answer.logits"
RUN_BATCH = 32
MOST_SKIPPED = 2  # rows or columns of the image per one that a resizing reads, before whole cells are averaged
UNCHANGED = 1e-6  # how far a map of colours may be from none at all, relative to the scale of the values


@dataclass(frozen=True)
class Side:
    """A network as it takes its images: its graph, and how pixels become its input."""

    graph: Graph
    preprocess: Preprocess


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the user's own as a chain of one stage.

    `facts` is what a plan records of it. `model` is the same before it was simplified and cut, for comparison.
    """

    facts: FirstNetwork
    chain: Chain
    model: onnx.ModelProto

    def logits(self, images: Images) -> list[Array]:
        """Return the logits [B, K] of its one exit, from `model`."""
        session = ONE_THREAD.session(self.model.SerializeToString())
        name = self.model.graph.input[0].name
        parts = slices(len(images), RUN_BATCH)
        made = [session.run([ANSWER], {name: np.ascontiguousarray(images.batch(part))})[0] for part in parts]
        return [to_logits(np.concatenate(made), "logits")]


def read_own(path: Path, *, size: tuple[int, int] | None, base: Graph) -> Graph:
    """Return the graph of the user's network in a file. Raises ModelError and UsageError that name the option --first, also
    where its classes are not as many as those of the static model `base`."""
    try:
        graph = load_graph(path, size=size, labels=base.labels)
    except (ModelError, UsageError) as error:
        text = str(error).removeprefix(f"{path}: ").replace("--size", "--first-size")
        text = text.replace("choose the logits with --output NAME", "export it with the logits alone")
        raise type(error)(f"--first {path}: {text}") from error
    if graph.classes != base.classes:
        raise ModelError(
            f"--first {path}: it has {graph.classes} classes, the model has {base.classes}; the same classes in the same order "
            "are expected"
        )
    return graph


def own_network(facts: FirstNetwork, own: Side, base: Side) -> OwnNetwork:
    """Return the user's network as a chain before the static model `base`. Raises ModelError where it cannot be one."""
    model = _composed(own, base)
    try:
        graph = graph_from_proto(model, output=ANSWER, labels=base.graph.labels)
    except S2DError as error:
        raise ModelError(f"--first {facts.file}: it cannot stand before the model ({error})") from error
    if graph.tail or graph.image != base.graph.image:
        raise ModelError(f"--first {facts.file}: its logits cannot be told from its answers; export it with its logits")
    analysed = AnalysedModel.of(_answering_like(base.graph, graph))
    chain = Chain(analysed, identity_plan(analysed), static_weights(analysed.graph, analysed.channels))
    return OwnNetwork(facts, chain, model)


def _answering_like(base: Graph, graph: Graph) -> Graph:
    """Return the graph with the tail of the static model behind its logits."""
    names = {base.output: graph.output}
    tail = tuple(replace(node, inputs=tuple(names.get(n, n) for n in node.inputs)) for node in base.tail)
    constants = {n: base.constants[n] for node in tail for n in node.inputs if n in base.constants}
    return replace(
        graph,
        tail=tail,
        tail_shapes=base.tail_shapes,
        output_kind=base.output_kind,
        constants=MappingProxyType({**graph.constants, **constants}),
    )


# --- colours ------------------------------------------------------------------------------------------------


def colour_map(own: Preprocess, base: Preprocess) -> tuple[Array, Array]:
    """Return the matrix [D, C] and offset [D] that make the network's input of the model's, per pixel, float64.

    Raises UsageError where the model's input does not have the colours that the network needs.
    """
    mix = _from_pixels(own, grey=_is_grey(base)) @ _to_pixels(base)
    scale, mean, std = base.scale, np.asarray(base.mean), np.asarray(base.std)
    factor, offset = own.scale / np.asarray(own.std), np.asarray(own.mean) / np.asarray(own.std)
    return factor[:, None] * mix * (std / scale), factor * (mix @ (mean / scale)) - offset


def _is_grey(preprocess: Preprocess) -> bool:
    return preprocess.channels == 1 or preprocess.order == "GRAY"


def _to_pixels(base: Preprocess) -> Array:
    """Return the matrix from the model's channels to red, green, blue, or to one grey value."""
    if base.order == "GRAY":
        return np.full((1, 3), 1 / 3)
    return np.eye(base.channels)[::-1] if base.order == "BGR" else np.eye(base.channels)


def _from_pixels(own: Preprocess, *, grey: bool) -> Array:
    """Return the matrix from red, green, blue (or one `grey` value) to the network's channels."""
    if grey:
        return np.ones((own.channels, 1))
    if _is_grey(own):
        return np.tile(LUMA / LUMA.sum(), (own.channels, 1))
    return np.eye(own.channels)[::-1] if own.order == "BGR" else np.eye(own.channels)


def check_colours(own: Preprocess, base: Preprocess, *, known: bool, path: Path) -> None:
    """Raise UsageError unless the network's input can be made of the model's. known: whether it is known how pixels become the
    model's."""
    counts = {own.channels, base.channels}
    if len(counts) > 1 and not counts <= {1, 3}:
        raise UsageError(
            f"--first {path}: it takes {own.channels} channels, the model {base.channels}; only 1 and 3 can be made of each other"
        )
    if not (known or _is_none(*colour_map(own, base))):
        raise UsageError(
            f"--first {path}: the images are model input, and how it was made of pixels is not known, so the first network's "
            "input cannot be made of it; say it with --preprocess, --mean and --std"
        )


def _is_none(matrix: Array, offset: Array) -> bool:
    """Return whether a map of colours changes nothing, up to rounding."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return bool(np.abs(matrix - np.eye(len(matrix))).max() < UNCHANGED and np.abs(offset).max() < UNCHANGED)


# --- the whole ----------------------------------------------------------------------------------------------


@dataclass
class _Line:
    """Nodes in a line, each of which reads what the one before makes; `axis` is that of the channels, batch included."""

    last: str
    axis: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, name: str, *constants: Array | None, **attrs: Any) -> None:
        """Append a node that reads the last tensor and these constants; None where an input is left out."""
        out, inputs = f"{PREFIX}{name}", [self.last]
        for index, value in enumerate(constants):
            inputs.append("" if value is None else f"{out}.{index}")
            if value is not None:
                self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), inputs[-1]))
        self.nodes.append(onnx.helper.make_node(op, inputs, [out], name=out, **attrs))
        self.last = out


def _composed(own: Side, base: Side) -> onnx.ModelProto:
    """Return the user's network as a model that takes the static model's image, whose only output is its logits, ANSWER."""
    model = replace(own.graph, image_type="float32").to_logits_model()
    model = compose.add_prefix(model, PREFIX)
    before = _before(own, base)
    if not before.nodes:
        before.add("Identity", "image")
    before.nodes[-1].output[0] = f"{PREFIX}{own.graph.image}"
    after = _Line(f"{PREFIX}{own.graph.output}", 1)
    wanted = base.graph.shapes[base.graph.output]
    alike = own.graph.shapes[own.graph.output] == wanted
    after.add(*(("Identity", "answer.logits") if alike else ("Reshape", "answer.logits", np.array([0, *wanted]))))
    set_nodes(model.graph, [*before.nodes, *model.graph.node, *after.nodes])
    model.graph.initializer.extend([*before.constants, *after.constants])
    del model.graph.input[:], model.graph.output[:]
    taken = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(base.graph.image_type))
    shape = base.graph.shapes[base.graph.image]
    model.graph.input.append(onnx.helper.make_tensor_value_info(base.graph.image, taken, ["N", *shape]))
    answer: list[str | int] = ["N", *base.graph.shapes[base.graph.output]]
    model.graph.output.append(onnx.helper.make_tensor_value_info(ANSWER, onnx.TensorProto.FLOAT, answer))
    return _with_operator_set(model, base.graph.opset)


def _before(own: Side, base: Side) -> _Line:
    """Return the nodes from the static model's image to the network's own."""
    line = _Line(base.graph.image, base.graph.image_axis + 1)
    if base.graph.image_type != "float32":
        line.add("Cast", "float32", to=onnx.TensorProto.FLOAT)
    _add_resizing(line, image_sides(base.graph), image_sides(own.graph))
    _add_colours(line, *colour_map(own.preprocess, base.preprocess))
    if own.graph.image_axis + 1 != line.axis:
        line.add("Transpose", "layout", perm=[0, 2, 3, 1] if line.axis == 1 else [0, 3, 1, 2])
    return line


def _add_resizing(line: _Line, sides: Sequence[int], wanted: Sequence[int]) -> None:
    """Add what gives the image its other sides: linear as in `channels.image_size`, with means of whole cells before it where it
    would leave out pixels."""
    steps = [max(1, before // after) for before, after in zip(sides, wanted, strict=True)]
    if line.axis == 1 and max(steps) > MOST_SKIPPED:
        line.add("AveragePool", "means", kernel_shape=steps, strides=steps)
        sides = [before // step for before, step in zip(sides, steps, strict=True)]
    if list(sides) == list(wanted):
        return
    scales = np.ones(4, np.float32)
    for axis, before, after in zip([n for n in (1, 2, 3) if n != line.axis], sides, wanted, strict=True):
        scales[axis] = whole_scale(before, after)
    line.add("Resize", "resized", None, scales, mode="linear", coordinate_transformation_mode="half_pixel")


def _add_colours(line: _Line, matrix: Array, offset: Array) -> None:
    """Add the map of colours, as the cheapest operators that make it."""
    if _is_none(matrix, offset):
        return
    plain = matrix.astype(np.float32)
    bias = offset.astype(np.float32)
    one_each = matrix.shape[0] == matrix.shape[1] and not np.any(matrix - np.diag(np.diagonal(matrix)))
    if one_each:
        shape = (-1, 1, 1) if line.axis == 1 else (-1,)
        line.add("Mul", "scaled", np.diagonal(plain).reshape(shape))
        line.add("Add", "shifted", bias.reshape(shape))
    elif line.axis == 1:
        line.add("Conv", "colours", plain[:, :, None, None], bias)
    else:
        line.add("MatMul", "mixed", plain.T)
        line.add("Add", "shifted", bias)


def _with_operator_set(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the model in the static model's operator set, which lets all stages lie in one file; itself where it cannot be
    brought there."""
    if opset_of(model) == version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError):
        return model

"""Load an ONNX file and give a read-only view of it that is simple enough to reason about.

After `load_graph` every tensor is either a constant (a numpy array in `Graph.constants`) or computed
from the image, with the batch as axis 0 of symbolic length. Shapes here never name the batch axis:
a feature map has shape (C, H, W). How the file gets so simple stands in `simplify` and `batch`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from s2d_convert.answers import ask_file, check_rows, check_same
from s2d_convert.batch import free_batch, is_plain
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.sessions import first_line, quiet_session, save
from s2d_convert.simplify import (
    cleaned,
    names_read,
    opset_of,
    optimised,
    refuse_quantised,
    refuse_training,
    set_nodes,
    with_float32,
    with_plain_operators,
    with_recent_opset,
    without_weights,
)

# A batch length that no model uses for anything else, so that folded shapes show where the batch was.
PROBE_BATCH = 7
OTHER_BATCH = 11  # for a second look, where shapes show the first one elsewhere than on axis 0
KNOWN_DOMAINS = ("ai.onnx", "com.microsoft")
RESERVED = ("output", "confidence", "inverse_temperature")  # names of every stage file
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
IMAGE_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}
TAIL_KINDS = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities"}


@dataclass(frozen=True)
class Node:
    """One operator. `inputs` holds '' where an optional input is absent; `name` is unique in its graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.op})"


@dataclass(frozen=True)
class Graph:
    """A simplified classifier: nodes in topological order from `image` to `output` (the logits).

    `shapes` gives every computed tensor without its batch axis. `tail` is the trailing Softmax or
    LogSoftmax that was set aside (None if the model ends in logits); it is put back at export.
    `half` says that the file had float16 weights; here all numbers are float32. `folded` has the tensors whose axis 0 is
    not the batch alone (windows as rows...), with the number of its rows per image. `types` has the numpy type of each
    tensor that is not float32 (masks, indices). `image_type` is what the file takes the image as, float32 or uint8; here it is
    float32 from the first node on.
    `skeleton` is the simplified static model without its constants, which large models should not have in memory twice;
    `model` puts them together.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    image: str
    output: str
    opset: int
    skeleton: onnx.ModelProto
    tail: Node | None = None
    half: bool = False
    folded: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    image_type: str = "float32"

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each computed tensor (the image has none)."""
        return MappingProxyType({name: node for node in self.nodes for name in node.outputs})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[tuple[Node, int], ...]]:
        """For each computed tensor the (node, input index) pairs that read it."""
        table: dict[str, list[tuple[Node, int]]] = {name: [] for name in self.shapes}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name in table:
                    table[name].append((node, index))
        return MappingProxyType({name: tuple(readers) for name, readers in table.items()})

    @property
    def model(self) -> onnx.ModelProto:
        """The whole simplified static model, tail included, with a symbolic batch: the reference for latency and for
        answers. It is made anew at every call."""
        whole = _copy(self.skeleton)
        if self.image_type != "float32":
            _take_pixels(whole, self.image)
        for name, value in self.constants.items():
            whole.graph.initializer.append(numpy_helper.from_array(value, name))
        return whole

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return int(np.prod(self.shapes[self.output]))

    @property
    def output_kind(self) -> str:
        """What the static model's output means: logits, probabilities or log_probabilities."""
        return TAIL_KINDS[self.tail.op] if self.tail else "logits"

    def computed(self, node: Node) -> tuple[str, ...]:
        """The inputs of `node` that are computed from the image, in order."""
        return tuple(name for name in node.inputs if name in self.shapes)


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
    in_place = file is not None
    if model.functions:
        model, in_place = onnx.inliner.inline_local_functions(model), True
    refuse_quantised(model)
    refuse_training(model)
    half = any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    model = with_plain_operators(with_recent_opset(with_float32(cleaned(model if in_place else _copy(model)))))
    _choose_output(model, output)
    image, batch, image_type = _fix_input(model, size)
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
    return replace(_view(model, shapes), half=half, folded=folded, types=types, image_type=image_type)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    return fresh


def _take_pixels(model: onnx.ModelProto, image: str) -> None:
    """Let a model take its image as uint8, in place."""
    cast = onnx.helper.make_node("Cast", [image], [f"{image}.float32"], name=f"{image}.cast", to=onnx.TensorProto.FLOAT)
    (value,) = (i for i in model.graph.input if i.name == image)
    value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = [cast.output[0] if name == image else name for name in node.input]
    set_nodes(model.graph, [cast, *model.graph.node])


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


def _choose_output(model: onnx.ModelProto, output: str | None) -> None:
    names = [o.name for o in model.graph.output]
    if output is None and len(names) != 1:
        raise ModelError(
            f"the model has {len(names)} outputs ({', '.join(names)}); choose the logits with --output NAME"
        )
    chosen = output or names[0]
    if chosen not in names:
        raise UsageError(f"--output {chosen}: the model has no such output; it has {', '.join(names)}")
    keep = next(o for o in model.graph.output if o.name == chosen)
    del model.graph.output[:]
    model.graph.output.append(keep)
    needed, nodes = {chosen}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_read(node))
    if len(nodes) < len(model.graph.node):
        set_nodes(model.graph, reversed(nodes))


def _fix_input(model: onnx.ModelProto, size: tuple[int, int] | None) -> tuple[str, int, str]:
    """Give the image input a concrete shape and the type float32, in place; returns its name, the batch length used, and
    the type that it had (float16 and float64 are float32 by now)."""
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    read = {name for node in model.graph.node for name in names_read(node)}
    for unread in [i for i in inputs if i.name not in read]:
        inputs.remove(unread)
        model.graph.input.remove(unread)
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise ModelError(
            f"the model has {len(inputs)} inputs that are computed on ({names}); exactly one image is allowed"
        )
    image = inputs[0]
    kind = image.type.tensor_type
    if kind.elem_type not in IMAGE_TYPES:
        known = onnx.TensorProto.DataType.items()
        got = next((name.lower() for name, number in known if number == kind.elem_type), f"number {kind.elem_type}")
        raise ModelError(
            f"input '{image.name}' has type {got}; float32 and uint8 are allowed: export the model in float32"
        )
    image_type = IMAGE_TYPES[kind.elem_type]
    kind.elem_type = onnx.TensorProto.FLOAT
    dims = kind.shape.dim
    if len(dims) != 4:
        raise ModelError(f"input '{image.name}' has {len(dims)} axes; an image batch has 4 (N, C, H, W or N, H, W, C)")
    known = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
    batch = known[0] or PROBE_BATCH
    dims[0].dim_value = batch
    spatial = (1, 2) if known[3] in (1, 3, 4) and known[1] not in (1, 3, 4) else (2, 3)
    _fix_spatial(image, known, spatial, size)
    return image.name, batch, image_type


def _fix_spatial(
    image: onnx.ValueInfoProto, known: list[int | None], spatial: tuple[int, int], size: tuple[int, int] | None
) -> None:
    dims = image.type.tensor_type.shape.dim
    channel = 3 if spatial == (1, 2) else 1
    if known[channel] is None:
        raise ModelError(f"input '{image.name}' has a dynamic number of channels; export it with a fixed one")
    for position, axis in enumerate(spatial):
        if size is not None and known[axis] not in (None, size[position]):
            raise UsageError(
                f"--size {size[0]}x{size[1]}: input '{image.name}' is fixed to "
                f"{known[spatial[0]]}x{known[spatial[1]]}; leave --size away or export with a dynamic size"
            )
        if known[axis] is None:
            if size is None:
                raise ModelError(f"input '{image.name}' has a dynamic height or width; fix it with --size HxW")
            dims[axis].dim_value = size[position]


def _view(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The Graph of a simplified model, its trailing Softmax set aside."""
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise ModelError("the model has sparse initializers; export it with dense weights")
    taken: set[str] = set()
    nodes = [_node(n, index, taken) for index, n in enumerate(model.graph.node)]
    image, output = _input_name(model), model.graph.output[0].name
    tail, nodes, output = _set_tail_aside(nodes, output, shapes)
    nodes = _reaching(nodes, output)
    convs = [n for n in nodes if n.op in ("Conv", "ConvTranspose")]
    if not convs:
        raise ModelError("the model has no Conv node; only convolutional classifiers can be converted")
    logits = shapes[output][1:]
    if sum(d != 1 for d in logits) > 1 or int(np.prod(logits)) < 2:
        raise ModelError(
            f"output '{output}' has shape {('N', *logits)}; logits of shape (N, K) with K >= 2 are expected"
        )
    used = set().union(*map(names_read, model.graph.node))
    computed = {image, *(o for n in nodes for o in n.outputs)}
    return Graph(
        nodes=tuple(nodes),
        constants=MappingProxyType({k: v for k, v in constants.items() if k in used}),
        shapes=MappingProxyType({k: v[1:] for k, v in shapes.items() if k in computed}),
        image=image,
        output=output,
        opset=opset_of(model),
        skeleton=_without_constants(model),
        tail=tail,
    )


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    for part in ("node", "input", "output"):
        getattr(bare.graph, part).extend(getattr(model.graph, part))
    return bare


def _input_name(model: onnx.ModelProto) -> str:
    constants = {i.name for i in model.graph.initializer}
    return str(next(i.name for i in model.graph.input if i.name not in constants))


def _node(proto: onnx.NodeProto, index: int, taken: set[str]) -> Node:
    name = proto.name or f"{proto.op_type}_{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    attrs = {a.name: _attribute(a) for a in proto.attribute}
    return Node(name, proto.op_type, tuple(proto.input), tuple(o for o in proto.output if o), MappingProxyType(attrs))


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (int, float, str)):
        return value
    if isinstance(value, onnx.GraphProto):
        return value
    return tuple(v.decode() if isinstance(v, bytes) else v for v in value)


def _set_tail_aside(
    nodes: list[Node], output: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Node | None, list[Node], str]:
    last = next((n for n in nodes if output in n.outputs), None)
    if last is None:
        raise ModelError(f"output '{output}' is not computed by any node; logits of shape (N, K) are expected")
    made_by = {name: n for n in nodes for name in n.outputs}
    behind = []  # what only reshapes the answer: a Softmax before opset 13 was one over a flat copy
    while last is not None and last.op in RESHAPING and np.count_nonzero(np.array(shapes[output][1:]) != 1) == 1:
        behind.append(last)
        last = made_by.get(last.inputs[0])
    if last is None or last.op not in TAIL_KINDS:
        return None, nodes, output
    axis, shape = last.attrs.get("axis", -1), shapes[last.outputs[0]]
    if shape[axis % len(shape)] != np.prod(shape[1:]):
        return None, nodes, output
    tail = replace(last, attrs=MappingProxyType({"axis": 1}))
    kept = [n for n in nodes if n is not last]
    if not behind:
        return tail, kept, last.inputs[0]
    first = behind[-1]
    moved = replace(first, inputs=(last.inputs[0], *first.inputs[1:]))
    return tail, [moved if n is first else n for n in kept], output


def _reaching(nodes: list[Node], output: str) -> list[Node]:
    """The nodes that `output` depends on, in their order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]

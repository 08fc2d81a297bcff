"""The one image that goes in: which input it is, its layout, and a shape and type that are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.graph import RESERVED
from s2d_convert.frontend.layout import IMAGE_AXES, Layout, layout_of
from s2d_convert.frontend.proto import graphs, names_read, unused_stem

# A batch length that no model uses for anything else, so that folded shapes show where the batch was.
PROBE_BATCH = 7
IMAGE_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}
TAKEN_NAMES = (*RESERVED, "stage", "thresholds")  # of stage files, and of single files
IMAGE_CHANNELS = (1, 3, 4)  # of pictures, for graphs that do not tell the axis


class Image(NamedTuple):
    """The image input: its shape without the batch, the batch length used, the type that it had (float16 and float64 are
    float32 by now), the axis of its channels without the batch, and the other inputs that the file asks for and does not read."""

    name: str
    shape: tuple[int, ...]
    batch: int
    type: str
    axis: int
    unread: tuple[onnx.ValueInfoProto, ...]


def fix_image(model: onnx.ModelProto, size: tuple[int, int] | None) -> Image:
    """Give the image input a concrete shape and the type float32, in place. Raises ModelError when there is not exactly one,
    UsageError when `size` (H, W) is not its own."""
    image, unread = _only_input(model)
    kind = image.type.tensor_type
    if kind.elem_type not in IMAGE_TYPES:
        known_types = onnx.TensorProto.DataType.items()
        got = next((name.lower() for name, n in known_types if n == kind.elem_type), f"number {kind.elem_type}")
        raise ModelError(
            f"input '{image.name}' has type {got}; float32 and uint8 are allowed: export the model in float32"
        )
    image_type = IMAGE_TYPES[kind.elem_type]
    kind.elem_type = onnx.TensorProto.FLOAT
    dims = kind.shape.dim
    if not kind.HasField("shape"):  # nothing is known of it
        for _ in range(IMAGE_AXES):
            dims.add()
    if len(dims) != IMAGE_AXES:
        raise ModelError(f"input '{image.name}' has {len(dims)} axes; an image batch has 4 (N, C, H, W or N, H, W, C)")
    known = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
    layout = layout_of(model.graph, image.name) or Layout(_likely_axis(known), None)
    shape = _fixed_shape(image.name, known, layout, size)
    batch = known[0] or PROBE_BATCH
    for dim, length in zip(dims, (batch, *shape), strict=True):
        dim.dim_value = length
    return Image(image.name, shape, batch, image_type, layout.axis - 1, unread)


def with_free_names(model: onnx.ModelProto, image: Image) -> Image:
    """Return the image under a name that no stage and no single file needs for something else; tensors inside get other
    names than what a stage answers. `model` is changed in place."""
    every = list(graphs(model.graph))
    nodes = [node for graph in every for node in graph.node]
    ends = {output.name for graph in every for output in graph.output}
    inner = {name for node in nodes for name in node.output if name in RESERVED and name not in ends}
    inner.update(i.name for i in model.graph.initializer if i.name in RESERVED)
    fresh = {name: unused_stem(model.graph, f"{name}_inside", mark="") for name in sorted(inner)}
    if image.name in TAKEN_NAMES:
        fresh[image.name] = unused_stem(model.graph, f"{image.name}_image", mark="")
    if fresh:
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [fresh.get(name, name) for name in names]
        for value in (*model.graph.input, *model.graph.initializer):
            value.name = fresh.get(value.name, value.name)
    return image._replace(name=fresh.get(image.name, image.name))


def _only_input(model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, tuple[onnx.ValueInfoProto, ...]]:
    """Return the only input that is read, and copies of those that are not, which are taken away."""
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    read = {name for node in model.graph.node for name in names_read(node)}
    unread = [i for i in inputs if i.name not in read]
    copies = tuple(onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in unread)
    for spare in unread:
        inputs.remove(spare)
        model.graph.input.remove(spare)
    if len(inputs) == 1:
        return inputs[0], copies
    names = ", ".join(i.name for i in inputs) or "none"
    images = [i.name for i in inputs if _may_be_image(i)]
    if len(images) == 1 and len(inputs) > 1:
        others = ", ".join(repr(i.name) for i in inputs if i.name not in images)
        raise ModelError(
            f"the model has {len(inputs)} inputs that are computed on ({names}); exactly one image is allowed, and nothing would "
            f"feed {others} beside '{images[0]}': give the file their values as initializers (freeze variables before the export)"
        )
    raise ModelError(
        f"the model has {len(inputs)} inputs that are computed on ({names}); exactly one image is allowed: export the model "
        "with one"
    )


def _may_be_image(value: onnx.ValueInfoProto) -> bool:
    """Return whether an input is a stack of pictures, and not a number per channel."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) == IMAGE_AXES and sum(d.dim_value != 1 for d in dims[1:]) > 1


def _likely_axis(known: Sequence[int | None]) -> int:
    """Return the axis of the channels, batch included, by the lengths alone: the last one if only that can have them."""
    return 3 if known[3] in IMAGE_CHANNELS and known[1] not in IMAGE_CHANNELS else 1


def _fixed_shape(
    name: str, known: Sequence[int | None], layout: Layout, size: tuple[int, int] | None
) -> tuple[int, ...]:
    """Return the shape of the image without the batch, from what the file, the graph and `size` say."""
    shape = list(known)
    if shape[layout.axis] is None:
        shape[layout.axis] = layout.channels
    if shape[layout.axis] is None:
        raise ModelError(
            f"input '{name}' has a dynamic number of channels, and no convolution that reads it tells how many; export it with "
            "a fixed one"
        )
    spatial = [axis for axis in range(1, IMAGE_AXES) if axis != layout.axis]
    for position, axis in enumerate(spatial):
        if size is not None and known[axis] not in (None, size[position]):
            raise UsageError(
                f"--size {size[0]}x{size[1]}: input '{name}' is fixed to "
                f"{'x'.join(str(known[a] or 'any') for a in spatial)}; leave --size away or export with a dynamic size"
            )
        if shape[axis] is None:
            if size is None:
                raise ModelError(f"input '{name}' has a dynamic height or width; fix it with --size HxW")
            shape[axis] = size[position]
    return tuple(n for n in shape[1:] if n is not None)

"""The one image that goes in and the one tensor that comes out: which they are, and the shape and type of the image."""

from __future__ import annotations

import onnx

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.graph import channel_axis
from s2d_convert.frontend.proto import names_read, set_nodes

# A batch length that no model uses for anything else, so that folded shapes show where the batch was.
PROBE_BATCH = 7
IMAGE_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}


def choose_output(model: onnx.ModelProto, output: str | None) -> None:
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


def fix_input(model: onnx.ModelProto, size: tuple[int, int] | None) -> tuple[str, int, str]:
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
    spatial = (1, 2) if channel_axis(known[1:]) == 2 else (2, 3)
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

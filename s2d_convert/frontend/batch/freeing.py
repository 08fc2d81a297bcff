"""Free the batch axis of a simplified model, also where its length was baked into shapes and constants.

Exporters trace a model with one batch length and fix it in many places: in the targets of Reshape, Expand and Resize,
in constants that were spread over the batch, and in files for single images by squeezing the batch away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.batch.edit import BatchEdit, Shape
from s2d_convert.frontend.batch.squeezed import restore_batch
from s2d_convert.frontend.operator_sets import BROADCASTING
from s2d_convert.frontend.proto import attributes_of, label


def is_plain(model: onnx.ModelProto, batch: int, shapes: Mapping[str, Shape]) -> bool:
    """Return whether axis 0 of everything that is computed has the length of the batch."""
    return all(shapes[o][:1] == (batch,) for n in model.graph.node for o in n.output if o)


def has_other_rows(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Return whether a reduction is over axis 0, or an axis is put before it. In a file for one image the first axis may
    then have one row and not be the batch."""
    constants = {i.name: i for i in model.graph.initializer}
    for node in (n for n in model.graph.node if n.op_type.startswith(("Reduce", "Unsqueeze")) and n.input[0] in shapes):
        axes = attributes_of(node).get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        rank = len(shapes[node.output[0] if node.op_type == "Unsqueeze" else node.input[0]])
        if not axes or 0 in [int(axis) % rank for axis in axes]:
            return True
    return False


def free_batch(
    model: onnx.ModelProto, batch: int, shapes: Mapping[str, Shape], other: Mapping[str, Shape] | None = None
) -> tuple[dict[str, Shape], dict[str, float]]:
    """Free the batch axis of `model` in place. `other` has the shapes for another length of the batch, if known.

    Returns the shapes of all tensors, batch included, and those in which axis 0 is not the batch alone (windows as rows
    of the batch, attention with the batch in the middle), with its length over that of the batch. Raises ModelError,
    naming all nodes, where there is no telling.
    """
    edit = _Edit(model, batch, shapes, other)
    if batch == 1:
        restore_batch(edit)
    mixed = [n for n in model.graph.node for o in n.output if o and len(edit.batch_axes(o)) != 1]
    if mixed:
        names = ", ".join(dict.fromkeys(map(label, mixed)))
        raise ModelError(
            f"nodes {names}: which axis is the batch cannot be told; export the model with a dynamic batch"
        )
    for node in list(model.graph.node):
        if node.op_type in FREEING:
            FREEING[node.op_type](edit, node)
        elif node.op_type in BROADCASTING:
            edit.one_row(node)
    edit.drop_expands()
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        shape.Clear()
        shape.dim.add(dim_param="N")
        for length in edit.shapes[value.name][1:]:
            shape.dim.add(dim_value=length)
    del model.graph.value_info[:]
    folded = {o: edit.shapes[o][0] / batch for n in model.graph.node for o in n.output if o and edit.is_folded(o)}
    for output in model.graph.output:
        if output.name in folded:
            raise ModelError(
                f"output '{output.name}': its axis 0 is not the batch alone; only models that answer each image are supported"
            )
    return edit.shapes, folded


class _Edit(BatchEdit):
    """What is done to each operator."""

    def reshape(self, node: onnx.NodeProto) -> None:
        """Let the batch be the rest of the elements where nothing else is, else a copy of the input's."""
        target = self.constant(node, 1)
        if target is None:
            return
        after = self.shapes[node.output[0]]
        if self.is_folded(node.input[0]) or self.is_folded(node.output[0]):  # all axes but that of the batch are known
            (axis,) = self.batch_axes(node.output[0])
            self.put(node, 1, np.array([-1 if a == axis else n for a, n in enumerate(after)], dtype=np.int64))
        elif target[0] == after[0]:
            target[0] = -1 if -1 not in target else 0
            self.put(node, 1, target)
            _drop(node, "allowzero")  # with it 0 would be a length

    def expand(self, node: onnx.NodeProto) -> None:
        """Leave axes that keep their length, the batch among them, to broadcasting."""
        if node.input[0] in self.constants:
            return
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        if len(before) == len(after):
            kept = [1 if a == b else b for a, b in zip(before, after, strict=True)]
            self.put(node, 1, np.array(kept, dtype=np.int64))

    def resize(self, node: onnx.NodeProto) -> None:
        """Turn absolute sizes, which name the batch and the channels, into scales, and scales of some axes into those of all."""
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        rank = len(before)
        axes = [axis % rank for a in node.attribute if a.name == "axes" for axis in a.ints]
        roi, given = self.constant(node, 1), self.constant(node, 2)
        if self.constant(node, 3) is not None:
            scales = np.array([whole_scale(a, b) for a, b in zip(before, after, strict=True)], dtype=np.float32)
        elif given is not None and axes:
            scales = np.ones(rank, dtype=np.float32)
            scales[axes] = given
        else:
            return
        if axes and roi is not None and roi.size:  # where each of these axes starts, then where it ends
            whole = np.repeat([0, 1], rank).astype(roi.dtype)
            whole[[*axes, *(rank + axis for axis in axes)]] = roi
            self.put(node, 1, whole)
        self.put(node, 2, scales)
        del node.input[3:]
        _drop(node, "axes", "keep_aspect_ratio_policy")

    def concat(self, node: onnx.NodeProto) -> None:
        """Pad instead of putting a constant of one value before or behind what is computed."""
        axis = node.attribute[0].i % len(self.shapes[node.output[0]])
        while len(node.input) > 1:
            place = next((k for k in (0, len(node.input) - 1) if self._is_one_row(node.input[k])), None)
            if place is None:
                return
            padding = numpy_helper.to_array(self.constants[node.input[place]])
            rest = [name for k, name in enumerate(node.input) if k != place]
            del node.input[:]
            node.input.extend(rest)
            self._pad_after(node, axis, padding, low=place == 0)

    def _is_one_row(self, name: str) -> bool:
        """Return whether this is a float constant that is the same for every image."""
        if name not in self.constants:
            return False
        value = numpy_helper.to_array(self.constants[name])
        return value.dtype == np.float32 and value.size > 0 and bool((value == value[:1]).all())

    def _pad_after(self, node: onnx.NodeProto, axis: int, padding: np.ndarray, *, low: bool) -> None:
        """Pad what `node` makes on one side, with one value, or with zeros to which the values are added."""
        made, whole = node.output[0], self.shapes[node.output[0]]
        inner = self.unused(f"{made}.unpadded{len(node.input)}")
        node.output[0] = inner
        self.shapes[inner] = tuple(n - padding.shape[axis] if a == axis else n for a, n in enumerate(whole))
        pads = np.zeros((2, len(whole)), dtype=np.int64)
        pads[0 if low else 1, axis] = padding.shape[axis]
        is_one_value = bool((padding == padding.flat[0]).all())
        padded = made if is_one_value else self.unused(f"{inner}.padded")
        pad = onnx.helper.make_node("Pad", [inner], [padded], name=f"{node.name or made}.pad{len(node.input)}")
        self.put(pad, 1, pads.reshape(-1))
        self.put(pad, 2, np.array(padding.flat[0] if is_one_value else 0, dtype=np.float32))
        behind = [pad]
        if not is_one_value:
            self.shapes[padded] = whole
            rest = whole[axis] - padding.shape[axis]
            beside = (0, rest) if low else (rest, 0)
            full = np.pad(padding[:1], [beside if a == axis else (0, 0) for a in range(len(whole))])
            add = onnx.helper.make_node("Add", [padded], [made], name=f"{node.name or made}.fill{len(node.input)}")
            self.put(add, 1, full)
            behind.append(add)
        self._insert_behind(inner, *behind)

    def _insert_behind(self, tensor: str, *nodes: onnx.NodeProto) -> None:
        """Put nodes right behind the one that makes a tensor."""
        place = next(i for i, n in enumerate(self.model.graph.node) if tensor in n.output)
        for offset, node in enumerate(nodes, start=1):
            self.model.graph.node.insert(place + offset, node)

    def gather(self, node: onnx.NodeProto) -> None:
        """Turn the choice of one channel by a scalar into a view of the channel and a Squeeze."""
        index = self.constants.get(node.input[1])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        made = node.output[0]
        if (
            node.input[0] in self.constants
            or index is None
            or index.dims
            or axis % len(self.shapes[node.input[0]]) != 1
        ):
            return
        whole = list(self.shapes[made])
        inner = self.unused(f"{made}.unsqueezed")
        self.put(node, 1, numpy_helper.to_array(index).reshape(1))
        node.output[0] = inner
        self.shapes[inner] = (*whole[:1], 1, *whole[1:])
        squeeze = onnx.helper.make_node("Squeeze", [inner], [made], name=f"{node.name or made}.squeeze")
        self.put(squeeze, 1, np.array([1], dtype=np.int64))
        self._insert_behind(inner, squeeze)

    def one_row(self, node: onnx.NodeProto) -> None:
        """Cut a constant that was expanded over the batch back to one row."""
        rank = len(self.shapes[node.output[0]])
        for index, name in enumerate(node.input):
            if self.batch == 1 or name not in self.constants:
                continue
            value = numpy_helper.to_array(self.constants[name])
            if value.ndim == rank and len(value) == self.batch and bool((value == value[:1]).all()):
                self.put(node, index, value[:1].copy())

    # --- the whole graph ---

    def drop_expands(self) -> None:
        """Remove each Expand whose readers would have broadcast its input anyway."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        outputs = {o.name for o in self.model.graph.output}
        for node in [n for n in self.model.graph.node if n.op_type == "Expand"]:
            source, made = node.input[0], node.output[0]
            read_by = readers.get(made, [])
            if (
                made in outputs
                or source in self.constants
                or not all(self._broadcasts(r, made, source) for r in read_by)
            ):
                continue
            for reader in read_by:
                names = [source if name == made else name for name in reader.input]
                del reader.input[:]
                reader.input.extend(names)
            readers[source] += read_by
            self.model.graph.node.remove(node)

    def _broadcasts(self, node: onnx.NodeProto, made: str, source: str) -> bool:
        if node.op_type not in BROADCASTING:
            return False
        operands = [source if name == made else name for name in node.input]
        shapes = [self.shapes[n] if n in self.shapes else tuple(self.constants[n].dims) for n in operands]
        return np.broadcast_shapes(*shapes) == self.shapes[node.output[0]]


def _drop(node: onnx.NodeProto, *names: str) -> None:
    """Take these attributes away."""
    for attribute in [a for a in node.attribute if a.name in names]:
        node.attribute.remove(attribute)


def whole_scale(before: int, after: int) -> float:
    """Return a float32 scale that takes `before` elements to `after`, rounding down, whether counted in 32 or 64 bits."""
    scale = np.float32(after / before)
    while min(np.floor(np.float32(before) * scale), np.floor(before * float(scale))) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


FREEING: dict[str, Callable[[_Edit, onnx.NodeProto], None]] = {
    "Concat": _Edit.concat,
    "Expand": _Edit.expand,
    "Gather": _Edit.gather,
    "Reshape": _Edit.reshape,
    "Resize": _Edit.resize,
}

"""Put the batch back where a file for one image has squeezed it away.

Nodes after such a Squeeze work on one axis fewer, until an Unsqueeze or a Reshape restores it. The axes of the nodes in between
are shifted by one, so that they do not touch the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.batch.edit import BatchEdit
from s2d_convert.frontend.operator_sets import ELEMENTWISE, WITH_AXIS
from s2d_convert.frontend.proto import attributes_of, label


def restore_batch(edit: BatchEdit) -> None:
    """Put back the batch of one where a Squeeze took it away, until an Unsqueeze or a Reshape does it anyway."""
    lost: set[str] = set()
    for node in edit.model.graph.node:
        without = {name for name in node.input if name in lost}
        if without:
            if _carry_on(edit, node, without):
                lost.update(node.output)
        elif node.op_type == "Squeeze" and _keep_batch(edit, node):
            lost.add(node.output[0])
        elif node.op_type == "Unsqueeze":
            _put_behind_the_batch(edit, node)
    for name in lost:
        edit.shapes[name] = (1, *edit.shapes[name])


def _keep_batch(edit: BatchEdit, node: onnx.NodeProto) -> bool:
    """Let a Squeeze leave the batch alone; whether its output should not have one."""
    taken, name = _squeezed_axes(edit, node), node.input[0]
    if 0 not in taken or edit.batch_axes(name) != [0]:
        return False
    if taken == [0] and edit.shapes[name][:2] == (1, 1) and name not in edit.other:  # as well the axis behind the batch
        _set_axes(edit, node, [1])
        return False
    _set_axes(edit, node, [a for a in taken if a])
    return True


def _put_behind_the_batch(edit: BatchEdit, node: onnx.NodeProto) -> None:
    """Let an Unsqueeze in front of a batch of one put its axis behind it, unless a look at another batch has told where the
    batch is."""
    axes, before = edit.constant(node, 1), edit.shapes.get(node.input[0], ())
    if axes is not None and axes.tolist() == [0] and before[:1] == (1,) and node.output[0] not in edit.other:
        _set_axes(edit, node, [1])


def _squeezed_axes(edit: BatchEdit, node: onnx.NodeProto) -> list[int]:
    """Return the axes that a Squeeze takes away."""
    shape, axes = edit.shapes[node.input[0]], edit.constant(node, 1)
    return [a for a, n in enumerate(shape) if n == 1] if axes is None else [int(a) % len(shape) for a in axes]


def _set_axes(edit: BatchEdit, node: onnx.NodeProto, axes: Sequence[int]) -> None:
    if axes:
        edit.put(node, 1, np.array(axes, dtype=np.int64))
    else:
        node.op_type = "Identity"
        del node.input[1:]


def _carry_on(edit: BatchEdit, node: onnx.NodeProto, lost: set[str]) -> bool:
    """Let a node work on a tensor that has its batch back; whether its output should not have one."""
    shape = edit.shapes[node.output[0]]
    op = node.op_type
    if op == "Unsqueeze":
        axes = sorted(int(a) % len(shape) for a in _required(edit, node, 1))
        _set_axes(edit, node, axes[1:] if axes[0] == 0 else [a + 1 for a in axes])
        return axes[0] != 0
    if op == "Reshape":
        if shape[:1] == (1,):
            return False
        edit.put(node, 1, np.array([1, *shape], dtype=np.int64))
        return True
    first = node.input[0] in lost
    if op in WITH_AXIS and lost.issuperset(node.input):
        _shift_axis(node)
    elif op in SHIFTING and first:
        SHIFTING[op](edit, node)
    elif op.startswith("Reduce") and first:
        _shift_reduction(edit, node)
    elif not (op in ELEMENTWISE or (op == "MatMul" and node.input[1] not in lost)):
        raise ModelError(
            f"node {label(node)}: the batch was squeezed away before it; export the model with a dynamic batch"
        )
    return True


def _required(edit: BatchEdit, node: onnx.NodeProto, index: int) -> np.ndarray:
    value = edit.constant(node, index)
    assert value is not None, "the operator's definition asks for this input"
    return value


# --- operators with axes ----------------------------------------------------------------------------


def _shift_axis(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "axis" and attribute.i >= 0:
            attribute.i += 1


def _shift_default_axis(edit: BatchEdit, node: onnx.NodeProto) -> None:
    """Shift an axis that is the first one where it is not given."""
    if not any(a.name == "axis" for a in node.attribute):
        node.attribute.append(helper.make_attribute("axis", 0))
    _shift_axis(node)


def _shift_last_axis(edit: BatchEdit, node: onnx.NodeProto) -> None:
    _shift_axis(node)


def _shift_reduction(edit: BatchEdit, node: onnx.NodeProto) -> None:
    """Reduce over the same axes: without any, over all but the batch."""
    rank = len(edit.shapes[node.input[0]])
    attribute = next((a for a in node.attribute if a.name == "axes"), None)
    given = list(attribute.ints) if attribute is not None else edit.constant(node, 1)
    if given is None and attributes_of(node).get("noop_with_empty_axes", 0):
        return
    axes = [int(a) % rank + 1 for a in (range(rank) if given is None else given)]
    by_input = edit.opset >= 18 or node.op_type == "ReduceSum"
    if by_input:
        edit.put(node, 1, np.array(axes, dtype=np.int64))
        return
    if attribute is not None:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("axes", axes))


def _shift_squeeze(edit: BatchEdit, node: onnx.NodeProto) -> None:
    _set_axes(edit, node, [a + 1 for a in _squeezed_axes(edit, node)])


def _shift_slice(edit: BatchEdit, node: onnx.NodeProto) -> None:
    given, rank = edit.constant(node, 3), len(edit.shapes[node.input[0]])
    axes = range(len(_required(edit, node, 1))) if given is None else given
    edit.put(node, 3, np.array([int(a) % rank + 1 for a in axes], dtype=np.int64))


def _shift_pad(edit: BatchEdit, node: onnx.NodeProto) -> None:
    axes, rank = edit.constant(node, 3), len(edit.shapes[node.input[0]])
    if axes is not None:
        edit.put(node, 3, np.array([int(a) % rank + 1 for a in axes], dtype=np.int64))
        return
    low, high = _required(edit, node, 1).reshape(2, rank)
    edit.put(node, 1, np.array([0, *low, 0, *high], dtype=np.int64))


def _shift_transpose(edit: BatchEdit, node: onnx.NodeProto) -> None:
    order = attributes_of(node).get("perm", range(len(edit.shapes[node.input[0]]))[::-1])
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("perm", [0, *(int(a) + 1 for a in order)]))


def _shift_lengths(edit: BatchEdit, node: onnx.NodeProto) -> None:
    """Expand to, or tile by, one more length in front, which leaves the batch as it is."""
    target = _required(edit, node, 1)
    if len(target) >= len(edit.shapes[node.input[0]]):
        edit.put(node, 1, np.array([1, *target], dtype=np.int64))


SHIFTING: dict[str, Callable[[BatchEdit, onnx.NodeProto], None]] = {
    "Expand": _shift_lengths,
    "Gather": _shift_default_axis,
    "Hardmax": _shift_last_axis,
    "LayerNormalization": _shift_last_axis,
    "LpNormalization": _shift_last_axis,
    "Pad": _shift_pad,
    "Slice": _shift_slice,
    "Split": _shift_default_axis,
    "Squeeze": _shift_squeeze,
    "Tile": _shift_lengths,
    "Transpose": _shift_transpose,
}

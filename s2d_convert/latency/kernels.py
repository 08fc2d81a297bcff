"""The work that onnxruntime's CPU provider does for a model, counted from the graph alone, without a clock or a session.

onnxruntime keeps the tensors of most convolutional graphs in a blocked layout (NCHWc, blocks of 8 or 16 channels; some
processors have none). It folds an activation or a sum into the convolution before it. It reorders a tensor to the plain
layout for whatever cannot read blocks: a slice, a link, an odd number of channels. So the cost of an operator depends on
its neighbours. `work_of` follows onnxruntime's rules (core/optimizer/nchwc_transformer.cc, conv_activation_fusion.cc) as
far as they decide which kernels run, and counts the calls of each kind of kernel and the size of their work.

Letters: C channels, H W. Amounts are for one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import onnx
from onnx import numpy_helper

# Amounts of work by "kind|geometry|quantity". The quantities are `calls`, `mmac` (million multiply-accumulates), `kin` and
# `kout` (thousand elements read and written).
Work = Mapping[str, float]

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Shape", "Dropout"})
FREE = frozenset({"Constant", "ConstantOfShape", "Identity"})
CHANNEL_ALIGNMENT = 4  # only multiples of it are reordered


def work_of(model: onnx.ModelProto, *, block: int) -> Work:
    """Return the work of one run of a stage or of the static model.

    block: channels per block of the blocked layout, 1 for the plain layout.
    """
    reader = _Reader(model.graph, block)
    for node in model.graph.node:
        reader.read(node)
    return reader.close()


def without_geometry(key: str) -> str:
    """Return the key of the same kind and quantity with any geometry."""
    kind, _, quantity = key.split("|")
    return f"{kind}||{quantity}"


class _Reader:
    """A walk over a graph in topological order, with the layouts in which each tensor exists and the work counted so far."""

    def __init__(self, graph: onnx.GraphProto, block: int) -> None:
        self.graph, self.block = graph, block
        values = [*graph.value_info, *graph.input, *graph.output]
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in values}
        self.constants = _constant_shapes(graph)
        self.readers: dict[str, int] = defaultdict(int)
        for node in graph.node:
            for name in node.input:
                self.readers[name] += 1
        self.outputs = {o.name for o in graph.output}
        self.plain = {i.name for i in graph.input}
        self.blocked: set[str] = set()  # computed in the blocked layout
        self.copied: set[str] = set()  # computed in the plain layout, then reordered for convolutions
        self.fusable: dict[str, str] = {}  # outputs of a convolution, alone ("conv") or with a sum ("sum")
        self.work: dict[str, float] = defaultdict(float)

    def read(self, node: onnx.NodeProto) -> None:
        """Count one node."""
        inputs = [name for name in node.input if name and name not in self.constants]
        if node.op_type in FREE or not inputs:
            if inputs and node.output[0] in self.outputs:
                self._need_plain(inputs[0])  # an Identity, which onnxruntime keeps here
                self.plain.update(node.output)
            else:
                self._pass_on(node, inputs)
        elif node.op_type == "Conv":
            self._conv(node, inputs[0])
        elif node.op_type in FUSED_ACTIVATIONS:
            self._activation(node, inputs[0])
        elif node.op_type in ("Add", "Sum") and len(inputs) == 2:
            self._sum(node, inputs)
        elif self._keeps_blocks(node, inputs):
            self._spend(node.op_type, "blocked", calls=1, kin=self._size(inputs[0]) / 1e3)
            self.blocked.update(node.output)
            if node.op_type == "BatchNormalization":
                self.fusable[node.output[0]] = "sum"
        else:
            self._other(node, inputs)

    def close(self) -> Work:
        """Return all work that was counted, including one call of the session and the reordering of the outputs."""
        for name in self.outputs:
            self._need_plain(name)
        kin = sum(self._size(i.name) for i in self.graph.input) / 1e3
        kout = sum(self._size(name) for name in self.outputs) / 1e3
        self._spend("session", "", calls=1, kin=kin, kout=kout)
        return {key: amount for key, amount in self.work.items() if amount}

    def _spend(self, kind: str, geometry: str, **amounts: float) -> None:
        for quantity, amount in amounts.items():
            self.work[f"{kind}|{geometry}|{quantity}"] += amount

    def _size(self, name: str) -> int:
        return prod(self.shapes.get(name, [0]))

    def _need_plain(self, name: str) -> None:
        if name in self.blocked and name not in self.plain:
            self._spend("ReorderOutput", "", calls=1, kin=self._size(name) / 1e3)
            self.plain.add(name)

    def _need_blocked(self, name: str) -> None:
        if name not in self.blocked and name not in self.copied:
            self._spend("ReorderInput", "", calls=1, kin=self._size(name) / 1e3)
            self.copied.add(name)

    def _pass_on(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        for name in node.output:
            (self.blocked if inputs and inputs[0] in self.blocked else self.plain).add(name)

    def _conv(self, node: onnx.NodeProto, source: str) -> None:
        out, (rows, columns, *kernel) = node.output[0], self.constants.get(node.input[1], [1, 1, 1, 1])
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        kind = self._conv_kind(rows, columns, int(attrs.get("group", 1)))
        is_blocked = kind in ("conv", "stem", "depthwise", "grouped")
        (self._need_blocked if is_blocked and kind != "stem" else self._need_plain)(source)
        padded = -(-rows // self.block) * self.block if is_blocked else rows
        sizes = self.shapes[out][1:]
        strides = attrs.get("strides", [1] * len(kernel))
        geometry = f"{'x'.join(map(str, kernel))}/{'x'.join(map(str, strides))} {'x'.join(map(str, sizes))}"
        pixels = prod(sizes)
        mmac = padded * columns * prod(kernel) * pixels / 1e6
        if kind in ("stem", "depthwise"):
            self._spend(kind, geometry, calls=1, mmac=mmac)
        else:
            read = columns * pixels * prod(strides)
            self._spend(kind, geometry, calls=1, mmac=mmac, kin=read / 1e3, kout=padded * pixels / 1e3)
        (self.blocked if is_blocked else self.plain).add(out)
        self.fusable[out] = "conv"

    def _conv_kind(self, rows: int, columns: int, groups: int) -> str:
        """Return the kernel of a convolution, given the weight's rows and columns and the groups."""
        block, shape = self.block, "depthwise" if columns == 1 else "grouped"
        if groups == 1:
            if block > 1 and columns < block:
                return "stem"  # reads the plain layout and writes the blocked one
            return "conv" if block > 1 and columns % CHANNEL_ALIGNMENT == 0 else "conv in plain layout"
        if columns == 1 and rows == groups:  # padded with zero channels, like the rows of other convolutions
            is_blocked = rows % CHANNEL_ALIGNMENT == 0
        else:
            is_blocked = columns % block == 0 and rows // groups % block == 0
        return shape if block > 1 and is_blocked else f"{shape} in plain layout"

    def _is_fusable(self, name: str) -> bool:
        return name in self.fusable and self.readers[name] == 1 and name not in self.outputs

    def _activation(self, node: onnx.NodeProto, source: str) -> None:
        if not self._is_fusable(source):
            self._spend(node.op_type, "", calls=1, kout=self._size(node.output[0]) / 1e3)
        self._pass_on(node, [source])

    def _sum(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        """Count a sum. A sum that is folded into the convolution before it costs only the reading."""
        out = node.output[0]
        kout = self._size(out) / 1e3
        if not all(name in self.blocked for name in inputs):
            for name in inputs:
                self._need_plain(name)
        fused = any(self._is_fusable(name) and self.fusable[name] == "conv" for name in inputs)
        together = all(name in self.blocked for name in inputs)
        if fused and (together or self.block == 1):
            self._spend("sum in conv", "", kout=kout)
            self.fusable[out] = "sum"
        else:
            self._spend(node.op_type, "", calls=1, kout=kout)
        (self.blocked if together else self.plain).add(out)

    def _keeps_blocks(self, node: onnx.NodeProto, inputs: Sequence[str]) -> bool:
        """Return whether a pool, norm or concatenation runs in the blocked layout."""
        if node.op_type not in POOLS and node.op_type not in ("BatchNormalization", "Concat"):
            return False
        return all(name in self.blocked and self.shapes[name][0] % self.block == 0 for name in inputs)

    def _other(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        """Count an operator that knows only the plain layout."""
        for name in inputs:
            self._need_plain(name)
        macs = self._products(node, inputs)
        if node.op_type == "Gemm":
            self.fusable[node.output[0]] = "sum"
        if macs:
            self._spend(node.op_type, "", calls=1, mmac=macs / 1e6)
        elif node.op_type in VIEWS:
            self._spend(node.op_type, "", calls=1)
        else:
            moved = max(self._size(name) for name in (inputs[0], *node.output))
            self._spend(node.op_type, "", calls=1, kout=moved / 1e3)
        self.plain.update(node.output)

    def _products(self, node: onnx.NodeProto, inputs: Sequence[str]) -> float:
        """Return the multiply-accumulates of a matrix product or transposed convolution, 0 for other operators."""
        weights = [self.constants[name] for name in node.input if len(self.constants.get(name, [])) > 1]
        if node.op_type == "ConvTranspose" and weights:
            return prod(weights[0]) * prod(self.shapes.get(inputs[0], [1, 1, 1])[1:])
        if node.op_type in ("MatMul", "Gemm"):
            inner = weights[0][-1 if node.op_type == "Gemm" else -2] if weights else self.shapes[inputs[0]][-1]
            return self._size(node.output[0]) * inner
        return 0.0


def _constant_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Return the shapes of all constants: initializers, and weights that are stored as a fill value or in float16."""
    shapes: dict[str, list[int]] = {i.name: list(i.dims) for i in graph.initializer}
    stored: dict[str, Any] = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in stored:
            shapes[node.output[0]] = numpy_helper.to_array(stored[node.input[0]]).tolist()
        elif node.op_type == "Cast" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes

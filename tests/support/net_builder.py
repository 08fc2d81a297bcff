"""Builds small ONNX classifiers op by op, with seeded weights and all shapes known.

Tensors are named by strings and shapes leave the batch out: a feature map is (C, H, W), features are (F,).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

Shape = tuple[int, ...]
OPSET = 17
IR_VERSION = 8  # the one that belongs to this opset
TAGS = "tags"
RELU_GAIN = sqrt(2)  # what ReLU takes from the standard deviation
END = 2**63 - 1  # "to the end" of a Slice


class Net:
    """A classifier under construction: nodes, weights, shapes, and the tags of the parts that were used.

    `maps` are feature maps (C, H, W) that later parts may return to: the outputs of convs and of whole blocks.
    """

    def __init__(self, image: Shape, *, seed: int) -> None:
        self.image = "image"
        self.shapes: dict[str, Shape] = {self.image: image}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.maps: list[str] = []
        self.tags: list[str] = []
        self.rng = np.random.default_rng(seed)

    # --- the base -----------------------------------------------------------------------------------

    def const(self, value: ArrayLike) -> str:
        """The name of a new initializer; integers become int64, floats float32."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def ops(self, op: str, inputs: Sequence[str], shapes: Sequence[Shape], **attrs: Any) -> list[str]:
        """The output names of a new node, one for each of `shapes`."""
        index = len(self.nodes)
        names = [f"t{index}"] if len(shapes) == 1 else [f"t{index}_{i}" for i in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{index}", **attrs))
        self.shapes.update(zip(names, shapes, strict=True))
        return names

    def op(self, op: str, *inputs: str, shape: Shape | None = None, **attrs: Any) -> str:
        """The one output of a new node; its shape is that of the first input unless given."""
        return self.ops(op, inputs, [self.shapes[inputs[0]] if shape is None else shape], **attrs)[0]

    def normal(self, *shape: int, std: float) -> NDArray[np.float64]:
        """Normal random numbers."""
        return self.rng.normal(scale=std, size=shape)

    # --- layers with weights ------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        c_out: int,
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        pads: Shape | str = "same",
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """Conv. `pads` is (top, left, bottom, right), "same", "valid" or "auto" (the attribute SAME_UPPER)."""
        c_in, *size = self.shapes[x]
        spans = [dilation * (k - 1) + 1 for k in kernel]
        if pads == "same":
            pads = (*((s - 1) // 2 for s in spans), *(s // 2 for s in spans))
        elif pads == "valid":
            pads = (0, 0, 0, 0)
        if isinstance(pads, str):
            place: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
            out = [-(-n // stride) for n in size]
        else:
            place = {"pads": pads}
            out = [(n + pads[i] + pads[i + 2] - spans[i]) // stride + 1 for i, n in enumerate(size)]
        fan_in = c_in // groups * prod(kernel)
        weights = [self.const(self.normal(c_out, c_in // groups, *kernel, std=gain / sqrt(fan_in)))]
        if bias:
            weights.append(self.const(self.normal(c_out, std=0.2)))
        place |= {"kernel_shape": kernel, "strides": (stride, stride), "dilations": (dilation, dilation)}
        self.maps.append(self.op("Conv", x, *weights, shape=(c_out, *out), group=groups, **place))
        return self.maps[-1]

    def norm(self, x: str) -> str:
        """BatchNormalization with statistics that do something."""
        c = self.shapes[x][0]
        scale, var = self.rng.uniform(0.6, 1.4, c), self.rng.uniform(0.7, 1.4, c)
        parts = scale, self.normal(c, std=0.2), self.normal(c, std=0.2), var
        return self.op("BatchNormalization", x, *(self.const(p) for p in parts), epsilon=1e-3)

    def linear(self, x: str, out: int, *, spelling: str = "Gemm", gain: float = 1.0) -> str:
        """A linear layer on features (F,): "Gemm", "GemmT" (transB) or "MatMul" (with an Add for the bias)."""
        (features,) = self.shapes[x]
        weight = self.normal(features, out, std=gain / sqrt(features))
        bias = self.const(self.normal(out, std=0.2))
        if spelling == "MatMul":
            return self.op("Add", self.op("MatMul", x, self.const(weight), shape=(out,)), bias)
        trans = spelling == "GemmT"
        return self.op("Gemm", x, self.const(weight.T if trans else weight), bias, shape=(out,), transB=int(trans))

    # --- pooling ------------------------------------------------------------------------------------

    def pool(self, x: str, op: str, *, kernel: int, stride: int, pad: int = 0, ceil: bool = False) -> str:
        """MaxPool or AveragePool (which leaves the padding out of the mean)."""
        c, *size = self.shapes[x]
        steps = [n + 2 * pad - kernel for n in size]
        out = [(-(-n // stride) if ceil else n // stride) + 1 for n in steps]
        square = {"kernel_shape": (kernel, kernel), "strides": (stride, stride), "pads": (pad,) * 4}
        return self.op(op, x, shape=(c, *out), ceil_mode=int(ceil), **square)

    def global_pool(self, x: str, *, spelling: str = "GlobalAveragePool") -> str:
        """(C, 1, 1) from (C, H, W) by GlobalAveragePool, GlobalMaxPool or ReduceMean."""
        attrs = {"axes": (2, 3), "keepdims": 1} if spelling.startswith("Reduce") else {}
        return self.op(spelling, x, shape=(self.shapes[x][0], 1, 1), **attrs)

    # --- several tensors ----------------------------------------------------------------------------

    def concat(self, *tensors: str) -> str:
        """Concat along the channels."""
        _, *rest = self.shapes[tensors[0]]
        return self.op("Concat", *tensors, shape=(sum(self.shapes[t][0] for t in tensors), *rest), axis=1)

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Split along the channels."""
        _, *rest = self.shapes[x]
        return self.ops("Split", [x, self.const(list(sizes))], [(size, *rest) for size in sizes], axis=1)

    # --- movement -----------------------------------------------------------------------------------

    def slice(self, x: str, *ranges: tuple[int, int, int, int]) -> str:
        """Slice by (axis, start, end, step) with the batch as axis 0; `end` may be END."""
        shape = list(self.shapes[x])
        for axis, start, end, step in ranges:
            shape[axis - 1] = len(range(shape[axis - 1])[start:end:step])
        axes, starts, ends, steps = (self.const(list(column)) for column in zip(*ranges, strict=True))
        return self.op("Slice", x, starts, ends, axes, steps, shape=tuple(shape))

    def gather(self, x: str, channels: Sequence[int]) -> str:
        """Gather of channels."""
        _, *rest = self.shapes[x]
        return self.op("Gather", x, self.const(list(channels)), shape=(len(channels), *rest), axis=1)

    def pad(self, x: str, before: Shape, after: Shape, *, mode: str = "constant") -> str:
        """Pad of (C, H, W) by `before` and `after`."""
        shape = tuple(map(sum, zip(self.shapes[x], before, after, strict=True)))
        return self.op("Pad", x, self.const([0, *before, 0, *after]), shape=shape, mode=mode)

    def reshape(self, x: str, *shape: int, batch: int = 0) -> str:
        """Reshape; `batch` is how axis 0 is spelled: 0 (copied) or -1 (whatever is left)."""
        return self.op("Reshape", x, self.const([batch, *shape]), shape=shape)

    def transpose(self, x: str, *perm: int) -> str:
        """Transpose; `perm` counts the batch, which stays first."""
        return self.op("Transpose", x, shape=tuple(self.shapes[x][p - 1] for p in perm[1:]), perm=perm)

    def flatten(self, x: str) -> str:
        """(F,) from (C, H, W)."""
        return self.op("Flatten", x, shape=(prod(self.shapes[x]),), axis=1)

    # --- the end ------------------------------------------------------------------------------------

    def model(self, output: str) -> onnx.ModelProto:
        """The ONNX model; all shapes are written into it, for the checker to compare with what it infers."""
        values = {
            name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])
            for name, shape in self.shapes.items()
        }
        ends = [values.pop(name) for name in (self.image, output)]
        graph = helper.make_graph(
            self.nodes, "random", ends[:1], ends[1:], self.weights, value_info=list(values.values())
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="random_graphs")
        helper.set_model_props(model, {TAGS: " ".join(self.tags)})
        return model


def tags_of(model: onnx.ModelProto) -> list[str]:
    """The parts that a generated model is made of, in order: "block:residual", "act:Relu", "head:mlp"..."""
    (tags,) = [str(prop.value) for prop in model.metadata_props if prop.key == TAGS]
    return tags.split()


def describe(model: onnx.ModelProto) -> str:
    """The model as text without the numbers in its weights: small enough for a test report."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    constants = list(copy.graph.initializer)
    del copy.graph.initializer[:]
    integers = []
    for constant in constants:
        if constant.data_type == onnx.TensorProto.INT64:
            integers.append(constant)
        else:
            copy.graph.value_info.append(
                helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            )
    copy.graph.initializer.extend(integers)
    return onnx.printer.to_text(copy)

"""One-node models, and how to compare what onnxruntime and `s2d_convert.network.converters.lower` make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from s2d_convert.frontend.graph import Node
from s2d_convert.network.converters.lower import lower

Array = NDArray[Any]
DEFAULT_OPSET = 17


@dataclass(frozen=True)
class Feed:
    """An operand that is fed: `shape` without the batch; `kind` is normal, positive, ties, integer, index or bool."""

    shape: tuple[int, ...]
    kind: str = "normal"

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        shape = (batch, *self.shape)
        if self.kind == "bool":
            return rng.random(shape) < 0.5
        if self.kind == "index":
            return rng.integers(-4, 4, shape)
        if self.kind == "integer":
            return rng.integers(-9, 9, shape)
        values = rng.normal(size=shape)
        if self.kind == "positive":
            values = np.abs(values) + 0.1
        if self.kind == "ties":  # halves and equal neighbours
            values = np.round(values * 2) / 2
        return values.astype(np.float32)


Operand = Feed | Array | None


@dataclass(frozen=True)
class Case:
    """A one-node model; operands are fed (Feed), constant (array) or absent (None)."""

    op: str
    operands: tuple[Operand, ...]
    attrs: dict[str, Any]
    outputs: int
    opset: int
    batches: tuple[int, ...]

    def __str__(self) -> str:
        kinds = ("x".join(map(str, o.shape)) if o is not None else "none" for o in self.operands)
        attrs = (f"{k}={v}" for k, v in self.attrs.items())
        return "-".join((self.op, str(self.opset), *kinds, *attrs)).replace(" ", "")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple("" if o is None else f"in{i}" for i, o in enumerate(self.operands))

    @property
    def constants(self) -> dict[str, Array]:
        named = zip(self.names, self.operands, strict=True)
        return {name: o for name, o in named if isinstance(o, np.ndarray)}

    @property
    def node(self) -> Node:
        attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in self.attrs.items()}
        return Node("n", self.op, self.names, tuple(f"out{i}" for i in range(self.outputs)), attrs)

    def feeds(self, batch: int) -> dict[str, Array]:
        rng = np.random.default_rng(crc32(f"{self}{batch}".encode()))
        named = zip(self.names, self.operands, strict=True)
        return {name: o.draw(rng, batch) for name, o in named if isinstance(o, Feed)}


def case(
    op: str,
    *operands: Operand,
    opset: int = DEFAULT_OPSET,
    outputs: int = 1,
    batches: tuple[int, ...] = (1, 3),
    **attrs: Any,
) -> Case:
    return Case(op, operands, attrs, outputs, opset, batches)


def session(made: Case) -> ort.InferenceSession:
    """The case as an onnxruntime session with a symbolic batch."""
    feeds = made.feeds(1)
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), ["N", *v.shape[1:]])
        for k, v in feeds.items()
    ]
    node = helper.make_node(made.op, made.names, made.node.outputs, **made.attrs)
    outputs = [onnx.ValueInfoProto(name=name) for name in made.node.outputs]
    constants = [numpy_helper.from_array(v, k) for k, v in made.constants.items()]
    graph = helper.make_graph([node], "case", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", made.opset)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def torch_inputs(made: Case, feeds: dict[str, Array]) -> list[Tensor | None]:
    values = {**feeds, **made.constants}
    return [torch.from_numpy(values[name].copy()) if name else None for name in made.names]


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def run_torch(made: Case, feeds: dict[str, Array]) -> tuple[Tensor, ...]:
    return as_tuple(lower(made.node, made.constants)(*torch_inputs(made, feeds)))


def assert_same(made: Case) -> None:
    """Torch answers as onnxruntime: number of outputs, shapes, kinds of type, values."""
    model = session(made)
    for batch in made.batches:
        feeds = made.feeds(batch)
        wanted, got = model.run(None, feeds), run_torch(made, feeds)
        assert len(got) == len(wanted)
        for one, reference in zip(got, wanted, strict=True):
            value = one.numpy()
            assert value.shape == reference.shape
            assert value.dtype.kind == reference.dtype.kind
            np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-5, err_msg=str(made))


def floats(*shape: int, seed: int = 0, positive: bool = False) -> Array:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.abs(values) + np.float32(0.1) if positive else values


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def number(value: float) -> Array:
    return np.array(value, dtype=np.float32)

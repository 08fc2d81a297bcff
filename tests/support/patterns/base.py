"""The registry of patterns and what most of them stand in: a conv before, a conv after, and a pooled linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

Array = NDArray[Any]
# A tuple is the shape of a random initializer; a list or an array is its value.
Weight = tuple[int, ...] | Sequence[float] | Array
Given = Mapping[str, Weight]
NOTHING: Given = {}
CLASSES = 10
SIZE = 8
CHANNELS = 8
LAST = 16  # channels of the conv after a pattern
ALL = 0.9  # the share of the MACs that splits where nothing but the classifier stays whole


@dataclass(frozen=True)
class Pattern:
    """Builds one small net; at least a share `splits` of its MACs can be split by channels."""

    build: Callable[..., onnx.ModelProto]
    splits: float
    case: tuple[Any, ...] = ()

    def __call__(self) -> onnx.ModelProto:
        return self.build(*self.case)


PATTERNS: dict[str, Pattern] = {}


def pattern(
    splits: float = ALL, each: Sequence[Any] = ()
) -> Callable[[Callable[..., onnx.ModelProto]], Callable[..., onnx.ModelProto]]:
    """Register the decorated function under its name, or once for each of its arguments `each`."""

    def register(build: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
        name = build.__name__
        found = {f"{name}-{case}": Pattern(build, splits, (case,)) for case in each}
        found = found or {name: Pattern(build, splits)}
        twice = PATTERNS.keys() & found.keys()
        if twice:
            raise ValueError(f"pattern {twice} is registered already; choose another name")
        PATTERNS.update(found)
        return build

    return register


def net(
    text: str, given: Given = NOTHING, *, opset: int = 17, functions: str = "", **weights: Weight
) -> onnx.ModelProto:
    """The model of an ONNX text, with an initializer for each of `given` and `weights`."""
    own = ', "own" : 1' if functions else ""
    header = f'<ir_version: {8 if opset < 18 else 10}, opset_import: ["" : {opset}{own}]>'
    model = parser.parse_model(f"{header} g {text} {functions}")
    for name, value in {**given, **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(_value(name, value), name))
    onnx.checker.check_model(model)
    return model


def _value(name: str, value: Weight) -> Array:
    if isinstance(value, tuple):
        return normal(*value, seed=crc32(name.encode()))
    found = np.asarray(value)
    if isinstance(value, np.ndarray):
        return found
    return found.astype(np.int64 if found.dtype.kind == "i" else np.float32)


def number(value: float) -> Array:
    """A float32 constant without axes."""
    return np.array(value, np.float32)


def normal(*shape: int, seed: int = 0) -> Array:
    """Random weights that keep activations O(1): the axes after the first are summed over."""
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def positive(*shape: int, seed: int = 0) -> Array:
    """Random scales and variances."""
    return np.random.default_rng((seed, 1)).uniform(0.6, 1.4, shape).astype(np.float32)


def norm(name: str, channels: int) -> dict[str, Weight]:
    """The four weights of a BatchNormalization: `name` with s, b, m and v after it."""
    seed = crc32(name.encode())
    shifts: dict[str, Weight] = {name + k: normal(channels, seed=seed + i) for i, k in enumerate("bm")}
    return shifts | {name + k: positive(channels, seed=seed + i) for i, k in enumerate("sv")}


def around(
    middle: str,
    given: Given = NOTHING,
    *,
    channels: int = CHANNELS,
    made: int = CHANNELS,
    batch: str = "N",
    opset: int = 17,
    functions: str = "",
    **weights: Weight,
) -> onnx.ModelProto:
    """`middle` makes y (`made` channels) of x (`channels`), between two convs; a pooled linear ends the net.

    Its own tensors and weights need other names than those below.
    """
    return net(
        f"""(float[{batch},3,{SIZE},{SIZE}] image) => (float[{batch},{CLASSES}] logits) {{
            s = Conv<pads=[1,1,1,1]>(image, ws, bs)  x = Relu(s)
            {middle}
            e = Conv<pads=[1,1,1,1]>(y, we, be)  z = Relu(e)
            p = GlobalAveragePool(z)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl, bl)
        }}""",
        {
            "ws": (channels, 3, 3, 3), "bs": (channels,), "we": (LAST, made, 3, 3), "be": (LAST,),
            "wl": (CLASSES, LAST), "bl": (CLASSES,), **given, **weights,
        },
        opset=opset, functions=functions,
    )  # fmt: skip


def ending(
    end: str, given: Given = NOTHING, *, batch: str = "N", opset: int = 17, logits: str = "", **weights: Weight
) -> onnx.ModelProto:
    """`end` makes logits of z (LAST channels), which two convs make of the image."""
    shape = logits or f"{batch},{CLASSES}"
    return net(
        f"""(float[{batch},3,{SIZE},{SIZE}] image) => (float[{shape}] logits) {{
            s = Conv<pads=[1,1,1,1]>(image, ws, bs)  x = Relu(s)
            e = Conv<pads=[1,1,1,1]>(x, we, be)  z = Relu(e)
            {end}
        }}""",
        {
            "ws": (CHANNELS, 3, 3, 3), "bs": (CHANNELS,), "we": (LAST, CHANNELS, 3, 3), "be": (LAST,),
            "wl": (CLASSES, LAST), "bl": (CLASSES,), **given, **weights,
        },
        opset=opset,
    )  # fmt: skip

"""The table of one-node models: at least one for every operator that `s2d_convert.network.converters.lower` knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from converter_model import Array, Case, Feed, case, floats, ints, number

IMAGE = Feed((4, 6, 5))
POSITIVE = Feed((4, 6, 5), "positive")
TIES = Feed((4, 6, 5), "ties")
BOOL = Feed((4, 6, 5), "bool")
INTEGER = Feed((4, 6, 5), "integer")
ROW = Feed((7,))
LINE = Feed((4, 9))
VOLUME = Feed((2, 4, 5, 3))
PER_CHANNEL = floats(4, 1, 1)

UNARY = [
    *(case(op, IMAGE) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Abs", "Neg")),
    *(case(op, IMAGE) for op in ("Sign", "Sin", "Cos", "Identity", "HardSwish", "LeakyRelu", "Elu", "Selu", "Celu")),
    *(case(op, IMAGE) for op in ("HardSigmoid", "ThresholdedRelu", "Dropout", "Floor", "Ceil")),
    *(case(op, POSITIVE) for op in ("Log", "Sqrt", "Reciprocal")),
    *(case(op, TIES) for op in ("Round", "Sign", "Relu")),
    case("Mish", IMAGE, opset=18),
    case("Mish", IMAGE, opset=22),
    case("HardSwish", IMAGE, opset=22),
    case("Gelu", IMAGE, opset=20),
    case("Gelu", IMAGE, opset=20, approximate="tanh"),
    case("Swish", IMAGE, opset=24),
    case("LeakyRelu", IMAGE, alpha=0.3),
    case("Elu", IMAGE, alpha=0.3),
    case("Shrink", IMAGE),
    case("Shrink", IMAGE, lambd=0.7, bias=0.2),
    case("Mod", IMAGE, floats(4, 1, 1), fmod=1),
    case("Selu", IMAGE, alpha=1.5, gamma=0.7),
    case("Celu", IMAGE, alpha=0.4),
    case("HardSigmoid", IMAGE, alpha=0.7, beta=0.1),
    case("ThresholdedRelu", IMAGE, alpha=0.3),
    case("Dropout", IMAGE, number(0.5)),
    case("Dropout", IMAGE, number(0.5), np.array(False)),
    case("Not", BOOL),
    case("Abs", INTEGER),
    case("Neg", INTEGER),
    *(case("Clip", IMAGE, low, high) for low in (None, number(-0.3)) for high in (None, number(0.6))),
    case("Clip", IMAGE, number(0.4), number(-0.2)),
    case("Cast", IMAGE, to=onnx.TensorProto.FLOAT),
    case("Cast", IMAGE, to=onnx.TensorProto.INT64),
    case("Cast", IMAGE, to=onnx.TensorProto.INT32),
    case("Cast", TIES, to=onnx.TensorProto.BOOL),
    case("Cast", BOOL, to=onnx.TensorProto.FLOAT),
    case("Cast", INTEGER, to=onnx.TensorProto.FLOAT),
    case("CastLike", INTEGER, IMAGE),
    case("CastLike", IMAGE, INTEGER),
    case("CastLike", IMAGE, BOOL),
    case("PRelu", IMAGE, PER_CHANNEL),
    case("PRelu", IMAGE, floats(5)),
    case("PRelu", IMAGE, floats(6, 1)),
    case("PRelu", IMAGE, floats(1)),
    case("PRelu", ROW, floats(7)),
]

BINARY = [
    *(case(op, IMAGE, IMAGE) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(case(op, IMAGE, PER_CHANNEL) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(case(op, PER_CHANNEL, IMAGE) for op in ("Add", "Sub", "Mul")),
    *(case(op, INTEGER, ints(3)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(case(op, IMAGE, floats(1, 6, 5), PER_CHANNEL, IMAGE) for op in ("Max", "Min", "Sum", "Mean")),
    *(case(op, IMAGE) for op in ("Max", "Min", "Sum", "Mean")),
    case("Add", IMAGE, Feed((4, 1, 1))),
    *(case("Pow", POSITIVE, exponent) for exponent in (number(2.5), number(-1), floats(4, 1, 1))),
    case("Pow", IMAGE, number(2)),
    case("Pow", IMAGE, ints(3)),
    case("Pow", INTEGER, number(2)),
    *(case(op, TIES, TIES) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *(case(op, TIES, number(0.5)) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    case("Equal", INTEGER, ints(2)),
    case("And", BOOL, BOOL),
    case("Or", BOOL, BOOL),
    case("Where", BOOL, IMAGE, Feed((4, 1, 1))),
    case("Where", BOOL, IMAGE, number(0)),
    case("Where", floats(4, 1, 1) > 0, IMAGE, floats(5)),
]

# ReduceSum took its axes as an input before the others did.
REDUCE_18 = [f"Reduce{kind}" for kind in ["Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp", "LogSum"]]
REDUCTIONS = [
    *(case(op, POSITIVE, axes=[2, 3], opset=13) for op in REDUCE_18),
    *(case(op, POSITIVE, axes=[-1], keepdims=0, opset=17) for op in REDUCE_18),
    *(case(op, POSITIVE, ints(1, -1), keepdims=0, opset=18) for op in (*REDUCE_18, "ReduceSum")),
    *(case(op, POSITIVE, ints(-2), opset=20) for op in (*REDUCE_18, "ReduceSum")),
    *(case(op, POSITIVE, opset=18, noop_with_empty_axes=1) for op in (*REDUCE_18, "ReduceSum")),
    *(case(op, POSITIVE, ints(), opset=18, noop_with_empty_axes=1) for op in ("ReduceL1", "ReduceSum", "ReduceMax")),
    case("ReduceL1", IMAGE, ints(), opset=18, noop_with_empty_axes=1),
    case("ReduceSum", IMAGE, ints(2, 3), opset=13),
    *(case("ArgMax", TIES, axis=axis, keepdims=keep) for axis in (1, -1) for keep in (0, 1)),
    *(case("ArgMax", TIES, axis=axis, select_last_index=1) for axis in (1, -1)),
    *(case(op, IMAGE, axis=axis) for op in ("Softmax", "LogSoftmax") for axis in (1, 2, -1)),
    *(case(op, IMAGE) for op in ("Softmax", "LogSoftmax")),
]

BN = (floats(4, seed=1), floats(4, seed=2), floats(4, seed=3), floats(4, seed=4, positive=True))
NORMS = [
    case("BatchNormalization", IMAGE, *BN),
    case("BatchNormalization", LINE, *BN, epsilon=1e-2),
    case("BatchNormalization", Feed((4,)), *BN, epsilon=1e-3),
    case("BatchNormalization", Feed((4, 3, 2, 2)), *BN, opset=15),
    case("InstanceNormalization", IMAGE, *BN[:2]),
    case("InstanceNormalization", LINE, *BN[:2], epsilon=1e-2),
    case("InstanceNormalization", Feed((4, 1, 1)), *BN[:2]),
    case("LayerNormalization", IMAGE, floats(5), floats(5)),
    case("LayerNormalization", IMAGE, floats(5)),
    case("LayerNormalization", IMAGE, floats(4, 6, 5), floats(4, 6, 5), axis=1, epsilon=1e-3),
    case("LayerNormalization", IMAGE, floats(6, 5), floats(6, 5), axis=-2),
    case("LayerNormalization", IMAGE, floats(5), floats(5), axis=2),
    case("RMSNormalization", IMAGE, floats(5), opset=23),
    case("RMSNormalization", IMAGE, floats(6, 5), opset=23, axis=-2, epsilon=1e-2),
    case("GroupNormalization", IMAGE, floats(4), floats(4), opset=21, num_groups=2),
    case("GroupNormalization", IMAGE, floats(4), floats(4), opset=21, num_groups=4, epsilon=1e-2),
    case("GroupNormalization", IMAGE, floats(4), floats(4), opset=21, num_groups=1),
    case("GroupNormalization", IMAGE, floats(2), floats(2), opset=18, num_groups=2),
    case("LRN", IMAGE, size=3),
    case("LRN", Feed((7, 3, 3)), size=5, alpha=0.5, beta=0.6, bias=2.0),
    case("LRN", IMAGE, size=1),
    *(case("LpNormalization", IMAGE, axis=axis, p=p) for axis in (1, -1) for p in (1, 2)),
    case("LpNormalization", IMAGE),
    case("MeanVarianceNormalization", IMAGE, axes=[2, 3]),
    case("MeanVarianceNormalization", IMAGE, axes=[1, 2, 3]),
]

CONVS = [
    case("Conv", IMAGE, floats(6, 4, 3, 3)),
    case("Conv", IMAGE, floats(6, 4, 3, 2), floats(6), kernel_shape=[3, 2], pads=[1, 0, 2, 1], strides=[2, 1]),
    case("Conv", IMAGE, floats(4, 1, 3, 3), floats(4), group=4, pads=[2, 2, 2, 2], dilations=[2, 2]),
    case("Conv", IMAGE, floats(6, 2, 1, 1), floats(6), group=2, strides=[2, 2]),
    case("Conv", Feed((16, 9, 9)), floats(16, 16, 3, 3), floats(16), pads=[1, 1, 1, 1], strides=[2, 2]),
    *(case("Conv", IMAGE, floats(6, 4, 3, 3), auto_pad=mode, strides=[2, 2]) for mode in ("SAME_UPPER", "SAME_LOWER")),
    *(case("Conv", IMAGE, floats(6, 4, 2, 2), auto_pad=mode, strides=[1, 3]) for mode in ("SAME_UPPER", "VALID")),
    case("Conv", LINE, floats(3, 4, 3), floats(3), pads=[0, 2], strides=[2]),
    case("Conv", LINE, floats(4, 2, 3), auto_pad="SAME_LOWER", group=2, strides=[3]),
    case("Conv", VOLUME, floats(3, 2, 2, 3, 1), floats(3), pads=[0, 1, 0, 1, 1, 0]),
    case("Conv", VOLUME, floats(4, 1, 2, 2, 2), group=2, auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3)),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case(
        "ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3), strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 2]
    ),
    case("ConvTranspose", IMAGE, floats(4, 2, 2, 3), floats(4), group=2, dilations=[2, 1], strides=[2, 2]),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3), strides=[2, 2], output_shape=[12, 10]),
    *(
        case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3), strides=[2, 2], auto_pad=mode, output_shape=[11, 9])
        for mode in ("SAME_UPPER", "SAME_LOWER")
    ),
    *(
        case("ConvTranspose", IMAGE, floats(4, 3, 4, 3), strides=[2, 2], auto_pad=mode)
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("ConvTranspose", LINE, floats(4, 3, 4), floats(3), strides=[2], pads=[1, 2]),
    case("ConvTranspose", VOLUME, floats(2, 3, 2, 2, 2), floats(3), strides=[2, 2, 2]),
]

PRODUCTS = [
    case("Gemm", ROW, floats(7, 5), floats(5)),
    case("Gemm", ROW, floats(5, 7), floats(5), transB=1),
    case("Gemm", ROW, floats(5, 7), transB=1),
    case("Gemm", ROW, floats(5, 7), floats(1, 5), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", ROW, floats(7, 5), number(3), beta=0.3),
    case("Gemm", ROW, floats(7, 5), Feed((1,)), alpha=0.7),
    case("MatMul", ROW, floats(7, 5)),
    case("MatMul", IMAGE, floats(5, 3)),
    case("MatMul", IMAGE, Feed((4, 5, 2))),
    case("MatMul", ROW, floats(7)),
    case("Einsum", IMAGE, floats(4, 3), equation="bchw,cd->bdhw"),
    case("Einsum", IMAGE, IMAGE, equation="...hw,...kw->...hk"),
    case("Einsum", IMAGE, equation="b c h w -> b h c"),
]

MAX_POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 2], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "strides": [3, 2], "auto_pad": "VALID"},
]
POOLS = [
    *(
        case(op, IMAGE, **attrs)
        for op in ("MaxPool", "AveragePool", "LpPool")
        for attrs in MAX_POOLS
        if "ceil_mode" not in attrs
    ),
    *(case(op, IMAGE, **attrs) for op in ("MaxPool", "AveragePool") for attrs in MAX_POOLS if "ceil_mode" in attrs),
    *(case("LpPool", IMAGE, **attrs, opset=18) for attrs in MAX_POOLS if "ceil_mode" in attrs),
    *(case("AveragePool", IMAGE, **attrs, count_include_pad=1) for attrs in MAX_POOLS),
    *(case("AveragePool", IMAGE, **attrs, count_include_pad=1, opset=22) for attrs in MAX_POOLS),
    *(case(op, LINE, kernel_shape=[3], strides=[2], pads=[1, 0]) for op in ("MaxPool", "AveragePool", "LpPool")),
    *(case(op, VOLUME, kernel_shape=[2, 2, 2], pads=[0, 1, 0, 1, 1, 0]) for op in ("MaxPool", "AveragePool", "LpPool")),
    case("AveragePool", LINE, kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1, ceil_mode=1),
    case(
        "AveragePool", VOLUME, kernel_shape=[2, 3, 1], strides=[2, 2, 2], count_include_pad=1, pads=[1, 1, 0, 1, 1, 0]
    ),
    *(
        case(op, Feed((2, 1, 5)), kernel_shape=[2, 2], strides=[2, 2], **more)
        for op, more in (
            ("MaxPool", {}),
            ("AveragePool", {}),
            ("LpPool", {}),
            ("MaxPool", {"ceil_mode": 1}),
            ("AveragePool", {"ceil_mode": 1}),
            ("AveragePool", {"ceil_mode": 1, "count_include_pad": 1}),
            ("MaxPool", {"dilations": [1, 2]}),
        )
    ),  # smaller than its window (padding that counts is left out: before opset 19 onnxruntime counts what lies beyond it)
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1]),
    case("MaxPool", Feed((2, 2, 5)), kernel_shape=[2, 2], dilations=[3, 1], pads=[1, 0, 1, 0]),  # sees padding only
    case("MaxPool", LINE, kernel_shape=[3], dilations=[2], pads=[1, 1], ceil_mode=1, strides=[2]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3], opset=19),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1, opset=19),
    case("LpPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3], opset=18, p=1),
    case("LpPool", IMAGE, kernel_shape=[2, 3], p=3),
    *(
        case(op, shape)
        for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
        for shape in (IMAGE, LINE, VOLUME)
    ),
    *(case("GlobalLpPool", IMAGE, p=p) for p in (1, 3)),
]

MOVES = [
    case("Reshape", IMAGE, ints(-1, 120)),
    case("Reshape", IMAGE, ints(0, -1)),
    case("Reshape", IMAGE, ints(0, 2, 2, 0, -1)),
    case("Reshape", IMAGE, ints(-1, 2, 3, 20), allowzero=1),
    case("Flatten", IMAGE),
    *(case("Flatten", IMAGE, axis=axis) for axis in (0, 1, 2, 4, -1)),
    case("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    case("Transpose", LINE, perm=[0, 2, 1]),
    case("Transpose", ROW),
    case("Squeeze", Feed((1, 4, 1)), ints(1, 3)),
    case("Squeeze", Feed((1, 4, 1)), ints(-1)),
    case("Unsqueeze", LINE, ints(1, 4)),
    case("Unsqueeze", LINE, ints(-1, 2)),
    case("Unsqueeze", LINE, ints(3)),
    case("Concat", IMAGE, Feed((2, 6, 5)), IMAGE, axis=1),
    case("Concat", IMAGE, Feed((4, 6, 2)), axis=-1),
    case("Concat", IMAGE, axis=2),
    case("Split", IMAGE, outputs=2, axis=1),
    case("Split", IMAGE, outputs=3, axis=-2, opset=13),
    case("Split", IMAGE, ints(1, 0, 3), outputs=3, axis=1),
    case("Split", IMAGE, ints(4), outputs=1, axis=1),
    case("Split", IMAGE, outputs=2, axis=3, num_outputs=2, opset=18),
    case("Split", IMAGE, outputs=4, axis=2, num_outputs=4, opset=18),
    case("Slice", IMAGE, ints(1), ints(3), ints(1)),
    case("Slice", IMAGE, ints(0, 1, -4), ints(9, 3, -1)),
    case("Slice", IMAGE, ints(0, 0), ints(2**63 - 1, -1), ints(2, -1), ints(2, 2)),
    case("Slice", IMAGE, ints(-1, 3), ints(-(2**63), 0), ints(2, 3), ints(-1, -2)),
    case("Slice", IMAGE, ints(4), ints(1), ints(-2), ints(-1)),
    case("Slice", IMAGE, ints(3), ints(3), ints(2), ints(1)),
    case("Slice", IMAGE, ints(1), ints(4), ints(2), ints(-1)),
    case("Gather", IMAGE, ints(2, 0, -1), axis=1),
    case("Gather", IMAGE, np.array(1), axis=2),
    case("Gather", IMAGE, np.array(-2), axis=-1),
    case("Gather", IMAGE, np.array([[0, 1], [3, -1]]), axis=1),
    case("Gather", floats(9, 3), Feed((5,), "integer")),
    case("GatherElements", IMAGE, Feed((2, 6, 5), "index"), axis=1),
    case("Expand", Feed((4, 1, 1)), ints(1, 4, 6, 5)),
    case("Expand", Feed((4, 1, 5)), ints(6, 1)),
    case("Expand", IMAGE, ints(1)),
    case("Tile", IMAGE, ints(1, 2, 1, 3)),
    *(case("DepthToSpace", Feed((8, 2, 3)), blocksize=2, mode=mode) for mode in ("DCR", "CRD")),
    case("DepthToSpace", Feed((9, 2, 3)), blocksize=3),
    case("SpaceToDepth", Feed((2, 4, 6)), blocksize=2),
    case("SpaceToDepth", Feed((2, 3, 6)), blocksize=3),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 0)),
    case("Pad", IMAGE, ints(0, 1, -1, 2, 0, 2, 3, -2), number(0.7)),
    case("Pad", IMAGE, ints(1, -1, 2, 0), number(-1), ints(-1, 1), opset=18),
    case("Pad", INTEGER, ints(0, 0, 1, 0, 0, 0, 0, 1), np.array(4)),
    *(case("Pad", IMAGE, ints(0, 0, 2, 1, 0, 0, 1, 3), mode=mode) for mode in ("reflect", "edge")),
    *(case("Pad", IMAGE, ints(0, 1, -2, 3, 0, 2, 1, -1), mode=mode, opset=19) for mode in ("reflect", "edge", "wrap")),
    *(case("Pad", IMAGE, ints(7, 2), None, ints(3), mode=mode, opset=19) for mode in ("edge", "wrap")),
]

GRID = Feed((3, 7, 2))  # beyond -1 and 1 lies the padding
SAMPLES = [
    *(
        case("GridSample", IMAGE, GRID, opset=16, mode=mode, padding_mode=padding, align_corners=corners)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
    *(case("GridSample", IMAGE, GRID, opset=20, mode=mode) for mode in ("linear", "nearest", "cubic")),
    case("GridSample", IMAGE, GRID, opset=16),
    case("GridSample", IMAGE, floats(1, 3, 7, 2), opset=16, batches=(1,)),
    *(case("GridSample", VOLUME, Feed((2, 3, 4, 3)), opset=20, mode=mode) for mode in ("linear", "nearest")),
]

HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SCALES = (np.array([1, 1, 2, 2], np.float32), np.array([1, 1, 1.5, 0.5], np.float32))
CROP = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3], np.float32)
EMPTY = np.zeros(0, np.float32)


def resize(operand: Array, *, roi: Array = EMPTY, by_size: bool = False, opset: int = 19, **attrs: Any) -> Case:
    """A Resize of IMAGE by scales or to sizes; `coordinate_transformation_mode` is written `at`."""
    if "at" in attrs:
        attrs["coordinate_transformation_mode"] = attrs.pop("at")
    operands = (None, operand) if by_size else (operand,)
    whole = by_size and "axes" not in attrs  # such sizes name the batch
    return case("Resize", IMAGE, roi, *operands, opset=opset, batches=(1,) if whole else (1, 3), **attrs)


RESIZES = [
    *(resize(s, at=at, nearest_mode=mode) for s in SCALES for at in HALF_PIXEL for mode in NEAREST_MODES),
    *(resize(s, at=at, mode=mode) for s in SCALES for at in HALF_PIXEL for mode in ("linear", "cubic")),
    *(resize(s, at=at, mode=mode, antialias=1) for s in SCALES for at in HALF_PIXEL for mode in ("linear", "cubic")),
    *(resize(s, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5) for s in SCALES),
    *(resize(SCALES[1], mode="cubic", exclude_outside=1, antialias=1, opset=18) for _ in (0,)),
    *(resize(s, at="half_pixel_symmetric", mode=mode) for s in SCALES for mode in ("nearest", "linear", "cubic")),
    *(
        resize(s, at="tf_crop_and_resize", roi=CROP, mode=mode, extrapolation_value=0.5)
        for s in SCALES
        for mode in ("nearest", "linear", "cubic")
    ),
    *(resize(ints(1, 4, 9, 4), by_size=True, mode=mode, opset=13) for mode in ("nearest", "linear", "cubic")),
    *(resize(ints(1, 4, 1, 1), by_size=True, at=at, mode="linear") for at in HALF_PIXEL),
    *(
        resize(ints(9, 4), by_size=True, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)
        for policy in ("stretch", "not_larger", "not_smaller")
    ),
    resize(np.array([1.1, 1.1], np.float32), mode="linear", axes=[3, 2]),  # scales that change no length: a copy
    resize(np.array([2, 1, 1.5], np.float32), mode="nearest", axes=[-3, -2, -1]),
    case("Resize", LINE, EMPTY, np.array([1, 1, 2.5], np.float32), mode="linear"),
    case("Resize", LINE, EMPTY, np.array([1, 1, 2], np.float32)),
    case("Resize", VOLUME, EMPTY, np.array([1, 1, 2, 0.5, 1], np.float32), mode="linear"),
    case("Resize", VOLUME, EMPTY, np.array([1, 1, 2, 3, 1], np.float32), mode="nearest"),
]

CASES = [*UNARY, *BINARY, *REDUCTIONS, *NORMS, *CONVS, *PRODUCTS, *POOLS, *MOVES, *SAMPLES, *RESIZES]

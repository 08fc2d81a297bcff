"""Operators that come up now and then: other convolutions, several operands, conditions, activations."""

from __future__ import annotations

import numpy as np
import onnx

from patterns.base import around, ending, number, pattern, positive


@pattern(each=["plain", "grouped", "depthwise", "output_padding", "output_shape"])
def transposed_conv(kind: str) -> onnx.ModelProto:
    attrs = {
        "plain": "pads=[1,1,1,1], strides=[2,2]",
        "grouped": "group=2, strides=[2,2]",
        "depthwise": "group=8, pads=[0,1,1,0]",
        "output_padding": "strides=[2,2], output_padding=[1,0]",
        "output_shape": "strides=[2,2], output_shape=[16,16]",
    }[kind]
    made = {"grouped": 4, "depthwise": 1}.get(kind, 8)
    return around(f"y = ConvTranspose<{attrs}>(x, wy, by)", wy=0.5 * positive(8, made, 3, 3) - 0.4, by=(8,))


@pattern(splits=0.8)
def transposed_conv_channels_last() -> onnx.ModelProto:
    return around(
        """t = Transpose<perm=[0,2,3,1]>(x)  u = Transpose<perm=[0,3,1,2]>(t)
        y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(u, wy)""",
        wy=0.5 * positive(8, 8, 3, 3) - 0.4,
    )  # fmt: skip


@pattern()
def depthwise_conv() -> onnx.ModelProto:
    return around("y = Conv<group=8, pads=[1,1,1,1]>(x, wy, by)", wy=(8, 1, 3, 3), by=(8,))


@pattern()
def depthwise_conv_with_a_multiplier() -> onnx.ModelProto:
    """Two outputs for each input."""
    return around("y = Conv<group=8, pads=[1,1,1,1]>(x, wy, by)", made=16, wy=(16, 1, 3, 3), by=(16,))


@pattern()
def grouped_conv() -> onnx.ModelProto:
    return around("y = Conv<group=4, pads=[1,1,1,1]>(x, wy, by)", made=12, wy=(12, 2, 3, 3), by=(12,))


@pattern(splits=0.7)
def conv_with_three_axes() -> onnx.ModelProto:
    """The channels become the depth of a 3-D conv: they are neighbours to it."""
    return around(
        "u = Unsqueeze(x, one)  c = Conv<pads=[1,1,1,1,1,1]>(u, wc)  y = Squeeze(c, one)", one=[1], wc=(1, 1, 3, 3, 3)
    )


@pattern()
def conv_with_a_depth_of_one() -> onnx.ModelProto:
    """A video net on one frame: the depth has length 1, the channels stay channels."""
    return around(
        "u = Unsqueeze(x, two)  c = Conv<pads=[0,1,1,0,1,1]>(u, wc, bc)  r = Relu(c)  y = Squeeze(r, two)",
        two=[2], wc=(8, 8, 1, 3, 3), bc=(8,),
    )  # fmt: skip


@pattern()
def conv_along_one_axis() -> onnx.ModelProto:
    """A 1-D conv on the flattened places."""
    return around(
        "q = Reshape(x, three)  c = Conv<pads=[1,1]>(q, wc, bc)  y = Reshape(c, four)",
        three=[0, 8, 64], wc=(8, 8, 3), bc=(8,), four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern(each=["Add", "Mul", "Max", "Sub"])
def both_operands_are_the_same(op: str) -> onnx.ModelProto:
    twice = f"t = {op}(x, x)"
    return around(f"{twice}  y = Add(t, x)" if op == "Sub" else f"{twice}  y = Relu(t)")


@pattern()
def concat_with_itself() -> onnx.ModelProto:
    return around("y = Concat<axis=1>(x, x)", made=16)


@pattern(each=["channels", "space"])
def tile(axis: str) -> onnx.ModelProto:
    repeats = [1, 2, 1, 1] if axis == "channels" else [1, 1, 2, 2]
    return around("y = Tile(x, repeats)", made=16 if axis == "channels" else 8, repeats=repeats)


@pattern(each=["Sum", "Max", "Min", "Mean"])
def three_operands(op: str) -> onnx.ModelProto:
    return around(
        f"a = Conv<pads=[1,1,1,1]>(x, wa)  b = Conv<pads=[1,1,1,1]>(x, wb)  y = {op}(x, a, b)",
        wa=(8, 8, 3, 3), wb=(8, 8, 3, 3),
    )  # fmt: skip


@pattern()
def sum_with_a_constant() -> onnx.ModelProto:
    """Two computed operands and one that every image has."""
    return around("a = Conv<pads=[1,1,1,1]>(x, wa)  y = Sum(a, x, k)", wa=(8, 8, 3, 3), k=(1, 8, 1, 1))


@pattern(each=["one channel", "every channel"])
def mask_of_an_earlier_map(of: str) -> onnx.ModelProto:
    """A choice of places that is made once and read twice, before and behind a conv: stages hand it on."""
    mask = "m = Conv(x, wm)  c = Greater(m, level)" if of == "one channel" else "c = Greater(x, level)"
    return around(
        f"""{mask}  a = Conv<pads=[1,1,1,1]>(x, wa)  t = Where(c, a, nil)
        b = Conv<pads=[1,1,1,1]>(t, wb)  y = Where(c, b, t)""",
        wm=(1, 8, 1, 1), wa=(8, 8, 3, 3), wb=(8, 8, 3, 3), level=number(0.3), nil=number(0),
    )  # fmt: skip


@pattern(splits=0.4)
def remainder_of_two_maps() -> onnx.ModelProto:
    """Nobody knows the remainder of a division by zero, which is what a channel that is not there yet holds."""
    return around("a = Conv<pads=[1,1,1,1]>(x, wa)  y = Mod<fmod=1>(x, a)", wa=(8, 8, 3, 3))


@pattern()
def maxout() -> onnx.ModelProto:
    """The larger of two halves: LightCNN's max-feature-map."""
    return around("a, b = Split<axis=1>(x, halves)  y = Max(a, b)", made=4, halves=[4, 4])


@pattern()
def maxout_by_reshape() -> onnx.ModelProto:
    return around("r = Reshape(x, five)  y = ReduceMax<axes=[1], keepdims=0>(r)", made=4, five=[0, 2, 4, 8, 8])


@pattern(each=["Greater", "Less", "Not"])
def where(condition: str) -> onnx.ModelProto:
    """A choice by the values themselves; of a constant in the second case."""
    made = {
        "Greater": "c = Greater(x, level)  y = Where(c, x, a)",
        "Less": "c = Less(a, level)  y = Where(c, nil, x)",
        "Not": "g = Greater(a, x)  c = Not(g)  y = Where(c, a, x)",
    }[condition]
    return around(f"a = Conv<pads=[1,1,1,1]>(x, wa)  {made}", wa=(8, 8, 3, 3), level=number(0.2), nil=number(0))


@pattern()
def where_of_constants() -> onnx.ModelProto:
    """A step: 1 where positive, -0.5 elsewhere."""
    return around(
        "c = Greater(x, nil)  k = Where(c, one, low)  y = Mul(x, k)",
        nil=number(0.3),
        one=number(1),
        low=number(-0.5),
    )


@pattern(each=["both", "low", "high"])
def clip(bounds: str) -> onnx.ModelProto:
    inputs = {"both": "x, low, high", "low": "x, low", "high": "x, , high"}[bounds]
    return around(f"y = Clip({inputs})", low=number(0.1), high=number(0.8))


@pattern(each=["uneven", "num_outputs", "unread", "equal"])
def split(how: str) -> onnx.ModelProto:
    """Opset 18 counts the outputs; the last one is shorter where the length is no multiple."""
    made = {
        "uneven": "a, b, c = Split<axis=1>(x, sizes)  y = Concat<axis=1>(c, a, b)",
        "num_outputs": "a, b, c = Split<axis=1, num_outputs=3>(x)  y = Concat<axis=1>(c, b, a)",
        "unread": "a, b, c = Split<axis=1>(x, sizes)  y = Concat<axis=1>(a, c)",
        "equal": "a, b = Split<axis=-3, num_outputs=2>(x)  y = Add(a, b)",
    }[how]
    kept = {"unread": 5, "equal": 4}.get(how, 8)
    return around(made, made=kept, opset=18, sizes=[1, 3, 4])


@pattern(splits=0.4, each=["Div", "Pow", "Mod"])
def constant_first(op: str) -> onnx.ModelProto:
    """A constant divided by the features, and raised to their power."""
    made = {
        "Div": "s1 = Add(x, one)  y = Div(one, s1)",
        "Pow": "m = Neg(x)  y = Pow(two, m)",
        "Mod": "y = Mod<fmod=1>(x, one)",
    }[op]
    return around(made, one=number(1), two=number(2))


ACTIVATIONS = ("Elu", "Selu", "Celu", "Softplus", "Softsign", "HardSwish", "Mish", "Gelu", "LeakyRelu<alpha=0.3>",
               "ThresholdedRelu<alpha=0.5>", "HardSigmoid<alpha=0.3, beta=0.4>", "Tanh", "Erf", "Abs", "Exp",
               'Gelu<approximate="tanh">', "Shrink<lambd=0.3, bias=0.1>", "Sin")  # fmt: skip


@pattern(each=ACTIVATIONS)
def activation(call: str) -> onnx.ModelProto:
    """Function operators among them (Gelu, HardSwish, Mish), on both signs."""
    return around(f"m = Sub(x, half)  y = {call}(m)", opset=20, half=number(0.5))


@pattern(each=["C11", "1C11", "1", "scalar"])
def parametric_relu(shape: str) -> onnx.ModelProto:
    form = {"C11": (8, 1, 1), "1C11": (1, 8, 1, 1), "1": (1,), "scalar": ()}[shape]
    return around("m = Sub(x, half)  y = PRelu(m, slope)", half=number(0.5), slope=0.2 * positive(*form))


@pattern(each=["silu", "gelu", "mish", "hswish"])
def activation_spelled_out(name: str) -> onnx.ModelProto:
    made = {
        "silu": "h = Sigmoid(m)  y = Mul(m, h)",
        "gelu": "d = Div(m, root)  k = Erf(d)  a = Add(k, one)  t = Mul(m, a)  y = Mul(t, half)",
        "mish": "k = Softplus(m)  t = Tanh(k)  y = Mul(m, t)",
        "hswish": "a = Add(m, three)  k = Clip(a, nil, six)  t = Mul(m, k)  y = Div(t, six)",
    }[name]
    return around(
        f"m = Sub(x, half)  {made}",
        half=number(0.5), root=number(2**0.5), one=number(1), three=number(3), nil=number(0), six=number(6),
    )  # fmt: skip


@pattern(each=["vector", "matrix"])
def constant_added_to_features(shape: str) -> onnx.ModelProto:
    form = (16,) if shape == "vector" else (1, 16)
    return ending(
        "g = GlobalAveragePool(z)  f = Flatten(g)  a = Add(f, k)  r = Relu(a)  logits = Gemm<transB=1>(r, wl, bl)",
        k=positive(*form),
    )  # fmt: skip


@pattern()
def learned_map_added() -> onnx.ModelProto:
    """A position embedding: a constant for every channel and place."""
    return around("y = Add(table, x)", table=positive(1, 8, 8, 8))


@pattern()
def coordinates_as_channels() -> onnx.ModelProto:
    """CoordConv: two constant maps, spread over the batch and concatenated."""
    ramp = np.linspace(-1, 1, 8, dtype=np.float32)
    grid = np.stack(np.meshgrid(ramp, ramp, indexing="ij"))[None]
    return around(
        """h = Shape(x)  n = Slice(h, zero, one)  to = Concat<axis=0>(n, ones)  k = Tile(grid, to)
        y = Concat<axis=1>(x, k)""",
        made=10, grid=grid, zero=[0], one=[1], ones=[1, 1, 1],
    )  # fmt: skip

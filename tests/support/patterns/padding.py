"""Padding: amounts that the graph works out, modes other than zeros, and the channel axis."""

from __future__ import annotations

import onnx
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import around, number, pattern
from patterns.traced import classic


class _Padded(nn.Module):
    """A convolution after F.pad."""

    def __init__(self, amounts: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.amounts, self.mode, self.conv = amounts, mode, nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, self.amounts, self.mode))
        return out


class _OptionA(nn.Module):
    """The shortcut of CIFAR ResNets without weights: every second place, zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        return out


@pattern(each=["constant", "reflect", "replicate"])
def pad_of_the_classic_exporter(mode: str) -> onnx.ModelProto:
    """Amounts by ConstantOfShape, Concat, Reshape, a reversed Slice, Transpose and Cast, all left in the file."""
    return classic(_Padded((1, 2, 0, 1), mode), fold=False)


@pattern()
def option_a_of_the_classic_exporter() -> onnx.ModelProto:
    return classic(_OptionA(), made=16, fold=False)


@pattern()
def pad_amounts_step_by_step() -> onnx.ModelProto:
    """The same by hand: [left, right, top, bottom] turned round into ONNX's order."""
    return around(
        """o = ConstantOfShape<value=int64[1] {0}>(four)  all = Concat<axis=0>(amounts, o)  r = Reshape(all, pairs)
        v = Slice(r, minus, least, zero, minus)  t = Transpose<perm=[1,0]>(v)  q = Reshape(t, minus)
        k = Cast<to=7>(q)  w = Pad(x, k, nil)  y = Conv(w, wy)""",
        four=[4], amounts=[1, 2, 0, 1], pairs=[-1, 2], minus=[-1], least=[-(2**63) + 1], zero=[0],
        nil=number(0), wy=(8, 8, 3, 3),
    )  # fmt: skip


@pattern(each=["reflect", "edge", "wrap"])
def pad_mode(mode: str) -> onnx.ModelProto:
    return around(f'y = Pad<mode="{mode}">(x, by)', opset=19, by=[0, 0, 1, 1, 0, 0, 1, 2])


@pattern(each=[0.5, -1.0])
def pad_with_a_value(value: float) -> onnx.ModelProto:
    return around("y = Pad(x, by, v)", by=[0, 0, 1, 1, 0, 0, 1, 2], v=number(value))


@pattern()
def pad_with_a_value_before_a_pool() -> onnx.ModelProto:
    """A value so low that it stands for "not there", as TensorFlow's exporter writes a padded maximum."""
    return around(
        "q = Pad(x, by, v)  y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(q)",
        by=[0, 0, 1, 1, 0, 0, 1, 1], v=number(-1e4),
    )  # fmt: skip


@pattern()
def pad_that_crops_channels() -> onnx.ModelProto:
    return around("y = Pad(x, amounts)", made=7, amounts=[0, 1, 0, 0, 0, -2, 0, 0])


@pattern()
def pad_with_axes() -> onnx.ModelProto:
    return around("y = Pad(x, by, , axes)", opset=18, by=[1, 1, 2, 2], axes=[2, -1])


@pattern()
def pad_that_crops() -> onnx.ModelProto:
    return around("y = Pad(x, by)", by=[0, 0, -1, -1, 0, 0, -1, 0])


@pattern(each=["behind", "both", "value"])
def pad_of_channels(place: str) -> onnx.ModelProto:
    """A shortcut into a wider stream; the value is not zero in the last case."""
    by = {"behind": [0, 0, 0, 0, 0, 8, 0, 0], "both": [0, 4, 0, 0, 0, 4, 0, 0], "value": [0, 0, 0, 0, 0, 8, 0, 0]}[
        place
    ]
    return around(
        """q = Slice(x, starts, ends, axes, steps)  w = Pad(q, by, v)
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, wc, bc)  t = Add(w, c)  y = Relu(t)""",
        made=16, by=by, v=number(0.5 * (place == "value")), starts=[0, 0], ends=[2**31 - 1, 2**63 - 1],
        axes=[2, 3], steps=[2, 2], wc=(16, 8, 3, 3), bc=(16,),
    )  # fmt: skip


@pattern()
def option_a_by_average_and_zeros() -> onnx.ModelProto:
    """Zeros made as x * 0 and concatenated, as in some CIFAR ResNets."""
    return around(
        """q = AveragePool<kernel_shape=[1,1], strides=[2,2]>(x)  o = Mul(q, nil)  w = Concat<axis=1>(q, o)
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, wc, bc)  t = Add(w, c)  y = Relu(t)""",
        made=16, nil=number(0), wc=(16, 8, 3, 3), bc=(16,),
    )  # fmt: skip


@pattern()
def option_a_with_zeros_of_a_shape() -> onnx.ModelProto:
    """torch.cat of x and torch.zeros(x.shape): ConstantOfShape of a Shape."""
    return around(
        """h = Shape(x)  o = ConstantOfShape(h)  w = Concat<axis=1>(x, o)  c = Conv<pads=[1,1,1,1]>(x, wc, bc)
        t = Add(w, c)  y = Relu(t)""",
        made=16, wc=(16, 8, 3, 3), bc=(16,),
    )  # fmt: skip


@pattern(each=["0,0,1,1", "2,0,0,1", "0,1,2,1"])
def conv_with_asymmetric_pads(pads: str) -> onnx.ModelProto:
    return around(f"y = Conv<pads=[{pads}], strides=[2,1], dilations=[1,1]>(x, wy, by)", wy=(8, 8, 3, 3), by=(8,))


@pattern(each=["SAME_UPPER", "SAME_LOWER", "VALID"])
def conv_with_auto_pad(auto: str) -> onnx.ModelProto:
    """With stride 2 and a kernel of 4 the two sides get different amounts."""
    return around(f'y = Conv<auto_pad="{auto}", strides=[2,2]>(x, wy, by)', wy=(8, 8, 4, 4), by=(8,))


@pattern()
def conv_with_another_stride_and_dilation_per_axis() -> onnx.ModelProto:
    return around(
        "y = Conv<kernel_shape=[3,2], strides=[1,2], dilations=[2,3], pads=[2,1,2,2]>(x, wy, by)",
        wy=(8, 8, 3, 2), by=(8,),
    )  # fmt: skip

"""Channels that change places: shuffles in every spelling, and channels that become space and back."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from patterns.base import around, pattern
from patterns.traced import classic, dynamo

DEALT = [0, 4, 1, 5, 2, 6, 3, 7]  # what two groups of four become


@pattern(each=[2, 4])
def shuffle_in_five_axes(groups: int) -> onnx.ModelProto:
    return around(
        "q = Reshape(x, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  y = Reshape(t, four)",
        five=[0, groups, 8 // groups, 8, 8], four=[0, -1, 8, 8],
    )  # fmt: skip


@pattern()
def shuffle_in_four_axes() -> onnx.ModelProto:
    """Space flattened into one axis."""
    return around(
        "q = Reshape(x, cut)  t = Transpose<perm=[0,2,1,3]>(q)  y = Reshape(t, four)",
        cut=[-1, 2, 4, 64], four=[-1, 8, 8, 8],
    )  # fmt: skip


@pattern()
def shuffle_in_six_axes() -> onnx.ModelProto:
    """Groups of groups."""
    return around(
        "q = Reshape(x, six)  t = Transpose<perm=[0,3,2,1,4,5]>(q)  y = Reshape(t, four)",
        six=[0, 2, 2, 2, 8, 8], four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern()
def shuffle_channels_last() -> onnx.ModelProto:
    return around(
        """l = Transpose<perm=[0,2,3,1]>(x)  q = Reshape(l, five)  t = Transpose<perm=[0,1,2,4,3]>(q)
        r = Reshape(t, four)  y = Transpose<perm=[0,3,1,2]>(r)""",
        five=[0, 8, 8, 2, 4], four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern()
def shuffle_by_gather() -> onnx.ModelProto:
    return around("y = Gather<axis=1>(x, order)", order=DEALT)


@pattern()
def shuffle_by_strided_slices() -> onnx.ModelProto:
    """x[:, 0::2] and x[:, 1::2] one behind the other."""
    return around(
        "a = Slice(x, zero, end, one, two)  b = Slice(x, one, end, one, two)  y = Concat<axis=1>(a, b)",
        zero=[0], one=[1], two=[2], end=[2**63 - 1],
    )  # fmt: skip


@pattern()
def shuffle_by_unsqueeze_and_concat() -> onnx.ModelProto:
    """torch.stack of two branches, flattened: their channels alternate."""
    return around(
        """c = Conv<pads=[1,1,1,1]>(x, wc, bc)  u = Unsqueeze(x, two)  v = Unsqueeze(c, two)  s2 = Concat<axis=2>(u, v)
        y = Reshape(s2, four)""",
        made=16, wc=(8, 8, 3, 3), bc=(8,), two=[2], four=[0, 16, 8, 8],
    )  # fmt: skip


@pattern(splits=0.5)
def shuffle_between_grouped_convs() -> onnx.ModelProto:
    """ShuffleNet: each group of the second conv reads all groups of the first, which ties all of them."""
    return around(
        """a = Conv<group=2>(x, wa)  q = Reshape(a, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  h = Reshape(t, four)
        y = Conv<group=2, pads=[1,1,1,1]>(h, wb)""",
        wa=(8, 4, 1, 1), wb=(8, 4, 3, 3), five=[0, 2, 4, 8, 8], four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern()
def half_of_the_channels_goes_round() -> onnx.ModelProto:
    """ShuffleNetV2: Split, one half through a conv, Concat, shuffle."""
    return around(
        """a, b = Split<axis=1>(x, halves)  c = Conv<pads=[1,1,1,1]>(b, wc)  r = Relu(c)  k = Concat<axis=1>(a, r)
        q = Reshape(k, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  y = Reshape(t, four)""",
        halves=[4, 4], wc=(4, 4, 3, 3), five=[0, 2, 4, 8, 8], four=[0, 8, 8, 8],
    )  # fmt: skip


@pattern(each=["DCR", "CRD"])
def depth_to_space(mode: str) -> onnx.ModelProto:
    return around(f'y = DepthToSpace<blocksize=2, mode="{mode}">(x)', made=2)


@pattern()
def space_to_depth() -> onnx.ModelProto:
    return around("y = SpaceToDepth<blocksize=2>(x)", made=32)


class _Focus(nn.Module):
    """YOLOv5's stem: the four places of each 2x2 block as channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@pattern(each=["classic", "dynamo"])
def pixel_unshuffle_of(exporter: str) -> onnx.ModelProto:
    """Reshape, Transpose, Reshape."""
    middle = nn.PixelUnshuffle(2)
    return classic(middle, made=32) if exporter == "classic" else dynamo(middle, made=32, optimize=True)


@pattern(each=["classic", "dynamo"])
def pixel_shuffle_of(exporter: str) -> onnx.ModelProto:
    middle = nn.PixelShuffle(2)
    return classic(middle, made=2) if exporter == "classic" else dynamo(middle, made=2, optimize=True)


@pattern(each=["folded", "unfolded"])
def focus(how: str) -> onnx.ModelProto:
    return classic(_Focus(), made=32, fold=how == "folded")


@pattern()
def pixel_unshuffle_of_the_image() -> onnx.ModelProto:
    """SpaceToDepth of the image, before the first conv."""
    return around(
        """q = Reshape(image, six)  t = Transpose<perm=[0,1,3,5,2,4]>(q)  d = Reshape(t, four)  c = Conv(d, wc)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)  y = Add(m, c)""",
        six=[0, 3, 4, 2, 4, 2], four=[0, 12, 4, 4], wc=(8, 12, 1, 1),
    )  # fmt: skip


@pattern(splits=0.8)
def one_channel_picked() -> onnx.ModelProto:
    """A Gather with a scalar drops the axis; it may keep the first conv whole."""
    return around(
        "c = Gather<axis=1>(x, i3)  u = Unsqueeze(c, one)  h = Sigmoid(u)  y = Mul(x, h)", i3=np.array(3), one=[1]
    )


@pattern()
def channels_repeated() -> onnx.ModelProto:
    """Each channel twice in a row, by a Gather (torch.repeat_interleave)."""
    return around("y = Gather<axis=1>(x, order)", made=16, order=sorted([*range(8)] * 2))


@pattern()
def channels_reversed_in_both_halves() -> onnx.ModelProto:
    return around(
        "a, b = Split<axis=1>(x, halves)  r = Slice(a, minus, least, one, minus)  y = Concat<axis=1>(b, r)",
        halves=[4, 4], one=[1], minus=[-1], least=[-(2**63) + 1],
    )  # fmt: skip


@pattern()
def space_transposed() -> onnx.ModelProto:
    """Height and width change places."""
    return around(
        "t = Transpose<perm=[0,1,3,2]>(x)  c = Conv<pads=[0,1,0,1]>(t, wc)  y = Transpose<perm=[0,1,3,2]>(c)",
        wc=(8, 8, 1, 3),
    )


@pattern()
def space_rolled() -> onnx.ModelProto:
    """torch.roll: two Slices in the other order."""
    return around(
        "a = Slice(x, three, end, axis)  b = Slice(x, zero, three, axis)  y = Concat<axis=3>(a, b)",
        zero=[0], three=[3], end=[2**63 - 1], axis=[3],
    )  # fmt: skip


@pattern()
def shift_of_channel_groups() -> onnx.ModelProto:
    """ShiftNet: a group of channels moves by one place each way, zeros follow."""
    return around(
        """a, b = Split<axis=1>(x, halves)  pa = Pad(a, left)  pb = Pad(b, right)  ca = Slice(pa, zero, eight, axis)
        cb = Slice(pb, one, nine, axis)  y = Concat<axis=1>(ca, cb)""",
        halves=[4, 4], left=[0, 0, 0, 1, 0, 0, 0, 0], right=[0, 0, 0, 0, 0, 0, 0, 1], zero=[0], eight=[8], one=[1],
        nine=[9], axis=[3],
    )  # fmt: skip


@pattern()
def roll_of_channels() -> onnx.ModelProto:
    """The last two channels come to the front."""
    return around(
        "a = Slice(x, minus, end, one)  b = Slice(x, zero, minus, one)  y = Concat<axis=1>(a, b)",
        zero=[0], one=[1], minus=[-2], end=[2**31 - 1],
    )  # fmt: skip

"""Nets that shuffle channels: ShuffleNet V1 and V2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets.common import Concat, channel_shuffle, conv_bn, family, pooled_linear, scaled

GROUPS = 3


class Shuffle(nn.Module):
    """Channel shuffle as a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, self.groups)


class GroupedUnit(nn.Module):
    """ShuffleNetV1: grouped 1x1, shuffle, depthwise, grouped 1x1; added to the input, or appended to the pooled one."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        inner = c_out // 4 // GROUPS * GROUPS
        grown = c_out if stride == 1 else c_out - c_in
        self.body = nn.Sequential(
            conv_bn(c_in, inner, groups=GROUPS),
            Shuffle(GROUPS),
            conv_bn(inner, inner, kernel=3, stride=stride, groups=inner, act=None),
            conv_bn(inner, grown, groups=GROUPS, act=None),
        )
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride=2, padding=1)
        self.concat = stride != 1

    def forward(self, x: Tensor) -> Tensor:
        parts = self.pool(x), self.body(x)
        return torch.relu(torch.cat(parts, 1) if self.concat else parts[0] + parts[1])


class SplitUnit(nn.Module):
    """ShuffleNetV2: one half of the channels passes, the other is worked on, then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = right_branch(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((kept, self.body(worked)), 1), 2)


def right_branch(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """1x1, depthwise, 1x1."""
    return nn.Sequential(
        conv_bn(c_in, c_out),
        conv_bn(c_out, c_out, kernel=3, stride=stride, groups=c_out, act=None),
        conv_bn(c_out, c_out),
    )


def down_unit(c_in: int, c_out: int) -> nn.Sequential:
    """ShuffleNetV2's unit of stride 2: two branches of the whole input."""
    left = nn.Sequential(conv_bn(c_in, c_in, kernel=3, stride=2, groups=c_in, act=None), conv_bn(c_in, c_out // 2))
    return nn.Sequential(Concat(left, right_branch(c_in, c_out // 2, 2)), Shuffle(2))


@family
def shufflenet_v1(width: float) -> nn.Module:
    """ShuffleNetV1 with three groups."""
    a = scaled(12, width, multiple=6)
    b, c = 2 * a, 4 * a
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2),
        *(GroupedUnit(a, b, 2), GroupedUnit(b, b, 1), GroupedUnit(b, c, 2), GroupedUnit(c, c, 1)),
        pooled_linear(c),
    )


@family
def shufflenet_v2(width: float) -> nn.Module:
    """ShuffleNetV2."""
    a, b, c, d = (scaled(n, width) for n in (8, 16, 32, 48))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2),
        *(down_unit(a, b), SplitUnit(b), down_unit(b, c), SplitUnit(c), SplitUnit(c)),
        conv_bn(c, d),
        pooled_linear(d),
    )

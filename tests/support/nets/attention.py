"""Residual nets whose blocks weigh channels, branches or places by what they see: SE, ECA, SK, ResNeSt, CBAM; Res2Net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nets.common import Sum, conv_bn, family, scaled
from nets.residual import projection, resnet

Attention = Callable[[int], nn.Module]  # of so many channels


def attended(attention: Attention, c_in: int, c_out: int, stride: int) -> nn.Module:
    """A basic block whose body ends in an attention."""
    body = nn.Sequential(
        conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None), attention(c_out)
    )
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


def attended_resnet(attention: Attention, width: float) -> nn.Module:
    """Four basic blocks, each with `attention`."""
    return resnet(
        lambda c_in, c_out, stride: attended(attention, c_in, c_out, stride), [scaled(c, width) for c in (8, 16, 24)]
    )


class LinearSqueezeExcite(nn.Module):
    """The gate of SENet in Linear layers on vectors, as the first implementations have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        gate: Tensor = self.gate(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


@family
def se_resnet(width: float) -> nn.Module:
    """SE-ResNet: a gate per channel from two Linear layers."""
    return attended_resnet(LinearSqueezeExcite, width)


class EfficientChannelAttention(nn.Module):
    """A gate per channel, from a convolution that slides over the pooled channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        line = self.pool(x).squeeze(-1).transpose(-1, -2)  # [B, 1, C]: the channels are the places of this convolution
        gate: Tensor = torch.sigmoid(self.conv(line).transpose(-1, -2).unsqueeze(-1))
        return x * gate.expand_as(x)


@family
def eca_resnet(width: float) -> nn.Module:
    """ECA-Net: the gates see only the neighbouring channels."""
    return attended_resnet(EfficientChannelAttention, width)


class ChannelThenSpatial(nn.Module):
    """CBAM: a gate per channel from both poolings, then a gate per place from mean and maximum of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.average, self.highest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=False), nn.ReLU(), nn.Conv2d(squeezed, channels, 1, bias=False)
        )
        self.places = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.shared(self.average(x)) + self.shared(self.highest(x)))
        highest, _ = torch.max(x, dim=1, keepdim=True)
        map_of_two = torch.cat([torch.mean(x, dim=1, keepdim=True), highest], dim=1)
        return x * torch.sigmoid(self.places(map_of_two))


@family
def cbam(width: float) -> nn.Module:
    """CBAM-ResNet: channel attention, then spatial attention."""
    return attended_resnet(ChannelThenSpatial, width)


class SelectiveKernel(nn.Module):
    """Two receptive fields, mixed per channel by a softmax over the two."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, stride=stride, padding=dilation, dilation=dilation, groups=2, bias=False),
                *(nn.BatchNorm2d(c_out), nn.ReLU()),
            )
            for dilation in (1, 2)
        )
        self.reduce = conv_bn(c_out, c_out // 2)
        self.select = nn.Conv2d(c_out // 2, 2 * c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([path(x) for path in self.paths], dim=1)
        chosen: Tensor = self.select(self.reduce(both.sum(1).mean((2, 3), keepdim=True)))
        b, c, h, w = chosen.shape
        return (both * torch.softmax(chosen.view(b, 2, c // 2, h, w), dim=1)).sum(dim=1)


def selective(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A bottleneck around the selective kernel."""
    inner = c_out // 2
    body = nn.Sequential(conv_bn(c_in, inner), SelectiveKernel(inner, inner, stride), conv_bn(inner, c_out, act=None))
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


@family
def sknet(width: float) -> nn.Module:
    """SKNet: a plain and a dilated 3x3 kernel, stacked along an axis of their own."""
    return resnet(selective, [scaled(c, width, multiple=8) for c in (8, 16, 32)])


class SplitAttention(nn.Module):
    """A grouped convolution into `radix` splits of the channels, summed with weights from a softmax over the splits."""

    radix, cardinality = 2, 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels * self.radix, kernel=3, groups=self.radix * self.cardinality)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1, groups=self.cardinality),
            *(nn.BatchNorm2d(channels // 2), nn.ReLU()),
            nn.Conv2d(channels // 2, channels * self.radix, 1, groups=self.cardinality),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, h, w = x.shape
        splits = x.reshape(b, self.radix, c // self.radix, h, w)
        gate: Tensor = self.gate(splits.sum(dim=1).mean((2, 3), keepdim=True))
        # The gate's channels come out group by group, the splits lie split by split: hence the transposition.
        gate = torch.softmax(gate.view(b, self.cardinality, self.radix, -1).transpose(1, 2), dim=1)
        return (splits * gate.reshape(b, self.radix, c // self.radix, 1, 1)).sum(dim=1)


def split_attended(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A bottleneck around the split attention; average pools halve the image, in the body and in the shortcut."""
    inner = c_out // 2
    body = nn.Sequential(
        *(conv_bn(c_in, inner), SplitAttention(inner)),
        *([nn.AvgPool2d(3, stride, padding=1)] if stride > 1 else []),
        conv_bn(inner, c_out, act=None),
    )
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return Sum(body, nn.Sequential(pool, projection(c_in, c_out, 1)), act=nn.ReLU())


@family
def resnest(width: float) -> nn.Module:
    """ResNeSt: split attention with radix 2 in two groups."""
    return resnet(split_attended, [scaled(c, width, multiple=16) for c in (16, 16, 32)])


class Scales(nn.Module):
    """The channels in four parts: three convolved, each after adding what the one before gave, and one left alone.

    In a block that changes the shape nothing can be added, and the lone part is pooled.
    """

    def __init__(self, channels: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.width, self.first = channels // 4, first
        self.convs = nn.ModuleList(conv_bn(self.width, self.width, kernel=3, stride=stride) for _ in range(3))
        self.alone = nn.AvgPool2d(3, stride=stride, padding=1) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        *parts, alone = torch.split(x, self.width, 1)
        outs: list[Tensor] = []
        for part, conv in zip(parts, self.convs, strict=True):
            outs.append(conv(part + outs[-1] if outs and not self.first else part))
        return torch.cat([*outs, self.alone(alone)], 1)


def multi_scale(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A bottleneck with the parts of Res2Net in its middle."""
    first = stride > 1 or c_in != c_out
    body = nn.Sequential(
        conv_bn(c_in, c_out // 2), Scales(c_out // 2, stride, first=first), conv_bn(c_out // 2, c_out, act=None)
    )
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


@family
def res2net(width: float) -> nn.Module:
    """Res2Net: the 3x3 convolution of the bottleneck as a cascade over parts of the channels."""
    return resnet(multi_scale, [scaled(c, width, multiple=16) for c in (8, 16, 32)])

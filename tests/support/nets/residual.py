"""The ResNet families: what differs is the body of a block and its shortcut."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import Sum, bn_conv, conv_bn, family, pooled_linear, scaled

Block = Callable[[int, int, int], nn.Module]  # (channels in, channels out, stride)


class PaddedShortcut(nn.Module):
    """Option A of the paper: every second pixel, zeros for the new channels on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class PreActivation(nn.Module):
    """BN-ReLU-conv twice plus the shortcut; a projection reads the activated features, as in the paper."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.first = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.second = bn_conv(c_out, c_out, kernel=3)
        self.dropout = nn.Dropout(dropout)
        same = stride == 1 and c_in == c_out
        self.project = None if same else nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm(x)
        shortcut = x if self.project is None else self.project(ready)
        out: Tensor = self.second(self.dropout(self.first(ready))) + shortcut
        return out


def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Nothing where the shapes agree, else a 1x1 convolution."""
    return nn.Identity() if c_in == c_out and stride == 1 else conv_bn(c_in, c_out, stride=stride, act=None)


def basic(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions and a projection."""
    body = nn.Sequential(conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None))
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


def option_a(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions and a shortcut without weights."""
    body = nn.Sequential(conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None))
    return Sum(body, nn.Identity() if stride == 1 else PaddedShortcut(c_out - c_in), act=nn.ReLU())


def bottleneck(c_in: int, c_out: int, stride: int, *, inner: int = 0, groups: int = 1) -> nn.Module:
    """1x1, 3x3 (in groups) and 1x1 convolution; a quarter as wide in the middle unless `inner` says otherwise."""
    inner = inner or c_out // 4
    body = nn.Sequential(
        conv_bn(c_in, inner),
        conv_bn(inner, inner, kernel=3, stride=stride, groups=groups),
        conv_bn(inner, c_out, act=None),
    )
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


def stages(block: Block, channels: list[int]) -> nn.Sequential:
    """Two blocks per stage after the stem's `channels[0]`; all stages but the first halve the image."""
    layers: list[nn.Module] = []
    for index, c_out in enumerate(channels[1:]):
        layers += [block(channels[index], c_out, 1 if index == 0 else 2), block(c_out, c_out, 1)]
    return nn.Sequential(*layers)


def resnet(block: Block, channels: list[int]) -> nn.Module:
    """Stem, stages, classifier."""
    return nn.Sequential(conv_bn(3, channels[0], kernel=3), stages(block, channels), pooled_linear(channels[-1]))


def preact(block: Block, channels: list[int]) -> nn.Module:
    """Stem without norm, stages, a last norm, classifier."""
    return nn.Sequential(
        nn.Conv2d(3, channels[0], 3, padding=1, bias=False),
        *(stages(block, channels), nn.BatchNorm2d(channels[-1]), nn.ReLU(), pooled_linear(channels[-1])),
    )


@family
def resnet_basic(width: float) -> nn.Module:
    """ResNet with basic blocks and 1x1 projections."""
    return resnet(basic, [scaled(c, width) for c in (8, 8, 16, 32)])


@family
def resnet_option_a(width: float) -> nn.Module:
    """The CIFAR ResNet: shortcuts by strided slicing and zero channels."""
    return resnet(option_a, [scaled(c, width) for c in (8, 8, 16, 32)])


@family
def resnet_bottleneck(width: float) -> nn.Module:
    """ResNet with bottleneck blocks."""
    return resnet(bottleneck, [scaled(c, width, multiple=16) for c in (16, 16, 32, 48)])


@family
def resnext(width: float) -> nn.Module:
    """ResNeXt: the 3x3 convolution of the bottleneck in four groups."""
    return resnet(
        lambda c_in, c_out, stride: bottleneck(c_in, c_out, stride, inner=c_out // 2, groups=4),
        [scaled(c, width, multiple=8) for c in (8, 16, 32, 48)],
    )


@family
def resnet_preact(width: float) -> nn.Module:
    """ResNet v2: norm and activation before the convolutions."""
    return preact(PreActivation, [scaled(c, width) for c in (8, 8, 16, 32)])


@family
def wide_resnet(width: float) -> nn.Module:
    """WideResNet: pre-activation, three times as wide after the stem, dropout between the convolutions."""
    return preact(
        lambda c_in, c_out, stride: PreActivation(c_in, c_out, stride, dropout=0.3),
        [scaled(c, width) for c in (8, 24, 36, 48)],
    )

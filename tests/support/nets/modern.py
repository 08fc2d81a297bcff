"""Mobile nets after MobileNetV2: MnasNet, FBNet, MixNet, EfficientNetV2, MobileNetV4, ReXNet, StarNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import SqueezeExcite, Sum, conv_bn, family, pooled_linear, scaled
from nets.mobile import inverted, separable

Activation = Callable[[], nn.Module]


def added(body: nn.Module, c_in: int, c_out: int, stride: int) -> nn.Module:
    """`body`, plus its input where the shapes agree."""
    return Sum(body, nn.Identity(), act=None) if stride == 1 and c_in == c_out else body


@family
def mnasnet(width: float) -> nn.Module:
    """MnasNet-A1: a separable first block, inverted residuals with ReLU, squeeze-excite in some."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))

    def gated(c_in: int, c_out: int, stride: int) -> nn.Module:
        gate = SqueezeExcite(3 * c_in, max(1, c_in // 4), act=nn.ReLU, gate=nn.Sigmoid)
        return inverted(c_in, c_out, stride, kernel=5, act=nn.ReLU, gate=gate)

    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), separable(a, a, 1)),
        *(inverted(a, b, 2, act=nn.ReLU), inverted(b, b, 1, act=nn.ReLU), gated(b, c, 2), gated(c, c, 1)),
        *(conv_bn(c, d), pooled_linear(d, nn.Dropout(0.2))),
    )


def irf(c_in: int, c_out: int, stride: int, *, expand: int = 2, kernel: int = 3, groups: int = 1) -> nn.Module:
    """FBNet's block: an inverted residual whose pointwise convolutions may be grouped."""
    inner = c_in * expand
    body = nn.Sequential(
        conv_bn(c_in, inner, groups=groups),
        conv_bn(inner, inner, kernel=kernel, stride=stride, groups=inner),
        conv_bn(inner, c_out, groups=groups, act=None),
    )
    return added(body, c_in, c_out, stride)


@family
def fbnet(width: float) -> nn.Module:
    """FBNet: what a search picked per layer, pointwise convolutions in two groups among it."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), irf(a, a, 1, expand=1, groups=2)),
        *(irf(a, b, 2, expand=3), irf(b, b, 1, groups=2), irf(b, c, 2, expand=3, kernel=5), irf(c, c, 1, kernel=5)),
        *(conv_bn(c, d), pooled_linear(d, nn.Dropout(0.2))),
    )


class MixConv(nn.Module):
    """The channels in as many parts as there are kernels; each part has its own convolution."""

    def __init__(
        self, c_in: int, c_out: int, kernels: Sequence[int], *, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.sizes, outs = shares(c_in, len(kernels)), shares(c_out, len(kernels))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, stride=stride, padding=k // 2, groups=a if depthwise else 1, bias=False)
            for a, b, k in zip(self.sizes, outs, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.sizes, 1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


def shares(channels: int, parts: int) -> list[int]:
    """`channels` in equal parts; the first one also gets what is left over."""
    size = channels // parts
    return [channels - size * (parts - 1)] + [size] * (parts - 1)


def mixed(c_in: int, c_out: int, stride: int, *, kernels: Sequence[int], pointwise: int = 1) -> nn.Module:
    """An inverted residual with mixed kernels; the pointwise convolutions are in parts too where `pointwise` > 1."""
    inner, ones = 3 * c_in, [1] * pointwise
    body = nn.Sequential(
        *(MixConv(c_in, inner, ones), nn.BatchNorm2d(inner), nn.SiLU()),
        *(MixConv(inner, inner, kernels, stride=stride, depthwise=True), nn.BatchNorm2d(inner), nn.SiLU()),
        SqueezeExcite(inner, max(1, c_in // 2), act=nn.SiLU, gate=nn.Sigmoid),
        *(MixConv(inner, c_out, ones), nn.BatchNorm2d(c_out)),
    )
    return added(body, c_in, c_out, stride)


@family
def mixnet(width: float) -> nn.Module:
    """MixNet: depthwise kernels of three sizes in one layer, swish, squeeze-excite."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2),
        *(inverted(a, a, 1, expand=1, act=nn.ReLU), mixed(a, b, 2, kernels=(3, 5, 7))),
        *(mixed(b, b, 1, kernels=(3, 5), pointwise=2), mixed(b, c, 2, kernels=(3, 5, 7)), mixed(c, c, 1, kernels=(3,))),
        *(conv_bn(c, d), pooled_linear(d)),
    )


def fused(c_in: int, c_out: int, stride: int, *, expand: int) -> nn.Module:
    """An inverted residual whose expansion and depthwise convolution are one full 3x3 convolution."""
    if expand == 1:
        return added(conv_bn(c_in, c_out, kernel=3, stride=stride, act=nn.SiLU), c_in, c_out, stride)
    inner = c_in * expand
    body = nn.Sequential(conv_bn(c_in, inner, kernel=3, stride=stride, act=nn.SiLU), conv_bn(inner, c_out, act=None))
    return added(body, c_in, c_out, stride)


@family
def efficientnet_v2(width: float) -> nn.Module:
    """EfficientNetV2: fused blocks early, inverted residuals with squeeze-excite late."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))

    def late(c_in: int, c_out: int, stride: int) -> nn.Module:
        gate = SqueezeExcite(4 * c_in, max(1, c_in // 4), act=nn.SiLU, gate=nn.Sigmoid)
        return inverted(c_in, c_out, stride, expand=4, act=nn.SiLU, gate=gate)

    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2, act=nn.SiLU), fused(a, a, 1, expand=1)),
        *(fused(a, b, 2, expand=4), fused(b, b, 1, expand=4), late(b, c, 2), late(c, c, 1)),
        *(conv_bn(c, d, act=nn.SiLU), pooled_linear(d, nn.Dropout(0.2))),
    )


def universal(c_in: int, c_out: int, stride: int, *, start: int = 0, middle: int = 0, expand: int = 3) -> nn.Module:
    """The universal inverted bottleneck: depthwise kernels before and after the expansion, each of them optional.

    The depthwise convolution in the middle is strided; without it, the one at the start.
    """
    inner = c_in * expand
    early, late = (1, stride) if middle else (stride, 1)
    body = nn.Sequential(
        *([conv_bn(c_in, c_in, kernel=start, stride=early, groups=c_in, act=None)] if start else []),
        conv_bn(c_in, inner),
        *([conv_bn(inner, inner, kernel=middle, stride=late, groups=inner)] if middle else []),
        conv_bn(inner, c_out, act=None),
    )
    return added(body, c_in, c_out, stride)


@family
def mobilenet_v4(width: float) -> nn.Module:
    """MobileNetV4: all four forms of the universal inverted bottleneck, a fused block first, a conv in the head."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), conv_bn(a, b, kernel=3), conv_bn(b, b)),
        *(universal(b, b, 2, start=5, middle=5), universal(b, b, 1, middle=3), universal(b, c, 2, start=3)),
        *(universal(c, c, 1, start=3, expand=4), universal(c, c, 1, expand=2)),
        *(nn.AdaptiveAvgPool2d(1), conv_bn(c, d), pooled_linear(d)),
    )


class PartialResidual(nn.Module):
    """ReXNet's block: the input is added to the first channels of the wider output."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, expand: int) -> None:
        super().__init__()
        inner = c_in * expand
        self.added = c_in if stride == 1 else 0
        squeezed = max(1, inner // 12)
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, squeezed, 1), nn.BatchNorm2d(squeezed), nn.ReLU()),
            *(nn.Conv2d(squeezed, inner, 1), nn.Sigmoid()),
        )
        self.grow = nn.Sequential(
            *([conv_bn(c_in, inner, act=nn.SiLU)] if expand > 1 else []),
            conv_bn(inner, inner, kernel=3, stride=stride, groups=inner, act=None),
        )
        self.shrink = nn.Sequential(nn.ReLU6(), conv_bn(inner, c_out, act=None))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.grow(x)
        out = self.shrink(out * self.gate(out))
        if not self.added:
            return out
        return torch.cat([out[:, : self.added] + x, out[:, self.added :]], dim=1)


@family
def rexnet(width: float) -> nn.Module:
    """ReXNet: channels that grow in every block, partial residuals."""
    a, b, c, d, e = (scaled(n, width) for n in (8, 12, 16, 20, 48))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2, act=nn.SiLU), PartialResidual(a, b, 1, expand=1)),
        *(PartialResidual(b, c, 2, expand=3), PartialResidual(c, d, 1, expand=3)),
        *(conv_bn(d, e, act=nn.SiLU), pooled_linear(e, nn.Dropout(0.2))),
    )


class Star(nn.Module):
    """Two pointwise convolutions side by side, multiplied, between two depthwise 7x7 convolutions."""

    def __init__(self, channels: int, expand: int = 3) -> None:
        super().__init__()
        inner = expand * channels
        self.before = conv_bn(channels, channels, kernel=7, groups=channels, act=None)
        self.first, self.second = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.shrink = conv_bn(inner, channels, act=None)
        self.after = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.before(x)
        out = F.relu6(self.first(out)) * self.second(out)
        return x + self.after(self.shrink(out))


@family
def starnet(width: float) -> nn.Module:
    """StarNet: blocks that multiply two branches."""
    a, b, c = (scaled(n, width) for n in (8, 12, 24))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2, act=nn.ReLU6),
        *(conv_bn(a, b, kernel=3, stride=2, act=None), Star(b), Star(b)),
        *(conv_bn(b, c, kernel=3, stride=2, act=None), Star(c)),
        *(nn.BatchNorm2d(c), pooled_linear(c)),
    )

"""Nets that are trained with more branches than they are deployed with: RepVGG and MobileOne, as they train."""

from __future__ import annotations

from torch import Tensor, nn

from nets.common import conv_bn, family, pooled_linear, scaled


class RepVggBlock(nn.Module):
    """A 3x3 convolution, a 1x1 convolution and, where the shapes agree, nothing: each with its norm, all added up."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.dense = conv_bn(c_in, c_out, kernel=3, stride=stride, act=None)
        self.point, self.act = conv_bn(c_in, c_out, stride=stride, act=None), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # Without a third branch the original adds a plain zero, and so does its export.
        out: Tensor = self.act(self.dense(x) + self.point(x) + (0 if self.identity is None else self.identity(x)))
        return out


@family
def repvgg_train(width: float) -> nn.Module:
    """RepVGG in training: three branches per block."""
    a, b, c = (scaled(n, width) for n in (8, 16, 32))
    return nn.Sequential(
        *(RepVggBlock(3, a, 2), RepVggBlock(a, b, 2), RepVggBlock(b, b, 1), RepVggBlock(b, c, 2)), pooled_linear(c)
    )


def conv_relu(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The deployed block: one 3x3 convolution with bias."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), nn.ReLU())


@family
def repvgg(width: float) -> nn.Module:
    """RepVGG as deployed: 3x3 convolutions in a row."""
    a, b, c = (scaled(n, width) for n in (8, 16, 32))
    return nn.Sequential(
        *(conv_relu(3, a, 2), conv_relu(a, b, 2), conv_relu(b, b, 1), conv_relu(b, c, 2)), pooled_linear(c)
    )


class MobileOneBlock(nn.Module):
    """Several copies of one convolution, a 1x1 convolution beside kernels of 3x3, and a norm beside equal shapes."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.copies = nn.ModuleList(
            conv_bn(c_in, c_out, kernel=kernel, stride=stride, groups=groups, act=None) for _ in range(2)
        )
        self.scale = conv_bn(c_in, c_out, stride=stride, groups=groups, act=None) if kernel > 1 else None
        self.skip = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor | int = 0 if self.scale is None else self.scale(x)
        out = out + (0 if self.skip is None else self.skip(x))
        for copy in self.copies:
            out = out + copy(x)
        ready: Tensor = self.act(out)
        return ready


def one(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A depthwise and a pointwise block."""
    return nn.Sequential(
        MobileOneBlock(c_in, c_in, kernel=3, stride=stride, groups=c_in), MobileOneBlock(c_in, c_out, kernel=1)
    )


@family
def mobileone_train(width: float) -> nn.Module:
    """MobileOne in training: over-parametrised depthwise separable convolutions."""
    a, b, c = (scaled(n, width) for n in (8, 16, 32))
    return nn.Sequential(
        MobileOneBlock(3, a, kernel=3, stride=2), one(a, b, 2), one(b, b, 1), one(b, c, 2), pooled_linear(c)
    )

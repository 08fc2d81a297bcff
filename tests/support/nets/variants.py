"""Residual nets after ResNet: other stems, shortcuts, pools and blocks; Darknet, RegNet, GENet, NFNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import SqueezeExcite, Sum, conv_bn, family, max_pool, pooled_linear, scaled
from nets.residual import basic, projection, resnet, stages

Activation = Callable[[], nn.Module]
average = partial(nn.AvgPool2d, ceil_mode=True, count_include_pad=False)


def averaged_shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The projection of ResNet-D: an average pool halves the image, the convolution sees every pixel."""
    if stride == 1:
        return projection(c_in, c_out, stride)
    return nn.Sequential(average(stride, stride), conv_bn(c_in, c_out, act=None))


def basic_d(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A basic block with an averaged shortcut."""
    body = nn.Sequential(conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None))
    return Sum(body, averaged_shortcut(c_in, c_out, stride), act=nn.ReLU())


@family
def resnet_d(width: float) -> nn.Module:
    """ResNet-D: three convolutions as the stem, averaged shortcuts."""
    a, b, c, d = (scaled(n, width) for n in (4, 8, 16, 24))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), conv_bn(a, a, kernel=3), conv_bn(a, b, kernel=3), max_pool()),
        *(stages(basic_d, [b, c, d]), pooled_linear(d)),
    )


class BlurPool(nn.Module):
    """Every second pixel of the image after a binomial filter, which is no parameter."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line[None, :])[None, None].repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


def blurred(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A basic block that halves the image by blur pools only, before its second convolution and in the shortcut."""
    if stride == 1:
        return basic(c_in, c_out, 1)
    body = nn.Sequential(conv_bn(c_in, c_out, kernel=3), BlurPool(c_out), conv_bn(c_out, c_out, kernel=3, act=None))
    return Sum(body, nn.Sequential(BlurPool(c_in), conv_bn(c_in, c_out, act=None)), act=nn.ReLU())


@family
def antialiased(width: float) -> nn.Module:
    """The antialiased ResNet: dense max pool, blur pools."""
    a, b, c = (scaled(n, width) for n in (8, 16, 24))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3), nn.MaxPool2d(2, stride=1), BlurPool(a)),
        *(stages(blurred, [a, b, c]), pooled_linear(c)),
    )


leaky = partial(nn.LeakyReLU, 0.1)


def dark(channels: int) -> nn.Module:
    """Half as wide by 1x1, back by 3x3, added without an activation after it."""
    body = nn.Sequential(
        conv_bn(channels, channels // 2, act=leaky), conv_bn(channels // 2, channels, kernel=3, act=leaky)
    )
    return Sum(body, nn.Identity(), act=None)


@family
def darknet(width: float) -> nn.Module:
    """Darknet-53: strided convolutions between residual blocks, leaky ReLU everywhere."""
    a, b, c = (scaled(n, width) for n in (8, 16, 32))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, act=leaky),
        *(conv_bn(a, b, kernel=3, stride=2, act=leaky), dark(b)),
        *(conv_bn(b, c, kernel=3, stride=2, act=leaky), dark(c), dark(c)),
        pooled_linear(c),
    )


def y_block(c_in: int, c_out: int, stride: int) -> nn.Module:
    """1x1, grouped 3x3, squeeze-excite and 1x1, all of one width."""
    body = nn.Sequential(
        *(conv_bn(c_in, c_out), conv_bn(c_out, c_out, kernel=3, stride=stride, groups=c_out // 8)),
        SqueezeExcite(c_out, c_in // 4, act=nn.ReLU, gate=nn.Sigmoid),
        conv_bn(c_out, c_out, act=None),
    )
    return Sum(body, projection(c_in, c_out, stride), act=nn.ReLU())


@family
def regnet_y(width: float) -> nn.Module:
    """RegNetY: groups of eight channels and squeeze-excite."""
    return resnet(y_block, [scaled(c, width, multiple=8) for c in (8, 16, 32)])


def ge_block(body: Sequence[nn.Module], c_in: int, c_out: int, stride: int) -> nn.Module:
    """`body` plus a shortcut that averages and projects, each where the shapes need it."""
    shortcut: list[nn.Module] = [nn.AvgPool2d(stride + 1, stride, padding=stride // 2)] if stride > 1 else []
    return Sum(nn.Sequential(*body), nn.Sequential(*shortcut, projection(c_in, c_out, 1)), act=nn.ReLU())


def xx_block(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Two full 3x3 convolutions."""
    body = [conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None)]
    return ge_block(body, c_in, c_out, stride)


def bottleneck_block(c_in: int, c_out: int, stride: int, *, ratio: float, depthwise: bool) -> nn.Module:
    """1x1, 3x3 and 1x1; narrow in the middle, or wide and depthwise."""
    inner = int(c_out * ratio)
    middle = conv_bn(inner, inner, kernel=3, stride=stride, groups=inner if depthwise else 1)
    return ge_block([conv_bn(c_in, inner), middle, conv_bn(inner, c_out, act=None)], c_in, c_out, stride)


@family
def genet(width: float) -> nn.Module:
    """GENet: full convolutions early, bottlenecks, inverse bottlenecks with depthwise convolutions late."""
    a, b, c, d, e = (scaled(n, width) for n in (8, 12, 16, 24, 48))
    wide = partial(bottleneck_block, ratio=3, depthwise=True)
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), xx_block(a, b, 1)),
        *(bottleneck_block(b, c, 2, ratio=0.5, depthwise=False), wide(c, d, 2), wide(d, d, 1)),
        *(conv_bn(d, e), pooled_linear(e)),
    )


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters are standardised on the way, with a gain per filter."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(c_out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.mean(self.weight, dim=(1, 2, 3), keepdim=True)
        var = torch.var(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        fan_in = self.weight[0].numel()
        weight = (self.weight - mean) * torch.rsqrt(torch.clamp(var * fan_in, min=1e-4)) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledActivation(nn.Module):
    """An activation times what makes the variance of its output one again."""

    def __init__(self, act: Activation, gamma: float) -> None:
        super().__init__()
        self.act, self.gamma = act(), gamma

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x) * self.gamma
        return out


gelu = partial(ScaledActivation, nn.GELU, 1.7015043497085571)
silu = partial(ScaledActivation, nn.SiLU, 1.7881293296813965)


class NormFree(nn.Module):
    """NFNet's block: x / beta in, alpha times the body out, variance kept in hand without any norm.

    A projection reads the scaled features; squeeze-excite counts twice, because a sigmoid halves on average.
    """

    alpha = 0.2

    def __init__(self, c_in: int, c_out: int, stride: int, *, variance: float, act: Activation) -> None:
        super().__init__()
        inner = c_out // 2
        self.beta, self.act = variance**-0.5, act()
        self.body = nn.Sequential(
            *(StandardisedConv(c_in, inner, 1), act(), StandardisedConv(inner, inner, 3, stride=stride, groups=2)),
            *(act(), StandardisedConv(inner, inner, 3, groups=2), act(), StandardisedConv(inner, c_out, 1)),
        )
        self.attention = SqueezeExcite(c_out, c_out // 2, act=nn.ReLU, gate=nn.Sigmoid)
        pool = average(2, stride) if stride > 1 else nn.Identity()
        same = stride == 1 and c_in == c_out
        self.project = None if same else nn.Sequential(pool, StandardisedConv(c_in, c_out, 1))
        self.skip_gain = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        ready = self.act(x) * self.beta
        shortcut: Tensor = x if self.project is None else self.project(ready)
        body: Tensor = 2.0 * self.attention(self.body(ready))
        return body * self.skip_gain * self.alpha + shortcut


@family
def nfnet(width: float) -> nn.Module:
    """NFNet: standardised weights instead of norms; scaled GELU in the first stage, scaled SiLU in the second."""
    a, b, c, d = (scaled(n, width) for n in (8, 16, 24, 48))
    grown = 1 + NormFree.alpha**2  # the variance after one block
    return nn.Sequential(
        *(StandardisedConv(3, a, 3, stride=2), gelu(), StandardisedConv(a, b, 3)),
        *(NormFree(b, b, 1, variance=1.0, act=gelu), NormFree(b, c, 2, variance=grown, act=silu)),
        *(NormFree(c, c, 1, variance=grown, act=silu), StandardisedConv(c, d, 1), silu(), pooled_linear(d)),
    )

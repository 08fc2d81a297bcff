"""Nets of the shape of a transformer on images: FastViT and PoolFormer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets.common import CLASSES, conv_bn, family, pooled_linear, scaled
from nets.layernorm import MeanOver, layer_scale


class ScaledResidual(nn.Module):
    """The input plus what the body makes of it, with a gain per channel [C, 1, 1]."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.gamma = body, layer_scale(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.body(x)


class RepMixer(nn.Module):
    """Depthwise 3x3 convolution and its norm, minus another norm of the input: as it trains, before it is folded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix, self.norm = conv_bn(channels, channels, kernel=3, groups=channels, act=None), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mix(x) - self.norm(x)
        return out


def conv_mlp(channels: int) -> nn.Module:
    """FastViT's feed-forward part: depthwise 7x7 with norm, two pointwise convolutions."""
    return nn.Sequential(
        conv_bn(channels, channels, kernel=7, groups=channels, act=None),
        *(nn.Conv2d(channels, 3 * channels, 1), nn.GELU(), nn.Conv2d(3 * channels, channels, 1)),
    )


class SelfAttention(nn.Module):
    """Multi-head attention of the pixels to one another, with the image as input and output."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.qkv, self.project = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = h * w
        tokens = torch.flatten(x, start_dim=2).transpose(-2, -1)
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1)
        out: Tensor = self.project((weights @ v).transpose(1, 2).reshape(b, n, c))
        return out.transpose(-2, -1).reshape(b, c, h, w)


class PositionalConv(nn.Module):
    """A depthwise 7x7 convolution added to the input: it tells the pixels where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + x
        return out


def mixer_block(channels: int) -> nn.Module:
    """RepMixer and feed-forward part."""
    return nn.Sequential(ScaledResidual(RepMixer(channels), channels), ScaledResidual(conv_mlp(channels), channels))


def attention_block(channels: int) -> nn.Module:
    """Norm, attention and feed-forward part."""
    attention = nn.Sequential(nn.BatchNorm2d(channels), SelfAttention(channels, heads=2))
    return nn.Sequential(ScaledResidual(attention, channels), ScaledResidual(conv_mlp(channels), channels))


def patch_down(c_in: int, c_out: int) -> nn.Module:
    """FastViT's way to halve the image: a depthwise 7x7 and a pointwise convolution."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_in, 7, stride=2, padding=3, groups=c_in, bias=False),
        *(nn.BatchNorm2d(c_in), nn.GELU(), conv_bn(c_in, c_out, act=nn.GELU)),
    )


@family
def fastvit(width: float) -> nn.Module:
    """FastViT: convolutional token mixers, self-attention in the last stage only."""
    a, b, c = (scaled(n, width) for n in (8, 16, 24))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2, act=nn.GELU), mixer_block(a)),
        *(patch_down(a, b), mixer_block(b), patch_down(b, c), PositionalConv(c), attention_block(c)),
        pooled_linear(c),
    )


class PoolMixer(nn.Module):
    """How much the neighbourhood differs from the pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(x) - x
        return out


def pool_block(channels: int) -> nn.Module:
    """Norm and pooling, norm and two pointwise convolutions."""
    mlp = (nn.Conv2d(channels, 3 * channels, 1), nn.GELU(), nn.Conv2d(3 * channels, channels, 1))
    return nn.Sequential(
        ScaledResidual(nn.Sequential(nn.GroupNorm(1, channels), PoolMixer()), channels),
        ScaledResidual(nn.Sequential(nn.GroupNorm(1, channels), *mlp), channels),
    )


@family
def poolformer(width: float) -> nn.Module:
    """PoolFormer: average pooling as the token mixer, one group norm over all channels."""
    a, b = (scaled(n, width) for n in (12, 24))
    return nn.Sequential(
        *(nn.Conv2d(3, a, 7, stride=4, padding=2), pool_block(a), pool_block(a)),
        *(nn.Conv2d(a, b, 3, stride=2, padding=1), pool_block(b)),
        *(nn.GroupNorm(1, b), MeanOver(), nn.Linear(b, CLASSES)),
    )

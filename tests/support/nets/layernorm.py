"""Nets that normalise over the channels of each pixel: ConvNeXt V1 and V2, EdgeNeXt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import CLASSES, family, scaled


def layer_scale(*shape: int) -> nn.Parameter:
    """A gain per channel. Training starts at nearly zero, where nobody would see what the block does."""
    return nn.Parameter(torch.empty(shape).uniform_(0.3, 0.9))


class LayerNorm2d(nn.Module):
    """The norm over the channels of an image, in single operators as the original of ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(0.6, 1.4))
        self.bias = nn.Parameter(torch.randn(channels) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ResponseNorm(nn.Module):
    """GRN: a channel counts as much as its norm over the image [B, H, W, C] stands out among all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = layer_scale(1, 1, 1, channels), layer_scale(1, 1, 1, channels)

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class NextBlock(nn.Module):
    """A depthwise convolution, then LayerNorm and two Linear layers with the channels last, added to the input."""

    def __init__(self, channels: int, *, kernel: int = 7, response: bool = False) -> None:
        super().__init__()
        inner = 3 * channels
        self.mix = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.mlp = nn.Sequential(
            *(nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, inner), nn.GELU()),
            *([ResponseNorm(inner)] if response else []),
            nn.Linear(inner, channels),
        )
        # The second version has the response norm instead of the layer scale.
        self.gamma = None if response else layer_scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.mix(x).permute(0, 2, 3, 1))
        if self.gamma is not None:
            out = self.gamma * out
        return x + out.permute(0, 3, 1, 2)


def down(c_in: int, c_out: int) -> nn.Module:
    """LayerNorm and a 2x2 convolution that halves the image."""
    return nn.Sequential(LayerNorm2d(c_in), nn.Conv2d(c_in, c_out, 2, stride=2))


class MeanOver(nn.Module):
    """The mean over both axes of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([-2, -1])


def normed_head(channels: int) -> nn.Module:
    """Mean over the image, LayerNorm, Linear."""
    return nn.Sequential(MeanOver(), nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, CLASSES))


def patches(c_out: int) -> nn.Module:
    """The image in patches of four by four, each one pixel now."""
    return nn.Sequential(nn.Conv2d(3, c_out, 4, stride=4), LayerNorm2d(c_out))


@family
def convnext(width: float) -> nn.Module:
    """ConvNeXt: LayerNorm and Linear layers with the channels last, layer scale."""
    a, b = (scaled(n, width) for n in (12, 24))
    return nn.Sequential(patches(a), NextBlock(a), NextBlock(a), down(a, b), NextBlock(b), normed_head(b))


@family
def convnext_v2(width: float) -> nn.Module:
    """ConvNeXt V2: global response normalisation."""
    a, b = (scaled(n, width) for n in (12, 24))

    def block(channels: int) -> nn.Module:
        return NextBlock(channels, response=True)

    return nn.Sequential(patches(a), block(a), block(a), down(a, b), block(b), normed_head(b))


class CrossCovariance(nn.Module):
    """XCA: attention of the channels of each head to one another, on tokens [B, N, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.empty(heads, 1, 1).uniform_(0.8, 1.5))
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv[0], qkv[1], qkv[2]  # each [B, heads, C / heads, N]
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = torch.softmax((q @ k.transpose(-2, -1)) * self.temperature, dim=-1)
        out: Tensor = self.project((weights @ v).permute(0, 3, 1, 2).reshape(b, n, c))
        return out


class SplitDepthTranspose(nn.Module):
    """EdgeNeXt's SDTA encoder: a cascade of depthwise convolutions on two parts, channel attention, two Linear layers."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.part = channels // 2
        self.conv = nn.Conv2d(self.part, self.part, 3, padding=1, groups=self.part)
        self.norm, self.attention = nn.LayerNorm(channels, eps=1e-6), CrossCovariance(channels, heads)
        self.mlp = nn.Sequential(
            *(nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 3 * channels), nn.GELU()),
            nn.Linear(3 * channels, channels),
        )
        self.gamma_attention, self.gamma = layer_scale(channels), layer_scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, self.part, 1)
        first = self.conv(first)
        out = torch.cat((first, rest), 1)
        b, c, h, w = out.shape
        tokens = out.reshape(b, c, h * w).permute(0, 2, 1)
        tokens = tokens + self.gamma_attention * self.attention(self.norm(tokens))
        return x + (self.gamma * self.mlp(tokens.reshape(b, h, w, c))).permute(0, 3, 1, 2)


@family
def edgenext(width: float) -> nn.Module:
    """EdgeNeXt: ConvNeXt blocks, then attention among the channels."""
    a, b = (scaled(n, width) for n in (12, 24))
    return nn.Sequential(
        *(patches(a), NextBlock(a, kernel=3), NextBlock(a, kernel=5)),
        *(down(a, b), NextBlock(b, kernel=5), SplitDepthTranspose(b, heads=2), normed_head(b)),
    )

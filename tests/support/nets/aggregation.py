"""Nets that gather features over several layers or paths: DPN, CSPNet, VoVNet, SelecSLS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets.common import Sum, bn_conv, conv_bn, family, pooled_linear, scaled

Pair = tuple[Tensor, Tensor]


class DualPath(nn.Module):
    """One convolution feeds both paths: its first channels are added to one, the others join the other."""

    def __init__(self, c_in: int, residual: int, growth: int, *, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.residual, inner = residual, 2 * growth
        # The first block of a stage reads one tensor and makes both paths of it.
        self.project = bn_conv(c_in, residual + 2 * growth, stride=stride) if project else None
        self.body = nn.Sequential(
            bn_conv(c_in, inner),
            *(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, stride, padding=1, groups=4, bias=False)),
            bn_conv(inner, residual + growth),
        )

    def forward(self, x: Pair | Tensor) -> Pair:
        whole = torch.cat(x, dim=1) if isinstance(x, tuple) else x
        if self.project is not None:
            ready = self.project(whole)
            x = (ready[:, : self.residual, :, :], ready[:, self.residual :, :, :])
        assert isinstance(x, tuple)
        out = self.body(whole)
        added, joined = out[:, : self.residual, :, :], out[:, self.residual :, :, :]
        return x[0] + added, torch.cat([x[1], joined], dim=1)


class Joined(nn.Module):
    """The two paths, concatenated."""

    def forward(self, x: Pair) -> Tensor:
        return torch.cat(x, dim=1)


@family
def dpn(width: float) -> nn.Module:
    """Dual path net: residual and dense connections side by side."""
    stem, residual, growth = scaled(8, width), scaled(12, width), scaled(4, width)
    begun, wide = residual + 3 * growth, residual + 4 * growth
    return nn.Sequential(
        conv_bn(3, stem, kernel=3, stride=2),
        *(DualPath(stem, residual, growth, project=True), DualPath(begun, residual, growth), Joined()),
        *(DualPath(wide, residual, growth, stride=2, project=True), DualPath(begun, residual, growth), Joined()),
        *(nn.BatchNorm2d(wide), nn.ReLU(), pooled_linear(wide)),
    )


class CrossStage(nn.Module):
    """Half of the channels go through the blocks, the other half around them."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.down = conv_bn(c_in, c_out, kernel=3, stride=stride, act=nn.LeakyReLU)
        self.expand = conv_bn(c_out, c_out, act=nn.LeakyReLU)
        body = nn.Sequential(conv_bn(half, half, act=nn.LeakyReLU), conv_bn(half, half, kernel=3, act=nn.LeakyReLU))
        self.blocks = nn.Sequential(Sum(body, nn.Identity(), act=None), conv_bn(half, half, act=nn.LeakyReLU))
        self.join = conv_bn(c_out, c_out, act=nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.expand(self.down(x)).chunk(2, dim=1)
        out: Tensor = self.join(torch.cat([around, self.blocks(through)], dim=1))
        return out


@family
def cspnet(width: float) -> nn.Module:
    """CSP-Darknet: cross-stage partial connections."""
    a, b, c = (scaled(n, width) for n in (8, 16, 32))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, act=nn.LeakyReLU), CrossStage(a, b, 2), CrossStage(b, c, 2), pooled_linear(c)
    )


class OneShot(nn.Module):
    """Convolutions in a row, all of their outputs gathered once at the end, an eSE gate, and maybe a residual."""

    def __init__(self, c_in: int, inner: int, c_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv_bn(c, inner, kernel=3) for c in (c_in, inner, inner))
        self.join, self.gate = conv_bn(c_in + 3 * inner, c_out), nn.Conv2d(c_out, c_out, 1)
        self.act, self.residual = nn.Hardsigmoid(), c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        outs = [x]
        for conv in self.convs:
            outs.append(conv(outs[-1]))
        joined = self.join(torch.cat(outs, dim=1))
        out: Tensor = joined * self.act(self.gate(joined.mean((2, 3), keepdim=True)))
        return out + x if self.residual else out


@family
def vovnet(width: float) -> nn.Module:
    """VoVNet v2: one-shot aggregation with effective squeeze-excite."""
    a, b, c, inner = (scaled(n, width) for n in (8, 16, 24, 8))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), OneShot(a, inner, b), OneShot(b, inner, b)),
        *(nn.MaxPool2d(3, stride=2, ceil_mode=True), OneShot(b, inner, c), pooled_linear(c)),
    )


class Selective(nn.Module):
    """Three depths of convolutions, gathered with the skip that the first block of a stage gives to all later ones."""

    def __init__(self, c_in: int, inner: int, c_out: int, *, skip: int = 0, stride: int = 1) -> None:
        super().__init__()
        half = inner // 2
        self.first, self.carried = conv_bn(c_in, inner, kernel=3, stride=stride), skip > 0
        self.second = nn.Sequential(conv_bn(inner, inner), conv_bn(inner, half, kernel=3))
        self.third = nn.Sequential(conv_bn(half, inner), conv_bn(inner, half, kernel=3))
        self.join = conv_bn(2 * inner + skip, c_out)

    def forward(self, x: Pair) -> Pair:
        now, skip = x
        first = self.first(now)
        second = self.second(first)
        third = self.third(second)
        out = self.join(torch.cat([first, second, third, *([skip] if self.carried else [])], 1))
        return out, skip if self.carried else out


class Twice(nn.Module):
    """A tensor as both of a pair."""

    def forward(self, x: Tensor) -> Pair:
        return x, x


class First(nn.Module):
    """The first of a pair."""

    def forward(self, x: Pair) -> Tensor:
        return x[0]


@family
def selecsls(width: float) -> nn.Module:
    """SelecSLS: long skips carried from the first block of a stage, all gathered by concatenation."""
    a, b, c, inner = (scaled(n, width) for n in (8, 16, 24, 8))
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), Twice()),
        *(Selective(a, inner, b, stride=2), Selective(b, inner, b, skip=b)),
        *(Selective(b, inner, c, stride=2), Selective(c, inner, c, skip=c), First()),
        *(conv_bn(c, 2 * c, kernel=3, stride=2), pooled_linear(2 * c)),
    )

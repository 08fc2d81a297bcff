"""Nets that fuse features of several depths or resolutions: DLA and HRNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nets.common import conv_bn, family, pooled_linear, scaled
from nets.residual import basic

Pair = tuple[Tensor, Tensor]


class Root(nn.Module):
    """A node of the tree: its children, concatenated and convolved, plus the first of them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.join, self.act = conv_bn(c_in, c_out, act=None), nn.ReLU()

    def forward(self, children: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.act(self.join(torch.cat(list(children), 1)) + children[0])
        return out


class DlaBlock(nn.Module):
    """A basic block; whoever calls it knows the shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(c_in, c_out, kernel=3, stride=stride), conv_bn(c_out, c_out, kernel=3, act=None)
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        out: Tensor = self.act(self.body(x) + shortcut)
        return out


class Tree(nn.Module):
    """Two pairs of blocks; the root of the second pair also sees the root of the first and the pooled input."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.pool, self.project = nn.MaxPool2d(2, stride=2), conv_bn(c_in, c_out, act=None)
        self.blocks = nn.ModuleList(DlaBlock(c, c_out, s) for c, s in ((c_in, 2), *[(c_out, 1)] * 3))
        self.roots = nn.ModuleList([Root(2 * c_out, c_out), Root(3 * c_out + c_in, c_out)])

    def forward(self, x: Tensor) -> Tensor:
        bottom = self.pool(x)
        first = self.blocks[0](x, self.project(bottom))
        second = self.blocks[1](first, first)
        inner = self.roots[0]([second, first])
        third = self.blocks[2](inner, inner)
        fourth = self.blocks[3](third, third)
        out: Tensor = self.roots[1]([fourth, third, bottom, inner])
        return out


@family
def dla(width: float) -> nn.Module:
    """Deep layer aggregation: a tree of blocks whose roots concatenate their children."""
    a, b = (scaled(n, width) for n in (8, 16))
    return nn.Sequential(conv_bn(3, a, kernel=3, stride=2), conv_bn(a, a, kernel=3), Tree(a, b), pooled_linear(b))


class Exchange(nn.Module):
    """A block in each of two resolutions, then each gets the other one added: upsampled or strided."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine, self.coarse = basic(fine, fine, 1), basic(coarse, coarse, 1)
        self.up = nn.Sequential(conv_bn(coarse, fine, act=None), nn.Upsample(scale_factor=2, mode="nearest"))
        self.down, self.act = conv_bn(fine, coarse, kernel=3, stride=2, act=None), nn.ReLU()

    def forward(self, x: Pair) -> Pair:
        fine, coarse = self.fine(x[0]), self.coarse(x[1])
        return self.act(fine + self.up(coarse)), self.act(self.down(fine) + coarse)


class HrNet(nn.Module):
    """Both resolutions from the stem to the head, where the fine one is strided and added to the coarse one."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, fine, kernel=3, stride=2)
        self.begin = nn.ModuleList([conv_bn(fine, fine, kernel=3), conv_bn(fine, coarse, kernel=3, stride=2)])
        self.exchanges = nn.Sequential(Exchange(fine, coarse), Exchange(fine, coarse))
        self.grow = nn.ModuleList([basic(fine, coarse, 1), basic(coarse, 2 * coarse, 1)])
        self.down, self.last = conv_bn(coarse, 2 * coarse, kernel=3, stride=2), conv_bn(2 * coarse, 2 * coarse)
        self.head = pooled_linear(2 * coarse)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fine, coarse = self.exchanges((self.begin[0](x), self.begin[1](x)))
        out: Tensor = self.head(self.last(self.grow[1](coarse) + self.down(self.grow[0](fine))))
        return out


@family
def hrnet(width: float) -> nn.Module:
    """HRNet: two resolutions in parallel that exchange their features twice."""
    return HrNet(scaled(8, width), scaled(12, width))

"""Parts that the families share, the registry they stand in, and weights that make them behave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor, nn

CLASSES = 10
IMAGE = (3, 32, 32)


class Family(Protocol):
    """A family of architectures: `family()` is its small member, `width` scales the channels."""

    def __call__(self, width: float = 1.0) -> nn.Module: ...


FAMILIES: dict[str, Family] = {}


def family(build: Callable[[float], nn.Module]) -> Family:
    """Register `build` under its name; the registered function gives the net weights, always the same, in eval mode."""
    name = build.__name__
    if name in FAMILIES:
        raise ValueError(f"family {name} is registered already; choose another name")

    @wraps(build)
    def seeded(width: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(crc32(name.encode()))
            return initialise(build(width))

    FAMILIES[name] = seeded
    return seeded


def scaled(channels: int, width: float, *, multiple: int = 4) -> int:
    """`channels * width`, rounded to a multiple (of the groups, of two halves...), at least one multiple."""
    return max(1, round(channels * width / multiple)) * multiple


def initialise(net: nn.Module) -> nn.Module:
    """`net` with random weights, in eval mode; activations are O(1) and every BatchNorm does something.

    A BatchNorm's statistics are measured on noise and then moved off the truth, so that folding one wrongly shows.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=0.2)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.4)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None  # the mean over all batches, here one
    with torch.no_grad():
        net.train()(torch.randn(16, *IMAGE))
        for norm in norms:
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None
            assert var is not None
            mean += 0.2 * var.sqrt() * torch.randn_like(mean)
            var *= torch.empty_like(var).uniform_(0.7, 1.4)
    return net.eval()


def conv_bn(
    c_in: int,
    c_out: int,
    *,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Conv ("same" padding, no bias), BatchNorm and activation."""
    pad = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=pad, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([act()] if act else []))


def bn_conv(c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """BatchNorm, ReLU and Conv: the pre-activation order, in which the norm cannot be folded backwards."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


def pooled_linear(channels: int, *hidden: nn.Module) -> nn.Sequential:
    """Global average pooling and one Linear; `hidden` goes between the two."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *hidden, nn.Linear(channels, CLASSES))


def chained(build: Callable[[int, int], nn.Module], channels: list[int]) -> nn.Sequential:
    """`build(c_in, c_out)` for each pair of neighbours in `channels`."""
    return nn.Sequential(*(build(a, b) for a, b in pairwise(channels)))


class Concat(nn.Module):
    """The outputs of several branches, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Sum(nn.Module):
    """Body plus shortcut; ReLU after it unless `act` is None."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, act: nn.Module | None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.body(x) + self.shortcut(x))
        return out


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the pooled features."""

    def __init__(
        self, channels: int, squeezed: int, *, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), act(), nn.Conv2d(squeezed, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of `x` [B, C, H, W] dealt out in turn from `groups` packs."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


max_pool = partial(nn.MaxPool2d, 3, stride=2, padding=1)

"""Small nets that differ in their head only, and small residual nets that differ in their activation only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import CLASSES, Sum, conv_bn, initialise

CHANNELS, SIDE = 12, 4  # of the features that a head gets
WIDTH = 12  # of a residual net, everywhere: a PReLU has a slope for each channel
Function = Callable[[Tensor], Tensor]
Builder = Callable[[], nn.Module]


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def seeded(name: str, build: Builder) -> nn.Module:
    """What `build` gives, with weights that depend on the name only, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(crc32(name.encode()))
        return initialise(build())


# --- heads ------------------------------------------------------------------------------------------


def features() -> nn.Module:
    """Three convolutions: images -> [B, CHANNELS, SIDE, SIDE]."""
    steps = ((3, 8), (8, CHANNELS), (CHANNELS, CHANNELS))
    return nn.Sequential(*(conv_bn(a, b, kernel=3, stride=2) for a, b in steps))


def linear(c_in: int = CHANNELS) -> nn.Module:
    """The Linear layer that gives the logits."""
    return nn.Linear(c_in, CLASSES)


def pooled(*tail: nn.Module) -> list[nn.Module]:
    """Global average pooling to [B, CHANNELS], a Linear layer and what comes after it."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(), *tail]


def conv_head(*tail: nn.Module) -> list[nn.Module]:
    """Global average pooling and a 1x1 convolution that gives the logits as [B, CLASSES, 1, 1]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, CLASSES, 1), *tail]


def mlp() -> list[nn.Module]:
    """Two hidden Linear layers with dropout in front of each, as in AlexNet and VGG."""
    hidden = (nn.Linear(CHANNELS * SIDE**2, 24), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(24, 20))
    return [nn.Flatten(), nn.Dropout(), *hidden, nn.ReLU(inplace=True), linear(20)]


class AverageAndMax(nn.Module):
    """Global average and global maximum, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.highest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(torch.cat([self.average(x), self.highest(x)], 1), 1)


def channels_last(x: Tensor) -> Tensor:
    """The features with their channels as the last axis, flattened."""
    return x.permute(0, 2, 3, 1).flatten(1)


HEAD_LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "gap_linear": pooled,
    "gap_keepdims_squeeze": lambda: [Do(lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)), linear()],
    "mean_no_keepdims": lambda: [Do(lambda x: x.mean((2, 3))), linear()],
    "conv1x1_head": lambda: conv_head(nn.Flatten()),
    "conv1x1_head_unflattened": conv_head,
    "flatten_hw_linear": lambda: [nn.Flatten(), linear(CHANNELS * SIDE**2)],
    "reshape_hw_linear": lambda: [Do(lambda x: x.view(x.size(0), -1)), linear(CHANNELS * SIDE**2)],
    "mlp_dropout": mlp,
    "avg_max_concat": lambda: [AverageAndMax(), linear(2 * CHANNELS)],
    "softmax_tail": lambda: pooled(nn.Softmax(dim=1)),
    "log_softmax_tail": lambda: pooled(nn.LogSoftmax(dim=1)),
    "bn1d_head": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(CHANNELS), linear()],
    "nhwc_flatten": lambda: [Do(channels_last), linear(CHANNELS * SIDE**2)],
}


def headed(name: str) -> nn.Module:
    """The small net with the head of this name."""
    return seeded(name, lambda: nn.Sequential(features(), *HEAD_LAYERS[name]()))


HEADS: dict[str, Builder] = {name: partial(headed, name) for name in HEAD_LAYERS}


# --- activations ------------------------------------------------------------------------------------


def slopes() -> nn.Module:
    """A PReLU with a slope for each channel, all of them different."""
    layer = nn.PReLU(WIDTH)
    nn.init.uniform_(layer.weight, 0.05, 0.5)
    return layer


ACTIVATIONS: dict[str, Builder] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "prelu": nn.PReLU,
    "prelu_per_channel": slopes,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "mish": nn.Mish,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": partial(nn.CELU, alpha=0.7),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "logsigmoid": nn.LogSigmoid,
    # As they are written out in code older than the layer, or that never had one.
    "swish_by_hand": lambda: Do(lambda x: x * torch.sigmoid(x)),
    "mish_by_hand": lambda: Do(lambda x: x * torch.tanh(F.softplus(x))),
    "hardswish_by_hand": lambda: Do(lambda x: x * F.relu6(x + 3) / 6),
    "quick_gelu": lambda: Do(lambda x: x * torch.sigmoid(1.702 * x)),
    "squared_relu": lambda: Do(lambda x: F.relu(x) ** 2),
}


def activated(act: Builder) -> nn.Module:
    """A residual net with `act` after every norm and every sum; one block projects its input."""

    def body(stride: int) -> nn.Module:
        return nn.Sequential(
            conv_bn(WIDTH, WIDTH, kernel=3, stride=stride, act=act), conv_bn(WIDTH, WIDTH, kernel=3, act=None)
        )

    return nn.Sequential(
        conv_bn(3, WIDTH, kernel=3, stride=2, act=act),
        Sum(body(1), nn.Identity(), act=act()),
        Sum(body(2), conv_bn(WIDTH, WIDTH, stride=2, act=None), act=act()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(WIDTH)),
    )


def residual_net(name: str) -> nn.Module:
    """The small residual net with the activation of this name."""
    return seeded(name, lambda: activated(ACTIVATIONS[name]))

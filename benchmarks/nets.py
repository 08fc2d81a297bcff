"""Classifiers written from their papers, with random weights: `NETS[name](classes)` for small images (28 or 32 pixels).

`LARGE_NETS` are the same families for 160 pixels and more, with the stems and strides that their papers have. `channels` is the
number of channels of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(c_in: int, c_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution with same padding and its BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


def tail(channels: int, classes: int) -> list[nn.Module]:
    """Return global average pooling and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def vgg(layout: Sequence[int | str], classes: int, channels: int = 3) -> nn.Sequential:
    """Return convolutions of these widths, "M" for max pooling (Simonyan and Zisserman, 2015), with BatchNorm and one
    linear layer."""
    layers: list[nn.Module] = []
    for item in layout:
        if isinstance(item, int):
            layers += [*conv_norm(channels, item), nn.ReLU()]
            channels = item
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *tail(channels, classes))


def wide4(classes: int, channels: int = 3) -> nn.Sequential:
    """Return four wide convolutions, three of them strided: 19 M multiply-accumulates, a wide net that a CPU can train."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((channels, 64, 2), (64, 128, 2), (128, 256, 2), (256, 256, 1)):
        layers += [*conv_norm(c_in, c_out, stride=stride), nn.ReLU()]
    return nn.Sequential(*layers, *tail(256, classes))


class Basic(nn.Module):
    """The basic block of ResNet (He et al., 2016): two 3x3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(c_in, c_out, stride=stride), nn.ReLU(), *conv_norm(c_out, c_out))
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(c_in, c_out, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, c_out, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(
    widths: Sequence[int], blocks: int, classes: int, channels: int = 3, *, large: bool = False
) -> nn.Sequential:
    """Return `blocks` basic blocks of every width, all but the first width with stride 2, projecting where shapes change.

    The stem is a 3x3 convolution, or for large images a 7x7 one with stride 2 and max pooling.
    """
    made = widths[0]
    layers: list[nn.Module] = [*conv_norm(channels, made, 7 if large else 3, stride=2 if large else 1), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, 1)] if large else []
    for width in widths:
        for index in range(blocks):
            layers.append(Basic(made, width, 2 if index == 0 and width != widths[0] else 1))
            made = width
    return nn.Sequential(*layers, *tail(made, classes))


class PreActivation(nn.Module):
    """The block of wide residual networks (Zagoruyko and Komodakis, 2016): norm and ReLU before every convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(c_in)
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        )
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, c_out, H / stride, W / stride]; a shortcut that projects starts behind the first ReLU."""
        start = F.relu(self.first(x))
        made: Tensor = self.body(start)
        return made + (x if self.shortcut is None else self.shortcut(start))


def wide_resnet(depth: int, factor: int, classes: int, channels: int = 3) -> nn.Sequential:
    """Return WRN-`depth`-`factor`."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    made = 16
    for width, first in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        for index in range((depth - 4) // 6):
            layers.append(PreActivation(made, width, first if index == 0 else 1))
            made = width
    return nn.Sequential(*layers, nn.BatchNorm2d(made), nn.ReLU(), *tail(made, classes))


class Inverted(nn.Module):
    """The inverted residual block of MobileNetV2 (Sandler et al., 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = c_in * expand
        layers: list[nn.Module] = [*conv_norm(c_in, inner, 1), nn.ReLU6()] if expand > 1 else []
        layers += [*conv_norm(inner, inner, stride=stride, groups=inner), nn.ReLU6(), *conv_norm(inner, c_out, 1)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, c_out, H / stride, W / stride]."""
        made: Tensor = self.body(x)
        return x + made if self.residual else made


def mobilenet_v2(classes: int, channels: int = 3, *, factor: float = 1.0, large: bool = False) -> nn.Sequential:
    """Return MobileNetV2 at a width factor; for small images, the stem and the first two groups of blocks keep the size."""
    early = 2 if large else 1
    made = round(32 * factor)
    layers: list[nn.Module] = [*conv_norm(channels, made, stride=early), nn.ReLU6()]
    first_groups = ((1, 16, 1, 1), (6, 24, 2, early))
    plan = (*first_groups, (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, full_width, count, first in plan:
        width = round(full_width * factor)
        for index in range(count):
            layers.append(Inverted(made, width, first if index == 0 else 1, expand))
            made = width
    return nn.Sequential(*layers, *conv_norm(made, 1280, 1), nn.ReLU6(), *tail(1280, classes))


VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")

NETS: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(
    {
        "vgg16-bn": partial(vgg, VGG16),
        "wide4": wide4,
        "resnet18": partial(resnet, (64, 128, 256, 512), 2),
        "resnet8": partial(resnet, (16, 32, 64), 1),
        "resnet20": partial(resnet, (16, 32, 64), 3),
        "wrn-16-4": partial(wide_resnet, 16, 4),
        "wrn-16-2": partial(wide_resnet, 16, 2),
        "mobilenet-v2": mobilenet_v2,
        "mobilenet-v2-half": partial(mobilenet_v2, factor=0.5),
    }
)

LARGE_NETS: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(
    {
        "resnet18": partial(resnet, (64, 128, 256, 512), 2, large=True),
        "mobilenet-v2": partial(mobilenet_v2, large=True),
    }
)

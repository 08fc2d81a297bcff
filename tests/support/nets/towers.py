"""Towers of factorised kernels after Inception: NIN, Inception v4, Inception-ResNet, Xception."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from nets.common import CLASSES, Concat, Sum, conv_bn, family, max_pool, pooled_linear, scaled


def mlp_conv(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    """A convolution and two 1x1 convolutions after it, all with bias and ReLU."""
    layers: list[nn.Module] = []
    for a, k in ((c_in, kernel), (c_out, 1), (c_out, 1)):
        layers += [nn.Conv2d(a, c_out, k, padding=k // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@family
def nin(width: float) -> nn.Module:
    """Network in network: the last 1x1 convolution gives the classes, and its ReLU stays."""
    a, b = (scaled(n, width) for n in (16, 24))
    return nn.Sequential(
        *(mlp_conv(3, a, 5), nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.Dropout()),
        *(mlp_conv(a, b, 5), nn.AvgPool2d(3, stride=2, ceil_mode=True), nn.Dropout()),
        *(mlp_conv(b, b, 3), nn.Conv2d(b, CLASSES, 1), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def tower(channels: list[int], kernels: list[int | tuple[int, int]], *, stride: int = 1) -> nn.Sequential:
    """Convolutions in a row, the last one strided."""
    steps = list(zip(pairwise(channels), kernels, strict=True))
    last = len(steps) - 1
    return nn.Sequential(
        *(conv_bn(a, b, kernel=k, stride=stride if i == last else 1) for i, ((a, b), k) in enumerate(steps))
    )


class ScaledResidual(nn.Module):
    """The input plus a fraction of what a 1x1 convolution, without norm, makes of the branches."""

    def __init__(self, branches: Concat, width: int, channels: int, *, scale: float) -> None:
        super().__init__()
        self.branches, self.scale = branches, scale
        self.join, self.act = nn.Conv2d(width, channels, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.join(self.branches(x)) * self.scale + x)
        return out


@family
def inception_resnet(width: float) -> nn.Module:
    """Inception-ResNet v2: scaled residuals around concatenated towers, a reduction between two kinds of them."""
    c, u = scaled(16, width), scaled(4, width)
    wide = c + 4 * u
    block_a = Concat(conv_bn(c, u), tower([c, u, u], [1, 3]), tower([c, u, u, 2 * u], [1, 3, 3]))
    block_b = Concat(conv_bn(wide, u), tower([wide, u, u, u], [1, (1, 7), (7, 1)]))
    reduce = Concat(conv_bn(c, 2 * u, kernel=3, stride=2), tower([c, u, 2 * u], [1, 3], stride=2), max_pool())
    return nn.Sequential(
        conv_bn(3, c, kernel=3, stride=2),
        *(ScaledResidual(block_a, 4 * u, c, scale=0.2), reduce, ScaledResidual(block_b, 2 * u, wide, scale=0.2)),
        *(conv_bn(wide, 2 * wide), pooled_linear(2 * wide, nn.Dropout(0.2))),
    )


def side_pool(c_in: int, c_out: int) -> nn.Sequential:
    """The branch of a module that averages the neighbourhood; the padding does not count."""
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), conv_bn(c_in, c_out))


def halving(c_in: int, c_out: int) -> nn.Sequential:
    """A strided 3x3 convolution without padding."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def stem_v4(u: int) -> nn.Sequential:
    """Inception v4's stem: pool beside convolution, two towers, convolution beside pool; the output is 8 u wide."""
    return nn.Sequential(
        conv_bn(3, 2 * u, kernel=3),
        Concat(nn.MaxPool2d(3, stride=2), halving(2 * u, 2 * u)),
        Concat(tower([4 * u, 2 * u, 2 * u], [1, 3]), tower([4 * u, u, u, u, 2 * u], [1, (1, 7), (7, 1), 3])),
        Concat(halving(4 * u, 4 * u), nn.MaxPool2d(3, stride=2)),
    )


class Forked(nn.Module):
    """Convolutions, and a 1x3 and a 3x1 convolution side by side on what they give."""

    def __init__(self, body: nn.Module, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = body
        self.fork = Concat(conv_bn(c_in, c_out, kernel=(1, 3)), conv_bn(c_in, c_out, kernel=(3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fork(self.body(x))
        return out


@family
def inception_v4(width: float) -> nn.Module:
    """Inception v4: the branching stem and one module of each kind, A and C, without a reduction between."""
    u = scaled(4, width, multiple=2)
    c = 8 * u
    module_a = Concat(
        *(conv_bn(c, 2 * u), tower([c, u, 2 * u], [1, 3]), tower([c, u, 2 * u, 2 * u], [1, 3, 3]), side_pool(c, 2 * u))
    )
    module_c = Concat(
        *(conv_bn(c, 2 * u), Forked(conv_bn(c, u), u, u), side_pool(c, 2 * u)),
        Forked(tower([c, u, u, u], [1, (3, 1), (1, 3)]), u, u),
    )
    return nn.Sequential(stem_v4(u), module_a, module_c, pooled_linear(c, nn.Dropout(0.2)))


def separable_row(channels: list[int], *, act_first: bool) -> list[nn.Module]:
    """ReLU, depthwise and pointwise convolution (no norm between the two) and BatchNorm, for each step."""
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)]
    return layers if act_first else layers[1:]


def entry_block(c_in: int, c_out: int, *, act_first: bool = True) -> nn.Module:
    """Two separable convolutions and a max pool beside a strided 1x1 convolution."""
    body = nn.Sequential(*separable_row([c_in, c_out, c_out], act_first=act_first), max_pool())
    return Sum(body, conv_bn(c_in, c_out, stride=2, act=None), act=None)


@family
def xception(width: float) -> nn.Module:
    """Xception: separable convolutions with the activation in front, entry, middle and exit flow."""
    a, b, c, d, e = (scaled(n, width) for n in (8, 12, 16, 24, 48))
    middle = Sum(nn.Sequential(*separable_row([d, d, d, d], act_first=True)), nn.Identity(), act=None)
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3), conv_bn(a, b, kernel=3)),
        *(entry_block(b, c, act_first=False), entry_block(c, d), middle),
        *(*separable_row([d, e], act_first=False), nn.ReLU(), pooled_linear(e)),
    )

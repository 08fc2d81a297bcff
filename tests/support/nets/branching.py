"""Nets that concatenate: DenseNet, SqueezeNet, GoogLeNet, Inception."""

from __future__ import annotations

from torch import nn

from nets.common import CLASSES, Concat, bn_conv, conv_bn, family, max_pool, pooled_linear, scaled


def conv_relu(c_in: int, c_out: int, kernel: int = 1) -> nn.Sequential:
    """Conv with bias, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), nn.ReLU(inplace=True))


def dense_block(channels: int, growth: int, layers: int) -> nn.Sequential:
    """`layers` times: features, and what a 1x1 and a 3x3 convolution make of them, side by side."""
    blocks = []
    for c_in in range(channels, channels + layers * growth, growth):
        grown = nn.Sequential(bn_conv(c_in, 2 * growth), bn_conv(2 * growth, growth, kernel=3))
        blocks.append(Concat(nn.Identity(), grown))
    return nn.Sequential(*blocks)


@family
def densenet(width: float) -> nn.Module:
    """DenseNet-BC: three dense blocks, transitions that halve channels and image."""
    channels, growth = scaled(8, width), scaled(4, width)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for index in range(3):
        layers.append(dense_block(channels, growth, 3))
        channels += 3 * growth
        if index < 2:
            layers += [bn_conv(channels, channels // 2), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), pooled_linear(channels))


def fire(c_in: int, squeezed: int, expanded: int) -> nn.Sequential:
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side."""
    return nn.Sequential(
        conv_relu(c_in, squeezed), Concat(conv_relu(squeezed, expanded), conv_relu(squeezed, expanded, 3))
    )


@family
def squeezenet(width: float) -> nn.Module:
    """SqueezeNet: fire modules, a convolution as the classifier, no Linear, no BatchNorm."""
    a, b, c, d = (scaled(n, width) for n in (16, 4, 8, 16))
    return nn.Sequential(
        *(nn.Conv2d(3, a, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, ceil_mode=True)),
        *(fire(a, b, c), fire(2 * c, b, c), nn.MaxPool2d(3, stride=2, ceil_mode=True), fire(2 * c, c, d)),
        *(nn.Dropout(), conv_relu(2 * d, CLASSES), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def inception_v1(c_in: int, unit: int) -> Concat:
    """GoogLeNet's module, 8 units wide: 1x1, 1x1-3x3, 1x1-5x5 and pool-1x1."""
    return Concat(
        conv_relu(c_in, 2 * unit),
        nn.Sequential(conv_relu(c_in, unit), conv_relu(unit, 4 * unit, 3)),
        nn.Sequential(conv_relu(c_in, unit), conv_relu(unit, unit, 5)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_relu(c_in, unit)),
    )


@family
def googlenet(width: float) -> nn.Module:
    """GoogLeNet: Inception modules without BatchNorm, rounded-up pools, dropout in the head."""
    stem, unit = scaled(16, width), scaled(4, width)
    return nn.Sequential(
        *(conv_relu(3, stem, 7), nn.MaxPool2d(3, stride=2, ceil_mode=True)),
        *(inception_v1(stem, unit), nn.MaxPool2d(3, stride=2, ceil_mode=True)),
        *(inception_v1(8 * unit, unit), inception_v1(8 * unit, unit)),
        pooled_linear(8 * unit, nn.Dropout(0.4)),
    )


def inception_v3(c_in: int, unit: int) -> Concat:
    """Inception v3's last module, 8 units wide: a concat of concats of 1x3 and 3x1 kernels."""
    return Concat(
        conv_bn(c_in, unit),
        nn.Sequential(
            conv_bn(c_in, unit),
            Concat(conv_bn(unit, unit, kernel=(1, 3)), conv_bn(unit, unit, kernel=(3, 1))),
        ),
        nn.Sequential(
            *(conv_bn(c_in, unit), conv_bn(unit, unit, kernel=3)),
            Concat(conv_bn(unit, 2 * unit, kernel=(1, 3)), conv_bn(unit, unit, kernel=(3, 1))),
        ),
        nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), conv_bn(c_in, 2 * unit)),
    )


def reduction(c_in: int, unit: int) -> Concat:
    """Inception v3's way to halve the image: two strided branches beside a max pool."""
    return Concat(
        conv_bn(c_in, 2 * unit, kernel=3, stride=2),
        nn.Sequential(
            *(conv_bn(c_in, unit), conv_bn(unit, unit, kernel=(1, 5)), conv_bn(unit, unit, kernel=(5, 1))),
            conv_bn(unit, unit, kernel=3, stride=2),
        ),
        max_pool(),
    )


@family
def inception(width: float) -> nn.Module:
    """Inception v3: factorised kernels, nested concats, strided branches."""
    stem, unit = scaled(12, width), scaled(4, width)
    return nn.Sequential(
        *(conv_bn(3, stem, kernel=3, stride=2), reduction(stem, unit)),
        *(inception_v3(3 * unit + stem, unit), inception_v3(8 * unit, unit)),
        pooled_linear(8 * unit, nn.Dropout(0.2)),
    )

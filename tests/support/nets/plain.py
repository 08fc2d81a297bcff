"""Nets without branches: LeNet, AlexNet, VGG."""

from __future__ import annotations

from torch import nn

from nets.common import CLASSES, conv_bn, family, scaled


@family
def lenet(width: float) -> nn.Module:
    """LeNet-5: valid convolutions, average pooling, tanh, three Linear layers on flattened features."""
    a, b, c, d = (scaled(n, width) for n in (8, 16, 60, 44))
    return nn.Sequential(
        *(nn.Conv2d(3, a, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(a, b, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(b * 25, c), nn.Tanh(), nn.Linear(c, d), nn.Tanh(), nn.Linear(d, CLASSES)),
    )


@family
def alexnet(width: float) -> nn.Module:
    """AlexNet: a large strided first kernel, overlapping pools, Flatten, Dropout, three Linear layers."""
    a, b, c = (scaled(n, width) for n in (12, 24, 32))
    d, e = scaled(64, width), scaled(48, width)
    return nn.Sequential(
        *(nn.Conv2d(3, a, 7, stride=2, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(c, b, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(b * 9, d), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(d, e), nn.ReLU(inplace=True), nn.Linear(e, CLASSES)),
    )


@family
def vgg_bn(width: float) -> nn.Module:
    """VGG with BatchNorm: 3x3 convolutions and pools, then Linear layers on flattened features."""
    layers: list[nn.Module] = []
    c_in = 3
    for c_out, pool in ((8, True), (16, True), (24, False), (24, True), (32, False)):
        layers.append(conv_bn(c_in, scaled(c_out, width), kernel=3))
        layers += [nn.MaxPool2d(2)] if pool else []
        c_in = scaled(c_out, width)
    hidden = scaled(40, width)
    return nn.Sequential(
        *layers,
        *(nn.Flatten(), nn.Linear(c_in * 16, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, CLASSES)),
    )

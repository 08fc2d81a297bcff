"""Nets on depthwise convolutions: MobileNet V1, V2, V3 and EfficientNet."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nets.common import SqueezeExcite, Sum, conv_bn, family, pooled_linear, scaled

Activation = Callable[[], nn.Module]


def separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution."""
    return nn.Sequential(conv_bn(c_in, c_in, kernel=3, stride=stride, groups=c_in), conv_bn(c_in, c_out))


def inverted(
    c_in: int,
    c_out: int,
    stride: int,
    *,
    expand: int = 3,
    kernel: int = 3,
    act: Activation = nn.ReLU6,
    gate: SqueezeExcite | None = None,
) -> nn.Module:
    """Expand, depthwise, (gate,) project; added to the input where the shapes agree."""
    inner = c_in * expand
    body = nn.Sequential(
        *([conv_bn(c_in, inner, act=act)] if expand > 1 else []),
        conv_bn(inner, inner, kernel=kernel, stride=stride, groups=inner, act=act),
        *([gate] if gate else []),
        conv_bn(inner, c_out, act=None),
    )
    return Sum(body, nn.Identity(), act=None) if stride == 1 and c_in == c_out else body


@family
def mobilenet_v1(width: float) -> nn.Module:
    """MobileNetV1: depthwise separable convolutions in a row."""
    a, b, c, d = (scaled(n, width) for n in (8, 16, 32, 48))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2),
        *(separable(a, b, 1), separable(b, c, 2), separable(c, c, 1), separable(c, d, 2), separable(d, d, 1)),
        pooled_linear(d),
    )


@family
def mobilenet_v2(width: float) -> nn.Module:
    """MobileNetV2: inverted residuals with linear bottlenecks and ReLU6."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))
    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2, act=nn.ReLU6),
        *(inverted(a, a, 1, expand=1), inverted(a, b, 2), inverted(b, b, 1), inverted(b, c, 2), inverted(c, c, 1)),
        conv_bn(c, d, act=nn.ReLU6),
        pooled_linear(d, nn.Dropout(0.2)),
    )


@family
def mobilenet_v3(width: float) -> nn.Module:
    """MobileNetV3: squeeze-excite with hard sigmoid, hard swish, a hidden Linear in the head."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))

    def gate(inner: int) -> SqueezeExcite:
        return SqueezeExcite(inner, max(4, inner // 4), act=nn.ReLU, gate=nn.Hardsigmoid)

    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2, act=nn.Hardswish),
        inverted(a, a, 1, expand=1, act=nn.ReLU, gate=gate(a)),
        *(inverted(a, b, 2, act=nn.ReLU), inverted(b, b, 1, act=nn.ReLU)),
        *(inverted(b, c, 2, kernel=5, act=nn.Hardswish, gate=gate(3 * b)),),
        *(inverted(c, c, 1, kernel=5, act=nn.Hardswish, gate=gate(3 * c)),),
        conv_bn(c, d, act=nn.Hardswish),
        pooled_linear(d, nn.Linear(d, d), nn.Hardswish(), nn.Dropout(0.2)),
    )


@family
def efficientnet(width: float) -> nn.Module:
    """EfficientNet: inverted residuals with SiLU and squeeze-excite everywhere."""
    a, b, c, d = (scaled(n, width) for n in (8, 12, 16, 48))

    def block(c_in: int, c_out: int, stride: int, *, expand: int = 3, kernel: int = 3) -> nn.Module:
        gate = SqueezeExcite(c_in * expand, max(1, c_in // 4), act=nn.SiLU, gate=nn.Sigmoid)
        return inverted(c_in, c_out, stride, expand=expand, kernel=kernel, act=nn.SiLU, gate=gate)

    return nn.Sequential(
        conv_bn(3, a, kernel=3, stride=2, act=nn.SiLU),
        *(block(a, a, 1, expand=1), block(a, b, 2), block(b, b, 1), block(b, c, 2, kernel=5), block(c, c, 1, kernel=5)),
        conv_bn(c, d, act=nn.SiLU),
        pooled_linear(d, nn.Dropout(0.2)),
    )

"""GhostNet V1 and V2: half of the features are convolved cheaply from the other half."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.common import SqueezeExcite, conv_bn, family, pooled_linear, scaled


class Ghost(nn.Module):
    """A 1x1 convolution and a depthwise convolution of what it gives, side by side, cut to `c_out` channels."""

    def __init__(self, c_in: int, c_out: int, *, act: Callable[[], nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        half = -(-c_out // 2)
        self.c_out = c_out
        self.primary, self.cheap = conv_bn(c_in, half, act=act), conv_bn(half, half, kernel=3, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)[:, : self.c_out, :, :]


class DecoupledGhost(Ghost):
    """A ghost module times an attention from a row and a column of the halved image (DFC), nearest upsampled."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        self.attention = nn.Sequential(
            conv_bn(c_in, c_out, act=None),
            conv_bn(c_out, c_out, kernel=(1, 5), groups=c_out, act=None),
            conv_bn(c_out, c_out, kernel=(5, 1), groups=c_out, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.attention(F.avg_pool2d(x, kernel_size=2, stride=2)))
        out = super().forward(x)
        return out * F.interpolate(gate, size=(out.shape[-2], out.shape[-1]), mode="nearest")


class HardSigmoid(nn.Module):
    """The hard sigmoid as it was written before torch had it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0) / 6.0


class GhostBottleneck(nn.Module):
    """Two ghost modules with a strided depthwise convolution and squeeze-excite between them."""

    def __init__(
        self, c_in: int, inner: int, c_out: int, stride: int, *, gated: bool = False, grow: type[Ghost] = Ghost
    ) -> None:
        super().__init__()
        gate = SqueezeExcite(inner, max(1, inner // 4), act=nn.ReLU, gate=HardSigmoid)
        self.body = nn.Sequential(
            grow(c_in, inner),
            *([conv_bn(inner, inner, kernel=3, stride=stride, groups=inner, act=None)] if stride > 1 else []),
            *([gate] if gated else []),
            Ghost(inner, c_out, act=None),
        )
        project = nn.Sequential(
            conv_bn(c_in, c_in, kernel=3, stride=stride, groups=c_in, act=None), conv_bn(c_in, c_out, act=None)
        )
        self.shortcut = project if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


def ghost_stack(width: float, grow: type[Ghost]) -> nn.Module:
    """Stem, bottlenecks and head of both versions; the odd width makes a ghost module cut a channel off."""
    a, b, c, d = scaled(8, width), scaled(12, width), scaled(16, width) + 1, scaled(32, width)
    return nn.Sequential(
        *(conv_bn(3, a, kernel=3, stride=2), GhostBottleneck(a, a, a, 1), GhostBottleneck(a, 3 * a, b, 2, grow=grow)),
        *(GhostBottleneck(b, 3 * b, c, 2, gated=True), GhostBottleneck(c, 3 * c, c, 1, gated=True, grow=grow)),
        *(conv_bn(c, d), nn.AdaptiveAvgPool2d(1), nn.Conv2d(d, d, 1), nn.ReLU(), pooled_linear(d, nn.Dropout(0.2))),
    )


@family
def ghostnet(width: float) -> nn.Module:
    """GhostNet: cheap features, squeeze-excite with a hard sigmoid."""
    return ghost_stack(width, Ghost)


@family
def ghostnet_v2(width: float) -> nn.Module:
    """GhostNetV2: the expanding ghost modules of some blocks look along rows and columns."""
    return ghost_stack(width, DecoupledGhost)

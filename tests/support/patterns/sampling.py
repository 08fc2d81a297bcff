"""Spatial transformers: the network computes the places that it reads an image or features at."""

from __future__ import annotations

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterns.base import CHANNELS, SIZE, around, pattern
from patterns.traced import dynamo

STEPS = np.linspace(-1, 1, SIZE, dtype=np.float32)
PLACES = np.stack(np.meshgrid(STEPS, STEPS), axis=-1)[None]  # [1, SIZE, SIZE, 2], x before y


@pattern(splits=0.4, each=["image", "x"])
def shifted(what: str) -> onnx.ModelProto:
    """All places move by one computed step. Features (x) become one unit; an image is one anyway."""
    return around(
        f"""g = GlobalAveragePool(x)  f1 = Flatten(g)  o = Gemm<transB=1>(f1, wo)  r = Reshape(o, four)
        places = Add(grid, r)  y = GridSample<padding_mode="border">({what}, places)""",
        made=3 if what == "image" else CHANNELS,
        wo=(2, 8), four=[0, 1, 1, 2], grid=PLACES,
    )  # fmt: skip


class _SpatialTransformer(nn.Module):
    """An affine map of the features, computed from their means (Jaderberg et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = nn.Linear(CHANNELS, 6)

    def forward(self, x: Tensor) -> Tensor:
        change = 0.3 * torch.tanh(self.affine(x.mean((2, 3)))).unflatten(1, (2, 3))
        grid = F.affine_grid(torch.eye(2, 3) + change, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@pattern(splits=0.4)
def spatial_transformer() -> onnx.ModelProto:
    """As torch exports it."""
    return dynamo(_SpatialTransformer(), optimize=True)

"""GridSample as a torch function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import Constants, Lowered, builder, refusal

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

# Opset 20 renamed bilinear and bicubic.
MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}
PADDINGS = ("zeros", "border", "reflection")


@builder("GridSample")
def _grid_sample(node: Node, constants: Constants) -> Lowered:
    mode, padding = node.attrs.get("mode", "bilinear"), node.attrs.get("padding_mode", "zeros")
    corners = bool(node.attrs.get("align_corners", 0))
    if mode not in MODES:
        raise refusal(node, f"mode={mode} is not supported; {', '.join(MODES)} are allowed")
    if padding not in PADDINGS:
        raise refusal(node, f"padding_mode={padding} is not supported; {', '.join(PADDINGS)} are allowed")

    def run(x: Tensor, grid: Tensor) -> Tensor:
        # Sixteen bits would do for the image, but not for places in it.
        dtype = torch.promote_types(x.dtype, grid.dtype)
        return F.grid_sample(x.to(dtype), grid.to(dtype), MODES[mode], padding, corners).to(x.dtype)

    return run

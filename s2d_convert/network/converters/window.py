"""The geometry of sliding windows as onnxruntime computes it: padding, output sizes, what a window covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node


@dataclass(frozen=True)
class Window:
    """The windows along one spatial axis of `size` elements, `low` and `high` being the padding around them."""

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    ceil: bool

    @property
    def span(self) -> int:
        """Elements from the first to the last of a window."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def room(self) -> int:
        """How far a window can slide along the padded axis."""
        return self.size + self.low + self.high - self.span

    @property
    def count(self) -> int:
        """The number of windows. The last one starts inside the axis or the padding before it."""
        if not self.ceil:
            # Rounded towards zero: a map may be a little smaller than its window.
            return int(self.room / self.stride) + 1
        count = -(-self.room // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= self.size + self.low else count

    @property
    def reach(self) -> int:
        """How far the last window reaches beyond the axis itself; negative if it leaves elements unread."""
        return (self.count - 1) * self.stride + self.span - self.low - self.size

    def covered(self, *, padding: bool) -> list[int]:
        """Return the elements in every window; padding counts if asked for, what lies beyond it (ceil mode) never does."""
        first, last = (-self.low, self.size + self.high) if padding else (0, self.size)
        starts = (i * self.stride - self.low for i in range(self.count))
        return [sum(first <= start + j * self.dilation < last for j in range(self.kernel)) for start in starts]


def windows(node: Node, sizes: Sequence[int]) -> tuple[Window, ...]:
    """Return the windows of a pooling node along every spatial axis; `sizes` are the lengths of these axes."""
    attrs, rank = node.attrs, len(sizes)
    kernel, strides = attrs["kernel_shape"], attrs.get("strides", (1,) * rank)
    dilations, pads = attrs.get("dilations", (1,) * rank), attrs.get("pads", (0,) * 2 * rank)
    mode, ceil = attrs.get("auto_pad", "NOTSET"), bool(attrs.get("ceil_mode", 0))
    made = []
    for axis, size in enumerate(sizes):
        low, high = pads[axis], pads[axis + rank]
        if mode == "VALID":
            low = high = 0
        elif mode != "NOTSET":
            # Without the dilation, and below zero where the stride is longer than the kernel: so does onnxruntime.
            low, high = same_pads(mode, same_total(size, kernel[axis], strides[axis]))
        made.append(Window(size, kernel[axis], strides[axis], dilations[axis], low, high, ceil))
    return tuple(made)


def same_total(size: int, span: int, stride: int) -> int:
    """Return the padding that gives ceil(size / stride) windows (auto_pad SAME); negative where windows leave gaps."""
    return (-(-size // stride) - 1) * stride + span - size


def same_pads(mode: str, total: int) -> tuple[int, int]:
    """Return `total` shared out before and after an axis; the odd one goes after (SAME_UPPER) or before (SAME_LOWER)."""
    low = int((total + (mode == "SAME_LOWER")) / 2)  # onnxruntime rounds towards zero
    return low, total - low


def pad_spatial(x: Tensor, low: Sequence[int], high: Sequence[int], *, value: float = 0.0) -> Tensor:
    """Return `x` with `value` before and after its last axes; negative numbers crop."""
    return F.pad(x, list(chain(*zip(low[::-1], high[::-1], strict=True))), value=value)

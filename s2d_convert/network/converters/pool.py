"""Pooling operators as torch functions.

torch's own pooling follows the same rules as onnxruntime (ceil mode included) but knows only equal padding on both
sides, at most half a kernel, and dilates maxima only. Everything else is padded first or summed by shifted slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import Constants, Lowered, builder, one_output, register_functions
from s2d_convert.network.converters.window import Window, pad_spatial, windows

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

register_functions(
    {
        "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
        "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True),
    }
)


@builder("GlobalLpPool")
def _global_lp_pool(node: Node, constants: Constants) -> Lowered:
    p = node.attrs.get("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)


@builder("MaxPool")
def _max_pool(node: Node, constants: Constants) -> Lowered:
    one_output(node)

    def run(x: Tensor) -> Tensor:
        axes = windows(node, x.shape[2:])
        pool, shape = MAX_POOL[len(axes)], (_kernel(axes), _strides(axes))
        if _plain(axes):
            return pool(x, *shape, [a.low for a in axes], ceil_mode=axes[0].ceil)
        # A dilated window may see nothing but padding: onnxruntime then answers the lowest float32, torch -inf.
        lowest = max(torch.finfo(torch.float32).min, torch.finfo(x.dtype).min)
        return pool(_padded(x, axes, lowest), *shape, dilation=[a.dilation for a in axes])

    return run


@builder("AveragePool")
def _average_pool(node: Node, constants: Constants) -> Lowered:
    padding = bool(node.attrs.get("count_include_pad", 0))

    def run(x: Tensor) -> Tensor:
        axes = windows(node, x.shape[2:])
        if _plain(axes):
            pool = AVERAGE_POOL[len(axes)]
            return pool(x, _kernel(axes), _strides(axes), [a.low for a in axes], axes[0].ceil, padding)
        y = _window_sums(x, axes)
        for position, axis in enumerate(axes):
            counts = y.new_tensor(axis.covered(padding=padding)).clamp_min(1)
            y = y / counts.view(-1, *(1,) * (len(axes) - 1 - position))
        return y

    return run


@builder("LpPool")
def _lp_pool(node: Node, constants: Constants) -> Lowered:
    p = node.attrs.get("p", 2)

    def run(x: Tensor) -> Tensor:
        sums = _window_sums(x.abs().pow(p), windows(node, x.shape[2:]))
        # A window of zeros has no gradient at the root; the smallest normal number keeps it finite.
        return sums.clamp_min(torch.finfo(sums.dtype).tiny).pow(1 / p)

    return run


def _plain(axes: Sequence[Window]) -> bool:
    """Return whether torch's own pooling sees the same windows."""
    return all(a.low == a.high and 0 <= 2 * a.low <= a.kernel and a.dilation == 1 and a.room >= 0 for a in axes)


def _kernel(axes: Sequence[Window]) -> list[int]:
    return [a.kernel for a in axes]


def _strides(axes: Sequence[Window]) -> list[int]:
    return [a.stride for a in axes]


def _padded(x: Tensor, axes: Sequence[Window], value: float) -> Tensor:
    """Return `x` from the start of the first window to the end of the last."""
    return pad_spatial(x, [a.low for a in axes], [a.reach for a in axes], value=value)


def _window_sums(x: Tensor, axes: Sequence[Window]) -> Tensor:
    """Return the sum over every window, axis by axis; padding adds nothing."""
    x = _padded(x, axes, 0.0)
    for dim, a in enumerate(axes, start=2):
        reach = (a.count - 1) * a.stride + 1
        taps = (range(j * a.dilation, j * a.dilation + reach) for j in range(a.kernel))
        x = sum(x[(slice(None),) * dim + (slice(t.start, t.stop, a.stride),)] for t in taps)  # type: ignore[assignment]
    return x

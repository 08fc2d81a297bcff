"""Operators that move, copy, cut or join elements, as torch functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import (
    Constants,
    Lowered,
    builder,
    refusal,
    required_ints,
    static,
    static_axes,
    static_ints,
)

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

PAD_MODES = ("constant", "reflect", "edge", "wrap")


@builder("Reshape")
def _reshape(node: Node, constants: Constants) -> Lowered:
    target, allowzero = required_ints(node, constants, 1), node.attrs.get("allowzero", 0)

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        if allowzero:
            return x.reshape(target)
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(target)])

    return run


@builder("Flatten")
def _flatten(node: Node, constants: Constants) -> Lowered:
    axis = node.attrs.get("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@builder("Transpose")
def _transpose(node: Node, constants: Constants) -> Lowered:
    perm = node.attrs.get("perm")
    return lambda x: x.permute(perm or tuple(reversed(range(x.dim()))))


@builder("Squeeze")
def _squeeze(node: Node, constants: Constants) -> Lowered:
    axes = static_axes(node, constants, 1)

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        # Without axes every axis of length 1 goes, but never the batch: one image is a batch too.
        return x.squeeze(tuple(range(1, x.dim())) if axes is None else axes)

    return run


@builder("Unsqueeze")
def _unsqueeze(node: Node, constants: Constants) -> Lowered:
    axes = required_ints(node, constants, 1)

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@builder("Concat")
def _concat(node: Node, constants: Constants) -> Lowered:
    axis = node.attrs["axis"]
    return lambda *inputs: torch.cat(inputs, axis)


@builder("Split")
def _split(node: Node, constants: Constants) -> Lowered:
    axis, sizes = node.attrs.get("axis", 0), static_ints(node, constants, 1)
    parts = node.attrs.get("num_outputs", len(node.outputs))

    def run(x: Tensor, *_: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = x.split(list(sizes or _equal_parts(x.shape[axis], parts)), axis)
        return made if len(made) > 1 else made[0]

    return run


def _equal_parts(length: int, parts: int) -> list[int]:
    """Return `parts` lengths that are equal, but for the last ones, which take what is left."""
    step = -(-length // parts)
    return [max(0, min(step, length - part * step)) for part in range(parts)]


@builder("Slice")
def _slice(node: Node, constants: Constants) -> Lowered:
    starts, ends = required_ints(node, constants, 1), required_ints(node, constants, 2)
    axes, steps = static_ints(node, constants, 3), static_ints(node, constants, 4)
    cuts = list(zip(axes or range(len(starts)), starts, ends, steps or (1,) * len(starts), strict=True))

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, start, end, step in cuts:
            x = _sliced(x, axis % x.dim(), _kept(x.shape[axis], start, end, step))
        return x

    return run


def _kept(length: int, start: int, end: int, step: int) -> range:
    """Return the positions that a slice keeps; unlike Python's, a backward one that starts before the axis keeps its first."""
    start, end = (n + length if n < 0 else n for n in (start, end))
    if step > 0:
        return range(min(max(start, 0), length), min(max(end, 0), length), step)
    return range(min(max(start, 0), length - 1), min(max(end, -1), length - 1), step)


def _sliced(x: Tensor, axis: int, kept: range) -> Tensor:
    """Return the positions `kept` along `axis`; torch slices forwards only, so a negative step is cut and turned round."""
    if not kept:
        return x.narrow(axis, 0, 0)
    forward = kept if kept.step > 0 else kept[::-1]
    y = x[(slice(None),) * axis + (slice(forward.start, forward.stop, forward.step),)]
    return y if kept.step > 0 else y.flip(axis)


@builder("Gather")
def _gather(node: Node, constants: Constants) -> Lowered:
    axis, indices = node.attrs.get("axis", 0), constants.get(node.inputs[1])
    if indices is not None and indices.ndim == 0:
        position = int(indices)
        return lambda x, _: x.select(axis, position)

    def run(x: Tensor, index: Tensor) -> Tensor:
        dim, length = axis % x.dim(), x.shape[axis]
        y = x.index_select(dim, torch.where(index < 0, index + length, index).flatten())
        return y.unflatten(dim, index.shape) if index.dim() > 1 else y

    return run


@builder("GatherElements")
def _gather_elements(node: Node, constants: Constants) -> Lowered:
    axis = node.attrs.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).long())

    return run


@builder("Expand")
def _expand(node: Node, constants: Constants) -> Lowered:
    target = required_ints(node, constants, 1)

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        # Axis 0 of equal ranks is the batch, whatever length the model was exported with.
        wanted = (1, *target[1:]) if len(target) == x.dim() else target
        return x.expand(torch.broadcast_shapes(x.shape, wanted))

    return run


@builder("Tile")
def _tile(node: Node, constants: Constants) -> Lowered:
    repeats = required_ints(node, constants, 1)
    return lambda x, *_: x.repeat(repeats)


@builder("Pad")
def _pad(node: Node, constants: Constants) -> Lowered:
    mode, pads = node.attrs.get("mode", "constant"), required_ints(node, constants, 1)
    fill, axes = static(node, constants, 2), static_ints(node, constants, 3)
    if mode not in PAD_MODES:
        raise refusal(node, f"mode={mode} is not supported; {', '.join(PAD_MODES)} are allowed")
    value, half = 0.0 if fill is None else fill.item(), len(pads) // 2

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        both = {
            axis % x.dim(): (pads[i], pads[i + half])
            for i, axis in enumerate(axes or range(half))
            if (pads[i], pads[i + half]) != (0, 0)
        }
        if mode == "constant":
            return F.pad(x, [n for axis in reversed(range(x.dim())) for n in both.get(axis, (0, 0))], value=value)
        for axis, (low, high) in both.items():
            x = x.index_select(axis, torch.as_tensor(_pad_sources(x.shape[axis], low, high, mode), device=x.device))
        return x

    return run


def _pad_sources(length: int, low: int, high: int, mode: Any) -> np.ndarray[Any, Any]:
    """Return the position that every element of a padded axis is copied from; negative pads crop first."""
    kept = np.arange(max(0, -low), length - max(0, -high))
    return np.pad(kept, (max(0, low), max(0, high)), mode=mode)


@builder("DepthToSpace")
def _depth_to_space(node: Node, constants: Constants) -> Lowered:
    block = node.attrs["blocksize"]
    if node.attrs.get("mode", "DCR") == "CRD":
        return lambda x: F.pixel_shuffle(x, block)

    def run(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(batch, channels // block**2, height * block, width * block)

    return run


@builder("SpaceToDepth")
def _space_to_depth(node: Node, constants: Constants) -> Lowered:
    block = node.attrs["blocksize"]

    def run(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(batch, channels * block**2, height // block, width // block)

    return run

"""Resize as a torch function.

Every axis is resized on its own: output positions are mapped to source coordinates as onnxruntime does (in float32),
then nearest copies one source element and linear and cubic multiply by a small matrix of weights. Where torch's
`interpolate` computes the same, it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import Constants, Lowered, builder, refusal, static, static_ints

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

Array = np.ndarray[Any, Any]

# onnxruntime takes a coordinate within 1e-6 of the middle for the middle.
HALF = 0.5 + 1e-6
MODES = ("nearest", "linear", "cubic")
NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - HALF),
    "round_prefer_ceil": lambda at: np.floor(at + HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Axis:
    """One resized axis: `size` elements become `out`; `roi` is its part of the region of interest."""

    dim: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """The attributes of a Resize node."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def _half_pixel(axis: Axis, i: Array) -> Array:
    return (i + np.float32(0.5)) / np.float32(axis.scale) - np.float32(0.5)


def _half_pixel_symmetric(axis: Axis, i: Array) -> Array:
    # onnxruntime rounds the share of the image that is kept to float32 and computes the rest in float64.
    scale = np.float32(axis.scale)
    kept = np.float32(axis.out) / (scale * np.float32(axis.size))
    return axis.size / 2 * (1 - float(kept)) + (i.astype(np.float64) + 0.5) / float(scale) - 0.5


def _align_corners(axis: Axis, i: Array) -> Array:
    return i * np.float32(axis.size - 1) / np.float32(axis.out - 1) if axis.out > 1 else i * 0


def _crop_and_resize(axis: Axis, i: Array) -> Array:
    (low, high), last = (np.float32(bound) for bound in axis.roi), np.float32(axis.size - 1)
    if axis.out == 1:
        return i + (low + high) / 2 * last
    return low * last + i * (high - low) * last / np.float32(axis.out - 1)


COORDINATES: dict[str, Callable[[Axis, Array], Array]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda axis, i: _half_pixel(axis, i) if axis.out > 1 else i * 0,
    "align_corners": _align_corners,
    "asymmetric": lambda axis, i: i / np.float32(axis.scale),
    "tf_crop_and_resize": _crop_and_resize,
}


@builder("Resize")
def _resize(node: Node, constants: Constants) -> Lowered:
    settings, plan = _settings(node), _planner(node, constants)

    @lru_cache(maxsize=4)
    def sources(shape: tuple[int, ...]) -> tuple[tuple[Axis, Array], ...]:
        return tuple((axis, _coordinates(axis, settings)) for axis in plan(shape))

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        axes = sources(tuple(x.shape[1:]))
        quick = _interpolate(x, axes, settings)
        if quick is not None:
            return quick
        for axis, at in axes:
            x = _resized(x, axis, at, settings)
        return x

    return run


def _settings(node: Node) -> Settings:
    """Return the checked attributes. Raises ModelError naming a mode that is not known."""
    attrs = node.attrs
    settings = Settings(
        mode=attrs.get("mode", "nearest"),
        coordinates=attrs.get("coordinate_transformation_mode", "half_pixel"),
        nearest=attrs.get("nearest_mode", "round_prefer_floor"),
        cubic_a=attrs.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(attrs.get("exclude_outside", 0)),
        antialias=bool(attrs.get("antialias", 0)),
        extrapolation=attrs.get("extrapolation_value", 0.0),
    )
    for name, got, allowed in (
        ("mode", settings.mode, MODES),
        ("coordinate_transformation_mode", settings.coordinates, COORDINATES),
        ("nearest_mode", settings.nearest, NEAREST),
    ):
        if got not in allowed:
            raise refusal(node, f"{name}={got} is not supported; {', '.join(allowed)} are allowed")
    if settings.antialias and settings.coordinates == "tf_crop_and_resize":
        raise refusal(node, "antialias=1 is not supported with coordinate_transformation_mode=tf_crop_and_resize")
    return settings


def _planner(node: Node, constants: Constants) -> Callable[[tuple[int, ...]], tuple[Axis, ...]]:
    """Return a function from the shape of a tensor without its batch to the axes that change."""
    roi, scales, sizes = static(node, constants, 1), static(node, constants, 2), static_ints(node, constants, 3)
    policy, antialias = node.attrs.get("keep_aspect_ratio_policy", "stretch"), node.attrs.get("antialias", 0)

    def plan(shape: tuple[int, ...]) -> tuple[Axis, ...]:
        lengths = (0, *shape)
        dims = [d % len(lengths) for d in node.attrs.get("axes", range(len(lengths)))]
        # Axis 0 is the batch and keeps its length, whatever length the model was exported with.
        entries = [(n, d) for n, d in enumerate(dims) if d != 0]
        if sizes:
            goals = _goals([sizes[n] for n, _ in entries], [lengths[d] for _, d in entries], policy)
        elif scales is not None and scales.size:
            goals = [(int(np.floor(np.float32(lengths[d]) * scales[n])), float(scales[n])) for n, d in entries]
        else:
            raise refusal(node, "neither scales nor sizes are given; one of them is needed: export the model again")
        if all(out == lengths[d] for (_, d), (out, _) in zip(entries, goals, strict=True)):
            return ()  # onnxruntime copies a tensor that keeps its shape, whatever the scales
        bounds = [0.0] * len(dims) + [1.0] * len(dims) if roi is None or not roi.size else [float(v) for v in roi]
        return tuple(
            Axis(d, lengths[d], out, scale, (bounds[n], bounds[n + len(dims)]))
            for (n, d), (out, scale) in zip(entries, goals, strict=True)
            if scale != 1 and not (antialias and out == lengths[d])
        )

    return plan


def _goals(sizes: Sequence[int], lengths: Sequence[int], policy: str) -> list[tuple[int, float]]:
    """Return the output length and the scale of every axis for wanted `sizes`."""
    scales = [size / length for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return list(zip(sizes, scales, strict=True))
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [(int(np.floor(scale * length + 0.5)), scale) for length in lengths]


def _coordinates(axis: Axis, settings: Settings) -> Array:
    """Return the source coordinate of every output position, float32 [out]."""
    return COORDINATES[settings.coordinates](axis, np.arange(axis.out, dtype=np.float32)).astype(np.float32)


def _interpolate(x: Tensor, axes: Sequence[tuple[Axis, Array]], settings: Settings) -> Tensor | None:
    """Return the answer of torch's interpolate, None where it follows other rules."""
    rank = x.dim() - 2
    if rank not in LINEAR or not axes or axes[0][0].dim < 2 or settings.coordinates == "tf_crop_and_resize":
        return None
    outs = {axis.dim: axis.out for axis, _ in axes}
    size = [outs.get(dim, x.shape[dim]) for dim in range(2, x.dim())]
    if settings.mode == "nearest":
        if all(np.array_equal(_nearest(a, at, settings), np.arange(a.out) * a.size // a.out) for a, at in axes):
            return F.interpolate(x, size, mode="nearest")
        return None
    if settings.mode != "linear" or settings.antialias:
        return None
    if settings.coordinates == "align_corners":
        return F.interpolate(x, size, mode=LINEAR[rank], align_corners=True)
    plain = settings.coordinates in ("half_pixel", "pytorch_half_pixel")
    same = plain and all(axis.out > 1 and axis.out == axis.size * axis.scale for axis, _ in axes)
    return F.interpolate(x, size, mode=LINEAR[rank], align_corners=False) if same else None


def _nearest(axis: Axis, at: Array, settings: Settings) -> Array:
    return np.clip(NEAREST[settings.nearest](at.astype(np.float64)), 0, axis.size - 1).astype(np.int64)


def _resized(x: Tensor, axis: Axis, at: Array, settings: Settings) -> Tensor:
    """Return `x` with one axis resized."""
    if settings.mode == "nearest":
        y = x.index_select(axis.dim, torch.as_tensor(_nearest(axis, at, settings), device=x.device))
    else:
        weights = x.new_tensor(_weights(axis, at, settings))
        y = (x.movedim(axis.dim, -1) @ weights.t()).movedim(-1, axis.dim)
    if settings.coordinates != "tf_crop_and_resize":
        return y
    outside = torch.as_tensor((at < 0) | (at > axis.size - 1), device=x.device)
    return torch.where(outside.view(-1, *(1,) * (x.dim() - axis.dim - 1)), settings.extrapolation, y)


def _weights(axis: Axis, at: Array, settings: Settings) -> Array:
    """Return what every output position takes of every source element, float32 [out, size]; rows sum to one."""
    shrink = min(1.0, axis.scale) if settings.antialias else 1.0
    reach = int(np.ceil((1 if settings.mode == "linear" else 2) / shrink))
    at = at.astype(np.float64)
    taps = np.floor(at)[:, None] + np.arange(-reach, reach + 2)
    distance = np.abs(taps - at[:, None]) * shrink
    share = np.clip(1 - distance, 0, None) if settings.mode == "linear" else _cubic(distance, settings.cubic_a)
    if settings.exclude_outside:
        share = np.where((taps < 0) | (taps > axis.size - 1), 0, share)
    if settings.exclude_outside or settings.antialias:
        total = share.sum(axis=1, keepdims=True)
        share = share / np.where(total == 0, 1, total)  # all taps may lie outside (tf_crop_and_resize)
    weights = np.zeros((axis.out, axis.size))
    rows = np.broadcast_to(np.arange(axis.out)[:, None], taps.shape)
    np.add.at(weights, (rows, np.clip(taps, 0, axis.size - 1).astype(np.int64)), share)
    return weights.astype(np.float32)


def _cubic(distance: Array, a: float) -> Array:
    """Return Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))

"""Augmentation of training images. Letters: B batch, H height, W width, C channels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.preprocess import Layout

Level = Literal["none", "light", "strong"]


def augment(
    batch: NDArray[Any],
    rng: np.random.Generator,
    *,
    level: Level = "light",
    flip: bool = True,
    layout: Layout = "NHWC",
) -> NDArray[Any]:
    """Return an augmented copy of uint8 or float32 images [B, H, W, C] or [B, C, H, W], of the same shape and type.

    Level "none" returns the batch itself. "light" shifts by up to 1/8 of the side (edges are reflected) and, with `flip`,
    mirrors half of the images. "strong" also changes brightness and contrast and fills a square with the mean colour.
    """
    if level == "none":
        return batch
    moved = _shift_and_flip(batch, rng, flip=flip, layout=layout)
    return _distort(moved, rng, layout=layout) if level == "strong" else moved


def _shift_and_flip(batch: NDArray[Any], rng: np.random.Generator, *, flip: bool, layout: Layout) -> NDArray[Any]:
    """Return shifted and flipped images. Each is gathered from its own rows and columns, so all changes are one copy."""
    count, height, width, channels = _as_nhwc(batch, layout).shape
    rows, columns = _reflected(rng, count, height), _reflected(rng, count, width)
    if flip:
        columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    moved: NDArray[Any]
    if layout == "NHWC":
        image = np.arange(count)[:, None, None]
        flat = (image * height + rows[:, :, None]) * width + columns[:, None, :]
        moved = batch.reshape(-1, channels).take(flat, axis=0)
    else:
        plane = np.arange(count * channels).reshape(count, channels, 1, 1)
        flat = (plane * height + rows[:, None, :, None]) * width + columns[:, None, None, :]
        moved = batch.reshape(-1).take(flat)
    return moved


def _reflected(rng: np.random.Generator, count: int, side: int) -> NDArray[np.int64]:
    """Return source positions [B, side] along one axis for a random shift, reflected at the edges."""
    reach = side // 8
    positions = np.abs(np.arange(side) + rng.integers(-reach, reach + 1, (count, 1)))
    reflected: NDArray[np.int64] = (side - 1) - np.abs(side - 1 - positions)
    return reflected


def _distort(batch: NDArray[Any], rng: np.random.Generator, *, layout: Layout) -> NDArray[Any]:
    """Return images with other contrast and brightness, and a square filled with each image's mean colour."""
    count = len(batch)
    images: NDArray[Any] = batch.astype(np.float32).reshape(count, -1)
    mean, spread = images.mean(1, keepdims=True), images.std(1, keepdims=True)
    contrast = rng.uniform(0.6, 1.4, (count, 1)).astype(np.float32)
    brightness = spread * rng.uniform(-0.4, 0.4, (count, 1)).astype(np.float32)
    images = ((images - mean) * contrast + mean + brightness).reshape(batch.shape)
    view = _as_nhwc(images, layout)
    inside = _interval(rng, count, view.shape[1])[:, :, None] & _interval(rng, count, view.shape[2])[:, None, :]
    np.copyto(view, mean[:, :, None, None], where=inside[..., None])
    if batch.dtype == np.uint8:
        images = np.clip(np.rint(images), 0, 255)
    return images.astype(batch.dtype, copy=False)


def _interval(rng: np.random.Generator, count: int, side: int) -> NDArray[np.bool_]:
    """Return which positions lie in a random interval of 0 to half of the side, bool [B, side]."""
    centre, reach = rng.uniform(0, side, (count, 1)), rng.uniform(0, side / 4, (count, 1))
    inside: NDArray[np.bool_] = np.abs(np.arange(side) + 0.5 - centre) < reach
    return inside


def _as_nhwc(images: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Return a view with channels last."""
    return images.transpose(0, 2, 3, 1) if layout == "NCHW" else images

"""From canvases to images: mixed, cut to rotated and zoomed windows, recoloured, softened, and rounded to uint8.

Letters: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.synthetic.fields import Floats, Rng, f32, uniform

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def augmented(canvas: Floats, size: tuple[int, int], rng: Rng) -> Floats:
    """Return images [B, H, W, 3] of the final size: windows of mixed canvases, with changed colours and sharpness."""
    images = _windows(_mixed(canvas, rng), size, rng)
    images = _recoloured(images, rng)
    images = _softened(images, rng)
    grain = np.maximum(uniform(rng, -0.06, 0.06, len(images), 1, 1, 1), 0)
    return f32(images + grain * rng.standard_normal(images.shape, np.float32))


def _windows(canvas: Floats, size: tuple[int, int], rng: Rng) -> Floats:
    """Return a randomly placed, rotated, zoomed and mirrored window of every canvas, sampled bilinearly."""
    count, height, width, _ = canvas.shape
    y, x = ((np.arange(side, dtype=np.float32) - (side - 1) / 2) for side in size)
    largest = min(height / size[0], width / size[1])
    zoom = uniform(rng, 0.5, largest, count, 1, 1)
    turned = rng.random((count, 1, 1)) < 0.2
    angle = np.where(turned, uniform(rng, -np.pi, np.pi, count, 1, 1), uniform(rng, -0.3, 0.3, count, 1, 1))
    mirror = np.where(rng.random((count, 1, 1)) < 0.5, -1, 1)
    sin, cos = (np.sin(angle) * zoom).astype(np.float32), (np.cos(angle) * zoom).astype(np.float32)
    free = [np.maximum(side - zoom * part, 0) for side, part in zip((height, width), size, strict=True)]
    centre = [
        (side - 1) / 2 + room * uniform(rng, -0.5, 0.5, count, 1, 1)
        for side, room in zip((height, width), free, strict=True)
    ]
    rows = centre[0] + cos * y[:, None] + sin * mirror * x
    columns = centre[1] - sin * y[:, None] + cos * mirror * x
    return sampled(canvas, rows.astype(np.float32), columns.astype(np.float32))


def sampled(canvas: Floats, rows: Floats, columns: Floats) -> Floats:
    """Interpolate the canvas bilinearly at fractional rows and columns [B, H, W], reflected at the edges."""
    count, height, width, channels = canvas.shape
    rows, columns = (
        np.clip((side - 1) - np.abs((side - 1) - np.abs(at)), 0, side - 1.001)
        for at, side in ((rows, height), (columns, width))
    )
    row, column = rows.astype(np.int64), columns.astype(np.int64)
    down, right = (rows - row)[..., None].astype(np.float32), (columns - column)[..., None].astype(np.float32)
    flat = canvas.reshape(-1, channels)
    first = (np.arange(count)[:, None, None] * height + row) * width + column
    upper = flat.take(first, axis=0) * (1 - right) + flat.take(first + 1, axis=0) * right
    lower = flat.take(first + width, axis=0) * (1 - right) + flat.take(first + width + 1, axis=0) * right
    mixed: Floats = upper * (1 - down) + lower * down
    return mixed


def _mixed(images: Floats, rng: Rng) -> Floats:
    """Apply mixup to 15 % of the canvases (a weighted mean of two) and CutMix to 15 % (a box from another one).

    This is done before the windows are cut, so that an image and its partner show different parts in different colours.
    """
    count, height, width, _ = images.shape
    choice = rng.random((count, 1, 1))
    y, x = np.arange(height)[:, None], np.arange(width)
    boxes = []
    for at, side in ((y, height), (x, width)):
        start, length = rng.uniform(-0.3, 0.8, (count, 1, 1)) * side, rng.uniform(0.2, 0.8, (count, 1, 1)) * side
        boxes.append((at >= start) & (at < start + length))
    weight = np.where(choice < 0.15, rng.uniform(0.2, 0.5, (count, 1, 1)), 0)
    weight = np.where((choice > 0.85) & boxes[0] & boxes[1], 1, weight).astype(np.float32)[..., None]
    mixed: Floats = images + weight * (np.roll(images, 1, axis=0)[:, :, ::-1] - images)
    return mixed


def _recoloured(images: Floats, rng: Rng) -> Floats:
    """Change contrast, brightness, saturation, gamma and the order of channels; turn some images grey or negative."""
    count = len(images)

    def some(share: float) -> NDArray[np.bool_]:
        return rng.random((count, 1, 1, 1)) < share

    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    images = np.where(some(0.25), (images - low) / np.maximum(high - low, 0.05), images)
    mean = images.mean((1, 2, 3), keepdims=True)
    images = (images - mean) * np.exp2(uniform(rng, -1, 0.7, count, 1, 1, 1)) + mean
    images += uniform(rng, -0.2, 0.2, count, 1, 1, 1)
    gray = (images @ LUMA)[..., None]
    saturation = np.where(some(0.1), np.float32(0), uniform(rng, 0.4, 1.8, count, 1, 1, 1))
    images = np.clip(gray + (images - gray) * saturation, 0, 1)
    images = images ** np.exp2(uniform(rng, -0.7, 0.7, count, 1, 1, 1))
    images = np.where(some(0.1), 1 - images, images)
    order = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
    shuffled = np.take_along_axis(images, order[:, None, None, :], axis=3)
    return np.where(some(0.3), shuffled, images)


def _softened(images: Floats, rng: Rng) -> Floats:
    """Blur images with up to two binomial filters or sharpen them slightly; a third stays unchanged."""
    for _ in range(2):
        blurred: NDArray[Any] = images
        for axis in (1, 2):
            before, after = np.roll(blurred, 1, axis), np.roll(blurred, -1, axis)
            blurred = (before + after + 2 * blurred) / 4
        amount = uniform(rng, -0.4, 1, len(images), 1, 1, 1) * (rng.random((len(images), 1, 1, 1)) < 0.5)
        images = f32(images + amount * (blurred - images))
    return images


def finished(images: Floats, channels: int, rng: Rng) -> NDArray[np.uint8]:
    """Return the images as uint8 [B, H, W, C]: grey for one channel, random mixtures for more than three."""
    if channels == 1:
        images = (images @ LUMA)[..., None]
    elif channels != 3:
        mixing = rng.dirichlet((0.5, 0.5, 0.5), (len(images), channels)).astype(np.float32)
        images = np.einsum("bhwk,bck->bhwc", images, mixing, optimize=True)
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)

"""What made-up images are drawn from: colours, noise and waves.

Letters: B batch, H height, W width, P entries of a palette.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rng = np.random.Generator


def f32(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32, copy=False)


def uniform(rng: Rng, low: float, high: float, *shape: int) -> Floats:
    values: Floats = rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
    return values


def coordinates(height: int, width: int) -> tuple[Floats, Floats]:
    """Return the coordinates y [H, 1] and x [1, W], 0 in the middle; the shorter side ranges from -1 to 1."""
    unit = min(height, width) / 2
    y = ((np.arange(height) + 0.5 - height / 2) / unit).astype(np.float32)
    x = ((np.arange(width) + 0.5 - width / 2) / unit).astype(np.float32)
    return y[:, None], x[None, :]


def palette(rng: Rng, count: int, entries: int) -> Floats:
    """Return colours [B, P, 3]. Each image has its own mean colour, saturation and contrast, like photographs."""
    mean = uniform(rng, 0.25, 0.75, count, 1, 3)
    light = rng.standard_normal((count, entries, 1), np.float32) * uniform(rng, 0.1, 0.35, count, 1, 1)
    tint = rng.standard_normal((count, entries, 3), np.float32) * uniform(rng, 0.0, 0.3, count, 1, 1) ** 1.5
    mean = mean.mean(2, keepdims=True) + (mean - mean.mean(2, keepdims=True)) * uniform(rng, 0, 1, count, 1, 1)
    colours: Floats = np.clip(mean + light + tint, 0, 1)
    return colours


def noise(rng: Rng, count: int, height: int, width: int, *, slope: Floats) -> Floats:
    """Return Gaussian noise [B, H, W] whose amplitude falls with frequency as 1/f^slope [B]; mean 0, deviation 1."""
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None] ** 2
    fx = np.fft.rfftfreq(width).astype(np.float32)[None, :] ** 2
    stretch = np.exp2(uniform(rng, -2, 2, count, 1, 1))  # of one axis: grain, fur, water
    squared = np.maximum(fy * stretch + fx / stretch, np.float32(1 / max(height, width) ** 2))
    spectrum = np.fft.rfft2(rng.standard_normal((count, height, width), np.float32))
    spectrum *= np.exp(np.log(squared, out=squared) * (slope[:, None, None] / -2))
    field: Floats = np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)
    field -= field.mean((1, 2), keepdims=True)
    field /= field.std((1, 2), keepdims=True) + 1e-6
    return field


def waves(rng: Rng, count: int, height: int, width: int, *, cycles: tuple[float, float]) -> Floats:
    """Return sine waves [B, H, W] in -1..1 of random direction, some bent by noise, with `cycles` per half side."""
    y, x = coordinates(height, width)
    angle = uniform(rng, 0, 2 * np.pi, count, 1, 1)
    bend = np.maximum(uniform(rng, -1, 1.5, count, 1, 1), 0)
    turns = np.exp2(uniform(rng, math.log2(cycles[0]), math.log2(cycles[1]), count, 1, 1)) * np.float32(2 * np.pi)
    phase = turns * (np.cos(angle) * x + np.sin(angle) * y) + uniform(rng, 0, 2 * np.pi, count, 1, 1)
    phase += bend * noise(rng, count, height, width, slope=uniform(rng, 1.5, 2.5, count))
    wave: Floats = np.sin(phase, out=phase)
    return wave


def blend(weight: Floats, first: Floats, second: Floats) -> Floats:
    """Return a blend [B, H, W, 3] from `first` [B, 3] at weight 0 to `second` [B, 3] at weight 1; weight: [B, H, W]."""
    blended: Floats = first[:, None, None] + weight[..., None] * (second - first)[:, None, None]
    return blended

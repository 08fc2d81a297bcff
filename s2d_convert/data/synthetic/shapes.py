"""Scenes of textured and shaded shapes.

Letters: B batch, H height, W width, P shapes of a scene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.synthetic.fields import Floats, Rng, coordinates, f32, noise, palette, uniform, waves


def scene(rng: Rng, background: Floats, radius: Floats) -> Floats:
    """Draw textured and shaded shapes of these radii [B, P] over the background, one after the other."""
    count, height, width, _ = background.shape
    top, depth = _stacked(rng, radius, height, width)
    colours = palette(rng, count, radius.shape[1] + 1)
    image = np.arange(count)[:, None, None]
    texture = noise(rng, count, height, width, slope=uniform(rng, 0.2, 1.6, count))
    stripes = waves(rng, count, height, width, cycles=(1, min(height, width) / 12 + 1))
    entries = radius.shape[1] + 1
    rough, striped, shaded = (uniform(rng, -a, b, count, entries) for a, b in ((0.1, 0.2), (0.3, 0.2), (0.3, 0.6)))
    surface = np.maximum(rough, 0)[image, top] * texture + np.maximum(striped, 0)[image, top] * stripes
    surface -= np.maximum(shaded, 0)[image, top] * depth
    filled = colours[image, top] + surface[..., None]
    return f32(np.where((top > 0)[..., None], filled, background))


def _stacked(rng: Rng, radius: Floats, height: int, width: int) -> tuple[NDArray[np.uint8], Floats]:
    """Return for each pixel [B, H, W] the number of the uppermost shape (0: none) and the depth of its shading."""
    count, shapes = radius.shape
    y, x = coordinates(height, width)
    top = np.zeros((count, height, width), np.uint8)
    depth = np.zeros((count, height, width), np.float32)
    middle_y, middle_x = (uniform(rng, -s, s, shapes, count, 1, 1) for s in (float(y.max()), float(x.max())))
    angle, stretch = uniform(rng, 0, 2 * np.pi, shapes, count, 1, 1), uniform(rng, 0.6, 1.6, shapes, count, 1, 1)
    for shape in range(shapes):
        is_drawn = radius[:, shape] > 0
        size = np.where(is_drawn, radius[:, shape], 1)[:, None, None]
        sin, cos = np.sin(angle[shape]) / size, np.cos(angle[shape]) / size
        dx, dy = x - middle_x[shape], y - middle_y[shape]
        u, v = (cos * dx + sin * dy) * stretch[shape], (cos * dy - sin * dx) / stretch[shape]
        distance = _SHAPES[int(rng.integers(len(_SHAPES)))](u, v)
        inside = distance < np.where(is_drawn, 1, -1)[:, None, None]
        top[inside] = shape + 1
        np.copyto(depth, v, where=inside)
    return top, depth


# The distance function of each shape over (u, v), below 1 inside. Ellipses are listed twice, to be twice as frequent.
_SHAPES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    lambda u, v: u * u + v * v,
    lambda u, v: u * u + v * v,
    lambda u, v: np.maximum(np.abs(u), np.abs(v)),
    lambda u, v: np.maximum(-2 * v, v + np.float32(1.732) * np.abs(u)),
    lambda u, v: np.maximum(np.abs(u), np.float32(0.5) * np.abs(u) + np.float32(0.866) * np.abs(v)),
    lambda u, v: np.maximum(np.abs(u), 6 * np.abs(v)),
    lambda u, v: np.abs(np.sqrt(u * u + v * v) - np.float32(0.8)) * 6,
    lambda u, v: np.maximum(u * u + v * v, 1 - 4 * v),
)

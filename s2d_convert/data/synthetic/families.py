"""The families of made-up images; each function draws canvases float32 [B, H, W, 3] with values around 0..1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from s2d_convert.data.synthetic.fields import Floats, Rng, blend, coordinates, f32, noise, palette, uniform, waves
from s2d_convert.data.synthetic.shapes import scene

Family = Callable[[Rng, int, int, int], Floats]  # generator, number of canvases, height, width


def _spectral(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return colour noise with the 1/f spectrum of photographs. The channels share the brightness, and partly the tint."""
    slope = np.repeat(uniform(rng, 0.6, 2.2, count), 3)
    fields = noise(rng, 3 * count, height, width, slope=slope).reshape(count, 3, height, width)
    mixing = rng.standard_normal((count, 3, 3), np.float32) * uniform(rng, 0, 0.15, count, 1, 1)
    mixing[:, :, 0] += uniform(rng, 0.08, 0.3, count, 1)
    colour = np.einsum("bck,bkhw->bhwc", mixing, fields, optimize=True)
    image: Floats = colour + palette(rng, count, 1)[:, :, None]
    return image


def _regions(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return fractal noise cut at random heights into regions of one colour each, with a texture on top."""
    field = noise(rng, count, height, width, slope=uniform(rng, 1.2, 2.6, count))
    cuts = np.sort(rng.standard_normal((count, 6), np.float32), axis=1)
    level = np.zeros(field.shape, np.int64)
    for cut in range(cuts.shape[1]):
        level += field > cuts[:, cut, None, None]
    colours: Floats = palette(rng, count, cuts.shape[1] + 1)[np.arange(count)[:, None, None], level]
    texture = noise(rng, count, height, width, slope=uniform(rng, 0.3, 1.5, count))
    return colours + (texture * uniform(rng, 0, 0.12, count, 1, 1))[..., None]


def _gratings(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return stripes, checkers and rings between two colours, soft or hard, some fading towards one side."""
    wave = waves(rng, count, height, width, cycles=(0.5, min(height, width) / 12 + 1))
    kind = rng.integers(0, 4, count)[:, None, None]
    y, x = coordinates(height, width)
    centre = uniform(rng, -1, 1, 2, count, 1, 1)
    radius = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    wave = np.where(kind == 1, wave * waves(rng, count, height, width, cycles=(0.5, 4)), wave)
    wave = np.where(kind == 2, np.sin(radius * uniform(rng, 3, 30, count, 1, 1), dtype=np.float32), wave)
    sharpness = np.exp2(uniform(rng, -1, 5, count, 1, 1))
    wave = f32(np.tanh(wave * sharpness) / np.tanh(sharpness))
    fade = np.clip(uniform(rng, 0, 2, count, 1, 1) + x * uniform(rng, -1, 1, count, 1, 1), 0, 1)
    colours = palette(rng, count, 2)
    return blend(wave * fade * 0.5 + 0.5, colours[:, 0], colours[:, 1])


def _gradients(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return smooth changes between three colours along a line and around a point: skies, walls, vignettes."""
    y, x = coordinates(height, width)
    angle, centre = uniform(rng, 0, 2 * np.pi, count, 1, 1), uniform(rng, -1, 1, 2, count, 1, 1)
    distance = np.cos(angle) * x + np.sin(angle) * y
    around = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    steepness = np.exp2(uniform(rng, -1, 3, count, 1, 1))
    along = f32(1 / (1 + np.exp(np.clip(-2 * distance * steepness, -30, 30))))
    around = np.exp(-around * np.exp2(uniform(rng, -2, 2, count, 1, 1)))
    colours = palette(rng, count, 3)
    base = blend(along, colours[:, 0], colours[:, 1])
    spot = (around * uniform(rng, 0, 1, count, 1, 1))[..., None]
    return f32(base + spot * (colours[:, None, None, 2] - base))


def _backgrounds(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return the backgrounds of scenes: mostly gradients, sometimes one of the textures."""
    shares = rng.multinomial(count, (0.45, 0.2, 0.15, 0.2))
    families = (_gradients, _spectral, _regions, _gratings)
    parts = [draw(rng, int(n), height, width) for draw, n in zip(families, shares, strict=True) if n]
    return np.concatenate(parts)


def _dead_leaves(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return overlapping shapes, with radii after a power law, that cover nearly the whole canvas."""
    # The density falls as r^-2. The scale-invariant r^-3 would need ten times as many shapes to cover the canvas.
    leaves, smallest, largest = 40, uniform(rng, 0.08, 0.2, count, 1), np.float32(1)
    radius = 1 / (1 / smallest - rng.random((count, leaves), np.float32) * (1 / smallest - 1 / largest))
    return scene(rng, _gradients(rng, count, height, width), f32(radius))


def _objects(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return a few large shaded shapes on a background."""
    shapes = 6
    radius = uniform(rng, 0.15, 0.8, count, shapes)
    radius[np.arange(shapes) >= rng.integers(1, shapes + 1, (count, 1))] = 0  # never drawn
    return scene(rng, _backgrounds(rng, count, height, width), radius)


FAMILIES: tuple[tuple[Family, float], ...] = (
    (_dead_leaves, 0.3),
    (_objects, 0.3),
    (_regions, 0.12),
    (_spectral, 0.1),
    (_gratings, 0.1),
    (_gradients, 0.08),
)

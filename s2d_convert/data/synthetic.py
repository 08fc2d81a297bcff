"""Made-up images for conversions without data: procedural textures and scenes, strongly augmented.

Networks are known to learn natural-image features from these families: dead leaves, and noise with the spectrum of natural
images (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021); regions of fractal noise; gratings and
checkers; gradients; shaded shapes on backgrounds. Every image is drawn on a canvas larger than itself, from which a rotated
and zoomed window is cut. This also smooths hard edges.

Letters: B batch, H height, W width of the canvas, C channels, P entries of a palette. Canvases are float32
[B, H, W, 3] with values around 0..1; one block of images is drawn at a time, each from its own seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_convert.errors import UsageError

Floats = NDArray[np.float32]
Rng = np.random.Generator
Family = Callable[[Rng, int, int, int], Floats]  # generator, number of canvases, height, width

_BLOCK_PIXELS = 300_000  # canvas pixels drawn together: enough for numpy's speed, few enough for the cache
_MARGIN = {True: 1.5, False: 1.15}  # canvas side over image side, for small and for large images
_SMALL = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def made_up(count: int, *, size: tuple[int, int], channels: int, seed: int) -> NDArray[np.uint8]:
    """Return made-up images, uint8 [B, H, W, C] with (H, W) = `size`. A larger `count` only adds images at the end."""
    if count < 0 or min(size) < 1 or channels < 1:
        raise UsageError(f"made-up images: got count {count}, size {size}, channels {channels}; expected none negative")
    out = np.empty((count, *size, channels), np.uint8)
    margin = _MARGIN[min(size) <= _SMALL]
    height, width = (max(8, math.ceil(side * margin)) for side in size)
    block = max(8, min(256, _BLOCK_PIXELS // (height * width)))
    for start in range(0, count, block):
        rng = np.random.default_rng([seed, start])
        images = _finished(_augmented(_drawn(rng, block, height, width), size, rng), channels, rng)
        out[start : start + block] = images[: count - start]
    return out


def _drawn(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return one block of canvases [B, H, W, 3] in random order. Every family draws its share."""
    shares = rng.multinomial(count, [weight for _, weight in _FAMILIES])
    parts = [draw(rng, int(share), height, width) for (draw, _), share in zip(_FAMILIES, shares, strict=True) if share]
    return np.concatenate(parts)[rng.permutation(count)]


# ---- building blocks -----------------------------------------------------------------------------------------------


def _f32(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32, copy=False)


def _uniform(rng: Rng, low: float, high: float, *shape: int) -> Floats:
    values: Floats = rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
    return values


def _coordinates(height: int, width: int) -> tuple[Floats, Floats]:
    """Return the coordinates y [H, 1] and x [1, W], 0 in the middle; the shorter side ranges from -1 to 1."""
    unit = min(height, width) / 2
    y = ((np.arange(height) + 0.5 - height / 2) / unit).astype(np.float32)
    x = ((np.arange(width) + 0.5 - width / 2) / unit).astype(np.float32)
    return y[:, None], x[None, :]


def _palette(rng: Rng, count: int, entries: int) -> Floats:
    """Return colours [B, P, 3]. Each image has its own mean colour, saturation and contrast, like photographs."""
    mean = _uniform(rng, 0.25, 0.75, count, 1, 3)
    light = rng.standard_normal((count, entries, 1), np.float32) * _uniform(rng, 0.1, 0.35, count, 1, 1)
    tint = rng.standard_normal((count, entries, 3), np.float32) * _uniform(rng, 0.0, 0.3, count, 1, 1) ** 1.5
    mean = mean.mean(2, keepdims=True) + (mean - mean.mean(2, keepdims=True)) * _uniform(rng, 0, 1, count, 1, 1)
    colours: Floats = np.clip(mean + light + tint, 0, 1)
    return colours


def _noise(rng: Rng, count: int, height: int, width: int, *, slope: Floats) -> Floats:
    """Return Gaussian noise [B, H, W] whose amplitude falls with frequency as 1/f^slope [B]; mean 0, deviation 1."""
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None] ** 2
    fx = np.fft.rfftfreq(width).astype(np.float32)[None, :] ** 2
    stretch = np.exp2(_uniform(rng, -2, 2, count, 1, 1))  # of one axis: grain, fur, water
    squared = np.maximum(fy * stretch + fx / stretch, np.float32(1 / max(height, width) ** 2))
    spectrum = np.fft.rfft2(rng.standard_normal((count, height, width), np.float32))
    spectrum *= np.exp(np.log(squared, out=squared) * (slope[:, None, None] / -2))
    field: Floats = np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)
    field -= field.mean((1, 2), keepdims=True)
    field /= field.std((1, 2), keepdims=True) + 1e-6
    return field


def _wave(rng: Rng, count: int, height: int, width: int, *, cycles: tuple[float, float]) -> Floats:
    """Return sine waves [B, H, W] in -1..1 of random direction, some bent by noise, with `cycles` per half side."""
    y, x = _coordinates(height, width)
    angle = _uniform(rng, 0, 2 * np.pi, count, 1, 1)
    bend = np.maximum(_uniform(rng, -1, 1.5, count, 1, 1), 0)
    turns = np.exp2(_uniform(rng, math.log2(cycles[0]), math.log2(cycles[1]), count, 1, 1)) * np.float32(2 * np.pi)
    phase = turns * (np.cos(angle) * x + np.sin(angle) * y) + _uniform(rng, 0, 2 * np.pi, count, 1, 1)
    phase += bend * _noise(rng, count, height, width, slope=_uniform(rng, 1.5, 2.5, count))
    wave: Floats = np.sin(phase, out=phase)
    return wave


def _blend(weight: Floats, first: Floats, second: Floats) -> Floats:
    """Return a blend [B, H, W, 3] from `first` [B, 3] at weight 0 to `second` [B, 3] at weight 1; weight: [B, H, W]."""
    blend: Floats = first[:, None, None] + weight[..., None] * (second - first)[:, None, None]
    return blend


# ---- families ------------------------------------------------------------------------------------------------------


def _spectral(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return colour noise with the 1/f spectrum of photographs. The channels share the brightness, and partly the tint."""
    slope = np.repeat(_uniform(rng, 0.6, 2.2, count), 3)
    fields = _noise(rng, 3 * count, height, width, slope=slope).reshape(count, 3, height, width)
    mixing = rng.standard_normal((count, 3, 3), np.float32) * _uniform(rng, 0, 0.15, count, 1, 1)
    mixing[:, :, 0] += _uniform(rng, 0.08, 0.3, count, 1)
    colour = np.einsum("bck,bkhw->bhwc", mixing, fields, optimize=True)
    image: Floats = colour + _palette(rng, count, 1)[:, :, None]
    return image


def _regions(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return fractal noise cut at random heights into regions of one colour each, with a texture on top."""
    field = _noise(rng, count, height, width, slope=_uniform(rng, 1.2, 2.6, count))
    cuts = np.sort(rng.standard_normal((count, 6), np.float32), axis=1)
    level = np.zeros(field.shape, np.int64)
    for cut in range(cuts.shape[1]):
        level += field > cuts[:, cut, None, None]
    colours: Floats = _palette(rng, count, cuts.shape[1] + 1)[np.arange(count)[:, None, None], level]
    texture = _noise(rng, count, height, width, slope=_uniform(rng, 0.3, 1.5, count))
    return colours + (texture * _uniform(rng, 0, 0.12, count, 1, 1))[..., None]


def _gratings(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return stripes, checkers and rings between two colours, soft or hard, some fading towards one side."""
    wave = _wave(rng, count, height, width, cycles=(0.5, min(height, width) / 12 + 1))
    kind = rng.integers(0, 4, count)[:, None, None]
    y, x = _coordinates(height, width)
    centre = _uniform(rng, -1, 1, 2, count, 1, 1)
    radius = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    wave = np.where(kind == 1, wave * _wave(rng, count, height, width, cycles=(0.5, 4)), wave)
    wave = np.where(kind == 2, np.sin(radius * _uniform(rng, 3, 30, count, 1, 1), dtype=np.float32), wave)
    sharpness = np.exp2(_uniform(rng, -1, 5, count, 1, 1))
    wave = _f32(np.tanh(wave * sharpness) / np.tanh(sharpness))
    fade = np.clip(_uniform(rng, 0, 2, count, 1, 1) + x * _uniform(rng, -1, 1, count, 1, 1), 0, 1)
    colours = _palette(rng, count, 2)
    return _blend(wave * fade * 0.5 + 0.5, colours[:, 0], colours[:, 1])


def _gradients(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return smooth changes between three colours along a line and around a point: skies, walls, vignettes."""
    y, x = _coordinates(height, width)
    angle, centre = _uniform(rng, 0, 2 * np.pi, count, 1, 1), _uniform(rng, -1, 1, 2, count, 1, 1)
    distance = np.cos(angle) * x + np.sin(angle) * y
    around = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    steepness = np.exp2(_uniform(rng, -1, 3, count, 1, 1))
    along = _f32(1 / (1 + np.exp(np.clip(-2 * distance * steepness, -30, 30))))
    around = np.exp(-around * np.exp2(_uniform(rng, -2, 2, count, 1, 1)))
    colours = _palette(rng, count, 3)
    base = _blend(along, colours[:, 0], colours[:, 1])
    spot = (around * _uniform(rng, 0, 1, count, 1, 1))[..., None]
    return _f32(base + spot * (colours[:, None, None, 2] - base))


def _backgrounds(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return the backgrounds of scenes: mostly gradients, sometimes one of the textures."""
    shares = rng.multinomial(count, (0.45, 0.2, 0.15, 0.2))
    families = (_gradients, _spectral, _regions, _gratings)
    parts = [draw(rng, int(n), height, width) for draw, n in zip(families, shares, strict=True) if n]
    return np.concatenate(parts)


def _dead_leaves(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return overlapping shapes, with radii after a power law, that cover nearly the whole canvas."""
    # The density falls as r^-2. The scale-invariant r^-3 would need ten times as many shapes to cover the canvas.
    leaves, smallest, largest = 40, _uniform(rng, 0.08, 0.2, count, 1), np.float32(1)
    radius = 1 / (1 / smallest - rng.random((count, leaves), np.float32) * (1 / smallest - 1 / largest))
    return _scene(rng, _gradients(rng, count, height, width), _f32(radius))


def _objects(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return a few large shaded shapes on a background."""
    shapes = 6
    radius = _uniform(rng, 0.15, 0.8, count, shapes)
    radius[np.arange(shapes) >= rng.integers(1, shapes + 1, (count, 1))] = 0  # never drawn
    return _scene(rng, _backgrounds(rng, count, height, width), radius)


_FAMILIES: tuple[tuple[Family, float], ...] = (
    (_dead_leaves, 0.3),
    (_objects, 0.3),
    (_regions, 0.12),
    (_spectral, 0.1),
    (_gratings, 0.1),
    (_gradients, 0.08),
)


# ---- shapes --------------------------------------------------------------------------------------------------------


def _scene(rng: Rng, background: Floats, radius: Floats) -> Floats:
    """Draw textured and shaded shapes of these radii [B, P] over the background, one after the other."""
    count, height, width, _ = background.shape
    top, depth = _stacked(rng, radius, height, width)
    colours = _palette(rng, count, radius.shape[1] + 1)
    image = np.arange(count)[:, None, None]
    texture = _noise(rng, count, height, width, slope=_uniform(rng, 0.2, 1.6, count))
    stripes = _wave(rng, count, height, width, cycles=(1, min(height, width) / 12 + 1))
    entries = radius.shape[1] + 1
    rough, striped, shaded = (_uniform(rng, -a, b, count, entries) for a, b in ((0.1, 0.2), (0.3, 0.2), (0.3, 0.6)))
    surface = np.maximum(rough, 0)[image, top] * texture + np.maximum(striped, 0)[image, top] * stripes
    surface -= np.maximum(shaded, 0)[image, top] * depth
    filled = colours[image, top] + surface[..., None]
    return _f32(np.where((top > 0)[..., None], filled, background))


def _stacked(rng: Rng, radius: Floats, height: int, width: int) -> tuple[NDArray[np.uint8], Floats]:
    """Return for each pixel [B, H, W] the number of the uppermost shape (0: none) and the depth of its shading."""
    count, shapes = radius.shape
    y, x = _coordinates(height, width)
    top = np.zeros((count, height, width), np.uint8)
    depth = np.zeros((count, height, width), np.float32)
    middle_y, middle_x = (_uniform(rng, -s, s, shapes, count, 1, 1) for s in (float(y.max()), float(x.max())))
    angle, stretch = _uniform(rng, 0, 2 * np.pi, shapes, count, 1, 1), _uniform(rng, 0.6, 1.6, shapes, count, 1, 1)
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


# ---- augmentation --------------------------------------------------------------------------------------------------


def _augmented(canvas: Floats, size: tuple[int, int], rng: Rng) -> Floats:
    """Return images [B, H, W, 3] of the final size: windows of mixed canvases, with changed colours and sharpness."""
    images = _windows(_mixed(canvas, rng), size, rng)
    images = _recoloured(images, rng)
    images = _softened(images, rng)
    grain = np.maximum(_uniform(rng, -0.06, 0.06, len(images), 1, 1, 1), 0)
    return _f32(images + grain * rng.standard_normal(images.shape, np.float32))


def _windows(canvas: Floats, size: tuple[int, int], rng: Rng) -> Floats:
    """Return a randomly placed, rotated, zoomed and mirrored window of every canvas, sampled bilinearly."""
    count, height, width, _ = canvas.shape
    y, x = ((np.arange(side, dtype=np.float32) - (side - 1) / 2) for side in size)
    largest = min(height / size[0], width / size[1])
    zoom = _uniform(rng, 0.5, largest, count, 1, 1)
    turned = rng.random((count, 1, 1)) < 0.2
    angle = np.where(turned, _uniform(rng, -np.pi, np.pi, count, 1, 1), _uniform(rng, -0.3, 0.3, count, 1, 1))
    mirror = np.where(rng.random((count, 1, 1)) < 0.5, -1, 1)
    sin, cos = (np.sin(angle) * zoom).astype(np.float32), (np.cos(angle) * zoom).astype(np.float32)
    free = [np.maximum(side - zoom * part, 0) for side, part in zip((height, width), size, strict=True)]
    centre = [
        (side - 1) / 2 + room * _uniform(rng, -0.5, 0.5, count, 1, 1)
        for side, room in zip((height, width), free, strict=True)
    ]
    rows = centre[0] + cos * y[:, None] + sin * mirror * x
    columns = centre[1] - sin * y[:, None] + cos * mirror * x
    return _sampled(canvas, rows.astype(np.float32), columns.astype(np.float32))


def _sampled(canvas: Floats, rows: Floats, columns: Floats) -> Floats:
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
    images = (images - mean) * np.exp2(_uniform(rng, -1, 0.7, count, 1, 1, 1)) + mean
    images += _uniform(rng, -0.2, 0.2, count, 1, 1, 1)
    gray = (images @ _LUMA)[..., None]
    saturation = np.where(some(0.1), np.float32(0), _uniform(rng, 0.4, 1.8, count, 1, 1, 1))
    images = np.clip(gray + (images - gray) * saturation, 0, 1)
    images = images ** np.exp2(_uniform(rng, -0.7, 0.7, count, 1, 1, 1))
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
        amount = _uniform(rng, -0.4, 1, len(images), 1, 1, 1) * (rng.random((len(images), 1, 1, 1)) < 0.5)
        images = _f32(images + amount * (blurred - images))
    return images


def _finished(images: Floats, channels: int, rng: Rng) -> NDArray[np.uint8]:
    """Return the images as uint8 [B, H, W, C]: grey for one channel, random mixtures for more than three."""
    if channels == 1:
        images = (images @ _LUMA)[..., None]
    elif channels != 3:
        mixing = rng.dirichlet((0.5, 0.5, 0.5), (len(images), channels)).astype(np.float32)
        images = np.einsum("bhwk,bck->bhwc", images, mixing, optimize=True)
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)

"""Made-up images for conversions without data: procedural textures and scenes, strongly augmented.

Networks are known to learn natural-image features from these families: dead leaves, and noise with the spectrum of natural
images (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021); regions of fractal noise; gratings and
checkers; gradients; shaded shapes on backgrounds. Every image is drawn on a canvas larger than itself, from which a rotated
and zoomed window is cut. This also smooths hard edges.

Letters: B batch, H height, W width of the canvas, C channels. Canvases are float32
[B, H, W, 3] with values around 0..1; one block of images is drawn at a time, each from its own seed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.synthetic.families import FAMILIES
from s2d_convert.data.synthetic.fields import Floats, Rng
from s2d_convert.data.synthetic.finishing import augmented, finished
from s2d_convert.errors import UsageError

_BLOCK_PIXELS = 300_000  # canvas pixels drawn together: enough for numpy's speed, few enough for the cache
_MARGIN = {True: 1.5, False: 1.15}  # canvas side over image side, for small and for large images
_SMALL = 64


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
        images = finished(augmented(_drawn(rng, block, height, width), size, rng), channels, rng)
        out[start : start + block] = images[: count - start]
    return out


def _drawn(rng: Rng, count: int, height: int, width: int) -> Floats:
    """Return one block of canvases [B, H, W, 3] in random order. Every family draws its share."""
    shares = rng.multinomial(count, [weight for _, weight in FAMILIES])
    parts = [draw(rng, int(share), height, width) for (draw, _), share in zip(FAMILIES, shares, strict=True) if share]
    return np.concatenate(parts)[rng.permutation(count)]

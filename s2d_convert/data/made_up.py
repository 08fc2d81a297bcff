"""Data for conversions without real data: made-up images, or crops of one real picture and made-up images.

On textures, a model answers some classes far more often than others. So half as many images again are drawn, and among
them images of rare classes are kept with higher probability. Heads and thresholds then rest on all classes.

Letters: B images, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from s2d_runtime.pictures import UNREADABLE, quiet_decoders, read_picture, reason_of

from s2d_convert.data.augment import augment
from s2d_convert.data.folders import MAX_IN_MEMORY_BYTES
from s2d_convert.data.images import Dataset, Images, split_images
from s2d_convert.data.labels import groups
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.data.synthetic.drawing import made_up
from s2d_convert.errors import DataError

POOL = 1.5  # images drawn per image kept, if memory allows
HOLDOUT = 0.25  # more than of real images: they are free, and confidence floors need many
ANSWER_BATCH = 100
LARGEST_SIDE = 1024  # pixels along the longer side that are kept of a picture
STRETCH = 0.3  # crops are up to exp(STRETCH) times as wide as high, or as high as wide

Answers = Callable[[NDArray[np.float32]], NDArray[Any]]  # model input -> classes [B], or sets of labels [B, K]


def made_up_data(
    count: int, preprocess: Preprocess, *, seed: int, answers: Answers, picture: Path | None = None
) -> Dataset:
    """Return a Dataset of `count` unlabelled images whose classes, by the model's own `answers`, are less uneven than chance
    makes them; with a `picture`, half of them are its crops. Raises DataError for a picture that cannot be used."""
    bytes_each = math.prod(preprocess.size) * preprocess.channels
    pool = max(count, min(round(POOL * count), MAX_IN_MEMORY_BYTES // bytes_each))
    cropped = pool // 2 if picture is not None else 0
    pixels = made_up(pool - cropped, size=preprocess.size, channels=preprocess.channels, seed=seed)
    if picture is not None:
        pixels = np.concatenate([pixels, crops(_opened(picture, preprocess), cropped, preprocess.size, seed=seed)])
    images = Images(pixels, preprocess, np.arange(pool, dtype=np.int64), None, "made-up")
    answers_of_parts = [
        answers(np.ascontiguousarray(images.batch(slice(start, start + ANSWER_BATCH))))
        for start in range(0, pool, ANSWER_BATCH)
    ]
    kept = less_uneven(groups(np.concatenate(answers_of_parts)), count, seed=seed)
    # A copy of what is kept: the pool would stay in memory with it.
    chosen = Images(pixels[kept], preprocess, np.arange(count, dtype=np.int64), None, "made-up")
    return split_images(chosen, seed=seed, holdout=HOLDOUT)


def less_uneven(classes: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Draw `count` different rows, in ascending order, with weights of one over the square root of their class's size."""
    common = np.bincount(classes)[classes]
    chances = 1 / np.sqrt(common)
    rows = np.random.default_rng([seed, 8]).choice(len(classes), count, replace=False, p=chances / chances.sum())
    return np.sort(rows)


def crops(picture: NDArray[np.uint8], count: int, size: tuple[int, int], *, seed: int) -> NDArray[np.uint8]:
    """Return random crops of one picture [H, W, C] at all scales, strongly augmented, uint8 [B, *size, C]."""
    height, width = picture.shape[:2]
    rng = np.random.default_rng([seed, 9])
    shorter = min(height, width)
    smallest = min(1.25 * max(size), shorter)
    out = np.empty((count, *size, picture.shape[2]), np.uint8)
    source = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    for row in range(count):
        side = math.exp(rng.uniform(math.log(smallest), math.log(shorter)))
        stretch = math.exp(rng.uniform(-STRETCH, STRETCH))
        w, h = min(width, side * stretch), min(height, side / stretch)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        piece = source.resize(size[::-1], Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
        out[row] = np.asarray(piece, np.uint8).reshape(out.shape[1:])
    return augment(out, rng, level="strong", flip=True).astype(np.uint8, copy=False)


def _opened(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read a picture's pixels, [H, W, C]. Raises DataError when it is broken or too small."""
    try:
        with quiet_decoders():
            picture = read_picture(path, preprocess, LARGEST_SIDE)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); give another picture") from error
    if min(picture.shape[:2]) < max(preprocess.size):
        raise DataError(
            f"{path}: the picture has {picture.shape[1]}x{picture.shape[0]} pixels, at least {max(preprocess.size)} along "
            "both sides are needed; give a larger one"
        )
    return picture

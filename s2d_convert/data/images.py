"""Images in memory or in files, and their division into train, calib and test.

Letters: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.augment import Level, augment
from s2d_convert.data.decode import ImageFiles
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import DataError, UsageError

IntArray = NDArray[np.int64]
Kind = Literal["labelled", "unlabelled", "made-up"]

DEFAULT_HOLDOUT = 0.1
MIN_HELD_OUT, MAX_HELD_OUT = 200, 5000
MIN_IMAGES = 20
HASHED_ROWS = 500  # at once
DARK = 64  # where no pixel of any image is that bright, they hold fewer bits than their type


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of a pixel store, with their labels: int64 [B], or None when there are none.

    `pixels` is uint8 [*, H, W, C], float32 as the model takes it, or files that are decoded lazily.
    """

    pixels: NDArray[Any] | ImageFiles
    preprocess: Preprocess
    rows: IntArray
    labels: IntArray | None
    kind: Kind
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None  # where each row of `pixels` comes from

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_model_input(self) -> bool:
        """Whether the images came as float32 that the model takes as it is."""
        return not isinstance(self.pixels, ImageFiles) and self.pixels.dtype != np.uint8

    def digest(self) -> str:
        """Return a hash of the images in their order and of their labels; of files that are decoded lazily, of names and
        sizes."""
        found = hashlib.sha256(f"{len(self)} {None if self.labels is None else self.labels.tolist()}".encode())
        for start in range(0, len(self), HASHED_ROWS):
            rows = slice(start, start + HASHED_ROWS)
            if isinstance(self.pixels, ImageFiles):
                files = [self.pixels.files[row] for row in self.rows[rows]]
                places = [Path(file) for file in files]  # wherever the folder lies, and however it was named
                found.update(str([(place.parts[-2:], place.stat().st_size) for place in places]).encode())
            else:
                found.update(np.ascontiguousarray(self.raw(rows)).data)
        return found.hexdigest()

    def take(self, indices: IntArray | slice) -> Images:
        """Return the Images at these indices; the pixels are shared, not copied."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)

    def raw(self, indices: IntArray | slice) -> NDArray[Any]:
        """Return the stored images: uint8 [B, H, W, C], or float32 as the model takes them."""
        return self.pixels[self.rows[indices]]

    def batch(self, indices: IntArray | slice) -> NDArray[Any]:
        """Return the model input for these indices: preprocessed, or the stored float32 as it is."""
        return self._as_input(self.raw(indices))

    def augmented(
        self, indices: IntArray | slice, rng: np.random.Generator, *, level: Level = "light", flip: bool = True
    ) -> NDArray[Any]:
        """Like `batch`, with `augment` in between: before the preprocessing where the images are uint8."""
        layout = self.preprocess.layout if self.is_model_input else "NHWC"
        return self._as_input(augment(self.raw(indices), rng, level=level, flip=flip, layout=layout))

    def _as_input(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.is_model_input else self.preprocess(images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, each in an order that the seed shuffled, so that any head of it is a fair sample.

    `calib` sets thresholds and feeds the search reward; `test` is only reported, nothing is chosen on it.
    """

    train: Images
    calib: Images
    test: Images

    @property
    def kind(self) -> Kind:
        """Where the images and labels came from; the same for all splits."""
        return self.train.kind

    def digest(self) -> str:
        """Return a hash of all three splits."""
        return hashlib.sha256(f"{self.train.digest()} {self.calib.digest()} {self.test.digest()}".encode()).hexdigest()


def split_images(images: Images, *, seed: int, holdout: float = DEFAULT_HOLDOUT) -> Dataset:
    """Return the Dataset that holds out a part of `images`, stratified by label, and halves it into calib and test.

    Held out is the share `holdout`, but at least 200 images, at most 5000, and never more than half of them.
    """
    if not 0 < holdout < 1:
        raise UsageError(f"holdout: got {holdout:g}, expected a share above 0 and below 1")
    if len(images) < MIN_IMAGES:
        raise DataError(f"got {len(images)} images, at least {MIN_IMAGES} are needed")
    rng = np.random.default_rng(seed)
    count = len(images)
    held_count = min(max(round(count * holdout), MIN_HELD_OUT), MAX_HELD_OUT, count // 2)
    train, held = _divide(images, held_count, rng)
    return Dataset(train, *halves(held, rng))


def halves(images: Images, rng: np.random.Generator) -> tuple[Images, Images]:
    """Return the images in two halves, every class with its share in both, shuffled."""
    return _divide(images, len(images) // 2, rng)


def _divide(images: Images, count: int, rng: np.random.Generator) -> tuple[Images, Images]:
    """Return the images without `count` of them, and those; every class gives its share, both parts are shuffled."""
    order = rng.permutation(len(images))
    if images.labels is not None:
        order = order[np.argsort(images.labels[order], kind="stable")]
    # Evenly spaced along the order by class: exactly `count` in all, and within one of the exact share per class.
    steps = np.arange(len(order) + 1) * count // len(order)
    chosen = np.diff(steps) == 1
    rest, held = order[~chosen], order[chosen]
    return images.take(rng.permutation(rest)), images.take(rng.permutation(held))

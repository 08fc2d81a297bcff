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
from s2d_convert.data.labels import Labels, groups
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import DataError, UsageError

IntArray = NDArray[np.int64]
Kind = Literal["labelled", "unlabelled", "made-up"]

HELD_OUT, MOST_HELD_OUT = 0.1, 5000  # the share of many images, at most so many
OF_FEW, MOST_OF_FEW = 1 / 3, 2000  # of few images a larger share, or chance would choose the thresholds
MIN_HELD_OUT = 200
MIN_IMAGES = 20
HASHED_ROWS = 500  # read at once
DARK = 64  # if no pixel of any image is brighter, images hold fewer bits than their type


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of a pixel store, with their labels: the class, int64 [B], or 0 or 1 for each label, int8 [B, K], or None when
    there are none.

    `pixels`: uint8 [*, H, W, C], float32 model input, or files that are decoded lazily.
    """

    pixels: NDArray[Any] | ImageFiles
    preprocess: Preprocess
    rows: IntArray
    labels: Labels | None
    kind: Kind
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None  # the file of each row of `pixels`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_model_input(self) -> bool:
        """Whether the images are float32 model input, which needs no preprocessing."""
        return not isinstance(self.pixels, ImageFiles) and self.pixels.dtype != np.uint8

    def digest(self) -> str:
        """Return a hash of the images, in order, and of the labels. Lazily decoded files are hashed by names and sizes."""
        labels = self.labels
        told = labels.tolist() if labels is not None and labels.ndim == 1 else None
        digest = hashlib.sha256(f"{len(self)} {told}".encode())
        if labels is not None and labels.ndim > 1:
            digest.update(np.ascontiguousarray(labels).data)
        for start in range(0, len(self), HASHED_ROWS):
            rows = slice(start, start + HASHED_ROWS)
            if isinstance(self.pixels, ImageFiles):
                files = [self.pixels.files[row] for row in self.rows[rows]]
                paths = [Path(file) for file in files]  # independent of the folder's location and name
                digest.update(str([(path.parts[-2:], path.stat().st_size) for path in paths]).encode())
            else:
                digest.update(np.ascontiguousarray(self.raw(rows)).data)
        return digest.hexdigest()

    def take(self, indices: IntArray | slice) -> Images:
        """Return the Images at these indices. Pixels are shared, not copied."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)

    def raw(self, indices: IntArray | slice) -> NDArray[Any]:
        """Return the stored images: uint8 [B, H, W, C], or float32 model input."""
        return self.pixels[self.rows[indices]]

    def batch(self, indices: IntArray | slice) -> NDArray[Any]:
        """Return the model input for these indices: preprocessed images, or the stored float32 unchanged."""
        return self._as_input(self.raw(indices))

    def augmented(
        self, indices: IntArray | slice, rng: np.random.Generator, *, level: Level = "light", flip: bool = True
    ) -> NDArray[Any]:
        """Return augmented model input for these indices. Images in uint8 are augmented before the preprocessing."""
        layout = self.preprocess.layout if self.is_model_input else "NHWC"
        return self._as_input(augment(self.raw(indices), rng, level=level, flip=flip, layout=layout))

    def with_copies(self, count: int, rng: np.random.Generator, *, flip: bool) -> Images:
        """Return the images and after them changed copies ("light" augmentation), `count` times as many in all, in memory."""
        layout = self.preprocess.layout if self.is_model_input else "NHWC"
        raw = self.raw(slice(None))
        pixels = np.concatenate([raw, *(augment(raw, rng, flip=flip, layout=layout) for _ in range(1, count))])
        labels = None if self.labels is None else np.concatenate([self.labels] * count)
        files = None if self.files is None else tuple(self.files[row] for row in self.rows) * count
        return replace(self, pixels=pixels, rows=np.arange(len(pixels)), labels=labels, files=files)

    def _as_input(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.is_model_input else self.preprocess(images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, each shuffled by the seed, so that the first images of each are a fair sample.

    Thresholds and search rewards come from `calib`. Results are reported on `test`, on which nothing is chosen.
    """

    train: Images
    calib: Images
    test: Images

    @property
    def kind(self) -> Kind:
        """The origin of images and labels, the same for all splits."""
        return self.train.kind

    def named(self, names: tuple[str, ...]) -> Dataset:
        """Return the same images with these names of classes, or labels."""
        return Dataset(*(replace(images, class_names=names) for images in (self.train, self.calib, self.test)))

    def digest(self) -> str:
        """Return a hash of all three splits."""
        return hashlib.sha256(f"{self.train.digest()} {self.calib.digest()} {self.test.digest()}".encode()).hexdigest()


def held_out_of(count: int, *, of_use: int | None = None) -> int:
    """Return how many of so many images are held out: a third of few, a tenth of many, those beyond the ones that are of use
    otherwise (None: all are), and never more than half."""
    idle = 0 if of_use is None else count - of_use
    wanted = max(round(HELD_OUT * count), min(round(OF_FEW * count), MOST_OF_FEW), MIN_HELD_OUT, idle)
    return min(wanted, MOST_HELD_OUT, count // 2)


def split_images(images: Images, *, seed: int, holdout: float | None = None, of_use: int | None = None) -> Dataset:
    """Hold out a part of `images`, stratified by label, and halve it into calib and test.

    holdout: the share that is held out, at least 200 images, at most 5000, and never more than half of them (None: as
    `held_out_of` says, of images of which `of_use` can be trained on). Raises UsageError for a `holdout` out of range and
    DataError for too few images.
    """
    if holdout is not None and not 0 < holdout < 1:
        raise UsageError(f"holdout: got {holdout:g}, expected a share above 0 and below 1")
    if len(images) < MIN_IMAGES:
        raise DataError(f"got {len(images)} images, at least {MIN_IMAGES} are needed")
    rng = np.random.default_rng(seed)
    count = len(images)
    asked = held_out_of(count, of_use=of_use) if holdout is None else max(round(count * holdout), MIN_HELD_OUT)
    held_count = min(asked, MOST_HELD_OUT, count // 2)
    train, held_out = _divide(images, held_count, rng)
    return Dataset(train, *halves(held_out, rng))


def halves(images: Images, rng: np.random.Generator) -> tuple[Images, Images]:
    """Divide the images into two shuffled halves, stratified by label."""
    return _divide(images, len(images) // 2, rng)


def _divide(images: Images, count: int, rng: np.random.Generator) -> tuple[Images, Images]:
    """Divide the images into all but `count`, and `count`. Both parts are shuffled and stratified by label."""
    order = rng.permutation(len(images))
    if images.labels is not None:
        order = order[np.argsort(groups(images.labels)[order], kind="stable")]
    # Evenly spaced along the order by class: exactly `count` in all, and within one of the exact share per class.
    steps = np.arange(len(order) + 1) * count // len(order)
    is_held_out = np.diff(steps) == 1
    rest, held_out = order[~is_held_out], order[is_held_out]
    return images.take(rng.permutation(rest)), images.take(rng.permutation(held_out))

"""Images from folders and .npz files, split by seed into train, calib and test.

Accepted are

- a folder of class folders (`DIR/cat/*.jpg`); class index = alphabetical order of the folder names,
- a folder with images directly inside (no labels),
- a folder with `train/` and perhaps `val/` and `test/` (other common names: see `roles`), each one of the two above,
- an `.npz` with `images` (uint8 NHWC, or float32 exactly as the model takes them) and perhaps `labels`.

Where images have several labels, a file beside the images gives them (`labels`), or a `labels` array of 0 and 1.

Everything wrong with the data is a DataError of one sentence. A few pictures that cannot be read are left out with a
warning, unless reading is strict; docs/data.md describes the pictures that can be read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from s2d_runtime.pictures import IMAGE_SUFFIXES

from s2d_convert.data.arrays import read_npz
from s2d_convert.data.decode import CHUNK, ImageFiles
from s2d_convert.data.folders import read_folder
from s2d_convert.data.images import MIN_IMAGES, Dataset, Images, halves, split_images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.listing import Choose
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.data.reading import LENIENT, Reading, Warn
from s2d_convert.errors import DataError

MIN_VAL = 10  # the part that is held out of MIN_IMAGES


def load_data(
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    space: LabelSpace,
    seed: int,
    holdout: float | None = None,
    of_use: int | None = None,
    reading: Reading = LENIENT,
) -> Dataset:
    """Return the Dataset at `path`, for a model that allows the labels of `space`.

    With folders `val/` and `test/`, val becomes calib and test becomes test. If there is only one of them, it is halved
    into calib and test. Without either, a part of the images is held out (`split_images`). Raises DataError.
    """
    source = Path(path)
    parts = _read(source, preprocess, space, choose=_for_training, reading=reading)
    _check_usable(source, parts)
    rng = np.random.default_rng(seed)
    if len(parts) == 1:
        return split_images(parts["train"], seed=seed, holdout=holdout, of_use=of_use)
    train, *held_out = (images.take(rng.permutation(len(images))) for images in parts.values())
    return Dataset(train, *held_out) if len(held_out) == 2 else Dataset(train, *halves(held_out[0], rng))


def load_all(
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    space: LabelSpace,
    reading: Reading = LENIENT,
) -> Images:
    """Load all images at `path` in the order of their names. Raises DataError.

    Of a divided folder, only the test part is loaded, or the val part if there is no test part.
    """
    (images,) = _read(Path(path), preprocess, space, choose=_for_evaluation, reading=reading).values()
    return images


def load_calibration(
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    space: LabelSpace,
    reading: Reading = LENIENT,
) -> Images:
    """Load all images at `path` for setting thresholds. Of a divided folder, only the val part, or else the test part.

    Raises DataError, also for images that are too few, all equal or all of one class.
    """
    source = Path(path)
    (images,) = _read(source, preprocess, space, choose=_for_calibration, reading=reading).values()
    _check_usable(source, {"the data": images})
    return images


def _read(
    path: Path,
    preprocess: Preprocess,
    space: LabelSpace,
    *,
    choose: Choose,
    reading: Reading,
) -> dict[str, Images]:
    """Return the chosen parts by role; only "train" if the data is not divided."""
    if path.is_dir():
        return read_folder(path, preprocess, space, choose=choose, reading=reading)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a folder of images or an .npz file")
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: is not data that can be read; expected a folder of images or an .npz file")
    return {"train": read_npz(path, preprocess, space, warn=reading.warn)}


def sample_files(path: Path, count: int) -> tuple[str, ...]:
    """Return up to `count` image files below a folder, evenly spaced in the order of their names.

    Raises DataError if there are none.
    """
    files = image_files(path)
    rows = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).astype(int))
    return tuple(files[row] for row in rows)


def image_files(path: Path) -> tuple[str, ...]:
    """Return all image files below a folder, in the order of their names. Raises DataError if there are none."""
    if not path.is_dir():
        raise DataError(f"{path}: is no folder; give a folder of images")
    files = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{path}: holds no images; expected files such as .jpg or .png in it or in folders in it")
    return tuple(files)


def _for_training(path: Path, splits: Mapping[str, Path], _warn: Warn) -> Sequence[str]:
    """Return the splits to load, train first."""
    if "train" not in splits:
        raise DataError(f"{path}: has '{next(iter(splits))}' but no 'train' folder; expected train/ (and val/) in it")
    return [role for role in ("train", "val", "test") if role in splits]


def _for_evaluation(path: Path, splits: Mapping[str, Path], warn: Warn) -> Sequence[str]:
    """Return the one split to load: the one that a conversion with the same folder uses least."""
    role = next(role for role in ("test", "val", "train") if role in splits)
    if role == "train":
        warn(f"{path} has neither val nor test: evaluating on its training images")
    return [role]


def _for_calibration(path: Path, splits: Mapping[str, Path], warn: Warn) -> Sequence[str]:
    """Return the one split to load: neither the training images nor, if possible, those that nothing was chosen on."""
    role = next(role for role in ("val", "test", "train") if role in splits)
    if role == "train":
        warn(f"{path} has neither val nor test: calibrating on its training images")
    return [role]


def _check_usable(path: Path, parts: Mapping[str, Images]) -> None:
    """Raise DataError if a conversion cannot use this data."""
    total = sum(map(len, parts.values()))
    if total < MIN_IMAGES:
        raise DataError(f"{path}: got {total} images in all, at least {MIN_IMAGES} are needed")
    for role, images in parts.items():
        least = MIN_VAL if role != "train" and len(parts) == 2 else 1
        if len(images) < least:
            raise DataError(f"{path}: got {len(images)} images in {role}, at least {least} are needed")
        if images.labels is not None and (images.labels == images.labels[0]).all():
            one = (
                str(images.labels[0]) if images.labels.ndim == 1 else f"set {np.flatnonzero(images.labels[0]).tolist()}"
            )
            raise DataError(
                f"{path}: all {len(images)} images in {role} have label {one}; expected "
                "several classes (of a filter also images of what it is to find)"
            )
        if _all_equal(images):
            raise DataError(f"{path}: all {len(images)} images in {role} are the same picture")


def _all_equal(images: Images) -> bool:
    """Return whether all images are equal. Of lazily decoded files only a sample is compared."""
    count = len(images)
    if count == 1:
        return False
    if isinstance(images.pixels, ImageFiles):
        sample = images.raw(np.unique(np.linspace(0, count - 1, 32).astype(np.int64)))
        return bool((sample == sample[0]).all())
    first = images.raw(slice(0, 1))
    return all(bool((images.raw(slice(start, start + CHUNK)) == first).all()) for start in range(0, count, CHUNK))

"""Small folders and arrays of images for the tests of the data, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from s2d_convert.data.images import Dataset, Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError

RGB = make_preprocess(size=(8, 8), channels=3)
GRAY = make_preprocess(size=(8, 8), channels=1)
RAW = make_preprocess("raw", size=(8, 8), channels=3)


def pixels_of(*key: int) -> NDArray[np.uint8]:
    return np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_images(folder: Path, count: int, *, key: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(pixels_of(key, number)).save(folder / f"{number:03}.png")


def write_tree(root: Path, counts: Mapping[str, int]) -> Path:
    for key, (name, count) in enumerate(counts.items()):
        write_images(root / name, count, key=key)
    return root


def load(path: Path, *, preprocess: Any = RGB, classes: int = 2, seed: int = 0, **more: Any) -> Dataset:
    return load_data(path, preprocess=preprocess, space=LabelSpace(classes), seed=seed, **more)


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.calib), len(dataset.test)


def some_images(labels: NDArray[np.int64] | None, count: int) -> Images:
    kind: Any = "unlabelled" if labels is None else "labelled"
    pixels = np.zeros((count, 1, 1, 3), np.uint8)
    preprocess = make_preprocess(size=(1, 1), channels=3)
    return Images(pixels, preprocess, np.arange(count, dtype=np.int64), labels, kind)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path / "data.npz", **arrays)
    return path / "data.npz"


UINT8 = np.stack([pixels_of(number) for number in range(24)])


def refuse(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)

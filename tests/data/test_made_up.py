"""Data for runs without data: classes that are less uneven, and crops of one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.data.made_up import crops, less_uneven, made_up_data
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError


def brightness(images: np.ndarray) -> np.ndarray:
    """The answers of a model that sees two classes, bright (rare) and dark."""
    return (images.mean(axis=(1, 2, 3)) > 0.8).astype(np.int64)


def test_rare_classes_are_kept_and_nothing_comes_twice() -> None:
    classes = np.array([0] * 900 + [1] * 90 + [2] * 10)
    kept = less_uneven(classes, 500, seed=0)
    assert len(np.unique(kept)) == 500
    counts = np.bincount(classes[kept], minlength=3)
    assert counts[2] >= 9
    assert counts[1] >= 65  # half of them by even chances
    np.testing.assert_array_equal(kept, less_uneven(classes, 500, seed=0))
    assert not np.array_equal(kept, less_uneven(classes, 500, seed=1))


def test_the_dataset_is_split_and_preprocessed_like_any_other() -> None:
    preprocess = make_preprocess(size=(8, 8), channels=1)
    dataset = made_up_data(50, preprocess, seed=3, answers=brightness)
    assert dataset.kind == dataset.calib.kind == "made-up"
    assert dataset.train.labels is None
    assert (len(dataset.train), len(dataset.calib), len(dataset.test)) == (25, 13, 12)
    assert dataset.train.batch(np.arange(4)).shape == (4, 1, 8, 8)
    again = made_up_data(50, preprocess, seed=3, answers=brightness)
    np.testing.assert_array_equal(dataset.test.raw(slice(None)), again.test.raw(slice(None)))
    with pytest.raises(DataError, match="got 19 images, at least 20 are needed"):
        made_up_data(19, preprocess, seed=0, answers=brightness)


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_show_the_picture(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, channels), np.uint8)
    found = crops(picture, 40, (12, 16), seed=1)
    assert found.shape == (40, 12, 16, channels)
    assert found.dtype == np.uint8
    assert len(np.unique(found.reshape(40, -1), axis=0)) == 40
    np.testing.assert_array_equal(found, crops(picture, 40, (12, 16), seed=1))


def test_one_picture_gives_half_of_the_images(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((64, 48, 3), (250, 10, 10), np.uint8)).save(path)
    preprocess = make_preprocess("unit", size=(16, 16), channels=3)
    dataset = made_up_data(60, preprocess, seed=0, answers=brightness, picture=path)
    pixels = np.concatenate([part.raw(slice(None)) for part in (dataset.train, dataset.calib, dataset.test)])
    red = (np.median(pixels[..., 0], axis=(1, 2)) > 3 * np.median(pixels[..., 1:], axis=(1, 2, 3)) + 30).mean()
    assert 0.25 < red < 0.75
    options = ConvertOptions(tmp_path / "m.onnx", tmp_path / "out", data=path)
    assert options.picture == path
    assert options.exact


def test_pictures_that_cannot_be_used_end_in_a_sentence(tmp_path: Path) -> None:
    small, broken = tmp_path / "small.png", tmp_path / "broken.jpg"
    Image.fromarray(np.zeros((10, 40, 3), np.uint8)).save(small)
    broken.write_bytes(b"no picture")
    preprocess = make_preprocess(size=(16, 16), channels=3)
    with pytest.raises(DataError, match=r"small.png: the picture has 40x10 pixels, at least 16 along both sides"):
        made_up_data(40, preprocess, seed=0, answers=brightness, picture=small)
    with pytest.raises(DataError, match=r"broken.jpg: cannot be read"):
        made_up_data(40, preprocess, seed=0, answers=brightness, picture=broken)
    with pytest.raises(DataError, match="the model takes 4"):
        made_up_data(40, make_preprocess(size=(16, 16), channels=4), seed=0, answers=lambda x: x, picture=small)

"""Arrays of .npz files become images and labels; everything wrong with them is one sentence."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_trees import (
    GRAY,
    RGB,
    UINT8,
    load,
    write_npz,
)

from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError

FLOAT = RGB(UINT8)
LABELS = np.arange(24) % 2


def test_npz_of_pixels_goes_through_the_preprocessing(tmp_path: Path) -> None:
    images = load_all(write_npz(tmp_path, images=UINT8, labels=LABELS), preprocess=RGB, space=LabelSpace(2))
    assert (images.kind, images.is_model_input) == ("labelled", False)
    np.testing.assert_array_equal(images.raw(slice(None)), UINT8)
    np.testing.assert_array_equal(images.batch(np.array([3, 1])), FLOAT[[3, 1]])
    np.testing.assert_array_equal(images.labels, LABELS)


def test_npz_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_npz(tmp_path, images=FLOAT, labels=LABELS.astype(np.uint8)[:, None])
    images = load_all(path, preprocess=RGB, space=LabelSpace(2))
    assert images.is_model_input
    np.testing.assert_array_equal(images.batch(slice(None)), FLOAT)
    np.testing.assert_array_equal(images.raw(slice(None)), FLOAT)
    assert images.labels is not None
    assert images.labels.dtype == np.int64


def test_npz_without_labels_and_gray_pixels_without_a_channel_axis(tmp_path: Path) -> None:
    dataset = load(write_npz(tmp_path, images=UINT8[..., 0]), preprocess=GRAY)
    assert dataset.kind == "unlabelled"
    assert dataset.train.batch(slice(0, 5)).shape == (5, 1, 8, 8)


def test_floats_follow_the_models_layout(tmp_path: Path) -> None:
    nhwc = make_preprocess(size=(8, 8), channels=3, layout="NHWC")
    path = write_npz(tmp_path, images=nhwc(UINT8))
    assert load(path, preprocess=nhwc).train.batch(slice(0, 2)).shape == (2, 8, 8, 3)
    with pytest.raises(
        DataError, match=r"float32 of shape \(24, 8, 8, 3\), expected .* or float32 of shape \(B, 3, 8, 8\)"
    ):
        load(path)


def test_a_uint8_model_takes_pixels_only(tmp_path: Path) -> None:
    preprocess = make_preprocess(size=(8, 8), channels=3, dtype="uint8")
    batch = load(write_npz(tmp_path, images=UINT8), preprocess=preprocess).train.batch(slice(0, 2))
    assert batch.dtype == np.uint8
    assert batch.shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=r"expected uint8 of shape \(B, 8, 8, 3\)$"):
        load(write_npz(tmp_path, images=FLOAT), preprocess=preprocess)


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"x_train": UINT8, "y": LABELS}, r"has no array 'images', only 'x_train', 'y'"),
    "doubles": ({"images": FLOAT.astype(np.float64)}, r"images are float64 of shape \(24, 3, 8, 8\), expected uint8"),
    "wrong size": ({"images": UINT8[:, :5]}, r"uint8 of shape \(24, 5, 8, 3\), expected uint8 of shape \(B, 8, 8, 3\)"),
    "wrong channels": ({"images": UINT8[..., :1]}, r"shape \(24, 8, 8, 1\)"),
    "pixels as NCHW": ({"images": UINT8.transpose(0, 3, 1, 2)}, r"shape \(24, 3, 8, 8\)"),
    "one image": ({"images": UINT8[0]}, r"shape \(8, 8, 3\)"),
    "a number": ({"images": np.uint8(3)}, r"shape \(\)"),
    "text": ({"images": np.array(["a", "b"])}, r"images are <U1"),
    "none": ({"images": UINT8[:0]}, r"holds no images"),
    "objects": ({"images": np.array([UINT8[0], "x"], object)}, r"Python objects \(pickle\), which are never loaded"),
    "object labels": ({"images": UINT8, "labels": LABELS.astype(object)}, r"Python objects \(pickle\)"),
    "too many labels": ({"images": UINT8, "labels": np.arange(25) % 2}, r"24 images but 25 labels"),
    "label too big": ({"images": UINT8, "labels": np.arange(24) % 3}, r"labels run from 0 to 2, .* allow 0 to 1"),
    "label below 0": ({"images": UINT8, "labels": LABELS - 1}, r"labels run from -1 to 0"),
    "huge label": ({"images": UINT8, "labels": LABELS.astype(np.uint64) + np.uint64(2**63)}, r"to 9223372036854775809"),
    "float labels": ({"images": UINT8, "labels": LABELS.astype(np.float32)}, r"labels are float32 of shape \(24,\)"),
    "one-hot labels": ({"images": UINT8, "labels": np.eye(2, dtype=int)[LABELS]}, r"shape \(24, 2\).*argmax"),
    "one class": ({"images": UINT8, "labels": LABELS * 0}, r"all 24 images in train have label 0"),
    "all the same": ({"images": np.repeat(UINT8[:1], 24, axis=0)}, r"all 24 images in train are the same picture"),
    "too few": ({"images": UINT8[:19]}, r"got 19 images in all, at least 20 are needed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(case: str, tmp_path: Path) -> None:
    arrays, message = BAD_NPZ[case]
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_must_be_finite(value: float, tmp_path: Path) -> None:
    images = FLOAT.copy()
    images[7, 0, 3, 3] = images[9, 1, 0, 0] = value
    with pytest.raises(DataError, match=r"2 of 24 images hold NaN or inf, the first is row 7"):
        load(write_npz(tmp_path, images=images))


def test_a_file_that_only_says_it_is_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for content in (b"", b"hello", b"PK\x03\x04", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            load(path)
    with path.open("wb") as file:
        np.save(file, UINT8)
    with pytest.raises(DataError, match="is a single array"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", "not an array")
    with pytest.raises(DataError, match="images is no array"):
        load(path)


@settings(max_examples=60, deadline=None)
@given(
    keep=st.floats(0.2, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    compressed=st.booleans(),
)
def test_a_damaged_npz_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, keep: float, changes: list[tuple[float, int]], compressed: bool
) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, images=UINT8, labels=LABELS)
    content = bytearray(buffer.getvalue())
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content[: round(keep * len(content))])
    with contextlib.suppress(DataError):
        load(path)

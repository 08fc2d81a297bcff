"""Augmentation keeps its laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_trees import (
    RAW,
    UINT8,
    pixels_of,
    write_npz,
)

from s2d_convert.data.augment import Level, augment
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all

batches = st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))


@settings(deadline=None)
@given(shape=batches, seed=st.integers(0, 1000), flip=st.booleans())
def test_light_is_a_crop_of_the_reflected_image(shape: tuple[int, int, int, int], seed: int, flip: bool) -> None:
    _, height, width, _ = shape
    batch = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    got = augment(batch, np.random.default_rng(seed), flip=flip)
    assert (got.shape, got.dtype) == (batch.shape, batch.dtype)
    pad_y, pad_x = height // 8, width // 8
    for image, changed in zip(batch, got, strict=True):
        padded = np.pad(image, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
        crops = [
            padded[dy : dy + height, dx : dx + width] for dy in range(2 * pad_y + 1) for dx in range(2 * pad_x + 1)
        ]
        crops += [crop[:, ::-1] for crop in crops] if flip else []
        assert any(np.array_equal(changed, crop) for crop in crops)


@settings(deadline=None)
@given(
    shape=batches,
    seed=st.integers(0, 1000),
    level=st.sampled_from(["none", "light", "strong"]),
    dtype=st.sampled_from([np.uint8, np.float32]),
)
def test_both_layouts_are_changed_alike(shape: tuple[int, ...], seed: int, level: Level, dtype: Any) -> None:
    batch = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    before = batch.copy()
    nhwc = augment(batch, np.random.default_rng(seed), level=level)
    nchw = augment(
        np.ascontiguousarray(batch.transpose(0, 3, 1, 2)), np.random.default_rng(seed), level=level, layout="NCHW"
    )
    assert nhwc.dtype == nchw.dtype == dtype
    np.testing.assert_allclose(nchw.transpose(0, 2, 3, 1), nhwc, atol=1 if dtype == np.uint8 else 1e-3)
    np.testing.assert_array_equal(batch, before)


def test_crops_and_flips_of_a_batch_differ() -> None:
    batch = np.repeat(pixels_of(0)[None], 200, axis=0)
    changed = augment(batch, np.random.default_rng(0))
    assert len(np.unique(changed.reshape(200, -1), axis=0)) == 3 * 3 * 2
    unflipped = augment(batch, np.random.default_rng(0), flip=False)
    assert len(np.unique(unflipped.reshape(200, -1), axis=0)) == 3 * 3


def test_strong_blanks_a_square_and_stays_in_range() -> None:
    batch = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (50, 32, 32, 3))
    changed = augment(batch, np.random.default_rng(1), level="strong")
    assert changed.dtype == np.uint8
    assert len(np.unique(changed.reshape(50, -1).astype(int).mean(1))) == 50
    assert (np.abs(np.diff(changed.astype(int), axis=2)).max((1, 2, 3)) > 0).all()


def test_float_images_are_augmented_as_they_are(tmp_path: Path) -> None:
    floats = load_all(write_npz(tmp_path, images=RAW(UINT8)), preprocess=RAW, space=LabelSpace(2))
    pixels = load_all(write_npz(tmp_path, images=UINT8), preprocess=RAW, space=LabelSpace(2))
    indices = np.array([4, 2, 9])
    for level in ("none", "light"):
        one = floats.augmented(indices, np.random.default_rng(3), level=level)
        other = pixels.augmented(indices, np.random.default_rng(3), level=level)
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        pixels.augmented(indices, np.random.default_rng(0), level="none"), pixels.batch(indices)
    )

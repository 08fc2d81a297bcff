"""Images are divided by the laws of splitting, and real ones reach the known accuracy."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_trees import (
    sizes,
    some_images,
)

from s2d_convert.data.images import Images, Kind, split_images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared"


def test_holdout_is_a_share() -> None:
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="expected a share above 0 and below 1"):
            split_images(some_images(None, 30), seed=0, holdout=share)


# ---- the laws of splitting -----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 900), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 20),
    holdout=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
    labelled=st.booleans(),
)
def test_a_split_is_disjoint_complete_stratified_and_repeatable(
    counts: list[int], holdout: float, seed: int, labelled: bool
) -> None:
    total = sum(counts)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = some_images(labels if labelled else None, total)
    dataset = split_images(images, seed=seed, holdout=holdout)
    parts = (dataset.train, dataset.calib, dataset.test)
    np.testing.assert_array_equal(np.sort(np.concatenate([part.rows for part in parts])), np.arange(total))
    held = min(max(round(total * holdout), 200), 5000, total // 2)
    assert sizes(dataset) == (total - held, held - held // 2, held // 2)
    if labelled:
        for part in parts:
            assert part.labels is not None
            np.testing.assert_array_equal(part.labels, labels[part.rows])
            share = np.bincount(part.labels, minlength=len(counts)) - np.array(counts) * len(part) / total
            assert np.abs(share).max() <= 2
    again = split_images(images, seed=seed, holdout=holdout)
    for part, same in zip(parts, (again.train, again.calib, again.test), strict=True):
        np.testing.assert_array_equal(part.rows, same.rows)


def test_sizes_of_the_held_out_part() -> None:
    found = {count: sizes(split_images(some_images(None, count), seed=1)) for count in (20, 300, 1000, 5000, 100_000)}
    assert found == {
        20: (10, 5, 5),
        300: (150, 75, 75),
        1000: (667, 167, 166),
        5000: (3333, 834, 833),
        100_000: (95_000, 2500, 2500),
    }


def test_images_that_nothing_is_trained_on_are_held_out() -> None:
    counts = (1000, 3000, 8000, 100_000)
    found = {count: sizes(split_images(some_images(None, count), seed=1, of_use=2000)) for count in counts}
    assert found == {
        1000: (667, 167, 166),
        3000: (2000, 500, 500),
        8000: (4000, 2000, 2000),
        100_000: (95_000, 2500, 2500),
    }


def test_the_seed_changes_the_split_and_the_head_is_a_mixture() -> None:
    images = some_images(np.repeat(np.arange(10), 100), 1000)
    one, other = split_images(images, seed=1), split_images(images, seed=2)
    assert set(one.test.rows) != set(other.test.rows)
    for part in (one.train, one.calib, one.test):
        assert part.labels is not None
        assert len(np.unique(part.labels[:40])) >= 8


def test_take_shares_the_pixels_and_nests() -> None:
    images = some_images(np.arange(30) % 3, 30)
    part = images.take(np.arange(10, 20)).take(slice(2, 5))
    np.testing.assert_array_equal(part.rows, [12, 13, 14])
    np.testing.assert_array_equal(part.labels, [0, 1, 2])
    assert part.pixels is images.pixels


# ---- real images ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the shared development data")
def test_a_real_model_is_right_on_real_images(tmp_path: Path) -> None:
    """The static model reaches its known accuracy (87.8 %), so size, channel order, scale and labels are right."""
    onnxruntime = pytest.importorskip("onnxruntime")
    with tarfile.open(SHARED / "data/cifar10-jpeg-test.tar.gz") as archive:
        members = archive.getmembers()[::12]
        archive.extractall(tmp_path, members=[member for member in members if member.isfile()], filter="data")
    images = load_all(tmp_path, preprocess=make_preprocess(size=(32, 32), channels=3), space=LabelSpace(10))
    session = onnxruntime.InferenceSession(SHARED / "models/resnet20-cifar10.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.batch(slice(None))})
    assert images.labels is not None
    assert len(images) > 400
    assert float(np.mean(logits.argmax(1) == images.labels)) > 0.82


@pytest.mark.parametrize("labelled", [True, False])
def test_copies_come_after_the_images_and_are_moved_only(labelled: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    preprocess = make_preprocess("unit", size=(16, 16), channels=3, layout="NCHW", dtype="float32")
    labels = np.arange(5) if labelled else None
    kind: Kind = "labelled" if labelled else "unlabelled"
    images = Images(pixels, preprocess, np.array([3, 1, 4]), labels[[3, 1, 4]] if labels is not None else None, kind)
    many = images.with_copies(3, rng, flip=False)
    raw = many.raw(slice(None))
    np.testing.assert_array_equal(raw[:3], pixels[[3, 1, 4]])
    assert len(many) == 9
    if labelled:
        assert many.labels is not None
        assert many.labels.tolist() == [3, 1, 4] * 3
    for row in range(3, 9):  # a shift by at most an eighth: the middle of the original is somewhere in the copy
        middle = pixels[[3, 1, 4][row % 3]][4:12, 4:12]
        spots = [(y, x) for y in range(2, 7) for x in range(2, 7)]
        assert any(np.array_equal(raw[row][y : y + 8, x : x + 8], middle) for y, x in spots)

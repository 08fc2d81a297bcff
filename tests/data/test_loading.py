"""Folders and .npz files become splits; everything wrong with them is one sentence; augmentation keeps its laws."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from s2d_convert.data import folders as image_folders
from s2d_convert.data.augment import Level, augment
from s2d_convert.data.decode import ImageFiles
from s2d_convert.data.images import Dataset, Images, split_images
from s2d_convert.data.loading import load_all, load_data
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError, UsageError

RGB = make_preprocess(size=(8, 8), channels=3)
GRAY = make_preprocess(size=(8, 8), channels=1)
RAW = make_preprocess("raw", size=(8, 8), channels=3)
SHARED = Path(__file__).resolve().parents[3] / "shared"


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
    return load_data(path, preprocess=preprocess, classes=classes, seed=seed, **more)


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.calib), len(dataset.test)


def some_images(labels: NDArray[np.int64] | None, count: int) -> Images:
    kind: Any = "unlabelled" if labels is None else "labelled"
    pixels = np.zeros((count, 1, 1, 3), np.uint8)
    preprocess = make_preprocess(size=(1, 1), channels=3)
    return Images(pixels, preprocess, np.arange(count, dtype=np.int64), labels, kind)


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_the_digest_is_that_of_the_images_wherever_they_lie(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    path = write_tree(tmp_path / "a", {"cat": 12, "dog": 15})
    first = load(path).digest()
    shutil.copytree(path, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert load(Path("b")).digest() == load(tmp_path / "a" / ".." / "b").digest() == first
    (tmp_path / "b" / "cat").rename(tmp_path / "b" / "eel")  # other labels
    assert load(Path("b")).digest() != first
    next((path / "cat").iterdir()).unlink()
    assert load(path).digest() != first


def test_class_folders_are_numbered_in_alphabetical_order(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"dog": 15, "Bird": 13, "cat": 12})
    images = load_all(path, preprocess=RGB, classes=3)
    assert images.class_names == ("Bird", "cat", "dog")
    assert images.kind == "labelled"
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.labels, [0] * 13 + [1] * 12 + [2] * 15)
    np.testing.assert_array_equal(images.raw(slice(0, 2)), [pixels_of(1, 0), pixels_of(1, 1)])


def test_a_split_keeps_images_and_labels_together(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"cat": 16, "dog": 14})
    whole = load_all(path, preprocess=RGB, classes=2)
    assert whole.labels is not None
    label_of = {image.tobytes(): label for image, label in zip(whole.raw(slice(None)), whole.labels, strict=True)}
    seen = []
    dataset = load(path)
    for part in (dataset.train, dataset.calib, dataset.test):
        assert part.labels is not None
        for image, label in zip(part.raw(slice(None)), part.labels, strict=True):
            assert label_of[image.tobytes()] == label
            seen.append(image.tobytes())
    assert sorted(seen) == sorted(label_of)
    assert dataset.train.class_names == ("cat", "dog")


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, 24)
    dataset = load(tmp_path)
    assert dataset.kind == "unlabelled"
    assert dataset.train.labels is dataset.calib.labels is dataset.test.labels is None
    assert dataset.train.class_names is None
    assert sizes(dataset) == (12, 6, 6)


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "test"])
def test_a_val_folder_becomes_calib_and_test(name: str, tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"train/cat": 9, "train/dog": 9, f"{name}/cat": 6, f"{name}/dog": 6})
    dataset = load(path)
    assert sizes(dataset) == (18, 6, 6)
    for part in (dataset.calib, dataset.test):
        assert part.labels is not None
        np.testing.assert_array_equal(np.bincount(part.labels), [3, 3])
    held = {pixels_of(key, number).tobytes() for key in (2, 3) for number in range(6)}
    assert {image.tobytes() for part in (dataset.calib, dataset.test) for image in part.raw(slice(None))} == held
    assert len(load_all(path, preprocess=RGB, classes=2)) == 12


def test_val_and_test_are_calib_and_test(tmp_path: Path) -> None:
    tree = {f"{role}/{name}": count for role, count in (("train", 10), ("val", 3), ("test", 2)) for name in "ab"}
    path = write_tree(tmp_path, tree)
    assert sizes(load(path)) == (20, 6, 4)
    assert len(load_all(path, preprocess=RGB, classes=2)) == 4


def test_train_alone_is_divided(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tree(tmp_path, {"train/a": 10, "train/b": 20})
    assert sizes(load(path)) == (15, 8, 7)
    assert len(load_all(path, preprocess=RGB, classes=2)) == 30
    assert "evaluating on its training images" in caplog.text


def test_only_a_test_folder_can_be_evaluated(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"test/a": 1, "test/b": 2})
    assert len(load_all(path, preprocess=RGB, classes=2)) == 3


def test_train_may_be_a_class_of_vehicles(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"ship": 12, "train": 12})
    assert load(path).train.class_names == ("ship", "train")


def test_train_and_val_without_classes(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"train": 20, "val": 10})
    dataset = load(path)
    assert sizes(dataset) == (20, 5, 5)
    assert dataset.kind == "unlabelled"


def test_val_may_lack_a_class_and_keeps_the_numbers_of_train(tmp_path: Path) -> None:
    tree = {"train/a": 8, "train/b": 8, "train/c": 8, "val/b": 6, "val/c": 6}
    images = load_all(write_tree(tmp_path, tree), preprocess=RGB, classes=3)
    assert images.labels is not None
    np.testing.assert_array_equal(np.unique(images.labels), [1, 2])
    assert images.class_names == ("a", "b", "c")


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = load_all(write_tree(tmp_path, {"a": 4, "b": 0, "c": 4}), preprocess=RGB, classes=3)
    assert images.labels is not None
    np.testing.assert_array_equal(np.unique(images.labels), [0, 2])
    assert "b: the class folder has no images" in caplog.text


def test_numbered_class_folders_out_of_numeric_order_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_all(write_tree(tmp_path, {str(number): 1 for number in range(11)}), preprocess=RGB, classes=11)
    assert "'0', '1', '10', '2', '3' and 6 more" in caplog.text


def test_hidden_files_and_droppings_are_ignored(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"a": 12, "b": 12, ".cache": 1, "__MACOSX": 1})
    for name in ("Thumbs.db", ".DS_Store", "a/desktop.ini", "a/.nomedia"):
        (path / name).write_bytes(b"x")
    assert len(load_all(path, preprocess=RGB, classes=2)) == 24


def test_files_decoded_lazily_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tree(tmp_path, {"a": 300, "b": 40})
    eager = load(path)
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", 1000)
    lazy = load(path)
    assert isinstance(lazy.train.pixels, ImageFiles)
    assert not lazy.train.is_model_input
    for one, other in ((eager.train, lazy.train), (eager.test, lazy.test)):
        np.testing.assert_array_equal(one.batch(slice(None)), other.batch(slice(None)))
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(lazy.train.raw(np.array([5, 2])), eager.train.raw(np.array([5, 2])))


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_progress_ends_with_all_images(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    path = write_tree(tmp_path, {"train/a": 290, "train/b": 10, "val/a": 5, "val/b": 5})
    seen: list[tuple[int, int]] = []
    load(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 310), (310, 310)]


def test_gray_models_get_one_channel_of_resized_files(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(pixels_of(number)).resize((30, 20)).save(tmp_path / f"{number}.jpg")
    assert load(tmp_path, preprocess=GRAY).train.batch(np.arange(4)).shape == (4, 1, 8, 8)


# ---- .npz ----------------------------------------------------------------------------------------------------------


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path / "data.npz", **arrays)
    return path / "data.npz"


UINT8 = np.stack([pixels_of(number) for number in range(24)])
FLOAT = RGB(UINT8)
LABELS = np.arange(24) % 2


def test_npz_of_pixels_goes_through_the_preprocessing(tmp_path: Path) -> None:
    images = load_all(write_npz(tmp_path, images=UINT8, labels=LABELS), preprocess=RGB, classes=2)
    assert (images.kind, images.is_model_input) == ("labelled", False)
    np.testing.assert_array_equal(images.raw(slice(None)), UINT8)
    np.testing.assert_array_equal(images.batch(np.array([3, 1])), FLOAT[[3, 1]])
    np.testing.assert_array_equal(images.labels, LABELS)


def test_npz_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_npz(tmp_path, images=FLOAT, labels=LABELS.astype(np.uint8)[:, None])
    images = load_all(path, preprocess=RGB, classes=2)
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


# ---- folders that are refused --------------------------------------------------------------------------------------


def refuse(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", r"nowhere: does not exist; expected a folder of images or an \.npz file")
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    refuse(tmp_path / "a.tar.gz", r"a\.tar\.gz: is not data that can be read")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty: is empty; expected class folders or images")


def test_a_loop_of_links_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refuse(tmp_path / "loop", "does not exist")


BAD_FOLDERS: dict[str, tuple[dict[str, int], str]] = {
    "wrong number": ({"a": 9, "b": 9, "c": 9}, r"3 class folders \('a', 'b', 'c'\), the model has 2 classes"),
    "no images at all": ({"a": 0, "b": 0}, r"its 2 class folders hold no images"),
    "images beside folders": ({".": 3, "a": 9, "b": 9}, r"mixes 3 images with 2 folders"),
    "images beside splits": ({".": 3, "train/a": 9, "val/b": 9}, r"mixes 3 images with 2 folders"),
    "only val": ({"val/a": 20, "val/b": 20}, r"has 'val' but no 'train' folder"),
    "two vals": ({"train/a": 20, "val/b": 20, "valid/c": 2}, r"'train', 'val', 'valid' mean the same split twice"),
    "other splits": ({"train/a": 20, "train/b": 20, "holdout/b": 2}, r"holds 'holdout' beside 'train'"),
    "nested": ({"a/x": 20, "b/x": 20}, r"a: is a class folder but holds 1 other things than images, the first is 'x'"),
    "unknown class": ({"train/a": 20, "train/b": 20, "val/c": 12}, r"val: class folders 'c' are not in train"),
    "labels in train only": ({"train/a": 20, "train/b": 20, "val": 12}, r"only one of 'train' and 'val' has class"),
    "too few": ({"a": 10, "b": 9}, r"got 19 images in all, at least 20 are needed"),
    "too few in val": ({"train/a": 20, "train/b": 20, "val/a": 9}, r"got 9 images in val, at least 10 are needed"),
    "one class": ({"a": 30, "b": 0}, r"all 30 images in train have label 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders(case: str, tmp_path: Path) -> None:
    tree, message = BAD_FOLDERS[case]
    refuse(write_tree(tmp_path, tree), message)


@pytest.mark.parametrize("place", [".", "a"])
def test_stray_files_are_named(place: str, tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"a": 12, "b": 12})
    for name in ("notes.txt", "z.csv"):
        (path / place / name).write_text("x")
    refuse(path, r"2 .*, the first is 'notes\.txt'")


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_unreadable_images_are_counted_and_the_first_is_named(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    path = write_tree(tmp_path, {"a": 290, "b": 10})
    (path / "a/270.png").write_bytes(b"")
    (path / "b/003.png").write_text("<html>404</html>")
    (path / "b/004.png").unlink()
    (path / "b/004.png").symlink_to("gone.png")
    refuse(path, r"270\.png: cannot be read as an image \(.*\); 3 of 300 images are like that, replace or remove them")


def test_a_file_that_breaks_later_is_still_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", 1000)
    images = load_all(write_tree(tmp_path, {"a": 9, "b": 12}), preprocess=RGB, classes=2)
    (tmp_path / "a/004.png").write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"004\.png: cannot be read"):
        images.batch(np.arange(3, 6))


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_copies_of_one_picture_are_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    for number in range(40):
        Image.fromarray(pixels_of(0)).save(tmp_path / f"{number}.png")
    refuse(tmp_path, "all 40 images in train are the same picture")


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
        1000: (800, 100, 100),
        5000: (4500, 250, 250),
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


# ---- augmentation --------------------------------------------------------------------------------------------------

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
    floats = load_all(write_npz(tmp_path, images=RAW(UINT8)), preprocess=RAW, classes=2)
    pixels = load_all(write_npz(tmp_path, images=UINT8), preprocess=RAW, classes=2)
    indices = np.array([4, 2, 9])
    for level in ("none", "light"):
        one = floats.augmented(indices, np.random.default_rng(3), level=level)
        other = pixels.augmented(indices, np.random.default_rng(3), level=level)
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        pixels.augmented(indices, np.random.default_rng(0), level="none"), pixels.batch(indices)
    )


# ---- real images ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the shared development data")
def test_a_real_model_is_right_on_real_images(tmp_path: Path) -> None:
    """The static model reaches its known accuracy (87.8 %), so size, channel order, scale and labels are right."""
    onnxruntime = pytest.importorskip("onnxruntime")
    with tarfile.open(SHARED / "data/cifar10-jpeg-test.tar.gz") as archive:
        members = archive.getmembers()[::12]
        archive.extractall(tmp_path, members=[member for member in members if member.isfile()], filter="data")
    images = load_all(tmp_path, preprocess=make_preprocess(size=(32, 32), channels=3), classes=10)
    session = onnxruntime.InferenceSession(SHARED / "models/resnet20-cifar10.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.batch(slice(None))})
    assert images.labels is not None
    assert len(images) > 400
    assert float(np.mean(logits.argmax(1) == images.labels)) > 0.82

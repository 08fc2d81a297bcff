"""Folders become splits and labels; everything wrong with them is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from picture_trees import (
    GRAY,
    RGB,
    load,
    pixels_of,
    refuse,
    sizes,
    write_images,
    write_tree,
)
from PIL import Image

from s2d_convert.data import folders as image_folders
from s2d_convert.data.decode import ImageFiles
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.data.presets import PixelOptions
from s2d_convert.data.reading import Reading
from s2d_convert.data.roles import role_of
from s2d_convert.errors import DataError


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
    images = load_all(path, preprocess=RGB, space=LabelSpace(3))
    assert images.class_names == ("Bird", "cat", "dog")
    assert images.kind == "labelled"
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.labels, [0] * 13 + [1] * 12 + [2] * 15)
    np.testing.assert_array_equal(images.raw(slice(0, 2)), [pixels_of(1, 0), pixels_of(1, 1)])


def test_a_split_keeps_images_and_labels_together(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"cat": 16, "dog": 14})
    whole = load_all(path, preprocess=RGB, space=LabelSpace(2))
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
    assert len(load_all(path, preprocess=RGB, space=LabelSpace(2))) == 12


def test_val_and_test_are_calib_and_test(tmp_path: Path) -> None:
    tree = {f"{role}/{name}": count for role, count in (("train", 10), ("val", 3), ("test", 2)) for name in "ab"}
    path = write_tree(tmp_path, tree)
    assert sizes(load(path)) == (20, 6, 4)
    assert len(load_all(path, preprocess=RGB, space=LabelSpace(2))) == 4


def test_train_alone_is_divided(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tree(tmp_path, {"train/a": 10, "train/b": 20})
    assert sizes(load(path)) == (15, 8, 7)
    assert len(load_all(path, preprocess=RGB, space=LabelSpace(2))) == 30
    assert "evaluating on its training images" in caplog.text


def test_only_a_test_folder_can_be_evaluated(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"test/a": 1, "test/b": 2})
    assert len(load_all(path, preprocess=RGB, space=LabelSpace(2))) == 3


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
    images = load_all(write_tree(tmp_path, tree), preprocess=RGB, space=LabelSpace(3))
    assert images.labels is not None
    np.testing.assert_array_equal(np.unique(images.labels), [1, 2])
    assert images.class_names == ("a", "b", "c")


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = load_all(write_tree(tmp_path, {"a": 4, "b": 0, "c": 4}), preprocess=RGB, space=LabelSpace(3))
    assert images.labels is not None
    np.testing.assert_array_equal(np.unique(images.labels), [0, 2])
    assert "b: the class folder has no images" in caplog.text


def test_numbered_class_folders_out_of_numeric_order_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_all(write_tree(tmp_path, {str(number): 1 for number in range(11)}), preprocess=RGB, space=LabelSpace(11))
    assert "'0', '1', '10', '2', '3' and 6 more" in caplog.text


def test_hidden_files_and_droppings_are_ignored(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"a": 12, "b": 12, ".cache": 1, "__MACOSX": 1})
    for name in ("Thumbs.db", ".DS_Store", "a/desktop.ini", "a/.nomedia"):
        (path / name).write_bytes(b"x")
    assert len(load_all(path, preprocess=RGB, space=LabelSpace(2))) == 24


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
    load(path, reading=Reading(progress=lambda done, total: seen.append((done, total))))
    assert seen == [(256, 310), (310, 310)]


def test_gray_models_get_one_channel_of_resized_files(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(pixels_of(number)).resize((30, 20)).save(tmp_path / f"{number}.jpg")
    assert load(tmp_path, preprocess=GRAY).train.batch(np.arange(4)).shape == (4, 1, 8, 8)


# ---- folders that are refused --------------------------------------------------------------------------------------


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
    refuse(
        path,
        r"270\.png: cannot be read as an image \(.*\); 3 of 300 images are like that, replace or remove",
        reading=Reading(strict=True),
    )


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_some_unreadable_images_are_left_out_and_named(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    path = write_tree(tmp_path, {"a": 40, "b": 20})
    sound = load_all(path, preprocess=RGB, space=LabelSpace(2))
    (path / "a/007.png").write_bytes((path / "a/007.png").read_bytes()[:60])
    for number in range(4):
        (path / f"b/{number:03}.png").write_text("<html>404</html>")
    images = load_all(path, preprocess=RGB, space=LabelSpace(2))
    assert "5 of 60 images cannot be read and are left out: a/007.png (" in caplog.text
    assert "b/001.png (its content is none of JPEG, PNG" in caplog.text
    assert "and 2 more; replace them, or refuse such data with --strict" in caplog.text
    kept = np.delete(np.arange(60), [7, 40, 41, 42, 43])
    assert images.labels is not None
    assert sound.labels is not None
    np.testing.assert_array_equal(images.labels, sound.labels[kept])
    np.testing.assert_array_equal(images.raw(slice(4, 12)), sound.raw(kept[4:12]))
    np.testing.assert_array_equal(images.raw(slice(36, 55)), sound.raw(kept[36:55]))
    (path / "a/008.png").write_bytes(b"")
    (path / "a/009.png").write_bytes(b"")
    refuse(path, r"a/007\.png: cannot be read as an image \(.*\); 7 of 60 images are like that")


def test_a_file_that_breaks_later_is_still_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", 1000)
    images = load_all(write_tree(tmp_path, {"a": 9, "b": 12}), preprocess=RGB, space=LabelSpace(2))
    (tmp_path / "a/004.png").write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"004\.png: cannot be read"):
        images.batch(np.arange(3, 6))


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_copies_of_one_picture_are_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MAX_IN_MEMORY_BYTES", limit)
    for number in range(40):
        Image.fromarray(pixels_of(0)).save(tmp_path / f"{number}.png")
    refuse(tmp_path, "all 40 images in train are the same picture")


# ---- parts by their names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held"),
    [("Training", "Testing"), ("Training", "Test"), ("TRAIN", "VALID"), ("train", "dev"), ("train", "eval"),
     ("training_set", "test_set"), ("seg_train", "seg_test"), ("train2017", "val2017"), ("TrainSet", "TestSet"),
     ("trainset", "testset"), ("train-images", "validation images"), ("Train", "Evaluation")],
)  # fmt: skip
@pytest.mark.parametrize("labelled", [True, False])
def test_parts_are_known_by_the_names_that_people_give_them(
    train: str, held: str, labelled: bool, tmp_path: Path
) -> None:
    classes = ("/a", "/b") if labelled else ("",)
    tree = {f"{part}{name}": count // len(classes) for part, count in ((train, 40), (held, 20)) for name in classes}
    dataset = load(write_tree(tmp_path, tree))
    assert sizes(dataset) == (40, 10, 10)
    assert dataset.kind == ("labelled" if labelled else "unlabelled")


@pytest.mark.parametrize(
    "name", ["truck", "trainer", "vale", "testify", "valley", "train_station", "invalid", "1", "set"]
)
def test_other_names_are_classes(name: str) -> None:
    assert role_of(name) is None


def test_a_part_that_is_taken_for_a_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(write_tree(tmp_path, {"valid": 12, "invalid": 12})).train.class_names == ("invalid", "valid")
    assert "'valid' beside 'invalid': taken for classes, not for parts" in caplog.text


# ---- links ---------------------------------------------------------------------------------------------------------


def test_links_of_a_cache_and_hard_links_are_pictures(tmp_path: Path) -> None:
    """A hub's cache names the files in `blobs` by their hashes; `snapshots` holds links with the names that count."""
    plain = load(write_tree(tmp_path / "plain", {"a": 12, "b": 12}))
    (tmp_path / "blobs").mkdir()
    for kind in ("a", "b"):
        (tmp_path / "snapshots" / kind).mkdir(parents=True)
        (tmp_path / "hard" / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((tmp_path / "plain" / kind).iterdir())):
            blob = tmp_path / "blobs" / f"{kind}{number:064}"
            shutil.copy(file, blob)
            (tmp_path / "snapshots" / kind / file.name).symlink_to(f"../../blobs/{blob.name}")
            (tmp_path / "hard" / kind / file.name).hardlink_to(file)
    (tmp_path / "linked").symlink_to("snapshots", target_is_directory=True)
    for name in ("snapshots", "hard", "linked"):
        assert load(tmp_path / name).digest() == plain.digest()


# ---- what is warned about ------------------------------------------------------------------------------------------


def test_twelve_bits_in_sixteen_are_warned_about_and_can_be_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.random.default_rng(0).integers(0, 4096, (24, 8, 8), dtype=np.uint16)
    for number, pixels in enumerate(wide):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    Image.fromarray(pixels_of(0)).save(tmp_path / "of 8 bits.png")  # hides nothing
    load(tmp_path)
    assert "no pixel of the 24 grey images of 16 bits is brighter than 15 of 255" in caplog.text
    assert "--bits 12" in caplog.text
    caplog.clear()
    (tmp_path / "of 8 bits.png").unlink()
    twelve = make_preprocess(size=(8, 8), channels=1, pixels=PixelOptions(bits=12))
    images = load_all(tmp_path, preprocess=twelve, space=LabelSpace(2))
    np.testing.assert_array_equal(images.raw(slice(None))[..., 0], wide >> 4)
    assert caplog.text == ""
    ten = make_preprocess(size=(8, 8), channels=1, pixels=PixelOptions(bits=10))
    refuse(tmp_path, r"do not fit into 10 bits\); 24 of 24 images", preprocess=ten)


@pytest.mark.parametrize(("fit", "warned"), [("crop", True), ("stretch", False), ("pad", False), ("pad-right", False)])
def test_much_that_is_cropped_away_is_warned_about(
    fit: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(24):
        Image.fromarray(pixels_of(number)).resize((32, 16) if number % 2 else (16, 16)).save(tmp_path / f"{number}.png")
    load(tmp_path, preprocess=make_preprocess(size=(8, 8), channels=3, pixels=PixelOptions(resize=fit)))
    assert ("25 % of the pictures is cropped away" in caplog.text) == warned

"""Several labels per image: from arrays and from files beside the images, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2d_convert.data.labels import LabelSpace, fitting_labels, groups
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError

NAMES = ("a.png", "b.png", "c.png")
TEXTS = {
    "labels.csv": "file,cat,dog\na.png,1,0\nb.png,1,1\nc.png,0,0\n",
    "labels.json": '{"labels": ["cat", "dog"], "images": {"a.png": ["cat"], "b.png": ["cat", 1], "c.png": []}}',
}


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 4, 3), 80 * number + 50, np.uint8)).save(folder / name)


def read(path: Path, *, classes: int = 2, several: bool = True) -> Any:
    preprocess = make_preprocess(size=(4, 4), channels=3)
    return load_all(path, preprocess=preprocess, space=LabelSpace(classes, several))


@pytest.mark.parametrize("file", list(TEXTS))
def test_a_file_beside_the_images_gives_their_labels(file: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / file).write_text(TEXTS[file], encoding="utf-8")
    images = read(tmp_path)
    np.testing.assert_array_equal(images.labels, [[1, 0], [1, 1], [0, 0]])
    assert images.class_names == ("cat", "dog")
    assert images.kind == "labelled"


def test_parts_may_share_a_file(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / part)
    lines = [f"{part}/{name},{int(part == 'test')},0" for part in ("train", "test") for name in NAMES]
    (tmp_path / "labels.csv").write_text("\n".join(["file,cat,dog", *lines]), encoding="utf-8")
    np.testing.assert_array_equal(read(tmp_path).labels, [[1, 0]] * 3)


def test_two_class_folders_do_for_one_label(tmp_path: Path) -> None:
    pictures(tmp_path / "no")
    pictures(tmp_path / "yes")
    images = read(tmp_path, classes=1)
    np.testing.assert_array_equal(images.labels, [[0]] * 3 + [[1]] * 3)
    assert images.class_names == ("yes",)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels.csv", "file,cat\na.png,1\n", "names of the model's 2 labels"),
        ("labels.csv", "file,cat,dog\na.png,1,2\n", "line 2: expected a file name and 2 times 0 or 1"),
        ("labels.csv", "file,cat,dog\na.png,1,0\n", "2 of 3 images are not in it, such as 'b.png'"),
        ("labels.csv", "file,cat,dog\na.png,1,0\na.png,1,0\n", "stands in it twice"),
        ("labels.json", '{"a.png": [2]}', "numbers from 0 to 1"),
        ("labels.json", '{"a.png": "cat"}', "expected the list of its labels"),
        ("labels.json", "[", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(file: str, text: str, message: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_model_of_classes_takes_no_sets_of_labels_and_the_other_way_round(tmp_path: Path) -> None:
    pictures(tmp_path / "x")
    (tmp_path / "x" / "labels.csv").write_text(TEXTS["labels.csv"], encoding="utf-8")
    with pytest.raises(DataError, match="--labels multi"):
        read(tmp_path / "x", several=False)
    pictures(tmp_path / "folders" / "cat")
    pictures(tmp_path / "folders" / "dog")
    with pytest.raises(DataError, match="--labels classes"):
        read(tmp_path / "folders")


def test_arrays_are_checked() -> None:
    space, where = LabelSpace(3, several=True), Path("x.npz")
    sets = np.array([[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(fitting_labels(where, sets.astype(bool), 2, space), sets)
    for wrong, message in (
        (np.array([0, 2]), "--labels classes"),
        (2 * sets, "other values than 0 and 1"),
        (sets[:1], "2 images but 1 labels"),
    ):
        with pytest.raises(DataError, match=message):
            fitting_labels(where, wrong, 2, space)
    with pytest.raises(DataError, match=r"2 rows give several labels or none.*--labels multi"):
        fitting_labels(where, sets, 2, LabelSpace(3))
    np.testing.assert_array_equal(fitting_labels(where, np.array([0, 1]), 2, LabelSpace(1, several=True)), [[0], [1]])
    assert len(set(groups(np.array([[1, 0], [0, 1], [1, 0]])).tolist())) == 2

"""Labels of images: what a model allows, and files that give several labels per image.

A folder of images may hold one of

- `labels.csv`, whose first line is `file,NAME,NAME,...` in the order of the model's labels, and every other one a file name
  with 0 or 1 for each label,
- `labels.json`, `{"file name": [labels that are given], ...}` with numbers from 0, or
  `{"labels": [NAME, ...], "images": {"file name": [...], ...}}` with names or numbers.

Letters: B images, K classes or labels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_convert.base.text import listed
from s2d_convert.errors import DataError

FILES = ("labels.csv", "labels.json")
LARGEST_BYTES = 2**30  # of a file of labels

Labels = NDArray[np.integer[Any]]  # the class of each image, int64 [B], or 0 or 1 for each label, int8 [B, K]


@dataclass(frozen=True)
class LabelSpace:
    """What labels a model allows: one of `classes` per image, or with `several` any number of them."""

    classes: int
    several: bool = False


def groups(labels: Labels) -> NDArray[np.int64]:
    """Return a number for each image [B], equal where labels are."""
    numbers = labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1]
    return numbers.astype(np.int64)


def fitting_labels(source: Path, labels: NDArray[Any], count: int, space: LabelSpace) -> Labels:
    """Return the labels of an array for `count` images, if type, shape and values fit. Raises DataError."""
    if space.several:
        return _fitting_sets(source, labels, count, space.classes)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        hint = ""
        if labels.ndim == 2:
            several = int(((labels != 0).sum(axis=1) != 1).sum())
            hint = (
                f"; {several} rows give several labels or none: if the model gives each label by itself, say --labels multi"
                if several
                else "; use labels.argmax(axis=1)"
            )
        raise DataError(
            f"{source}: labels are {labels.dtype} of shape {labels.shape}, expected whole numbers of shape (B,){hint}"
        )
    _check_count(source, labels, count)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= space.classes:
        raise DataError(
            f"{source}: labels run from {low} to {high}, the model's {space.classes} classes allow 0 to {space.classes - 1}"
        )
    return labels.astype(np.int64)


def _fitting_sets(source: Path, labels: NDArray[Any], count: int, classes: int) -> Labels:
    if labels.ndim == 1 and classes == 1:
        labels = labels[:, None]
    if labels.ndim != 2 or labels.shape[1] != classes:
        hint = "; if exactly one label per image is right, say --labels classes" if labels.ndim == 1 else ""
        raise DataError(
            f"{source}: labels have shape {labels.shape}, the model gives {classes} labels, each by itself: expected 0 or 1 of "
            f"shape (B, {classes}){hint}"
        )
    _check_count(source, labels, count)
    if labels.dtype == object or not ((labels == 0) | (labels == 1)).all():
        raise DataError(f"{source}: labels hold other values than 0 and 1; expected 1 where a label is given, else 0")
    return labels.astype(np.int8)


def _check_count(source: Path, labels: NDArray[Any], count: int) -> None:
    if len(labels) != count:
        raise DataError(f"{source}: {count} images but {len(labels)} labels; expected one label per image")


# Files of labels


@dataclass(frozen=True)
class LabelFile:
    """The content of a file of labels: sets of labels, 0 or 1 [K], by file name, and the labels' names if it has them."""

    path: Path
    sets: Mapping[str, NDArray[np.int8]]
    names: tuple[str, ...] | None

    def of(self, files: Sequence[Path]) -> Labels:
        """Return the labels of files that lie below the folder of this one, int8 [B, K]. Raises DataError where one has
        none."""
        keys = [file.relative_to(self.path.parent).as_posix() for file in files]
        missing = [key for key in keys if key not in self.sets]
        if missing:
            raise DataError(
                f"{self.path}: {len(missing)} of {len(keys)} images are not in it, such as {listed(missing)}; give every image "
                "its labels, none of them if need be"
            )
        return np.stack([self.sets[key] for key in keys])


def read_label_file(path: Path, classes: int) -> LabelFile:
    """Read a file of labels, for a model with `classes` labels. Raises DataError."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise DataError(f"{path}: is larger than {LARGEST_BYTES} bytes; give the labels as an .npz")
        text = path.read_text(encoding="utf-8-sig")
        return _from_csv(path, text, classes) if path.suffix == ".csv" else _from_json(path, json.loads(text), classes)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _from_csv(path: Path, text: str, classes: int) -> LabelFile:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or len(rows[0]) != classes + 1 or rows[0][0].strip().lower() != "file":
        got = ",".join(rows[0][:6]) if rows else "nothing"
        raise DataError(
            f"{path}: its first line is '{got}'; expected 'file' and the names of the model's {classes} labels in their order"
        )
    sets: dict[str, NDArray[np.int8]] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if len(cells) != classes + 1 or any(cell not in ("0", "1") for cell in cells[1:]):
            raise DataError(f"{path}: line {number}: expected a file name and {classes} times 0 or 1")
        _add(path, sets, cells[0], np.array([cell == "1" for cell in cells[1:]], np.int8))
    return LabelFile(path, sets, tuple(name.strip() for name in rows[0][1:]))


def _from_json(path: Path, data: object, classes: int) -> LabelFile:
    names: tuple[str, ...] | None = None
    if isinstance(data, dict) and set(data) == {"labels", "images"}:
        listing, data = data["labels"], data["images"]
        if not isinstance(listing, list) or len({str(name) for name in listing}) != classes or len(listing) != classes:
            raise DataError(
                f"{path}: labels: expected the different names of the model's {classes} labels in their order"
            )
        names = tuple(map(str, listing))
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected an object of file names, each with the list of its labels")
    numbers: dict[object, int] = {name: k for k, name in enumerate(names or ())}
    sets: dict[str, NDArray[np.int8]] = {}
    for file, given in data.items():
        found = np.zeros(classes, np.int8)
        if not isinstance(given, list):
            raise DataError(f"{path}: '{file}': expected the list of its labels")
        for label in given:
            k = numbers.get(label, -1) if isinstance(label, str) else label
            if type(k) is not int or not 0 <= k < classes:
                raise DataError(
                    f"{path}: '{file}': got the label {str(label)!r}; expected numbers from 0 to {classes - 1}, or names that "
                    "stand in 'labels'"
                )
            found[k] = 1
        _add(path, sets, file, found)
    return LabelFile(path, sets, names)


def _add(path: Path, sets: dict[str, NDArray[np.int8]], file: str, given: NDArray[np.int8]) -> None:
    key = Path(file.replace("\\", "/")).as_posix()
    if key in sets:
        raise DataError(f"{path}: '{file}' stands in it twice")
    sets[key] = given

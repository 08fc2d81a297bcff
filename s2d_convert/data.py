"""Images from folders and .npz files, split by seed into train, calib and test, and their augmentation.

Accepted are

- a folder of class folders (`DIR/cat/*.jpg`); class index = alphabetical order of the folder names,
- a folder with images directly inside (no labels),
- a folder with `train/` and perhaps `val/` (`valid/`, `validation/`) and `test/`, each one of the two above,
- an `.npz` with `images` (uint8 NHWC, or float32 exactly as the model takes them) and perhaps `labels`.

Letters: B batch, H height, W width, C channels. Everything wrong with the data is a DataError of one sentence.
"""

from __future__ import annotations

import logging
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2d_convert.errors import DataError, UsageError
from s2d_convert.preprocess import IMAGE_SUFFIXES, UNREADABLE, Layout, Preprocess, check_header, read_image

logger = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
Kind = Literal["labelled", "unlabelled", "made-up"]
Level = Literal["none", "light", "strong"]
Progress = Callable[[int, int], None]  # images done, images in all

DEFAULT_HOLDOUT = 0.1
MIN_HELD_OUT, MAX_HELD_OUT = 200, 5000
MIN_IMAGES = 20
MIN_VAL = 10  # what is held out of MIN_IMAGES
MAX_IN_MEMORY_BYTES = 1_000_000_000

_ROLES: Mapping[str, str] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_CHUNK = 256  # files that one thread decodes between two reports of progress
UNREADABLE_ARRAY = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded each time their rows are asked for: `files[rows]` is uint8 [B, H, W, C]."""

    files: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: IntArray) -> NDArray[np.uint8]:
        return _decode([self.files[row] for row in rows], self.preprocess)


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of a pixel store, with their labels: int64 [B], or None when there are none.

    `pixels` is uint8 [*, H, W, C], float32 as the model takes it, or files that are decoded lazily.
    """

    pixels: NDArray[Any] | ImageFiles
    preprocess: Preprocess
    rows: IntArray
    labels: IntArray | None
    kind: Kind
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_model_input(self) -> bool:
        """Whether the images came as float32 that the model takes as it is."""
        return not isinstance(self.pixels, ImageFiles) and self.pixels.dtype != np.uint8

    def take(self, indices: IntArray | slice) -> Images:
        """The Images at these indices; the pixels are shared, not copied."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)

    def raw(self, indices: IntArray | slice) -> NDArray[Any]:
        """The stored images: uint8 [B, H, W, C], or float32 as the model takes them."""
        return self.pixels[self.rows[indices]]

    def batch(self, indices: IntArray | slice) -> NDArray[Any]:
        """The model input for these indices: preprocessed, or the stored float32 as it is."""
        return self._as_input(self.raw(indices))

    def augmented(
        self, indices: IntArray | slice, rng: np.random.Generator, *, level: Level = "light", flip: bool = True
    ) -> NDArray[Any]:
        """Like `batch`, with `augment` in between: before the preprocessing where the images are uint8."""
        layout = self.preprocess.layout if self.is_model_input else "NHWC"
        return self._as_input(augment(self.raw(indices), rng, level=level, flip=flip, layout=layout))

    def _as_input(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.is_model_input else self.preprocess(images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, each in an order that the seed shuffled, so that any head of it is a fair sample.

    `calib` sets thresholds and feeds the search reward; `test` is only reported, nothing is chosen on it.
    """

    train: Images
    calib: Images
    test: Images

    @property
    def kind(self) -> Kind:
        """Where the images and labels came from; the same for all splits."""
        return self.train.kind

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class folders' names by class index, or None."""
        return self.train.class_names


def load_data(
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    classes: int,
    seed: int,
    holdout: float = DEFAULT_HOLDOUT,
    progress: Progress | None = None,
) -> Dataset:
    """The Dataset at `path`, for a model with `classes` classes.

    A `val/` (or else `test/`) folder becomes calib and test, half and half; when both are there, val is calib
    and test is test. Without either, see `split_images`. Raises DataError for everything that is wrong.
    """
    place = Path(path)
    parts = _read(place, preprocess, classes, choose=_for_training, progress=progress)
    _check_usable(place, parts)
    rng = np.random.default_rng(seed)
    if len(parts) == 1:
        return split_images(parts["train"], seed=seed, holdout=holdout)
    train, *held = (images.take(rng.permutation(len(images))) for images in parts.values())
    return Dataset(train, *held) if len(held) == 2 else Dataset(train, *_halves(held[0], rng))


def load_all(
    path: str | os.PathLike[str], *, preprocess: Preprocess, classes: int, progress: Progress | None = None
) -> Images:
    """All images at `path` in the order of their names; of a folder with splits the test, or else the val, part.

    Raises DataError for everything that is wrong with them.
    """
    parts = _read(Path(path), preprocess, classes, choose=_for_evaluation, progress=progress)
    return next(iter(parts.values()))


def load_calibration(
    path: str | os.PathLike[str], *, preprocess: Preprocess, classes: int, progress: Progress | None = None
) -> Images:
    """All images at `path`, to set thresholds on; of a folder with splits the val, or else the test, part.

    Raises DataError for everything that is wrong with them, too few, all equal or of one class among it.
    """
    place = Path(path)
    parts = _read(place, preprocess, classes, choose=_for_calibration, progress=progress)
    (images,) = parts.values()
    _check_usable(place, {"the data": images})
    return images


def split_images(images: Images, *, seed: int, holdout: float = DEFAULT_HOLDOUT) -> Dataset:
    """The Dataset that holds out a part of `images`, stratified by label, and halves it into calib and test.

    Held out is the share `holdout`, but at least 200 images, at most 5000, and never more than half of them.
    """
    if not 0 < holdout < 1:
        raise UsageError(f"holdout: got {holdout:g}, expected a share above 0 and below 1")
    if len(images) < MIN_IMAGES:
        raise DataError(f"got {len(images)} images, at least {MIN_IMAGES} are needed")
    rng = np.random.default_rng(seed)
    count = len(images)
    held_count = min(max(round(count * holdout), MIN_HELD_OUT), MAX_HELD_OUT, count // 2)
    train, held = _divide(images, held_count, rng)
    return Dataset(train, *_halves(held, rng))


def _halves(images: Images, rng: np.random.Generator) -> tuple[Images, Images]:
    return _divide(images, len(images) // 2, rng)


def _divide(images: Images, count: int, rng: np.random.Generator) -> tuple[Images, Images]:
    """The images without `count` of them, and those; every class gives its share, both parts are shuffled."""
    order = rng.permutation(len(images))
    if images.labels is not None:
        order = order[np.argsort(images.labels[order], kind="stable")]
    # Evenly spaced along the order by class: exactly `count` in all, and within one of the exact share per class.
    steps = np.arange(len(order) + 1) * count // len(order)
    chosen = np.diff(steps) == 1
    rest, held = order[~chosen], order[chosen]
    return images.take(rng.permutation(rest)), images.take(rng.permutation(held))


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The image files of one folder: `labels` int64 [B] and `class_names`, or None where there are no classes."""

    path: Path
    files: tuple[str, ...]
    labels: IntArray | None
    class_names: tuple[str, ...] | None


_Choose = Callable[[Path, Mapping[str, Path]], Sequence[str]]


def _for_training(path: Path, splits: Mapping[str, Path]) -> Sequence[str]:
    """The splits to load, train first."""
    if "train" not in splits:
        raise DataError(f"{path}: has '{next(iter(splits))}' but no 'train' folder; expected train/ (and val/) in it")
    return [role for role in ("train", "val", "test") if role in splits]


def _for_evaluation(path: Path, splits: Mapping[str, Path]) -> Sequence[str]:
    """The one split to load: images that a conversion with the same folder has used least."""
    role = next(role for role in ("test", "val", "train") if role in splits)
    if role == "train":
        logger.warning("%s has neither val nor test: evaluating on its training images", path)
    return [role]


def _for_calibration(path: Path, splits: Mapping[str, Path]) -> Sequence[str]:
    """The one split to load: images that were not trained on, and not the last ones that nothing was chosen on."""
    role = next(role for role in ("val", "test", "train") if role in splits)
    if role == "train":
        logger.warning("%s has neither val nor test: calibrating on its training images", path)
    return [role]


def _read(
    path: Path, preprocess: Preprocess, classes: int, *, choose: _Choose, progress: Progress | None
) -> dict[str, Images]:
    """The chosen parts by role; only "train" where the data is not divided."""
    if path.is_dir():
        return _load_folders(_list_folders(path, classes, choose), preprocess, progress)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a folder of images or an .npz file")
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: is not data that can be read; expected a folder of images or an .npz file")
    return {"train": _read_npz(path, preprocess, classes)}


def _list_folders(path: Path, classes: int, choose: _Choose) -> dict[str, _Folder]:
    """The image files of every chosen split; all are labelled by the class folders of train, or none is."""
    splits = _find_splits(path)
    if not splits:
        return {"train": _list_folder(path, classes)}
    reference = _list_folder(splits["train"], classes) if "train" in splits else None
    names = reference.class_names if reference else None
    folders = {}
    for role in choose(path, splits):
        folder = reference if reference and role == "train" else _list_folder(splits[role], classes, names=names)
        if reference and (folder.labels is None) != (reference.labels is None):
            raise DataError(f"{path}: only one of '{splits['train'].name}' and '{splits[role].name}' has class folders")
        folders[role] = folder
    return folders


def _find_splits(path: Path) -> dict[str, Path]:
    """The folders train, val and test inside `path` by role; empty when `path` is not divided like that."""
    entries = _scan(path)
    roles = {folder: _ROLES.get(folder.name.lower()) for folder in entries.folders}
    found = {role: folder for folder, role in roles.items() if role}
    others = [folder.name for folder, role in roles.items() if not role]
    if not found or entries.images:
        return {}
    if others:
        # "train" may be a class beside "truck": then it holds images, not class folders
        if "train" in found and _scan(found["train"]).folders:
            raise DataError(f"{path}: holds {_names(others)} beside 'train'; allowed are train, val and test")
        return {}
    if len(found) < len(roles):
        raise DataError(f"{path}: {_names([folder.name for folder in roles])} mean the same split twice; keep one")
    return found


def _list_folder(path: Path, classes: int, *, names: tuple[str, ...] | None = None) -> _Folder:
    """The image files of a folder with or without class folders; `names` are the class folders of train."""
    entries = _scan(path)
    if entries.strays:
        raise DataError(
            f"{path}: {len(entries.strays)} files are no images, the first is '{entries.strays[0].name}'; remove them"
        )
    if not entries.folders and not entries.images:
        raise DataError(f"{path}: is empty; expected class folders or images")
    if entries.folders and entries.images:
        raise DataError(
            f"{path}: mixes {len(entries.images)} images with {len(entries.folders)} folders; expected class "
            f"folders only, or images only"
        )
    if entries.images:
        return _Folder(path, tuple(map(str, entries.images)), None, None)
    return _list_classes(path, entries.folders, classes, names)


def _list_classes(path: Path, folders: Sequence[Path], classes: int, names: tuple[str, ...] | None) -> _Folder:
    """The files of all class folders with their labels."""
    here = tuple(folder.name for folder in folders)
    names = names or here
    if len(names) != classes:
        raise DataError(
            f"{path}: {len(names)} class folders ({_names(names)}), the model has {classes} classes; expected one "
            f"folder per class (an empty one for a class without images), or images directly inside if unlabelled"
        )
    unknown = sorted(set(here) - set(names))
    if unknown:
        raise DataError(f"{path}: class folders {_names(unknown)} are not in train; expected only those of train")
    if all(name.isdecimal() for name in names) and list(names) != sorted(names, key=int):
        logger.warning("%s: class folders are numbered in alphabetical order: %s", path, _names(names))
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        images = _scan_class(folder)
        files += images
        labels += [names.index(folder.name)] * len(images)
    if not files:
        raise DataError(f"{path}: its {len(here)} class folders hold no images")
    return _Folder(path, tuple(files), np.asarray(labels, np.int64), names)


def _scan_class(folder: Path) -> list[str]:
    """The image files of one class folder."""
    entries = _scan(folder)
    if entries.folders or entries.strays:
        stray = (entries.folders + entries.strays)[0]
        count = len(entries.folders) + len(entries.strays)
        raise DataError(
            f"{folder}: is a class folder but holds {count} other things than images, the first is '{stray.name}'; "
            f"expected images only"
        )
    if not entries.images:
        logger.warning("%s: the class folder has no images", folder)
    return [str(image) for image in entries.images]


@dataclass(frozen=True)
class _Entries:
    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    strays: tuple[Path, ...]


def _scan(path: Path) -> _Entries:
    """What lies in a folder, sorted by name; hidden files and file managers' droppings are left out."""
    folders, images, strays = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                    images.append(entry.name)
                else:
                    strays.append(entry.name)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror}); check its permissions") from error
    return _Entries(*(tuple(path / name for name in sorted(names)) for names in (folders, images, strays)))


def _load_folders(
    folders: Mapping[str, _Folder], preprocess: Preprocess, progress: Progress | None
) -> dict[str, Images]:
    """The Images of every folder; all share one pixel store, in memory when it is small enough."""
    files = [file for folder in folders.values() for file in folder.files]
    height, width = preprocess.size
    store: NDArray[np.uint8] | ImageFiles
    if len(files) * height * width * preprocess.channels <= MAX_IN_MEMORY_BYTES:
        store = _decode(files, preprocess, progress=progress)
    else:
        _for_each(files, lambda row: check_header(files[row]), progress)
        store = ImageFiles(tuple(files), preprocess)
    loaded: dict[str, Images] = {}
    start = 0
    for role, folder in folders.items():
        rows = np.arange(start, start + len(folder.files), dtype=np.int64)
        kind: Kind = "unlabelled" if folder.labels is None else "labelled"
        loaded[role] = Images(store, preprocess, rows, folder.labels, kind, folder.class_names)
        start += len(folder.files)
    return loaded


def _decode(files: Sequence[str], preprocess: Preprocess, *, progress: Progress | None = None) -> NDArray[np.uint8]:
    """The pixels of the files, uint8 [B, H, W, C]."""
    out = np.empty((len(files), *preprocess.size, preprocess.channels), np.uint8)

    def decode(row: int) -> None:
        out[row] = read_image(files[row], preprocess)

    _for_each(files, decode, progress)
    return out


def _for_each(files: Sequence[str], action: Callable[[int], None], progress: Progress | None) -> None:
    """Does `action(row)` for every row in a few threads; raises DataError with the count and the first broken file."""

    def work(rows: range) -> list[tuple[int, str]]:
        broken = []
        for row in rows:
            try:
                action(row)
            except UNREADABLE as error:
                broken.append((row, " ".join(str(error).split()) or type(error).__name__))
        return broken

    chunks = [range(start, min(start + _CHUNK, len(files))) for start in range(0, len(files), _CHUNK)]
    broken: list[tuple[int, str]] = []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for chunk, found in zip(chunks, pool.map(work, chunks), strict=True):
            broken += found
            if progress:
                progress(chunk.stop, len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the folder
    if broken:
        row, reason = broken[0]
        raise DataError(
            f"{files[row]}: cannot be read as an image ({reason}); {len(broken)} of {len(files)} images are like that, "
            f"replace or remove them"
        )


# ---- .npz ----------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, preprocess: Preprocess, classes: int) -> Images:
    """The Images of an .npz file; arrays of Python objects are refused, since reading them can run code."""
    try:
        images, labels = _arrays(path)
    except UNREADABLE_ARRAY as error:
        pickled = "; it holds Python objects (pickle), which are never loaded" if "pickle" in str(error) else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as .npz ({reason}){pickled}; "
            f"save it with numpy.savez(path, images=..., labels=...)"
        ) from error
    images = _fitting(path, images, preprocess)
    if labels is not None:
        labels = _fitting_labels(path, labels, len(images), classes)
    rows = np.arange(len(images), dtype=np.int64)
    return Images(images, preprocess, rows, labels, "unlabelled" if labels is None else "labelled")


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The arrays `images` and `labels` of an .npz file; raises one of UNREADABLE_ARRAY for a broken one."""
    with path.open("rb") as stream:  # numpy itself would leave a broken file open
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: is a single array, not an .npz; save it with numpy.savez(path, images=...)")
        if "images" not in archive.files:
            raise DataError(f"{path}: has no array 'images', only {_names(archive.files)}")
        images = archive["images"]
        labels = archive["labels"] if "labels" in archive.files else None
    for name, array in (("images", images), ("labels", labels)):
        if isinstance(array, bytes):  # what numpy makes of members that are no .npy
            raise ValueError(f"{name} is no array")
    return images, labels


def _fitting(path: Path, images: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    """The images, if type, shape and values fit the model."""
    pixel_shape = (*preprocess.size, preprocess.channels)
    if images.dtype == np.uint8 and images.ndim == 3 and preprocess.channels == 1:
        images = images[..., None]
    allowed = f"uint8 of shape (B, {', '.join(map(str, pixel_shape))})"
    if preprocess.dtype == "float32":
        allowed += f" or float32 of shape (B, {', '.join(map(str, preprocess.input_shape))})"
    as_pixels = images.dtype == np.uint8 and images.shape[1:] == pixel_shape
    as_input = (
        images.dtype == np.float32 and preprocess.dtype == "float32" and images.shape[1:] == preprocess.input_shape
    )
    if not as_pixels and not as_input:
        raise DataError(f"{path}: images are {images.dtype} of shape {images.shape}, expected {allowed}")
    if not len(images):
        raise DataError(f"{path}: holds no images")
    if as_input:
        bad = [row for row, image in enumerate(images) if not np.isfinite(image).all()]
        if bad:
            raise DataError(f"{path}: {len(bad)} of {len(images)} images hold NaN or inf, the first is row {bad[0]}")
    return images


def _fitting_labels(path: Path, labels: NDArray[Any], count: int, classes: int) -> IntArray:
    """The labels as int64 [B], if type, length and range fit."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        hint = "; use labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise DataError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected whole numbers of shape (B,){hint}"
        )
    if len(labels) != count:
        raise DataError(f"{path}: {count} images but {len(labels)} labels; expected one label per image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{path}: labels run from {low} to {high}, the model's {classes} classes allow 0 to {classes - 1}"
        )
    return labels.astype(np.int64)


# ---- checks --------------------------------------------------------------------------------------------------------


def _check_usable(path: Path, parts: Mapping[str, Images]) -> None:
    """Nothing, if a conversion can be run on this data; raises DataError if not."""
    total = sum(map(len, parts.values()))
    if total < MIN_IMAGES:
        raise DataError(f"{path}: got {total} images in all, at least {MIN_IMAGES} are needed")
    for role, images in parts.items():
        least = MIN_VAL if role != "train" and len(parts) == 2 else 1
        if len(images) < least:
            raise DataError(f"{path}: got {len(images)} images in {role}, at least {least} are needed")
        if images.labels is not None and (images.labels == images.labels[0]).all():
            raise DataError(
                f"{path}: all {len(images)} images in {role} have label {images.labels[0]}; expected several classes"
            )
        if _all_equal(images):
            raise DataError(f"{path}: all {len(images)} images in {role} are the same picture")


def _all_equal(images: Images) -> bool:
    """Whether no image differs from the first; of lazily decoded files only a sample is looked at."""
    count = len(images)
    if count == 1:
        return False
    if isinstance(images.pixels, ImageFiles):
        sample = images.raw(np.unique(np.linspace(0, count - 1, 32).astype(np.int64)))
        return bool((sample == sample[0]).all())
    first = images.raw(slice(0, 1))
    return all(bool((images.raw(slice(start, start + _CHUNK)) == first).all()) for start in range(0, count, _CHUNK))


def _names(names: Sequence[str]) -> str:
    """At most five names in quotes, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "nothing"


# ---- augmentation --------------------------------------------------------------------------------------------------


def augment(
    batch: NDArray[Any],
    rng: np.random.Generator,
    *,
    level: Level = "light",
    flip: bool = True,
    layout: Layout = "NHWC",
) -> NDArray[Any]:
    """A changed copy of a batch of uint8 or float32 images [B, H, W, C] or [B, C, H, W]; same shape and type.

    "none" returns the batch itself; "light" shifts by up to 1/8 of the side (edges reflected) and mirrors half of
    the images where `flip`; "strong" also changes brightness and contrast and blanks a square.
    """
    if level == "none":
        return batch
    moved = _shift_and_flip(batch, rng, flip=flip, layout=layout)
    return _distort(moved, rng, layout=layout) if level == "strong" else moved


def _shift_and_flip(batch: NDArray[Any], rng: np.random.Generator, *, flip: bool, layout: Layout) -> NDArray[Any]:
    """Every image is gathered from its own rows and columns, so that shift, reflection and flip are one copy."""
    count, height, width, channels = _as_nhwc(batch, layout).shape
    rows, columns = _reflected(rng, count, height), _reflected(rng, count, width)
    if flip:
        columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    moved: NDArray[Any]
    if layout == "NHWC":
        image = np.arange(count)[:, None, None]
        flat = (image * height + rows[:, :, None]) * width + columns[:, None, :]
        moved = batch.reshape(-1, channels).take(flat, axis=0)
    else:
        plane = np.arange(count * channels).reshape(count, channels, 1, 1)
        flat = (plane * height + rows[:, None, :, None]) * width + columns[:, None, None, :]
        moved = batch.reshape(-1).take(flat)
    return moved


def _reflected(rng: np.random.Generator, count: int, side: int) -> IntArray:
    """Source positions [B, side] along one axis after a random shift; what falls outside is reflected."""
    reach = side // 8
    positions = np.abs(np.arange(side) + rng.integers(-reach, reach + 1, (count, 1)))
    reflected: IntArray = (side - 1) - np.abs(side - 1 - positions)
    return reflected


def _distort(batch: NDArray[Any], rng: np.random.Generator, *, layout: Layout) -> NDArray[Any]:
    """Contrast and brightness relative to the image's own mean and spread, and a square of its mean colour."""
    count = len(batch)
    images: NDArray[Any] = batch.astype(np.float32).reshape(count, -1)
    mean, spread = images.mean(1, keepdims=True), images.std(1, keepdims=True)
    contrast = rng.uniform(0.6, 1.4, (count, 1)).astype(np.float32)
    brightness = spread * rng.uniform(-0.4, 0.4, (count, 1)).astype(np.float32)
    images = ((images - mean) * contrast + mean + brightness).reshape(batch.shape)
    view = _as_nhwc(images, layout)
    inside = _interval(rng, count, view.shape[1])[:, :, None] & _interval(rng, count, view.shape[2])[:, None, :]
    np.copyto(view, mean[:, :, None, None], where=inside[..., None])
    if batch.dtype == np.uint8:
        images = np.clip(np.rint(images), 0, 255)
    return images.astype(batch.dtype, copy=False)


def _interval(rng: np.random.Generator, count: int, side: int) -> NDArray[np.bool_]:
    """Which positions [B, side] lie in a random interval; its length is between nothing and half of the side."""
    centre, reach = rng.uniform(0, side, (count, 1)), rng.uniform(0, side / 4, (count, 1))
    inside: NDArray[np.bool_] = np.abs(np.arange(side) + 0.5 - centre) < reach
    return inside


def _as_nhwc(images: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """A view with the channels last."""
    return images.transpose(0, 2, 3, 1) if layout == "NCHW" else images

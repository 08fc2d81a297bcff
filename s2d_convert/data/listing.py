"""The files in folders of images: splits, classes and labels. No picture is opened.

A folder holds class folders, or images directly, or `train/` and perhaps `val/` and `test/` (`roles`) that are one of
these two. Where images have several labels, `labels.csv` or `labels.json` lies beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from s2d_runtime.pictures import IMAGE_SUFFIXES

from s2d_convert.base.text import listed
from s2d_convert.data.labels import FILES, Labels, LabelSpace, read_label_file
from s2d_convert.data.reading import Warn
from s2d_convert.data.roles import role_of
from s2d_convert.errors import DataError

# Chooses the splits of a folder to be loaded, by role.
Choose = Callable[[Path, Mapping[str, Path], Warn], Sequence[str]]
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class FolderFiles:
    """The image files of one folder, with `labels` and `class_names`, both None where there are no classes."""

    path: Path
    files: tuple[str, ...]
    labels: Labels | None
    class_names: tuple[str, ...] | None


def list_folders(path: Path, space: LabelSpace, choose: Choose, warn: Warn) -> dict[str, FolderFiles]:
    """Return the image files of every chosen split; all are labelled by the class folders of train, or none is."""
    path = _unpacked(path)
    splits = _find_splits(path, warn)
    if not splits:
        return {"train": _list_folder(path, space, warn)}
    shared = _scan(path).label_file
    reference = _list_folder(splits["train"], space, warn, shared=shared) if "train" in splits else None
    names = reference.class_names if reference else None
    folders = {}
    for role in choose(path, splits, warn):
        folder = reference
        if not folder or role != "train":
            folder = _list_folder(splits[role], space, warn, names=names, shared=shared)
        if reference and (folder.labels is None) != (reference.labels is None):
            raise DataError(
                f"{path}: only one of '{splits['train'].name}' and '{splits[role].name}' has class folders, or labels"
            )
        folders[role] = folder
    return folders


def _find_splits(path: Path, warn: Warn) -> dict[str, Path]:
    """Return the folders train, val and test inside `path` by role, {} if `path` is not divided like that."""
    entries = _scan(path)
    roles = {folder: role_of(folder.name) for folder in entries.folders}
    splits = {role: _unwrapped(folder, role) for folder, role in roles.items() if role}
    others = [folder.name for folder, role in roles.items() if not role]
    if not splits or entries.images:
        return {}
    if others:
        # "train" may be a class beside "truck": then it holds images, not class folders
        parted = [folder.name for folder in splits.values() if _scan(folder).folders]
        if parted:
            raise DataError(f"{path}: holds {listed(others)} beside '{parted[0]}'; allowed are train, val and test")
        names = [folder.name for folder in splits.values()]
        warn(f"{path}: {listed(names)} beside {listed(others)}: taken for classes, not for parts")
        return {}
    if len(splits) < len(roles):
        raise DataError(f"{path}: {listed([folder.name for folder in roles])} mean the same split twice; keep one")
    return splits


def _unpacked(path: Path) -> Path:
    """Return the one folder of folders inside `path`, as unpacked archives often have it, or else `path` itself."""
    entries = _scan(path)
    if len(entries.folders) == 1 and not entries.images + entries.strays and not role_of(entries.folders[0].name):
        inner = _scan(entries.folders[0])
        if inner.folders and not inner.images:
            return entries.folders[0]
    return path


def _unwrapped(path: Path, role: str) -> Path:
    """Return the one folder of the same role inside `path`, such as seg_train/seg_train, or else `path` itself."""
    entries = _scan(path)
    alone = len(entries.folders) == 1 and not entries.images + entries.strays
    return entries.folders[0] if alone and role_of(entries.folders[0].name) == role else path


def _list_folder(
    path: Path,
    space: LabelSpace,
    warn: Warn,
    *,
    names: tuple[str, ...] | None = None,
    shared: Path | None = None,
) -> FolderFiles:
    """Return the image files of a folder with or without class folders.

    names: the classes or labels of train; shared: the file of labels of all parts.
    """
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
    label_file = entries.label_file or shared
    if label_file is not None:
        return _with_label_file(path, entries, label_file, space, names)
    if entries.images:
        return FolderFiles(path, tuple(map(str, entries.images)), None, None)
    if space.several and space.classes > 1:
        raise DataError(
            f"{path}: has class folders, which give one class per image, and the model gives {space.classes} labels, each by "
            f"itself; put the images into one folder with {' or '.join(FILES)}, or say --labels classes if one class is right"
        )
    return _list_classes(path, entries.folders, space, names, warn)


def _with_label_file(
    path: Path, entries: _Entries, label_file: Path, space: LabelSpace, names: tuple[str, ...] | None
) -> FolderFiles:
    """Return the images of a folder with the labels that a file gives them."""
    if not space.several:
        raise DataError(
            f"{label_file}: gives several labels per image, and the model one of {space.classes} classes; say --labels multi if "
            "it gives each label by itself, or remove the file"
        )
    if not entries.images:
        raise DataError(f"{label_file}: gives labels to images, and {path} holds folders; put the images right there")
    told = read_label_file(label_file, space.classes)
    if names is not None and told.names != names:
        raise DataError(f"{label_file}: names other labels than those of train, or in another order")
    return FolderFiles(path, tuple(map(str, entries.images)), told.of(entries.images), told.names)


def _list_classes(
    path: Path, folders: Sequence[Path], space: LabelSpace, names: tuple[str, ...] | None, warn: Warn
) -> FolderFiles:
    """Return the files of all class folders with their labels; two folders where there is one label to give or not."""
    classes = 2 if space.several else space.classes
    own_names = tuple(folder.name for folder in folders)
    names = names or own_names
    if len(names) != classes:
        raise DataError(
            f"{path}: {len(names)} class folders ({listed(names)}), the model has {classes} classes; expected one "
            f"folder per class (an empty one for a class without images), or images directly inside if unlabelled"
        )
    unknown = sorted(set(own_names) - set(names))
    if unknown:
        raise DataError(f"{path}: class folders {listed(unknown)} are not in train; expected only those of train")
    if all(name.isdecimal() for name in names) and list(names) != sorted(names, key=int):
        warn(f"{path}: class folders are numbered in alphabetical order: {listed(names)}")
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        images = _scan_class(folder, warn)
        files += images
        labels += [names.index(folder.name)] * len(images)
    if not files:
        raise DataError(f"{path}: its {len(own_names)} class folders hold no images")
    if space.several:
        return FolderFiles(path, tuple(files), np.asarray(labels, np.int8)[:, None], names[1:])
    return FolderFiles(path, tuple(files), np.asarray(labels, np.int64), names)


def _scan_class(folder: Path, warn: Warn) -> list[str]:
    """Return the image files of one class folder."""
    entries = _scan(folder)
    others = entries.folders + entries.strays + ((entries.label_file,) if entries.label_file else ())
    if others:
        stray, count = others[0], len(others)
        raise DataError(
            f"{folder}: is a class folder but holds {count} other things than images, the first is '{stray.name}'; "
            f"expected images only"
        )
    if not entries.images:
        warn(f"{folder}: the class folder has no images")
    return [str(image) for image in entries.images]


@dataclass(frozen=True)
class _Entries:
    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    strays: tuple[Path, ...]
    label_file: Path | None = None


def _scan(path: Path) -> _Entries:
    """Return what lies in a folder, sorted by name; hidden files and files of file managers are left out."""
    folders, images, strays, label_files = [], [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                    images.append(entry.name)
                elif entry.name in FILES:
                    label_files.append(path / entry.name)
                else:
                    strays.append(entry.name)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror}); check its permissions") from error
    if len(label_files) > 1:
        raise DataError(f"{path}: holds both {' and '.join(FILES)}; keep one")
    inner, pictures, others = (tuple(path / name for name in sorted(names)) for names in (folders, images, strays))
    return _Entries(inner, pictures, others, label_files[0] if label_files else None)

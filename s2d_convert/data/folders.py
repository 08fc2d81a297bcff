"""Images of folders: their pictures decoded, with labels and splits as `listing` finds them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.decode import ImageFiles, Look, decode
from s2d_convert.data.images import DARK, Images, Kind
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.listing import Choose, FolderFiles, list_folders
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.data.reading import Reading

MAX_IN_MEMORY_BYTES = 1_000_000_000
MOST_UNREADABLE = 0.1  # a larger share of unreadable pictures is an error
NAMED = 3  # unreadable pictures that a warning names
MOST_CUT_AWAY = 0.1


def read_folder(
    path: Path,
    preprocess: Preprocess,
    space: LabelSpace,
    *,
    choose: Choose,
    reading: Reading,
) -> dict[str, Images]:
    """Return the chosen splits by role; only "train" if the folder is not divided.

    Unreadable pictures are left out with a warning. Raises DataError for more than MOST_UNREADABLE of them, or for any if
    reading is strict.
    """
    preprocess.check_known(path)
    folders = list_folders(path, space, choose, reading.warn)
    files = tuple(file for folder in folders.values() for file in folder.files)
    height, width = preprocess.size
    store: NDArray[np.uint8] | ImageFiles
    if len(files) * height * width * preprocess.channels <= MAX_IN_MEMORY_BYTES:
        store = np.empty((len(files), height, width, preprocess.channels), np.uint8)
        summary = decode(files, preprocess, out=store, progress=reading.progress)
    else:
        store = ImageFiles(files, preprocess)
        summary = decode(files, preprocess, progress=reading.progress)
    if len(summary.broken) > (0 if reading.strict else MOST_UNREADABLE * len(files)):
        raise summary.refusal(files)
    for text in _to_mind(path, files, summary, preprocess):
        reading.warn(text)
    return _as_images(folders, store, preprocess, summary)


def _as_images(
    folders: Mapping[str, FolderFiles], store: NDArray[np.uint8] | ImageFiles, preprocess: Preprocess, summary: Look
) -> dict[str, Images]:
    """Return the readable Images of every folder. All share one pixel store."""
    loaded: dict[str, Images] = {}
    files = tuple(file for folder in folders.values() for file in folder.files)
    start = 0
    for role, folder in folders.items():
        rows = np.arange(len(folder.files), dtype=np.int64)
        readable = np.array([start + row not in summary.broken for row in rows], bool)
        kind: Kind = "unlabelled" if folder.labels is None else "labelled"
        labels = None if folder.labels is None else folder.labels[readable]
        loaded[role] = Images(store, preprocess, start + rows[readable], labels, kind, folder.class_names, files)
        start += len(folder.files)
    return loaded


def _to_mind(path: Path, files: Sequence[str], look: Look, preprocess: Preprocess) -> Iterator[str]:
    """Yield warnings about unreadable pictures, and about what is odd in the readable ones."""
    if look.broken:
        rows = sorted(look.broken)
        named = [f"{os.path.relpath(files[row], path)} ({look.broken[row]})" for row in rows[:NAMED]]
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        yield (
            f"{path}: {len(rows)} of {len(files)} images cannot be read and are left out: {', '.join(named)}{more}; replace "
            "them, or refuse such data with --strict"
        )
    if look.wide and look.largest_of_wide < DARK:
        yield (
            f"{path}: no pixel of the {look.wide} grey images of 16 bits is brighter than {look.largest_of_wide} of 255: they "
            f"hold fewer bits, and only the upper eight of {preprocess.bits} are kept; convert with --bits, such as --bits 12"
        )
    elif look.largest < DARK:
        yield (
            f"{path}: no pixel of the {len(files) - len(look.broken)} images is brighter than {look.largest} of 255; if they "
            "hold fewer bits than their files have, scale the pixels up to their full range"
        )
    if look.cut_away > MOST_CUT_AWAY:
        height, width = preprocess.size
        yield (
            f"{path}: {100 * look.cut_away:.0f} % of the pictures is cropped away, because their aspect ratio is not that of "
            f"the model ({height}x{width}); convert with --resize stretch or pad if the model was trained like that"
        )

"""Image files as pixels, decoded in a few threads. Letters: B batch, H height, W width, C channels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2d_convert.data.preprocess import UNREADABLE, Preprocess, check_header, read_image
from s2d_convert.errors import DataError

Progress = Callable[[int, int], None]  # images done, images in all
CHUNK = 256  # files that one thread decodes between two reports of progress


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded each time their rows are asked for: `files[rows]` is uint8 [B, H, W, C]."""

    files: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return decode([self.files[row] for row in rows], self.preprocess)


def decode(files: Sequence[str], preprocess: Preprocess, *, progress: Progress | None = None) -> NDArray[np.uint8]:
    """The pixels of the files, uint8 [B, H, W, C]."""
    out = np.empty((len(files), *preprocess.size, preprocess.channels), np.uint8)

    def one(row: int) -> None:
        out[row] = read_image(files[row], preprocess)

    _for_each(files, one, progress)
    return out


def check_files(files: Sequence[str], *, progress: Progress | None = None) -> None:
    """Look at the header of every file. Raises DataError when one is broken."""
    _for_each(files, lambda row: check_header(files[row]), progress)


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

    chunks = [range(start, min(start + CHUNK, len(files))) for start in range(0, len(files), CHUNK)]
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

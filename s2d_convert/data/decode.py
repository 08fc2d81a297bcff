"""Decoding image files in a few threads. Letters: B batch, H height, W width, C channels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.pictures import UNREADABLE, Picture, cut_away, load_picture, quiet_decoders, reason_of

from s2d_convert.data.preprocess import Preprocess
from s2d_convert.data.reading import Progress
from s2d_convert.errors import DataError

CHUNK = 256  # files that a thread decodes between two reports of progress


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded on every access: `files[rows]` is uint8 [B, H, W, C]."""

    files: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        files = [self.files[row] for row in rows]
        out = np.empty((len(files), *self.preprocess.size, self.preprocess.channels), np.uint8)
        summary = decode(files, self.preprocess, out=out)
        if summary.broken:
            raise summary.refusal(files)
        return out


@dataclass(frozen=True)
class Look:
    """Findings while decoding files.

    The reason for each row that cannot be read. Of the others: the largest pixel; the number of grey pictures with more
    than 8 bits, and their largest pixel; the mean share that is cropped away because of the aspect ratio.
    """

    broken: Mapping[int, str]
    largest: int
    wide: int
    largest_of_wide: int
    cut_away: float

    def refusal(self, files: Sequence[str]) -> DataError:
        """Return the error that names the first broken file and the number of broken files."""
        row = min(self.broken)
        return DataError(
            f"{files[row]}: cannot be read as an image ({self.broken[row]}); {len(self.broken)} of {len(files)} images are "
            "like that, replace or remove them"
        )


def decode(
    files: Sequence[str],
    preprocess: Preprocess,
    *,
    out: NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> Look:
    """Decode every file into its row of `out`, uint8 [B, H, W, C], and return the findings.

    Without `out` the pixels are dropped. Rows that cannot be read are left unchanged.
    """
    largest, lost, wide = np.zeros(len(files), np.uint8), np.zeros(len(files)), np.zeros(len(files), bool)

    def keep(row: int, picture: Picture) -> None:
        largest[row], lost[row] = picture.pixels.max(), cut_away(picture.source, preprocess)
        wide[row] = picture.wide
        if out is not None:
            out[row] = picture.pixels

    broken = _for_each(files, preprocess, keep, progress)
    readable = max(1, len(files) - len(broken))
    brightest = int(largest.max(initial=0)), int(wide.sum()), int(largest[wide].max(initial=0))
    return Look(broken, *brightest, float(lost.sum() / readable))


def _for_each(
    files: Sequence[str], preprocess: Preprocess, keep: Callable[[int, Picture], None], progress: Progress | None
) -> dict[int, str]:
    """Call `keep` with every row and its picture, in a few threads. Return the reasons of the rows that cannot be read."""

    def work(rows: range) -> list[tuple[int, str]]:
        broken = []
        for row in rows:
            try:
                keep(row, load_picture(files[row], preprocess))
            except UNREADABLE as error:
                broken.append((row, reason_of(error)))
        return broken

    chunks = [range(start, min(start + CHUNK, len(files))) for start in range(0, len(files), CHUNK)]
    broken: dict[int, str] = {}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        with quiet_decoders():
            for chunk, failures in zip(chunks, pool.map(work, chunks), strict=True):
                broken.update(failures)
                if progress:
                    progress(chunk.stop, len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest of the folder
    return broken

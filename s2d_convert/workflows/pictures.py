"""Sample pictures of a data set as the model sees them, to notice a wrong crop, order or scale before it costs accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from s2d_runtime.pictures import IMAGE_SUFFIXES, UNREADABLE, cut_away, load_picture, quiet_decoders, reason_of

from s2d_convert.data.arrays import read_npz
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import sample_files
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import DataError

SHOWN = 3
RAMP = " .:-=+*#%@"  # from black to white
COLUMNS = 48


@dataclass(frozen=True)
class Seen:
    """One picture as the model sees it.

    Its name; the (width, height) in its file, None for an array; the pixels after resizing and cropping, uint8 [H, W, C] in
    RGB order, None for arrays of model input; the share that was cropped away; and the minimum, mean and maximum of every
    channel of the model input, in the model's order.
    """

    name: str
    source: tuple[int, int] | None
    pixels: NDArray[np.uint8] | None
    cut_away: float
    channels: tuple[tuple[float, float, float], ...]

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON-able dict, without the pixels."""
        return {
            "name": self.name,
            "size": self.source,
            "cut_away": round(self.cut_away, 4),
            "channels": [dict(zip(("min", "mean", "max"), values, strict=True)) for values in self.channels],
        }


def look_at(path: Path, preprocess: Preprocess, *, space: LabelSpace) -> list[Seen]:
    """Return up to SHOWN pictures of a folder or an .npz file, evenly spaced. Raises DataError."""
    if path.suffix.lower() == ".npz" and path.is_file():
        images = read_npz(path, preprocess, space)
        rows = np.unique(np.linspace(0, len(images) - 1, SHOWN).astype(np.int64))
        pixels = [None] * len(rows) if images.is_model_input else list(images.raw(rows))
        batch = images.batch(rows)
        return [
            Seen(f"row {row}", None, shown, 0.0, _channels(values, preprocess))
            for row, shown, values in zip(rows, pixels, batch, strict=True)
        ]
    preprocess.check_known(path)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return [_seen(path.parent, str(path), preprocess)]
    return [_seen(path, file, preprocess) for file in sample_files(path, SHOWN)]


def _seen(path: Path, file: str, preprocess: Preprocess) -> Seen:
    try:
        with quiet_decoders():
            picture = load_picture(file, preprocess)
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as an image ({reason_of(error)}); replace or remove it") from error
    values = preprocess(picture.pixels[None])[0]
    lost = cut_away(picture.source, preprocess)
    return Seen(os.path.relpath(file, path), picture.source, picture.pixels, lost, _channels(values, preprocess))


def _channels(values: NDArray[Any], preprocess: Preprocess) -> tuple[tuple[float, float, float], ...]:
    """Return the minimum, mean and maximum of every channel of one model input."""
    flat = (
        values.reshape(preprocess.channels, -1)
        if preprocess.layout == "NCHW"
        else values.reshape(-1, values.shape[-1]).T
    )
    return tuple((float(c.min()), float(c.mean(dtype=np.float64)), float(c.max())) for c in flat)


def save_pictures(seen: Sequence[Seen], folder: Path) -> list[Path]:
    """Write the pictures as 1.png, 2.png, ... into a folder, which is created if it does not exist. Return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, one in enumerate(seen, start=1):
        if one.pixels is not None:
            grey = one.pixels.shape[2] == 1
            image = Image.fromarray(one.pixels[:, :, 0] if grey else np.ascontiguousarray(one.pixels[:, :, :3]))
            written.append(folder / f"{number}.png")
            image.save(written[-1])
    return written


def in_letters(pixels: NDArray[np.uint8], *, columns: int = COLUMNS) -> list[str]:
    """Return the picture as lines of characters, from dark to bright. A character is taken to be twice as high as wide."""
    height, width, channels = pixels.shape
    columns = min(columns, 2 * width)
    lines = max(1, round(columns * height / width / 2))
    grey = pixels[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels[:, :, :3])
    small = np.asarray(Image.fromarray(grey).convert("L").resize((columns, lines), Image.Resampling.BOX))
    return ["".join(RAMP[int(value) * len(RAMP) // 256] for value in line) for line in small]

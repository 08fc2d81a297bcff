"""Images from .npz files. Every problem is a DataError of one sentence. Letters as in `images`."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_convert.base.text import listed
from s2d_convert.data.images import DARK, Images
from s2d_convert.data.labels import LabelSpace, fitting_labels
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.data.reading import Warn, log_warning
from s2d_convert.errors import DataError

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


def read_npz(path: Path, preprocess: Preprocess, space: LabelSpace, *, warn: Warn = log_warning) -> Images:
    """Read the images of an .npz file. Raises DataError, also for arrays of Python objects: reading them can run code."""
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
    if images.dtype == np.uint8 and images.max() < DARK:
        warn(
            f"{path}: no pixel of the {len(images)} images is brighter than {images.max()} of 255; scale them up if they hold "
            "fewer than 8 bits"
        )
    if labels is not None:
        labels = fitting_labels(path, labels, len(images), space)
    rows = np.arange(len(images), dtype=np.int64)
    return Images(images, preprocess, rows, labels, "unlabelled" if labels is None else "labelled")


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read the arrays `images` and `labels` of an .npz file. Raises one of UNREADABLE_ARRAY for a broken file."""
    with path.open("rb") as stream:  # numpy would leave a broken file open
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: is a single array, not an .npz; save it with numpy.savez(path, images=...)")
        if "images" not in archive.files:
            raise DataError(f"{path}: has no array 'images', only {listed(archive.files)}")
        images = archive["images"]
        labels = archive["labels"] if "labels" in archive.files else None
    for name, array in (("images", images), ("labels", labels)):
        if isinstance(array, bytes):  # numpy returns bytes for members that are not .npy
            raise ValueError(f"{name} is no array")
    return images, labels


def _fitting(path: Path, images: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    """Return the images. Raises DataError when their type, shape or values do not fit the model."""
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
    if as_pixels:
        preprocess.check_known(path)
    if not len(images):
        raise DataError(f"{path}: holds no images")
    if as_input:
        faulty = [row for row, image in enumerate(images) if not np.isfinite(image).all()]
        if faulty:
            raise DataError(
                f"{path}: {len(faulty)} of {len(images)} images hold NaN or inf, the first is row {faulty[0]}"
            )
    return images

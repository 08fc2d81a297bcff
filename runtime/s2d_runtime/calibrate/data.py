"""Images for a calibration, from an .npz file. Letters: B images, K classes or labels."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import LABEL_KINDS, DispatcherError, Manifest
from s2d_runtime.preprocess import Preprocess

Array = NDArray[Any]
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, MemoryError, OverflowError, RuntimeError),
    *(AttributeError, IndexError, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True, eq=False)
class Data:
    """Model input [B, ...]. labels: the class of every image, int [B], or 0 and 1 for every label, [B, K]; None if unknown."""

    images: Array
    labels: Array | None


def read_data(path: Path, manifest: Manifest) -> Data:
    """Read an .npz with `images`, as the stages take them or as uint8 pixels [B, H, W, C], and perhaps `labels`.

    Raises DispatcherError. Arrays of Python objects are refused, since reading them can run code.
    """
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            images = archive["images"]
            labels = archive["labels"] if "labels" in archive.files else None
            images.shape, labels is None or labels.shape  # noqa: B018  members that are no arrays have no shape
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DispatcherError(
            f"{path}: cannot be read ({reason}); save it with numpy.savez(path, images=..., labels=...)"
        ) from error
    if not len(images):
        raise DispatcherError(f"{path}: holds no images; some hundred are of use")
    images = _model_input(path, images, manifest)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DispatcherError(f"{path}: images hold NaN or infinities; leave those out")
    return Data(images, None if labels is None else _fitting_labels(path, labels, len(images), manifest))


def _model_input(path: Path, images: Array, manifest: Manifest) -> Array:
    wanted = manifest.input
    if images.dtype == wanted.dtype and images.shape[1:] == wanted.shape[1:]:
        return np.ascontiguousarray(images)
    if images.dtype == np.uint8 and manifest.preprocess is not None:
        preprocess = Preprocess.from_json(manifest.preprocess)
        pixels = images[..., None] if images.ndim == 3 and preprocess.channels == 1 else images
        fits = pixels.shape[1:] == (*preprocess.size, preprocess.channels)
        if (
            preprocess.known
            and fits
            and (preprocess.dtype, *preprocess.input_shape) == (wanted.dtype, *wanted.shape[1:])
        ):
            return preprocess(pixels)
    expected = f"{wanted.dtype} [B, {', '.join(map(str, wanted.shape[1:]))}]"
    raise DispatcherError(
        f"{path}: images are {images.dtype} {list(images.shape)}; expected {expected}, as the model takes them, or uint8 "
        "pixels [B, H, W, C] of the same size where the manifest records the preprocessing"
    )


def _fitting_labels(path: Path, labels: Array, images: int, manifest: Manifest) -> Array:
    """Return the labels as integers. Raises DispatcherError when they do not fit the images or the model."""
    classes = int(np.prod([n or 1 for n in manifest.output.shape[1:]]))
    if manifest.output.kind in LABEL_KINDS:
        labels = labels[:, None] if labels.ndim == 1 and classes == 1 else labels
        shape, largest = [images, classes], 1
    else:
        shape, largest = [images], classes - 1
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.round(labels)).all()))
    if list(labels.shape) != shape or not whole or not (labels.min() >= 0 and labels.max() <= largest):
        raise DispatcherError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; expected {shape} whole numbers from 0 to {largest}"
        )
    return labels.astype(np.int64)

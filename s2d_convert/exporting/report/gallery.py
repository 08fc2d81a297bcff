"""The easiest and the hardest images of an export, as small pictures for its report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from s2d_runtime import Dispatcher

from s2d_convert.base.arrays import slices
from s2d_convert.data.images import Images

MOST_IMAGES, SHOWN, SIDE = 1000, 12, 96
RUN_BATCH = 64
NAMED = 4  # labels of a picture


@dataclass(frozen=True)
class Picture:
    """A PNG in base64 and a caption with the answer."""

    png: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """The easiest images (highest confidence at the first stage) and the hardest (lowest confidence of the answer)."""

    easy: tuple[Picture, ...] = ()
    hard: tuple[Picture, ...] = ()


def gallery(runner: Dispatcher, images: Images) -> Gallery:
    """Choose pictures among the first MOST_IMAGES images, run with the default policy."""
    count = min(MOST_IMAGES, len(images))
    answers = [runner(np.ascontiguousarray(images.batch(part))) for part in slices(count, RUN_BATCH)]
    stage = np.concatenate([answer.stage for answer in answers])
    confidence = np.nan_to_num(np.concatenate([answer.confidence for answer in answers]))
    spec = runner.manifest.output
    said = [spec.said(output) for answer in answers for output in answer.output]
    easy = [row for row in np.argsort(-confidence, kind="stable") if stage[row] == 1][:SHOWN]
    hard = [row for row in np.argsort(confidence, kind="stable") if stage[row] == stage.max() and row not in easy][
        :SHOWN
    ]

    def pictures(rows: Sequence[np.intp]) -> tuple[Picture, ...]:
        captions = [_caption(images, int(row), said[row], float(confidence[row])) for row in rows]
        pixels = _pixels(images, np.array(rows, dtype=np.int64)) if rows else []
        return tuple(Picture(_png(p), caption) for p, caption in zip(pixels, captions, strict=True))

    return Gallery(pictures(easy), pictures(hard))


def _caption(images: Images, row: int, said: Sequence[int], confidence: float) -> str:
    """What was answered for an image, its class or all its labels, and what is right where that is known to differ."""
    labels = None if images.labels is None else images.labels[row]
    several = labels is not None and labels.ndim > 0
    right = None if labels is None else np.flatnonzero(labels).tolist() if several else [int(labels)]
    text = f"{_names(images, said)}, {100 * confidence:.1f} %"
    return text if right is None or right == list(said) else f"{text} (is {_names(images, right)})"


def _names(images: Images, said: Sequence[int]) -> str:
    named = [images.class_names[k] if images.class_names else f"class {k}" for k in said[:NAMED]]
    more = [f"{len(said) - NAMED} more"] if len(said) > NAMED else []
    return ", ".join([*named, *more]) or "no label"


def _pixels(images: Images, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Return images for display, uint8 [H, W, C] each. Images that are model input are scaled from their own range."""
    raw: NDArray[Any] = images.raw(rows)
    if not images.is_model_input:
        return list(raw)
    if images.preprocess.layout == "NCHW":
        raw = raw.transpose(0, 2, 3, 1)
    low, high = raw.min(axis=(1, 2, 3), keepdims=True), raw.max(axis=(1, 2, 3), keepdims=True)
    return list((255 * (raw - low) / np.maximum(high - low, 1e-12)).astype(np.uint8))


def _png(pixels: NDArray[np.uint8]) -> str:
    """Return a picture as PNG in base64, its longer side SIDE pixels long. Small pictures are enlarged without blur."""
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(flat))
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    target = io.BytesIO()
    small.save(target, format="PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode("ascii")

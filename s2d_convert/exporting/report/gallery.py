"""Images of an export as small pictures for its report: those that became wrong, the easiest and the hardest."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from s2d_runtime import Dispatcher

from s2d_convert.base.arrays import slices
from s2d_convert.data.images import Images

MOST_IMAGES, SHOWN, SIDE = 1000, 12, 96
RUN_BATCH = 16  # a batch of large images through all stages takes much memory
NAMED = 4  # labels of a picture


@dataclass(frozen=True)
class Picture:
    """A PNG in base64 and a caption with the answer."""

    png: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Images that became wrong, the easiest (highest confidence at the first stage) and the hardest (lowest confidence of the
    answer)."""

    wrong: tuple[Picture, ...] = ()
    easy: tuple[Picture, ...] = ()
    hard: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class _Answers:
    """What was answered for rows of the images: the classes, the confidence and the stage of each."""

    said: Sequence[Sequence[int]]
    confidence: NDArray[np.float32]
    stage: NDArray[np.int64]


def gallery(runner: Dispatcher, images: Images, wrong: Mapping[int, Sequence[int]] = MappingProxyType({})) -> Gallery:
    """Choose pictures among the first MOST_IMAGES images, run with the default policy.

    wrong: the rows of images that became wrong, with the classes that the static model says.
    """
    answers = _answers(runner, images, np.arange(min(MOST_IMAGES, len(images))))
    confidence, stage = answers.confidence, answers.stage
    easy = [row for row in np.argsort(-confidence, kind="stable").tolist() if stage[row] == 1][:SHOWN]
    hard = np.argsort(confidence, kind="stable").tolist()
    hard = [row for row in hard if stage[row] == stage.max() and row not in easy][:SHOWN]
    rows = [row for row in wrong if 0 <= row < len(images)]
    mistaken = _answers(runner, images, np.array(rows, dtype=np.int64))
    pixels = dict(zip([*easy, *hard, *rows], _pixels(images, np.array([*easy, *hard, *rows], np.int64)), strict=True))

    def pictures(chosen: Sequence[int]) -> tuple[Picture, ...]:
        captions = [_caption(images, row, answers.said[row], float(confidence[row])) for row in chosen]
        return tuple(Picture(_png(pixels[row]), text) for row, text in zip(chosen, captions, strict=True))

    return Gallery(
        tuple(
            Picture(_png(pixels[row]), _mistake(images, mistaken, number, wrong[row]))
            for number, row in enumerate(rows)
        ),
        pictures(easy),
        pictures(hard),
    )


def _answers(runner: Dispatcher, images: Images, rows: NDArray[np.int64]) -> _Answers:
    """Run the images of some rows with the default policy."""
    batches = [rows[part] for part in slices(len(rows), RUN_BATCH)]
    made = [runner(np.ascontiguousarray(images.batch(batch))) for batch in batches]
    spec = runner.manifest.output
    return _Answers(
        [spec.said(output) for answer in made for output in answer.output],
        np.nan_to_num(np.concatenate([answer.confidence for answer in made] or [np.empty(0, np.float32)])),
        np.concatenate([answer.stage for answer in made] or [np.empty(0, np.int64)]),
    )


def _mistake(images: Images, answers: _Answers, number: int, static: Sequence[int]) -> str:
    """Return the answer for an image that became wrong, the stage that gave it, and what the static model says."""
    said, confidence = _names(images, answers.said[number]), 100 * float(answers.confidence[number])
    return f"{said}, {confidence:.1f} % at stage {answers.stage[number]} (was {_names(images, static)})"


def _caption(images: Images, row: int, said: Sequence[int], confidence: float) -> str:
    """Return the answer for an image, its class or all its labels, and what is right where that is known to differ."""
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
    """Return images for display, uint8 [H, W, C] each. Those that are model input are scaled from their own range."""
    if not len(rows):
        return []
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

"""Pictures in, names out: a dispatcher with the preprocessing and the class names that its manifest records.

    with Classifier("OUT") as classify:
        classify("photo.jpg").name

Pictures need Pillow (the extra `images`); uint8 arrays of the model's size do not.

Letters: B images of a batch, H height, W width, C channels, K classes or labels.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import LABEL_KINDS, Answer, Dispatcher, DispatcherError, Manifest
from s2d_runtime.names import class_count, class_names
from s2d_runtime.preprocess import Preprocess

BATCH = 32  # images that are read and run at once
TINY = 1e-30  # stands for a probability of 0, whose logarithm is not finite

Array = NDArray[Any]
Image = str | os.PathLike[str] | bytes | Array  # or a picture of Pillow's


@dataclass(frozen=True)
class Label:
    """A class, or label, with its number in the model's output and its calibrated probability."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: its labels, the most probable first; the stage that answered, from 1; its confidence.

    A network that gives one class of many has one label, or as many as the classifier's `top`; one that gives several labels
    has all that are above 0.5, which may be none.
    """

    labels: tuple[Label, ...]
    stage: int
    confidence: float

    @property
    def name(self) -> str | None:
        """The name of the most probable label, None if no label applies."""
        return self.labels[0].name if self.labels else None

    @property
    def probability(self) -> float | None:
        """The probability of the most probable label, None if no label applies."""
        return self.labels[0].probability if self.labels else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        labels = [{"name": x.name, "class": x.index, "probability": round(x.probability, 6)} for x in self.labels]
        return {"labels": labels, "stage": self.stage, "confidence": round(self.confidence, 6)}


class Classifier:
    """An exported folder that takes pictures and answers with names.

    classes: the names in the order of the model's output, None for those that the manifest records (numbers if it has
    none). top: how many of the most probable classes an answer has. options: those of `Dispatcher`, such as budget and
    threads. Raises DispatcherError. Many threads may use a classifier at once.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, classes: Sequence[str] | None = None, top: int = 1, **options: Any
    ) -> None:
        if not isinstance(top, int) or top < 1:
            raise DispatcherError(f"top: got {top!r}; expected a whole number of at least 1")
        self.dispatcher = Dispatcher(folder, **options)
        manifest = self.dispatcher.manifest
        self.names = names_of(manifest, classes)
        self.preprocess = None if manifest.preprocess is None else Preprocess.recorded(manifest)
        self._top, self._input = top, manifest.input

    @overload
    def __call__(self, images: str | os.PathLike[str] | bytes, *, budget: float | None = None) -> Prediction: ...
    @overload
    def __call__(self, images: Sequence[Any], *, budget: float | None = None) -> list[Prediction]: ...
    @overload
    def __call__(self, images: Any, *, budget: float | None = None) -> Any: ...
    def __call__(self, images: Any, *, budget: float | None = None) -> Any:
        """Return the prediction for one image, or a list of predictions for several.

        An image is a path, the content of a picture file as bytes, a picture of Pillow's, a uint8 array [H, W, C] or [H, W]
        of any size (channels in RGB order), or an array of model input as the dispatcher takes it. Several are a list of
        images, or one array with one axis more. budget: for this call only. Raises DispatcherError.
        """
        if self._is_one(images):
            return next(self._predictions([images], budget))
        return list(self._predictions(images, budget))

    def _is_one(self, images: Any) -> bool:
        """Return whether this is one image. Raises DispatcherError for what is neither one nor several."""
        if isinstance(images, np.ndarray):
            pixels = images.dtype == np.uint8 and self.preprocess is not None
            axes = (2, 3) if pixels else (len(self._input.shape) - 1,)
            if images.ndim not in axes and images.ndim != axes[-1] + 1:
                raise DispatcherError(f"images: got {images.dtype} of shape {images.shape}; {self._takes()}")
            return images.ndim in axes
        return not isinstance(images, list | tuple)

    def _predictions(self, images: Iterable[Any], budget: float | None) -> Iterator[Prediction]:
        remaining = iter(images)
        while part := list(islice(remaining, BATCH)):
            rows = np.stack([self.read(image) for image in part])
            answer = self.dispatcher(rows, budget=budget)
            yield from predictions(self.dispatcher.manifest, answer, self.names, top=self._top)

    def read(self, image: Any) -> Array:
        """Return the model input, without the batch axis, of one image. Raises DispatcherError."""
        if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or self.preprocess is None):
            if image.dtype != self._input.dtype or image.shape != self._input.shape[1:]:
                raise DispatcherError(f"images: got {image.dtype} of shape {image.shape}; {self._takes()}")
            return image
        preprocess = self.preprocess
        if preprocess is None:
            raise DispatcherError(
                "the manifest records no preprocessing (the model was only split): give arrays of model input, or convert"
            )
        name = image if isinstance(image, str | os.PathLike) else "a picture"
        preprocess.check_known(name)
        return preprocess(pixels_of(image, preprocess, name=str(name))[None])[0]

    def _takes(self) -> str:
        shape = ", ".join(map(str, self._input.shape[1:]))
        return f"expected uint8 pixels (H, W, C), or {self._input.dtype} of ({shape}), or several of these"

    def close(self) -> None:
        """Release the sessions."""
        self.dispatcher.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def names_of(manifest: Manifest, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of all classes: `asked`, or the recorded ones, or their numbers. Raises DispatcherError."""
    count = class_count(manifest)
    if asked is None:
        return class_names(manifest) or tuple(map(str, range(count)))
    if isinstance(asked, str) or len(asked) != count:
        raise DispatcherError(f"classes: expected the names of the model's {count} classes, in order")
    return tuple(map(str, asked))


def pixels_of(image: Any, preprocess: Preprocess, *, name: str = "a picture") -> NDArray[np.uint8]:
    """Return the pixels [H, W, C] that the model reads, of any kind of picture. Raises DispatcherError."""
    if isinstance(image, np.ndarray) and image.shape == (*preprocess.size, preprocess.channels):
        return image
    pictures = picture_module()
    try:
        if isinstance(image, str | os.PathLike | bytes):
            return np.asarray(pictures.read_image(image, preprocess))
        if isinstance(image, np.ndarray):
            image = pictures.Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        elif not isinstance(image, pictures.Image.Image):
            raise DispatcherError(
                f"images: got {type(image).__name__}; expected a path, bytes, a picture of Pillow's or an array"
            )
        return np.asarray(pictures.fit_picture(image, preprocess))
    except DispatcherError:
        raise
    except pictures.UNREADABLE as error:
        raise DispatcherError(f"{name}: cannot be read as a picture ({pictures.reason_of(error)})") from error


def picture_module() -> Any:
    """Return the module that reads pictures. Raises DispatcherError if Pillow is not installed."""
    try:
        return importlib.import_module("s2d_runtime.pictures")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "PIL":
            raise
        raise DispatcherError(
            "pictures are read with Pillow, which is not installed; pip install 's2d-runtime[images]' (or give uint8 arrays "
            "of the model's size)"
        ) from error


def predictions(manifest: Manifest, answer: Answer, names: Sequence[str], *, top: int = 1) -> list[Prediction]:
    """Return the predictions in a dispatcher's answer. names: of all classes; top: most classes of one of many."""
    spec = manifest.output
    temperatures = np.array([stage.temperature for stage in manifest.stages])[answer.stage - 1]
    scores = _logits(answer.output.reshape(len(answer.output), -1), spec.kind) / temperatures[:, None]
    several = spec.kind in LABEL_KINDS
    shares = _sigmoid(scores) if several else _softmax(scores)
    found = []
    for row, share in enumerate(shares):
        order = np.argsort(-scores[row], kind="stable")
        given = set(spec.said(answer.output[row]))
        chosen = [k for k in order if k in given] if several else order[:top]
        labels = tuple(Label(names[k], int(k), float(share[k])) for k in chosen)
        found.append(Prediction(labels, int(answer.stage[row]), float(answer.confidence[row])))
    return found


def _logits(output: Array, kind: str) -> NDArray[np.float64]:
    """Return logits [B, K] that stand for an output [B, K], float64; those of classes up to a constant per row."""
    values = output.astype(np.float64)
    if kind == "probabilities":
        return np.log(np.maximum(values, TINY))
    if kind == "sigmoid":
        return np.log(np.maximum(values, TINY)) - np.log(np.maximum(1 - values, TINY))
    return values


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * scores))

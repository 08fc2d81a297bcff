"""What the stages and the static model answer on images. Letters: S stages, B images, K classes or labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from s2d_runtime.calibrate.data import Data
from s2d_runtime.dispatcher import (
    CONFIDENCE,
    LABEL_KINDS,
    ORT_ERRORS,
    OUTPUT,
    Dispatcher,
    DispatcherError,
    Manifest,
    default_options,
)
from s2d_runtime.expected import expected_right, to_logits

Array = NDArray[Any]
BATCH = 32


class Reference:
    """The static model, whose latency is the unit of all others: its own file, or the last stage if that is the same model."""

    def __init__(self, session: Any, *, source: str, image: str, output: str) -> None:
        self._session, self._source, self._image, self._output = session, source, image, output
        first = session.get_inputs()[0].shape[0]
        self._rows = first if isinstance(first, int) else BATCH

    def __call__(self, images: Array) -> Array:
        """Return the output for images [B, ...]. Raises DispatcherError."""
        try:
            return self._session.run([self._output], {self._image: images})[0]
        except ORT_ERRORS as error:
            raise DispatcherError(f"{self._source}: cannot be run ({' '.join(str(error).split())})") from error

    def outputs(self, images: Array) -> Array:
        """Return the output for any number of images, in batches that the model takes."""
        return np.concatenate([self(images[i : i + self._rows]) for i in range(0, len(images), self._rows)])


def open_reference(path: Path | None, runner: Dispatcher, *, threads: int) -> tuple[Reference, str | None]:
    """Return the static model and a warning. Without a path, an exact last stage stands for it. Raises DispatcherError."""
    manifest = runner.manifest
    if path is None:
        last = manifest.stages[-1]
        if manifest.exactness is None or last.links_in:
            raise DispatcherError(
                "--model: give the static model's ONNX file; latencies are relative to it, so it is measured here too"
            )
        return Reference(runner.sessions[-1], source=last.file, image=manifest.input.name, output=OUTPUT), None
    try:
        data = path.read_bytes()
        session = ort.InferenceSession(
            str(path), default_options(threads), providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except ORT_ERRORS as error:
        raise DispatcherError(f"{path}: cannot be opened ({' '.join(str(error).split())})") from error
    recorded = manifest.provenance.get("model_sha256")
    warning = None
    if recorded is not None and hashlib.sha256(data).hexdigest() != recorded:
        warning = f"{path}: not the file that the folder was made from, by its hash; latencies are relative to this one"
    inputs, output = session.get_inputs(), _output_name(manifest, [node.name for node in session.get_outputs()])
    if len(inputs) != 1:
        raise DispatcherError(f"{path}: has {len(inputs)} inputs; expected the image alone")
    return Reference(session, source=str(path), image=inputs[0].name, output=output), warning


def _output_name(manifest: Manifest, names: list[str]) -> str:
    """Return the output of the static model that the folder was made for."""
    options = manifest.provenance.get("options")
    asked = options.get("output") if isinstance(options, dict) else None
    for name in (asked, manifest.provenance.get("output_name")):
        if name in names:
            return str(name)
    return names[0]


@dataclass(frozen=True, eq=False)
class Answers:
    """What was answered on the images.

    confidence: float32 [S, B]. correct: bool [S, B], where a stage is right, by the labels, or without labels by the static
    model. expected: how often it can be expected to be right, [S, B]. static: bool [B], where the static model is. as_last:
    bool [S, B], where a stage answers as the last one does. as_static: the same for the static model. labelled: whether there
    were labels.
    """

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    expected: Array
    static: NDArray[np.bool_]
    as_last: NDArray[np.bool_]
    as_static: NDArray[np.bool_]
    labelled: bool


def collect(runner: Dispatcher, reference: Reference, data: Data) -> Answers:
    """Run every stage and the static model on all images. Raises DispatcherError."""
    kind = runner.manifest.output.kind
    confidences, outputs = [], []
    for start in range(0, len(data.images), BATCH):
        stages = list(_all_stages(runner, data.images[start : start + BATCH]))
        confidences.append(np.stack([confidence for _, confidence in stages]))
        outputs.append(np.stack([output for output, _ in stages]))
    of_stages, of_static = np.concatenate(outputs, axis=1), reference.outputs(data.images)
    said = np.stack([answers(output, kind) for output in of_stages])  # [S, B] or [S, B, K]
    static = answers(of_static, kind)
    if static.shape != said.shape[1:]:
        raise DispatcherError(
            f"the static model answers {list(static.shape)}, the stages {list(said.shape[1:])}; give the model that the "
            "folder was made from"
        )
    right = static if data.labels is None else data.labels
    correct: Array = agree(said, right)
    expected = correct
    if data.labels is not None and kind not in LABEL_KINDS:
        logits = np.stack([to_logits(output, kind) for output in of_stages])
        expected = expected_right(logits, to_logits(of_static, kind), data.labels)
    return Answers(
        confidence=np.concatenate(confidences, axis=1),
        correct=correct,
        expected=expected,
        static=agree(static, right),
        as_last=agree(said, said[-1]),
        as_static=agree(said, static),
        labelled=data.labels is not None,
    )


def answers(output: Array, kind: str) -> Array:
    """Return what outputs [B, ...] answer: the class, int64 [B], or for labels 0 or 1, int8 [B, K]."""
    flat = output.reshape(len(output), -1)
    if kind not in LABEL_KINDS:
        return flat.argmax(axis=1)
    return (flat > (0.5 if kind == "sigmoid" else 0)).astype(np.int8)


def agree(first: Array, second: Array) -> NDArray[np.bool_]:
    """Return where answers [..., B] or [..., B, K] are the same as [B] or [B, K], with all their labels."""
    same = np.equal(first, second)
    return same if second.ndim == 1 else np.all(same, axis=-1)


def _all_stages(runner: Dispatcher, images: Array) -> Iterator[tuple[Array, Array]]:
    """Yield output and confidence of every stage, without exits."""
    values = {runner.manifest.input.name: images}
    for number, session in enumerate(runner.sessions, start=1):
        names = [node.name for node in session.get_outputs()]
        try:
            found = session.run(names, {node.name: values[node.name] for node in session.get_inputs()})
        except ORT_ERRORS as error:
            raise DispatcherError(f"stage {number}: {' '.join(str(error).split())}") from error
        values.update(zip(names, found, strict=True))
        yield values[OUTPUT], values[CONFIDENCE]

"""Answers of a model on made-up images: checks that loading changed nothing, and that images do not affect each other.

Letters: B images of a batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from s2d_convert.base.sessions import first_line, quiet_options, quiet_session
from s2d_convert.errors import ModelError
from s2d_convert.frontend.inputs import Image
from s2d_convert.frontend.proto import copy_of

HALF_TOLERANCE = 5e-2  # the file's own arithmetic is in float16
BATCH_TOLERANCE = 1e-3  # kernels may sum in another order when the batch is longer
SUM_TOLERANCE = 1e-2  # probabilities may have been clipped
ROWS = 3
ENDS = 16
IMAGE_TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
}


class DoesNotRunError(ModelError):
    """onnxruntime loads a model and cannot run it."""


@dataclass(frozen=True, eq=False)
class FileAnswers:
    """What a file answers: images float32 [B, ...] and answers float32 [B, ...]; `half` if it computes in float16."""

    path: Path
    images: np.ndarray
    answers: np.ndarray
    half: bool


def ask_file(path: Path, image: Image, output: str) -> FileAnswers | None:
    """Return the answers of a file as it is.

    None where onnxruntime cannot run the file (some float64 operators), or where `output` is a tensor inside of it: it is
    judged by what is made of it.
    """
    try:
        session = ort.InferenceSession(str(path), quiet_options(), providers=["CPUExecutionProvider"])
        (value,) = (i for i in session.get_inputs() if i.name == image.name)
        kind = np.dtype(IMAGE_TYPES[value.type])
        count = value.shape[0] if isinstance(value.shape[0], int) and value.shape[0] > 0 else 2
        images = noise((count, *image.shape), kind)
        unread = {v.name: _anything(v) for v in image.unread}
        answers = session.run([output], {image.name: images, **unread})[0].astype(np.float32)
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
        return None
    return FileAnswers(path, images.astype(np.float32), answers, kind == np.float16)


def _anything(value: onnx.ValueInfoProto) -> np.ndarray:
    """Return zeros for an input that has to be fed and that nothing reads."""
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return np.zeros([d.dim_value or 1 for d in kind.shape.dim], dtype)


def check_same(session: ort.InferenceSession, asked: FileAnswers, *, half: bool) -> None:
    """Raise ModelError unless a session of the simplified model answers as the file did; `half`: its weights are float16."""
    answers = session.run(None, {session.get_inputs()[0].name: asked.images})[0]
    rel = HALF_TOLERANCE if half or asked.half else BATCH_TOLERANCE
    if not same_answers(answers.reshape(len(answers), -1), asked.answers.reshape(len(asked.answers), -1), rel=rel):
        raise ModelError(
            f"{asked.path}: after simplification the model answers otherwise than the file does (arithmetic that needs "
            "float64, or an operator that draws random numbers?); export the model in float32, for inference"
        )


def check_rows(session: ort.InferenceSession, shape: tuple[int, ...]) -> np.ndarray:
    """Return the answers to some images. Raises ModelError unless every row of a batch is answered as it is alone.

    A batch of 1 in the constants of an operator looks like any other axis of length 1, so only running the model shows it.
    """
    image = session.get_inputs()[0].name
    images = noise((ROWS, *shape))
    try:
        alone = np.concatenate([session.run(None, {image: images[i : i + 1]})[0] for i in range(ROWS)])
    except Exception as error:
        raise DoesNotRunError(
            f"the model does not run in onnxruntime ({first_line(error)}); check it there first"
        ) from error
    try:
        together = session.run(None, {image: images})[0]
    except Exception as error:
        raise ModelError(
            f"the model does not run on other batch lengths ({first_line(error)}); export it with a dynamic batch"
        ) from error
    if not same_answers(together, alone):
        raise ModelError(
            "the model answers an image differently in a batch and alone: an operator mixes the images of a batch or draws "
            "random numbers, or a batch of one was baked into it; export the model for inference, with a dynamic batch"
        )
    return together


def kind_of_end(model: onnx.ModelProto, logits: str, shape: tuple[int, ...]) -> str:
    """Return what a model answers that does more to its logits than a Softmax: probabilities, also in percent and clipped,
    log_probabilities, or logits. Raises ModelError when its largest answer is not that of the class with the largest logit."""
    answers, raw = _answers_and_logits(model, logits, shape)
    if (np.take_along_axis(answers, raw.argmax(axis=1)[:, None], axis=1)[:, 0] < answers.max(axis=1)).any():
        raise ModelError(
            f"output '{model.graph.output[0].name}' is not largest for the class whose logit in '{logits}' is; choose a tensor "
            "that grows with the probability of each class with --output"
        )
    if (answers >= 0).all() and _is_even(answers.sum(axis=1)):
        return "probabilities"
    return "log_probabilities" if answers.max() <= SUM_TOLERANCE and _is_even(np.exp(answers).sum(axis=1)) else "logits"


def kind_of_label_end(model: onnx.ModelProto, logits: str, shape: tuple[int, ...]) -> str:
    """Return what a model answers that gives labels: sigmoid, probabilities of each, or their sigmoid_logits. Raises
    ModelError where the answers are neither."""
    answers, raw = _answers_and_logits(model, logits, shape)
    if same_answers(answers, raw):
        return "sigmoid_logits"
    if (answers >= 0).all() and (answers <= 1).all() and ((answers > 0.5) == (raw > 0)).all():
        return "sigmoid"
    raise ModelError(
        f"output '{model.graph.output[0].name}' makes other numbers than probabilities of its labels, above 0.5 where a label is "
        "given; choose the output of the Sigmoid or of the layer before it with --output"
    )


def _answers_and_logits(model: onnx.ModelProto, logits: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the answers and the tensor `logits` of a model on noise, both [ENDS, K]."""
    told = copy_of(model)
    told.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    with quiet_session(told) as session:
        images = noise((ENDS, *shape))
        answers, raw = (a.reshape(ENDS, -1) for a in session.run(None, {session.get_inputs()[0].name: images}))
    return answers, raw


def are_probabilities(answers: np.ndarray) -> bool:
    """Return whether answers [B, ...] are a distribution over the classes for each image."""
    flat = answers.reshape(len(answers), -1)
    return bool(flat.shape[1] > 1 and (flat >= 0).all() and (np.abs(flat.sum(axis=1) - 1) <= BATCH_TOLERANCE).all())


def _is_even(sums: np.ndarray) -> bool:
    """Return whether rows add up to the same."""
    return bool(np.isfinite(sums).all() and sums.min() > 0 and sums.max() <= (1 + SUM_TOLERANCE) * sums.min())


def noise(shape: tuple[int, ...], kind: Any = np.float32, *, seed: int = 0) -> np.ndarray:
    """Return model input without a meaning: pixels drawn evenly for uint8, else normal numbers."""
    rng = np.random.default_rng(seed)
    if np.dtype(kind) == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32).astype(kind)


def same_answers(answers: np.ndarray, expected: np.ndarray, *, rel: float = BATCH_TOLERANCE) -> bool:
    """Return whether answers [B, ...] agree, class by class: one large logit must not hide the others."""
    if answers.shape != expected.shape or not np.array_equal(np.isfinite(answers), np.isfinite(expected)):
        return False
    a, b = (np.where(np.isfinite(expected), x, 0).astype(np.float64).reshape(len(x), -1) for x in (answers, expected))
    return bool((np.abs(a - b) <= rel * np.maximum(1.0, np.abs(b).max(axis=0))).all())

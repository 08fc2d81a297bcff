"""INT8 by onnxruntime's static quantisation, with the settings that its documentation names for x64 processors."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import make_session
from s2d_convert.conversion.context import Prepared
from s2d_convert.frontend.reference import to_logits
from s2d_convert.latency.meter import Meter
from s2d_convert.plans.weights import classifier_of

CALIBRATION_IMAGES, BATCH = 512, 64
# Without VNNI, products of uint8 and int8 saturate in 16 bits: weights of 7 bits, or both sides uint8, avoid that.
SIGNED = {
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "reduce_range": True,
}
UNSIGNED = {
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QUInt8,
    "per_channel": False,
    "reduce_range": False,
}
# The last with the classifier in float, as the stages of a folder have it.
RECIPES: tuple[tuple[dict[str, Any], bool], ...] = ((SIGNED, False), (UNSIGNED, False), (SIGNED, True))


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches of calibration images in the form that onnxruntime expects."""

    def __init__(self, name: str, batches: Iterator[Array]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, Array] | None:
        """Return the next feed, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@dataclass(frozen=True)
class Made:
    """A quantised model, its recipe, its accuracy on the calibration images and its latency relative to the static model."""

    model: bytes
    recipe: dict[str, Any]
    right: float
    latency: float


def quantised(ready: Prepared, path: Path) -> tuple[dict[str, Any], float]:
    """Write the model of the best of RECIPES to `path`: the fastest of those that are as right as any within a standard error.
    Return its settings and its accuracy on the calibration images."""
    static = ready.graph.to_model().SerializeToString()
    image = np.ascontiguousarray(ready.held_out.images.batch(np.arange(1)))
    meter = Meter(static, image)
    made: list[Made] = []
    with tempfile.TemporaryDirectory() as place, _only_errors():
        source, target = Path(place) / "float.onnx", Path(place) / "int8.onnx"
        model = onnx.ModelProto()
        model.CopyFrom(ready.graph.to_model())
        names = {node.outputs[0]: node.name for node in ready.graph.nodes}
        for proto in model.graph.node:  # files may leave it out; the quantiser needs it
            proto.name = names.get(proto.output[0], proto.output[0])
        onnx.save(model, str(source))
        quant_pre_process(str(source), str(source), skip_optimization=True, skip_symbolic_shape=True)
        last = classifier_of(ready.model)
        for settings, float_head in RECIPES:
            recipe = {**settings, "nodes_to_exclude": [last.name] if float_head and last is not None else []}
            images = ready.dataset.train
            parts = slices(min(CALIBRATION_IMAGES, len(images)), BATCH)
            reader = Reader(ready.graph.image, (np.ascontiguousarray(images.batch(p)) for p in parts))
            quantize_static(str(source), str(target), reader, quant_format=QuantFormat.QDQ, **recipe)
            data = target.read_bytes()
            told = {k: getattr(v, "name", v) for k, v in recipe.items()}
            made.append(Made(data, told, validation_accuracy(ready, data), meter.measure([data]).ratios[0]))
    chosen = best_of(made, images=len(ready.held_out.images))
    path.write_bytes(chosen.model)
    return chosen.recipe, chosen.right


def best_of(made: Sequence[Made], *, images: int) -> Made:
    """Return the fastest of the models that are as right on so many images as the best one, within its standard error."""
    most = max(m.right for m in made)
    error = (most * (1 - most) / images) ** 0.5
    return min((m for m in made if m.right >= most - error), key=lambda m: m.latency)


@contextmanager
def _only_errors() -> Iterator[None]:
    """Show only errors within the block, because onnxruntime warns through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def validation_accuracy(ready: Prepared, model: bytes) -> float:
    """Return the share of held-out images on which a model's answers are right."""
    session, images = make_session(model), ready.held_out.images
    said = [
        to_logits(
            session.run(None, {ready.graph.image: np.ascontiguousarray(images.batch(p))})[0], ready.graph.output_kind
        )
        for p in slices(len(images), BATCH)
    ]
    return float((np.concatenate(said).argmax(axis=1) == ready.held_out.right_classes).mean())

"""The passes that bring a file into the few forms that the rest of the package knows, by name and in order.

A pass takes an `onnx.ModelProto`, may change it in place, and returns the model; it raises ModelError for what cannot be brought
into that form. What they do not need to know is the image's shape: fixing it, simplifying with onnxruntime and freeing the batch
come after them (`load`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx
import onnx.inliner

from s2d_convert.frontend.cleaning import (
    refuse_quantised,
    refuse_training,
    with_float32,
    with_recent_opset,
    without_spare_values,
)
from s2d_convert.frontend.operators import with_plain_operators


class Pass(NamedTuple):
    """One step: its name, and what it makes of a model."""

    name: str
    run: Callable[[onnx.ModelProto], onnx.ModelProto]


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its own functions where they are called."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


PASSES = (
    Pass("inline the model's own functions", with_functions_inlined),
    Pass("refuse quantised operators", refuse_quantised),
    Pass("refuse normalisation and dropout as in training", refuse_training),
    Pass("drop what nobody reads or what depends on the batch", without_spare_values),
    Pass("make float16 and float64 float32", with_float32),
    Pass("upgrade an old opset", with_recent_opset),
    Pass("replace If, CastLike and GroupNormalization", with_plain_operators),
)


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after all passes; it may be changed in place."""
    for step in PASSES:
        model = step.run(model)
    return model

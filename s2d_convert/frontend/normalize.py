"""The passes that bring a file into the few forms that the rest of the package knows, by name and in order.

A pass takes an `onnx.ModelProto`, may change it in place, and returns the model; it raises ModelError for what cannot be brought
into that form. What they do not need to know is the image's shape: fixing it, simplifying with onnxruntime and freeing the batch
come after them (`load`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import onnx
import onnx.inliner

from s2d_convert.frontend.passes import cleaning, operators
from s2d_convert.frontend.passes.outputs import choose_output


class Pass(NamedTuple):
    """One step: its name, and what it makes of a model."""

    name: str
    run: Callable[[onnx.ModelProto], onnx.ModelProto]


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the bodies of its own functions where they are called."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


# What onnxruntime mends too, and what onnx's checker insists on.
REPAIRS = (
    Pass("name the graph", cleaning.with_graph_name),
    Pass("name the default domain", cleaning.with_one_default_domain),
    Pass("sort the nodes", cleaning.with_sorted_nodes),
)


def passes(output: str | None = None) -> tuple[Pass, ...]:
    """Return all passes in order; `output` as of `load_graph`."""
    return (
        *REPAIRS,
        Pass("inline the model's own functions", with_functions_inlined),
        Pass("refuse quantised operators", cleaning.refuse_quantised),
        Pass("leave one output", partial(choose_output, output=output)),
        Pass("refuse nodes without a definition", cleaning.refuse_foreign),
        Pass("refuse sequences and loops", cleaning.refuse_control_flow),
        Pass("refuse normalisation and dropout as in training", cleaning.refuse_training),
        Pass("drop what nobody reads or what depends on the batch", cleaning.without_spare_values),
        Pass("make float16 and float64 float32", cleaning.with_float32),
        Pass("upgrade an old opset", cleaning.with_recent_opset),
        Pass("replace If, CastLike, GroupNormalization and Attention", operators.with_plain_operators),
    )


def normalised(model: onnx.ModelProto, steps: Iterable[Pass]) -> onnx.ModelProto:
    """Return the model after these passes; it may be changed in place."""
    for step in steps:
        model = step.run(model)
    return model

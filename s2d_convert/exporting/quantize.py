"""The arithmetic of a stage: INT8 by onnxruntime's static quantisation, or float16. Inputs, outputs and links stay float32.

The INT8 settings follow from measurements (docs/results.md). Activations in uint8 and weights in int8 per output channel
are the fastest pair of onnxruntime's CPU kernels. Weights use only 7 bits, because sums of 8 bits overflow on processors
without VNNI.

Exit heads, the layer that computes the logits of the model's own classifier, and the confidence stay in float. This costs
little time, and rounding there would move the exits. The first weight of a head divides each feature by its deviation, so
its columns can differ by a factor of 700; with eight bits for a whole row the small ones would be lost.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from s2d_runtime.dispatcher import ORT_ERRORS

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import first_line, make_session, save
from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import set_nodes
from s2d_convert.slicing.stage_graph import EXIT, INVERSE_TEMPERATURE

FEED_ROWS = 32  # images per batch while the ranges of activations are measured
QUANTISER: Mapping[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "reduce_range": True,
}
# Operators that may lie between the layer that computes the logits and the logits.
AFTER_HEAD = ("Add", "Flatten", "Identity", "Reshape", "Squeeze")
HEADS = ("Gemm", "MatMul")
# The tools document no exceptions. These are what their code and an onnxruntime session raise.
TOOL_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, LookupError, TypeError, AttributeError, AssertionError)


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
    """The inputs of a stage in batches, in the form that onnxruntime's tool expects."""

    def __init__(self, feeds: Mapping[str, Array]) -> None:
        rows = len(next(iter(feeds.values())))
        starts = range(0, rows, FEED_ROWS)
        self._batches: Iterator[dict[str, Array]] = (
            {name: values[start : start + FEED_ROWS] for name, values in feeds.items()} for start in starts
        )

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)


def int8_stage(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """Return the stage in INT8. Raises ModelError when onnxruntime's tool cannot convert it.

    feeds: image and links, with equal numbers of rows, of images that reach this stage. They determine the ranges of its
    activations.
    """
    return int8_model(_with_plain_weights(model), feeds, excluded=answering_nodes(model))


def int8_model(model: onnx.ModelProto, feeds: Mapping[str, Array], *, excluded: Sequence[str] = ()) -> onnx.ModelProto:
    """Return a float32 model in INT8, apart from the nodes `excluded`. Raises ModelError as `int8_stage` does."""
    with tempfile.TemporaryDirectory() as folder:
        source, ready, result = (str(Path(folder) / name) for name in ("float.onnx", "ready.onnx", "int8.onnx"))
        save(model, Path(source))
        # No optimisation: the stage is simplified already, and optimising would remove the nodes that keep links alive.
        _guarded(lambda: quant_pre_process(source, ready, skip_optimization=True, skip_symbolic_shape=True))
        excluded_names = [*excluded, *_beyond_the_tool(model), *_resizings_of_the_image(model)]
        with _without_known_warnings():
            _guarded(
                lambda: quantize_static(ready, result, _Feeds(feeds), nodes_to_exclude=excluded_names, **QUANTISER)
            )
        return onnx.load(result)


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Suppress the tool's warning, for every norm, that its scale has no second axis. It is harmless: a scale is a vector."""

    def is_unknown(record: logging.LogRecord) -> bool:
        return "out-of-range for weight" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_unknown)
    try:
        yield
    finally:
        root.removeFilter(is_unknown)


def _beyond_the_tool(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that onnxruntime's tool cannot quantise per channel.

    These are grouped transposed convolutions. The weight of one has fewer columns than there are output channels, and a
    bias for each channel.
    """
    groups = {n.name: next((a.i for a in n.attribute if a.name == "group"), 1) for n in model.graph.node}
    return [n.name for n in model.graph.node if n.op_type == "ConvTranspose" and groups[n.name] > 1]


def _resizings_of_the_image(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that resize the image: in INT8 every pixel would be rounded once more, for no gain."""
    pixels, kept = {i.name for i in model.graph.input}, []
    for node in model.graph.node:
        if node.op_type in ("Cast", "Resize") and node.input[0] in pixels:
            pixels.update(node.output)
            kept += [node.name] if node.op_type == "Resize" else []
    return kept


def float16_stage(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the stage in float16. Raises ModelError when the converter fails."""
    source = _with_plain_weights(model)
    kept = answering_nodes(model)
    converted = _guarded(lambda: convert_float_to_float16(source, keep_io_types=True, node_block_list=kept))
    ordered = gs.export_onnx(gs.import_onnx(converted).toposort())  # the converter puts its casts at the end
    ordered.ir_version = model.ir_version
    return ordered


def _guarded(tool: Callable[[], Any]) -> Any:
    """Return the result of one of onnxruntime's tools. Raises ModelError for any error of the tool."""
    try:
        return tool()
    except TOOL_ERRORS as error:
        reason = first_line(error) or type(error).__name__
        raise ModelError(f"onnxruntime cannot change its arithmetic ({reason}); choose another --quantize") from error


def check_runs(model: onnx.ModelProto) -> None:
    """Raise ModelError unless onnxruntime can open a converted stage."""
    _guarded(lambda: make_session(model.SerializeToString()))


def answering_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that stay in float.

    These are an exit head from the pooling of its tap on, or the linear layer that computes the logits in the model's own
    classifier, and everything behind them.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    logits = _logits(model, makers)
    kept, behind = [], {logits}
    for node in model.graph.node:
        if behind.intersection(node.input):
            behind.update(node.output)
            kept.append(node.name)
    node = makers.get(logits)
    while node is not None and node.op_type in AFTER_HEAD and not _of_exit_head(node):
        kept.append(node.name)
        node = makers.get(node.input[0])
    if node is not None and _of_exit_head(node):
        return [*kept, *_exit_head(node, makers)]
    return [*kept, node.name] if node is not None and node.op_type in HEADS else kept


def _logits(model: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the tensor of the logits: the confidence is made of them, whatever the answer makes of them."""
    (scaled,) = (n for n in model.graph.node if INVERSE_TEMPERATURE in n.input)
    (flat,) = (name for name in scaled.input if name != INVERSE_TEMPERATURE)
    maker = makers.get(flat)
    return maker.input[0] if maker is not None and maker.op_type == "Flatten" else flat


def _exit_head(last: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[str]:
    """Return the names of an exit head's nodes, from its `last` node back to the mean over the tap."""
    node, kept = makers.get(last.input[0]), [last.name]
    while node is not None and _of_exit_head(node):
        kept.append(node.name)
        node = makers.get(node.input[0])
    # With channels last, the mean over a whole map has the map's name.
    return [*kept, node.name] if node is not None and node.op_type == "ReduceMean" else kept


def _of_exit_head(node: onnx.NodeProto) -> bool:
    """Return whether the node belongs to an exit head that was added to the model."""
    return bool(node.name.startswith(EXIT))


def _with_plain_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with float32 weights in place of weights that are stored in float16 and cast."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {i.name: i for i in copy.graph.initializer}
    casts = [n for n in copy.graph.node if n.op_type == "Cast" and n.input[0] in stored]
    for cast in casts:
        weight = stored[cast.input[0]]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), cast.output[0]))
    gone = {cast.name for cast in casts}
    set_nodes(copy.graph, [n for n in copy.graph.node if n.name not in gone])
    return copy


def set_temperature(model: onnx.ModelProto, temperature: float) -> None:
    """Write the temperature of a stage into its model, in place. Raises ModelError for a stage without a temperature."""
    for value in model.graph.initializer:
        if value.name == INVERSE_TEMPERATURE and value.data_type == TensorProto.FLOAT:
            value.CopyFrom(numpy_helper.from_array(np.array([1 / temperature], np.float32), value.name))
            return
    raise ModelError(f"there is no '{INVERSE_TEMPERATURE}' in it; convert again")

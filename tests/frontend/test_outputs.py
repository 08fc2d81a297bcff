"""The choice of the output: any tensor of logits can be chosen; others are refused, and the message names one that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_close, random_images, run
from onnx import TensorProto, helper, numpy_helper
from patterns.base import ending
from s2d_runtime import Dispatcher

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend import graph_from_proto
from s2d_convert.workflows.split_model import SplitOptions, split_model

LINEAR = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  k = Softmax<axis=1>(q)  "


def deciding(end: str, kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """A classifier that ends in something else than its probabilities `k`."""
    model = ending(LINEAR + end, three=[3])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", kind, None))
    return model


def custom_vision() -> onnx.ModelProto:
    """Class names and a map from name to probability for each image, as services for tables of numbers export."""
    model = ending(LINEAR + "logits = Identity(k)")
    del model.graph.node[-1], model.graph.output[:]
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    names = [f"c{i}" for i in range(10)]
    model.graph.initializer.append(numpy_helper.from_array(np.array(names, np.object_), "names"))
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", ["k"], ["ix"], axis=1, keepdims=0),
            helper.make_node("ArrayFeatureExtractor", ["names", "ix"], ["label"], domain="ai.onnx.ml"),
            helper.make_node("ZipMap", ["k"], ["loss"], domain="ai.onnx.ml", classlabels_strings=names),
        ]
    )
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, value))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, [1, "N"]))
    model.graph.output.append(helper.make_value_info("loss", maps))
    return model


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        (deciding("logits = ArgMax<axis=1, keepdims=0>(k)"), None, r"\(ArgMax\), has type int64.*--output k\b"),
        (
            deciding("c = ArgMax<axis=1>(k)  logits = Cast<to=1>(c)", TensorProto.FLOAT),
            None,
            r"\(ArgMax\), which does not keep a value for every class in order.*--output k\b",
        ),
        (
            deciding("logits, i = TopK<axis=1>(k, three)", TensorProto.FLOAT),
            None,
            r"\(TopK\), which does not keep a value for every class in order.*--output k\b",
        ),
        (custom_vision(), None, r"2 outputs \(label, loss\); choose the logits with --output NAME .*--output k\b"),
        (custom_vision(), "loss", r"\(ZipMap\), is a sequence; a tensor of floats.*--output k\b"),
        (custom_vision(), "label", r"\(ArrayFeatureExtractor\), has type string.*--output k\b"),
    ],
    ids=["ArgMax", "ArgMax as float", "TopK", "several", "maps", "strings"],
)
def test_what_holds_no_logits_is_refused_and_names_what_does(
    model: onnx.ModelProto, output: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        graph_from_proto(model, output=output)


@pytest.mark.parametrize("output", ["k", "q"])
def test_any_tensor_can_be_chosen(tmp_path: Path, output: str) -> None:
    model = custom_vision()
    onnx.save(model, str(tmp_path / "model.onnx"))
    images = random_images(model, 4, 0)["image"]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    expected = run(model, {"image": images})[output]
    split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, out=tmp_path / "out", output=output))
    with Dispatcher(tmp_path / "out") as runner:
        assert runner.manifest.output.kind == {"k": "probabilities", "q": "logits"}[output]
        assert_close(runner(images, exits=False).output, expected)


def test_a_name_that_is_nowhere_is_a_usage_error() -> None:
    with pytest.raises(
        UsageError, match=r"--output nowhere: the model has no such output or tensor; it has label, loss"
    ):
        graph_from_proto(custom_vision(), output="nowhere")


def test_one_number_for_a_batch_is_no_answer() -> None:
    model = deciding("logits = ReduceMean<keepdims=0>(q)", TensorProto.FLOAT)
    with pytest.raises(ModelError, match="'logits' is one number for the whole batch"):
        graph_from_proto(model)
    assert np.prod(graph_from_proto(model, output="q").shapes["q"]) == 10

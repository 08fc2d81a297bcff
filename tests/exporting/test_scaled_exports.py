"""Folders whose first chain reads the image smaller: the dispatcher, the single file and other arithmetic need not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, open_session, random_images, run
from s2d_runtime import Dispatcher
from text_nets import residual

from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.exporting.folder import PLAN, read_stages
from s2d_convert.exporting.quantize import float16_stage, int8_stage
from s2d_convert.exporting.single import THRESHOLDS, write_single
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.workflows.split_model import SplitOptions, split_model

ROWS = 4


def with_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same net for pixels from 0 to 255."""
    image = model.graph.input[0]
    image.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    nodes = list(model.graph.node)
    nodes[0].input[0] = "centred"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(100, np.float32), "hundred"))
    first = [
        onnx.helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Div", ["pixels", "hundred"], ["centred"]),
    ]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in [*first, *nodes]]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@pytest.fixture(params=["float32", "uint8"])
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return residual() if request.param == "float32" else with_bytes(residual())


@pytest.fixture
def folder(tmp_path: Path, model: onnx.ModelProto) -> Path:
    """The whole net at half of each side, before the net as it is."""
    onnx.save(model, str(tmp_path / "model.onnx"))
    classes = AnalysedModel.of(graph_from_proto(model)).channels.classes
    chains = [{"taps": ["logits"], "units": {}, "scale": 0.5}, {"taps": ["logits"], "units": {classes[0].name: "1x4"}}]
    (tmp_path / "plan.json").write_text(json.dumps({"version": 1, "chains": chains}))
    split_model(SplitOptions(tmp_path / "model.onnx", plan=str(tmp_path / "plan.json"), stages=2, out=tmp_path / "out"))
    return tmp_path / "out"


def halved(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the net answers to images of half the size, by the model itself."""
    small = onnx.ModelProto.FromString(model.SerializeToString())
    for axis in (2, 3):
        small.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 4
    small.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in small.graph.node:
        if node.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
    images = F.avg_pool2d(torch.from_numpy(feeds["image"]).float(), 2).numpy()
    return run(small, {"image": images})["logits"]


def test_every_consumer_answers_alike(folder: Path, model: onnx.ModelProto) -> None:
    feeds = random_images(model, ROWS, 0)
    small, whole = halved(model, feeds), run(model, feeds)["logits"]
    write_single(folder, folder / "single.onnx")
    single = open_session(folder / "single.onnx")
    with Dispatcher(folder) as runner:
        assert [stage.links_in for stage in runner.manifest.stages] == [(), ()]
        for threshold, expected in ((ALWAYS_LEAVES, small), (NEVER_LEAVES, whole)):
            assert_close(runner(feeds["image"], thresholds=[threshold]).output, expected)
            answer = run(single, {**feeds, THRESHOLDS: np.array([threshold], np.float32)})
            assert_close(answer["output"], expected)
    assert [c.get("scale") for c in json.loads((folder / PLAN).read_text())["chains"]] == [0.5, None]


def test_the_stage_takes_the_image_as_it_is_and_resizes_it_once(folder: Path, model: onnx.ModelProto) -> None:
    with Dispatcher(folder) as runner:
        first, second = (stage.model for stage in read_stages(folder, runner.manifest))
    assert [
        [d.dim_value for d in stage.graph.input[0].type.tensor_type.shape.dim][1:] for stage in (first, second)
    ] == [[3, 8, 8]] * 2
    assert [[n.op_type for n in stage.graph.node].count("Resize") for stage in (first, second)] == [1, 0]


def test_other_arithmetic_resizes_in_float(folder: Path, model: onnx.ModelProto) -> None:
    feeds = random_images(model, 64, 0)
    with Dispatcher(folder) as runner:
        stage = read_stages(folder, runner.manifest)[0].model
    for made, tolerance in ((int8_stage(stage, feeds), 0.1), (float16_stage(stage), 0.01)):
        assert_close(run(made, feeds)["output"], halved(model, feeds), rel=tolerance)
    quantised = int8_stage(stage, feeds)
    makers = {name: node.op_type for node in quantised.graph.node for name in node.output}
    (resize,) = (n for n in quantised.graph.node if n.op_type == "Resize")
    assert makers.get(resize.input[0]) in (None, "Cast")

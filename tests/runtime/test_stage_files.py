"""What a stage file may not have, although its hash is right: ways out of it, ways to run for ever, ways to fill memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from s2d_runtime import Dispatcher, DispatcherError, dispatcher
from toy_exports import SINGLE, images_of, model_bytes, stage_text, write_export, write_manifest

TOY = model_bytes(stage_text(1, SINGLE[0]))


def fails(folder: Path, data: bytes) -> str:
    """What the dispatcher says about a folder whose only stage is `data`, with the right hash."""
    manifest = write_export(folder, SINGLE)
    (folder / "stage1.onnx").write_bytes(data)
    manifest["stages"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    write_manifest(folder, manifest)
    with pytest.raises(DispatcherError) as caught:
        Dispatcher(folder)
    assert str(caught.value).startswith(f"{folder / 'stage1.onnx'}: ")
    assert str(caught.value).isprintable()
    return str(caught.value)


def external(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer.add()
    weight.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def external_in_a_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def external_without_the_mark(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="w", data_type=1).external_data.add(key="location", value="x")


def loop(model: onnx.ModelProto) -> None:
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    body = helper.make_graph([], "body", [helper.make_tensor_value_info("i", TensorProto.INT64, []), keep], [keep])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def loop_in_a_branch(model: onnx.ModelProto) -> None:
    branch = onnx.ModelProto()
    loop(branch)
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=branch.graph))


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Add", domain="")


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Run", domain="com.evil\x1b[2J", output=["x"])


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external, "it has weights in another file, and no stage file has that"),
        (external_in_a_constant, "weights in another file"),
        (external_without_the_mark, "weights in another file"),
        (loop, "it has a loop, which need not end"),
        (loop_in_a_branch, "it has a loop, which need not end"),
        (function, "functions of its own"),
        (foreign, r"an operator's domain: got 'com.evil\x1b[2J'; expected one of '', 'ai.onnx', 'com.microsoft'"),
        (sparse, "sparse weights"),
        (training, "instructions for training"),
    ],
)
def test_a_stage_file_reaches_nowhere_and_ends(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = onnx.load_model_from_string(TOY)
    change(model)
    assert words in fails(tmp_path, model.SerializeToString())


def test_a_second_graph_in_the_file_is_looked_through_too(tmp_path: Path) -> None:
    """Protobuf merges a field that stands twice; onnxruntime would see the nodes of both."""
    more = onnx.ModelProto()
    loop(more)
    assert "it has a loop" in fails(tmp_path, TOY + more.SerializeToString())


def test_the_default_place_of_weights_may_be_written_out(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(TOY)
    for weight in model.graph.initializer:
        weight.data_location = TensorProto.DEFAULT
    data = model.SerializeToString()
    assert len(data) > len(TOY)
    manifest = write_export(tmp_path, SINGLE)
    (tmp_path / "stage1.onnx").write_bytes(data)
    manifest["stages"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    write_manifest(tmp_path, manifest)
    with Dispatcher(tmp_path) as run:
        assert run(images_of([[0.5, 0, 0, 0]])).stage.tolist() == [1]


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x06abORTM" + TOY,  # onnxruntime's own format, behind what protobuf skips
        b"\x0b" + TOY,  # a group
        b"\x3a\xff\xff\xff\xff\x7f",  # a graph longer than the file
        b"\xba\x80\x80\x80\x10\x00",  # a field whose number only looks like the graph's
        b"\x80" * 11,  # a number without an end
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_protobuf_message_or_reads_in_two_ways_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "not an ONNX file" in fails(tmp_path, data)


def test_a_file_that_only_keeps_the_reader_busy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MOST_FIELDS", 1000)
    assert "more than 1000 fields" in fails(tmp_path, b"\x08\x01" * 2000)


def test_a_file_larger_than_protobuf_allows_is_not_read(tmp_path: Path) -> None:
    write_export(tmp_path, SINGLE)
    with (tmp_path / "stage1.onnx").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(DispatcherError, match=r"stage1\.onnx: larger than 2147483648 bytes"):
        Dispatcher(tmp_path)


def test_a_declared_shape_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    text = stage_text(1, SINGLE[0]).replace("float[N,4] output", "float[N,M] output")
    manifest = write_export(tmp_path, SINGLE, texts=[text])
    manifest["output"]["shape"] = [None, 2**20, 2**20]
    write_manifest(tmp_path, manifest)
    with pytest.raises(DispatcherError, match=r"output\.shape: got .* at most 2147483648 elements"):
        Dispatcher(tmp_path)

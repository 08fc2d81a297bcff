"""A folder is published only after its own dispatcher has opened and run it, by whatever command it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import random_images
from s2d_runtime import Dispatcher, dispatcher
from text_nets import residual
from tiny import Listener, ask, make_folder, use_tiny_effort, written_plan

from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.requantize import Requantization, requantize
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.errors import OutputError
from s2d_convert.exporting.folder import FolderWriter, new_folder, read_stages, trial_folder
from s2d_convert.exporting.provenance import recorded_preprocess
from s2d_convert.workflows.recalibrate import CalibrateOptions, calibrate_folder
from s2d_convert.workflows.split_model import SplitOptions, open_export, split_model


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def wrongly_shaped(data: bytes) -> bytes:
    """A stage file that is a whole model, but fails as soon as it runs."""
    model = onnx.load_from_string(data)
    name = model.graph.output[0].name
    last = next(node for node in model.graph.node if name in node.output)
    last.output[:] = [f"{name}/before" if out == name else out for out in last.output]
    five = onnx.numpy_helper.from_array(np.array([5, 7, 11], np.int64), f"{name}/shape")
    model.graph.initializer.append(five)
    model.graph.node.append(onnx.helper.make_node("Reshape", [f"{name}/before", five.name], [f"{name}/wrong"]))
    zero = onnx.numpy_helper.from_array(np.array([0], np.int64), f"{name}/axis")
    model.graph.initializer.append(zero)
    model.graph.node.append(onnx.helper.make_node("ReduceSum", [f"{name}/wrong", zero.name], [f"{name}/sum"]))
    model.graph.node.append(onnx.helper.make_node("Reshape", [f"{name}/sum", five.name], [name]))
    return model.SerializeToString()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file in a folder of its own."""
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def split_folder(model: Path) -> Path:
    split_model(SplitOptions(model, plan="width", stages=2, out=model.parent / "out"))
    return model.parent / "out"


def parts_of(folder: Path) -> tuple[Any, Any]:
    with Dispatcher(folder) as runner:
        return runner.manifest, read_stages(folder, runner.manifest)


def test_a_new_folder_is_whole(model: Path, tmp_path: Path) -> None:
    manifest, stages = parts_of(split_folder(model))
    with new_folder(tmp_path / "again", manifest, stages) as writer:
        assert not (tmp_path / "again").exists()
        writer.add_json("plan.json", json.loads((tmp_path / "out" / "plan.json").read_text()))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert (tmp_path / "again" / "dispatcher.py").read_bytes() == Path(dispatcher.__file__).read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], wrongly_shaped])
@pytest.mark.parametrize("registered", [True, False])
def test_a_broken_stage_file_publishes_nothing(model: Path, tmp_path: Path, damage: Any, registered: bool) -> None:
    manifest, stages = parts_of(split_folder(model))
    files = [damage(stage.model.SerializeToString()) for stage in stages]
    before = contents(tmp_path)

    def write() -> None:
        with new_folder(tmp_path / "again", manifest, stages) as writer:
            if registered:
                writer.add_stages(files)  # with their hashes: only opening and running them can tell
            else:
                writer.add(manifest.stages[1].file, files[1])

    with pytest.raises(OutputError, match=r"does not pass the runtime's checks"):
        write()
    assert contents(tmp_path) == before


def test_what_goes_wrong_in_the_block_publishes_nothing(model: Path, tmp_path: Path) -> None:
    manifest, stages = parts_of(split_folder(model))
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "again", manifest, stages):
        raise KeyboardInterrupt
    assert contents(tmp_path) == before


def test_a_manifest_that_the_runtime_refuses_is_a_fault_of_the_export(model: Path, tmp_path: Path) -> None:
    manifest, stages = parts_of(split_folder(model))
    with (
        pytest.raises(OutputError, match=r"does not pass the runtime's checks \(target: got 'luck'"),
        new_folder(tmp_path / "again", manifest, stages) as writer,
    ):
        writer.update(target="luck")
    assert not (tmp_path / "again").exists()


def test_a_trial_folder_runs_like_a_published_one(model: Path) -> None:
    manifest, stages = parts_of(split_folder(model))
    images = random_images(residual(), 5, 0)["image"]
    with trial_folder(manifest, stages) as runner, Dispatcher(model.parent / "out") as published:
        np.testing.assert_array_equal(runner(images, exits=False).output, published(images, exits=False).output)


# Every command that writes a folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, its images, and what it was converted to by a written plan."""
    place = make_folder(tmp_path_factory.mktemp("converted"), 400)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_effort(patch)
        convert(ask(place, plan=written_plan(place)), Listener())
    return place


def split(place: Path) -> None:
    split_model(SplitOptions(place / "tiny.onnx", plan="depth", stages=2, out=place / "new"))


def convert_anew(place: Path) -> None:
    convert(ask(place, plan=written_plan(place), out=place / "new"), Listener())


def calibrate(place: Path) -> None:
    calibrate_folder(CalibrateOptions(place / "out", place / "data.npz"))


def quantize(place: Path) -> None:
    with open_export(place / "out") as (runner, static):
        dataset = load_data(
            place / "data.npz", preprocess=recorded_preprocess(runner.manifest), space=LabelSpace(4), seed=0
        )
        requantize(
            place / "out", place / "new", Requantization("int8"), dataset=dataset, static=static, note=lambda _: None
        )


@pytest.mark.parametrize("command", [split, convert_anew, calibrate, quantize])
def test_no_command_publishes_what_does_not_run(converted: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    use_tiny_effort(monkeypatch)
    try_out = FolderWriter.try_out

    def try_broken(writer: FolderWriter) -> None:
        """Break a stage at the last moment, when the command has done all that it does."""
        files: Sequence[bytes] = [(writer.folder / stage.file).read_bytes() for stage in writer.manifest.stages]
        writer.add_stages([*files[:-1], wrongly_shaped(files[-1])])
        try_out(writer)

    monkeypatch.setattr(FolderWriter, "try_out", try_broken)
    before = contents(converted / "out")
    with pytest.raises(OutputError, match="does not pass the runtime's checks"):
        command(converted)
    assert contents(converted / "out") == before
    assert not (converted / "new").exists()
    assert not list(converted.glob(".*.partial"))

"""Kits and what becomes of them: files without weights that run the same kernels, and a conversion for another device."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from chain_law import analysed
from text_nets import residual
from tiny import Listener, ask, make_folder, use_tiny_effort

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.cli import profile as cli_profile
from s2d_convert.cli.main import main
from s2d_convert.conversion import context
from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.latency.board import read_board
from s2d_convert.latency.device_table import fit
from s2d_convert.latency.kernels import work_of
from s2d_convert.slicing.chain import Chain, build_stages
from s2d_convert.workflows import profile_kit as kit
from s2d_convert.workflows.profile_kit import KitOptions, weightless, write_kit
from s2d_convert.workflows.split_model import make_plan

FEW_FILES = 24


def operators(model: onnx.ModelProto, path: Path) -> list[str]:
    """What onnxruntime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(n.op_type for n in onnx.load(path).graph.node)


def test_a_file_without_weights_runs_the_same_kernels(tmp_path: Path) -> None:
    graph, channels, weights = analysed(nets.export("resnet_option_a", width=2.0))
    (plan,) = make_plan(AnalysedModel(graph, channels), "width", 2).chains
    for stage in build_stages([Chain(AnalysedModel(graph, channels), plan, weights)]):
        small = weightless(stage.model)
        onnx.checker.check_model(small)
        assert operators(small, tmp_path / "small.onnx") == operators(stage.model, tmp_path / "full.onnx")
        assert work_of(small, block=8) == work_of(stage.model, block=8)
        assert small.ByteSize() < 0.5 * stage.model.ByteSize()


def test_a_kit_is_small_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_kit(tmp_path / "model.onnx", tmp_path / name, KitOptions(seed=seed, files=10))
    one, two, other = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert sum(map(len, one.values())) < 200_000
    assert len({data for name, data in one.items() if name.startswith("stage")}) == 10


def test_a_model_with_hardly_any_plans_gets_no_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    monkeypatch.setattr(kit, "MOST_PLANS", 3)
    with pytest.raises(ModelError, match="different stages"):
        write_kit(tmp_path / "model.onnx", tmp_path / "kit", KitOptions())
    assert not (tmp_path / "kit").exists()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, its data, and the board file of this machine."""
    folder = make_folder(tmp_path_factory.mktemp("profiled"), 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_profile, "KitOptions", partial(KitOptions, files=FEW_FILES))
        main(["profile", str(folder / "tiny.onnx"), "--save", str(folder / "board.json"), "--kit", str(folder / "kit"),
              "--passes", "1", "--name", "A board"])  # fmt: skip
    return folder


def test_both_a_kit_and_the_table_of_this_machine(profiled: Path) -> None:
    assert (profiled / "kit" / "s2d_profile.py").is_file()
    board = read_board(profiled / "board.json")
    assert board.machine == "A board"
    assert len(board.ratios) == len(list((profiled / "kit").glob("stage*.onnx")))


def test_a_conversion_for_another_device_takes_its_latencies_from_the_table(
    profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured here")

    use_tiny_effort(monkeypatch)
    monkeypatch.setattr(context, "Meter", refuse)
    out, listener = tmp_path / "out", Listener()
    result = convert(ask(profiled, out=out, latency=profiled / "board.json", max_latency=50.0), listener)
    assert any("A board" in text and "predicted" in text for text in listener.texts)
    table = fit(read_board(profiled / "board.json"))
    manifest = json.loads((out / "manifest.json").read_text())
    files = [(out / stage["file"]).read_bytes() for stage in manifest["stages"]]
    ratios = table.measure(files).ratios
    assert [s["latency_ratio"] for s in manifest["stages"]] == pytest.approx(ratios, abs=2e-5)
    measured = manifest["measured"]
    assert (measured["latency"], "A board" in measured["machine"]) == ("predicted", True)
    assert measured["worst_latency"] == pytest.approx(sum(ratios))
    assert measured["mean_latency"] == pytest.approx(float(np.array(measured["exit_share"]) @ np.cumsum(ratios)))
    assert measured["static_ms"] == pytest.approx(table.board.static_ms)
    assert manifest["provenance"]["options"]["latency"].endswith("board.json")
    assert result.within_max_latency


def test_a_board_of_another_model_stops_before_anything_is_trained(profiled: Path, tmp_path: Path) -> None:
    onnx.save(residual(), str(tmp_path / "other.onnx"))
    with pytest.raises(UsageError, match=r"measured for the model tiny\.onnx"):
        convert(
            ask(profiled, model=tmp_path / "other.onnx", out=tmp_path / "out", latency=profiled / "board.json"),
            Listener(),
        )
    assert not list(tmp_path.glob("out*"))


def test_a_folder_is_profiled_by_the_model_behind_it(
    profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_profile, "KitOptions", partial(KitOptions, files=FEW_FILES))
    main(["split", str(profiled / "tiny.onnx"), "--out", str(tmp_path / "out")])
    main(["profile", str(tmp_path / "out"), "--kit", str(tmp_path / "kit")])
    again, before = (json.loads((f / "kit.json").read_text()) for f in (tmp_path / "kit", profiled / "kit"))
    assert again == before
    assert "s2d_profile.py" in capsys.readouterr().out

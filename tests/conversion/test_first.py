"""Conversions with a network of the user's own before the model (`--first`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import call
from helpers import assert_close, run
from onnx import numpy_helper
from s2d_runtime import Dispatcher
from tiny import Listener, ask, fresh_place, make_folder, quadrants, written_plan

from s2d_convert.conversion.context import Job
from s2d_convert.conversion.exact import Candidate
from s2d_convert.conversion.pipeline import convert, dry_run
from s2d_convert.errors import ModelError, StaticCheckError, UsageError
from s2d_convert.exporting.single import write_single

FILE = "small.onnx"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its data, made once."""
    return make_folder(tmp_path_factory.mktemp("first"), 700)


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the tiny model, its data and a small network that tells the quadrants by their means."""
    folder = fresh_place(template, tmp_path, monkeypatch)
    write_small(folder / FILE)
    return folder


def write_small(path: Path, *, order: tuple[int, ...] = (0, 1, 2, 3), side: int = 12, layers: int = 0) -> Path:
    """Write the small network: class k is the quadrant with the largest mean. order: of its classes; layers: idle ones that make
    it slow."""
    idle = "".join(f" x{i + 1} = Conv<pads = [1, 1, 1, 1]>(x{i}, same)" for i in range(layers))
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[N, 3, {side}, {side}] picture) => (float[N, 4] scores) {{
            x0 = Conv(picture, grey){idle}
            means = AveragePool<kernel_shape = [{side // 2}, {side // 2}], strides = [{side // 2}, {side // 2}]>(x{layers})
            flat = Flatten(means)
            scores = Gemm<transB = 1>(flat, order)
        }}
    """
    model = onnx.parser.parse_model(text)
    same = np.zeros((32, 32, 3, 3))
    same[np.arange(32), np.arange(32), 1, 1] = 1
    width = 32 if layers else 1
    grey = np.full((width, 3, 1, 1), 1 / 3)
    matrix = np.repeat(np.eye(4)[list(order)][:, None], width, axis=1).reshape(4, -1) * 8 / width
    for name, value in {"grey": grey, "same": same, "order": matrix}.items():
        if name != "same" or layers:
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, path)
    return path


def first(place: Path, **changes: Any) -> Any:
    """Options with the small network alone."""
    return ask(place, **{"first": place / FILE, "plan": "first", "budget": None, **changes})


def test_the_network_is_the_first_chain_before_the_untouched_model(place: Path) -> None:
    listener = Listener()
    result = convert(first(place), listener)
    assert listener.planned == ["export", "measure"]
    assert not {"search", "finals", "fine-tune", "heads"} & set(listener.steps)
    assert any(text.startswith("small.onnx: agrees with the model on") for text in listener.texts)
    manifest = result.manifest
    assert [stage.chain for stage in manifest.stages] == [1, 2]
    assert [stage.image for stage in manifest.stages] == [True, True]
    assert manifest.exactness is not None
    images, _ = quadrants(40, 7)
    with Dispatcher(place / "out") as model:
        assert_close(
            model(images, exits=False).output, run(onnx.load(place / "tiny.onnx"), {"input": images})["logits"]
        )
        everything_leaves = model(images, thresholds=[0.0])
        assert (everything_leaves.stage == 1).all()
        assert_close(everything_leaves.output, run(onnx.load(place / FILE), {"picture": images})["scores"])


def test_the_plan_tells_the_file(place: Path) -> None:
    convert(first(place), Listener())
    plan = json.loads((place / "out" / "plan.json").read_text())
    own, whole = plan["chains"]
    assert own["file"] == FILE
    assert len(own["sha256"]) == 64
    assert whole["taps"] == ["logits"]
    provenance = json.loads((place / "out" / "manifest.json").read_text())["provenance"]
    assert all(layer["made"] == [0, layer["channels"]] for layer in provenance["layers"])
    assert provenance["first_network"] == own
    assert "stage 1: small.onnx, no part of the model" in (place / "out" / "report.html").read_text()
    assert "Stage 1 is small.onnx, a network of its own" in (place / "out" / "README.md").read_text()
    with pytest.raises(
        UsageError,
        match=r"chain 1 is a network of its own, 'small.onnx', which no plan describes; give it with --first",
    ):
        convert(ask(place, out=place / "again", plan=str(place / "out" / "plan.json")), Listener())


def test_the_folder_is_as_any_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(first(place, max_drop=0.2, quantize=None), Listener())
    out, data = str(place / "out"), str(place / "data.npz")
    images, _ = quadrants(9, 7)
    write_single(place / "out", place / "single.onnx", bake=None)
    thresholds = np.array([0.6], np.float32)
    got = run(place / "single.onnx", {"input": images, "thresholds": thresholds})
    with Dispatcher(place / "out") as model:
        expected = model(images, thresholds=[0.6])
    assert_close(got["output"], expected.output)
    assert got["stage"].tolist() == expected.stage.tolist()
    assert call(capsys, "calibrate", out, "--data", data, "--model", str(place / "tiny.onnx"))[0] in (0, 3)
    assert call(capsys, "evaluate", out, "--data", data)[0] in (0, 3)
    assert (place / "out" / "report.html").stat().st_size > 1000


def test_a_first_network_is_quantised_with_the_rest(place: Path) -> None:
    result = convert(first(place, quantize="int8"), Listener())
    assert len(result.manifest.stages) == 2
    assert result.measured.agreement > 0.6


def test_half_the_size_is_resized_in_the_stage(place: Path) -> None:
    write_small(place / FILE, side=6)
    result = convert(first(place), Listener())
    images, _ = quadrants(20, 7)
    with Dispatcher(place / "out") as model:
        got = model(images, thresholds=[0.0]).output
    cells = images.reshape(20, 3, 6, 2, 6, 2).mean(axis=(3, 5))
    assert_close(got, run(onnx.load(place / FILE), {"picture": np.ascontiguousarray(cells)})["scores"])
    assert result.manifest.stages[0].image


def test_classes_in_another_order_are_refused(place: Path) -> None:
    write_small(place / FILE, order=(1, 2, 3, 0))
    with pytest.raises(
        StaticCheckError, match=r"--first .*small.onnx: it agrees with the model on .*its classes are in another order"
    ):
        convert(first(place), Listener())
    assert not (place / "out.run").exists()


def test_another_number_of_classes_is_refused_before_anything_is_done(place: Path) -> None:
    write_small(place / FILE, order=(0, 1, 2))
    model = onnx.load(place / FILE)
    (weight,) = (i for i in model.graph.initializer if i.name == "order")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).reshape(-1, 4)[:3].copy(), "order"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, place / FILE)
    with pytest.raises(ModelError, match="it has 3 classes, the model has 4"):
        convert(first(place), Listener())


def test_a_preprocessing_needs_that_of_the_model(place: Path) -> None:
    with pytest.raises(UsageError, match="how it was made of pixels is not known"):
        convert(first(place, first_preprocess="signed"), Listener())
    known = convert(first(place, preprocess="unit", first_preprocess="unit"), Listener())
    assert known.manifest.stages[0].image


def test_a_network_that_is_slower_than_the_model_is_not_worth_it(place: Path) -> None:
    write_small(place / FILE, layers=24)
    result = convert(first(place), Listener())
    assert result.manifest.stages[0].latency_ratio > 1
    assert result.verdict.worse
    assert "not worth it" in " ".join(result.verdict.sentences)


@pytest.mark.parametrize("mode", ["train", "exact"])
@pytest.mark.parametrize("wins", [True, False])
def test_the_better_of_search_and_first_network_is_written(
    mode: str, wins: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def better(made: Candidate, own: Candidate) -> Candidate:
        if own.conversion.first is None:  # exact mode compares its own two kinds before
            return made
        assert made.conversion.first is None
        return own if wins else made

    monkeypatch.setattr("s2d_convert.conversion.pipeline.better", better)
    listener = Listener()
    plan = "depth" if mode == "exact" else written_plan(place)
    convert(ask(place, first=place / FILE, mode=mode, plan=plan), listener)
    chains = json.loads((place / "out" / "plan.json").read_text())["chains"]
    assert ("file" in chains[0]) is wins
    told = [text for text in listener.texts if "of the static time, against" in text]
    assert len(told) == 1
    assert told[0].startswith("--first is worth more" if wins else "what the tool has made is worth")


def test_an_interrupted_run_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"first": place / FILE, "plan": written_plan(place)}
    monkeypatch.setattr("s2d_convert.conversion.pipeline.better", lambda made, own: own)
    with monkeypatch.context() as patch:
        patch.setattr("s2d_convert.conversion.pipeline._finished", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(ask(place, **asked), Listener())
    convert(ask(place, **asked, resume=True), Listener())
    assert json.loads((place / "out" / "plan.json").read_text())["chains"][0]["file"] == FILE


def interrupt(job: Job, *_arguments: object, **_named: object) -> None:
    raise KeyboardInterrupt


def test_a_dry_run_checks_the_network_and_forecasts_nothing(place: Path) -> None:
    forecast = dry_run(first(place), Listener())
    assert [step.name for step in forecast.steps] == ["export", "measure"]
    assert forecast.expected == ()
    write_small(place / FILE, order=(1, 2, 3, 0))
    with pytest.raises(StaticCheckError, match="its classes are in another order"):
        dry_run(first(place), Listener())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "first"}, "--plan first: means nothing without --first"),
        ({"first_preprocess": "unit"}, "--first-preprocess: means nothing without --first"),
        ({"first_size": (8, 8)}, "--first-size: means nothing without --first"),
        ({"first": Path("small.onnx"), "data": None}, "--first: made-up images do not show where it can be relied on"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        ask(tmp_path, **changes)


def test_the_command_line_takes_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--first",
        str(place / FILE),
        "--plan",
        "first",
        "--data",
        str(place / "data.npz"),
        "--out",
        str(place / "out"),
    ]
    code, out, err = call(capsys, "convert", str(place / "tiny.onnx"), *given, "--device", "cpu")
    assert code in (0, 3, 10), err
    assert "of the static model's time on average" in out

"""Calibration on a device: the converter's thresholds for equal costs, and a folder that changes whole or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from example_exports import PREPROCESS, Example, make_example
from helpers import open_session
from hypothesis import given, settings
from hypothesis import strategies as st
from s2d_runtime import Dispatcher, DispatcherError, Manifest
from s2d_runtime.calibrate import Options, calibrate, run, undo
from s2d_runtime.calibrate.__main__ import main
from s2d_runtime.calibrate.answers import Answers
from s2d_runtime.calibrate.data import read_data
from s2d_runtime.calibrate.timing import Costs, Latency
from s2d_runtime.policies import rounded
from text_nets import LABEL_NETS
from toy_exports import CASCADE, images_of, write_export, write_manifest

from s2d_convert.calibration.careful import bounded_policies
from s2d_convert.calibration.policies import Chosen, Scores, accurate_policies, budget_policies
from s2d_convert.exporting.folder import read_stages
from s2d_convert.exporting.quantize import int8_stage
from s2d_convert.exporting.renewal import undo as undo_of_the_converter

BLOCKED = ("torch", "onnx", "s2d_convert", "scipy", "PIL", "click", "rich", "starlette", "prometheus_client")
RUN_BLOCKED = """
import sys, runpy
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it fails
del sys.argv[1]
runpy.run_module("s2d_runtime.calibrate", run_name="__main__", alter_sys=True)
"""
COST = (0.3, 0.5)


# --- the same thresholds as the converter's -------------------------------------------------------------------------


def scores_of(count: int, seed: int, *, stages: int, labelled: bool) -> tuple[Scores, list[float]]:
    """Stages that grow better; logits, and the cost of each stage."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, count)
    clean = np.eye(4)[truth] * 3
    logits = np.stack([clean + rng.normal(0, 3 / (k + 1), clean.shape) for k in range(stages)]).astype(np.float32)
    static = (clean + rng.normal(0, 1, clean.shape)).astype(np.float32)
    scores = Scores(logits, static.argmax(axis=1), truth if labelled else None, static_logits=static)
    return scores, rng.uniform(0.1, 0.6, stages).tolist()


def same_answers(scores: Scores, temperatures: list[float]) -> Answers:
    """What the device would collect on these images."""
    return Answers(
        confidence=scores.confidence(temperatures),
        correct=scores.correct,
        expected=scores.expected,
        static=scores.static_correct,
        as_last=scores.as_last,
        as_static=scores.task.agree(scores.classes, scores.static_classes),
        labelled=scores.labels is not None,
    )


def manifest_in(mode: str | None, *, default: float = 0.6) -> Manifest:
    """A manifest of which only the mode and the default budget matter; "accurate" is one without a budget in mode train."""
    asked = (
        {"mode": "train", "budget": None, "max_loss": 0.03} if mode == "accurate" else {"mode": mode, "budget": default}
    )
    stage: dict[str, Any] = {"sha256": "0" * 64, "chain": 1, "image": True, "links_in": [], "links_out": [],
                             "temperature": 1.0, "latency_ratio": 1.0, "macs": 1, "parameters": 1}  # fmt: skip
    policy = {"budget": default, "thresholds": [0.5], "expected_latency": 1.0, "expected_accuracy": 1.0,
              "exit_share": [0.0, 1.0], "reached": True, "disagreement": None, "confidence_histogram": [],
              "promise": None}  # fmt: skip
    return Manifest.from_json({
        "format": "s2d-convert", "version": 1, "input": {"name": "x", "shape": [None, 1], "dtype": "float32"},
        "output": {"shape": [None, 4], "kind": "logits"}, "target": "accuracy", "data": "labelled", "exactness": None,
        "stages": [{**stage, "file": "a.onnx"}, {**stage, "file": "b.onnx"}], "policies": [policy],
        "default_budget": default, "preprocess": None, "measured": {}, "provenance": {"options": asked},
    })  # fmt: skip


def options(**given: Any) -> Options:
    return Options(folder=Path("OUT"), data=Path("data.npz"), **given)


@pytest.mark.parametrize("labelled", [True, False])
@settings(max_examples=12, deadline=None)
@given(st.integers(5, 300), st.integers(0, 2**16), st.integers(1, 3), st.sampled_from([0.3, 0.6, 1.0]))
def test_equal_costs_and_answers_give_equal_policies(
    labelled: bool, count: int, seed: int, stages: int, budget: float
) -> None:
    scores, cost = scores_of(count, seed, stages=stages, labelled=labelled)
    warm = [1.0, 1.5, 0.7][:stages]
    said = same_answers(scores, warm)
    pairs: list[tuple[str | None, Options, Chosen]] = [
        ("train", options(budget=budget), budget_policies(scores, warm, cost=cost, budget=budget)),
        ("train", options(), budget_policies(scores, warm, cost=cost, budget=0.6)),
        ("train", options(max_loss=0.02), accurate_policies(scores, warm, cost=cost, max_loss=0.02)),
        ("exact", options(budget=budget), bounded_policies(scores, warm, cost=cost, budget=budget)),
        ("accurate", options(), accurate_policies(scores, warm, cost=cost, max_loss=0.03)),
        ("accurate", options(budget=budget), budget_policies(scores, warm, cost=cost, budget=budget)),
        (None, options(max_loss=0.05), bounded_policies(scores, warm, cost=cost, budget=None, max_loss=0.05)),
    ]
    for mode, asked, chosen in pairs:
        row, default = run.choose(manifest_in(mode), said, cost=cost, options=asked)
        assert tuple(row) == chosen.policies
        assert default == chosen.default_budget


# --- a folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """A split folder, and 150 images with the labels of its static model's own answers, some of them wrong."""
    made = make_example(tmp_path, images=150)
    with Dispatcher(made.folder) as runner:
        labels = runner(made.images, exits=False).output.argmax(axis=1)
    labels[::9] = (labels[::9] + 1) % 3
    np.savez(tmp_path / "data.npz", images=made.images, labels=labels)
    np.savez(tmp_path / "pixels.npz", images=made.pixels)
    return made


@pytest.fixture
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that take COST, without a clock."""

    def latency(*args: Any) -> Latency:
        expected = args[3].expected_latency
        return Latency(expected, expected, sum(COST))

    monkeypatch.setattr(run, "stage_costs", lambda *_, **__: Costs(COST, 2.0))
    monkeypatch.setattr(run, "policy_latency", latency)


def asked(example: Example, data: str = "data.npz", **given: Any) -> Options:
    place = example.folder.parent
    return Options(folder=example.folder, data=place / data, model=place / "model.onnx", name="A board", **given)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("fixed_times")
def test_a_folder_gets_the_policies_that_the_converter_would_choose(example: Example) -> None:
    done = calibrate(asked(example, budget=0.5))
    after = Manifest.load(example.folder)
    assert after == Manifest.from_json(json.loads(json.dumps(done.manifest.to_json())))
    with np.load(example.folder.parent / "data.npz") as data, Dispatcher(example.folder) as runner:
        images, labels = data["images"], data["labels"]
        first, last = runner(images, thresholds=[0.0]), runner(images, exits=False)
        answer = runner(images)
    logits = np.stack([first.output, last.output])
    scores = Scores(logits, last.output.argmax(axis=1), labels)
    chosen = budget_policies(scores, [s.temperature for s in after.stages], cost=COST, budget=0.5)
    for found, expected in zip(after.policies, map(rounded, chosen.policies), strict=True):
        assert found.thresholds == pytest.approx(expected.thresholds, abs=1e-6)  # the stages' own confidences
        assert (found.budget, found.exit_share, found.expected_accuracy) == (
            expected.budget, expected.exit_share, expected.expected_accuracy,
        )  # fmt: skip
    assert after.default_budget == 0.5
    assert [stage.latency_ratio for stage in after.stages] == list(COST)
    assert (after.target, after.data) == ("accuracy", "labelled")
    assert after.measured["machine"].startswith("A board, onnxruntime ")
    assert after.measured["correct_static"] == pytest.approx(1 - 17 / 150)
    assert np.bincount(answer.stage, minlength=3)[1:] / 150 == pytest.approx(after.default_policy.exit_share, abs=1e-5)
    assert done.warnings == ()


@pytest.mark.usefixtures("fixed_times")
def test_without_labels_the_static_model_speaks(example: Example) -> None:
    after = calibrate(asked(example, "pixels.npz", max_loss=0.05)).manifest
    assert (after.target, after.data) == ("agreement", "unlabelled")
    assert after.measured["correct_static"] is None
    assert after.measured["agreement"] >= 0.95
    assert after.default_policy.expected_accuracy == pytest.approx(after.measured["agreement"], abs=1e-5)


@pytest.mark.usefixtures("fixed_times")
@pytest.mark.parametrize("make", LABEL_NETS, ids=lambda net: net.__name__)
def test_an_image_counts_as_right_if_all_its_labels_are(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    made = make_example(tmp_path, images=150, model=make())
    with Dispatcher(made.folder) as runner:
        given = runner(made.images, exits=False).output > 0.5
    labels = given.astype(np.int64)
    labels.reshape(150, -1)[::9, 0] ^= 1
    np.savez(tmp_path / "data.npz", images=made.images, labels=labels)
    after = calibrate(asked(made, budget=1.0)).manifest
    with Dispatcher(made.folder) as runner:
        said = runner(made.images).output > 0.5
    right = (said == labels).reshape(150, -1).all(axis=1)
    assert after.measured["correct_static"] == pytest.approx(1 - 17 / 150)
    assert after.measured["correct_dynamic"] == pytest.approx(right.mean())
    assert after.default_policy.expected_accuracy == pytest.approx(right.mean(), abs=1e-5)
    assert after.target == "accuracy"
    assert after.target_name == ("accuracy" if labels.ndim == 1 else "exact match")


@pytest.mark.usefixtures("fixed_times")
@pytest.mark.parametrize("back", [undo, undo_of_the_converter])
def test_the_way_back(example: Example, back: Any) -> None:
    (example.folder / "report.html").write_text("now", encoding="utf-8")
    before = contents(example.folder)
    (example.folder / "undo").mkdir()
    (example.folder / "undo" / "report.html").write_text("of an earlier calibration", encoding="utf-8")
    calibrate(asked(example))
    calibrated = contents(example.folder)
    assert calibrated["manifest.json"] != before["manifest.json"]
    assert {name for name in calibrated if name not in before} == {str(Path("undo", "manifest.json"))}
    back(example.folder)
    assert contents(example.folder) == before


@pytest.mark.usefixtures("fixed_times")
def test_a_folder_that_does_otherwise_is_left_as_it_was(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(example.folder)

    def differently(folder: Path, **given: Any) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for policy in manifest["policies"]:
            policy["thresholds"] = [1.01]
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        run_check(folder, **given)

    run_check = run.check
    monkeypatch.setattr(run, "check", differently)
    with pytest.raises(DispatcherError, match="was expected; the manifest is as it was"):
        calibrate(asked(example, budget=0.4))
    assert contents(example.folder) == before


def test_times_that_contradict_each_other_are_told(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([(0.5, 0.5), (0.1, 0.2), (0.3, 0.6), (0.3, 0.6)])
    monkeypatch.setattr(run, "stage_costs", lambda *_, **__: Costs(next(costs), 2.0))
    monkeypatch.setattr(run, "policy_latency", lambda *_: Latency(3.0, 3.0, 3.0))
    done = calibrate(asked(example))
    assert [stage.latency_ratio for stage in done.manifest.stages] == pytest.approx([0.3, 0.55])  # the medians
    assert [w.partition(":")[0] for w in done.warnings] == ["the machine is busy"]


def quantised(example: Example) -> None:
    """Put the stages of a folder into INT8, as the workstation does."""
    path = example.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = {"image": example.images}
    for stage, entry in zip(
        read_stages(example.folder, Manifest.load(example.folder)), manifest["stages"], strict=True
    ):
        feeds = {node.name: values[node.name] for node in stage.model.graph.input}
        model = int8_stage(stage.model, feeds)
        values |= dict(zip([o.name for o in model.graph.output], open_session(model).run(None, feeds), strict=True))
        (example.folder / entry["file"]).write_bytes(model.SerializeToString())
        entry["sha256"] = hashlib.sha256(model.SerializeToString()).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_an_int8_folder_is_calibrated_by_what_its_own_stages_answer(example: Example) -> None:
    quantised(example)
    after = calibrate(asked(example, seconds=0.05)).manifest
    with np.load(example.folder.parent / "data.npz") as data, Dispatcher(example.folder) as runner:
        answer = runner(data["images"])
        right = (answer.output.argmax(axis=1) == data["labels"]).mean()
    assert right == pytest.approx(after.default_policy.expected_accuracy, abs=1e-5)
    assert right == pytest.approx(after.measured["correct_dynamic"])


def test_a_last_stage_that_is_the_static_model_stands_for_it(tmp_path: Path) -> None:
    manifest = write_export(tmp_path, CASCADE)
    write_manifest(tmp_path, manifest | {"exactness": {"equal": "identical", "max_difference": 0.0}})
    np.savez(tmp_path / "data.npz", images=images_of(np.random.default_rng(0).uniform(0, 1, (120, 4))))
    after = calibrate(Options(tmp_path, tmp_path / "data.npz", seconds=0.05)).manifest
    assert after.target == "agreement"
    assert len(after.policies[0].confidence_histogram) == 2


def test_it_runs_without_torch_or_onnx(example: Example) -> None:
    place = example.folder.parent
    command = [sys.executable, "-c", RUN_BLOCKED, ",".join(BLOCKED), "OUT", "data.npz", "--model", "model.onnx"]
    done = subprocess.run([*command, "--seconds", "0.05"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    assert "static" in done.stdout
    assert "Traceback" not in done.stderr
    assert Manifest.load(example.folder).measured["images"] == 150


# --- what cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["OUT"], "data: give an .npz"),
        (["OUT", "nothing.npz"], "nothing.npz: cannot be read"),
        (["OUT", "model.onnx"], "model.onnx: cannot be read"),
        (["OUT", "small.npz"], "images are float32 [2, 3, 4, 4]; expected float32 [B, 3, 8, 8]"),
        (["OUT", "empty.npz"], "empty.npz: holds no images"),
        (["OUT", "nan.npz"], "images hold NaN"),
        (["OUT", "labels.npz"], "expected [2] whole numbers from 0 to 2"),
        (["OUT", "objects.npz"], "objects.npz: cannot be read"),
        (["OUT", "data.npz"], "--model: give the static model's ONNX file"),
        (["OUT", "data.npz", "--model", "data.npz"], "data.npz: cannot be opened"),
        (["OUT", "data.npz", "--model", "model.onnx", "--budget", "2"], "--budget 2: above 0 and at most 1"),
        (["OUT", "data.npz", "--budget", "0.5", "--max-loss", "0.1"], "exclude each other"),
        (["nowhere", "data.npz"], "nowhere"),
        (["OUT", "--undo"], "OUT: nothing to undo"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    monkeypatch.chdir(example.folder.parent)
    two = example.images[:2]
    np.savez("small.npz", images=two[:, :, :4, :4])
    np.savez("empty.npz", images=two[:0])
    np.savez("nan.npz", images=np.full_like(two, np.nan))
    np.savez("labels.npz", images=two, labels=np.array([0, 3]))
    np.savez("objects.npz", images=np.array([{}, {}], dtype=object))
    before = contents(example.folder)
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {err[7:].strip()}\n")
    assert words in err
    assert contents(example.folder) == before


def test_pixels_become_model_input(example: Example) -> None:
    manifest = Manifest.load(example.folder)
    found = read_data(example.folder.parent / "pixels.npz", manifest)
    np.testing.assert_array_equal(found.images, PREPROCESS(example.pixels))
    assert found.labels is None
    unknown = replace(manifest, preprocess={**(manifest.preprocess or {}), "known": False})
    for other in (unknown, replace(manifest, preprocess=None)):
        with pytest.raises(DispatcherError, match="or uint8 pixels"):
            read_data(example.folder.parent / "pixels.npz", other)

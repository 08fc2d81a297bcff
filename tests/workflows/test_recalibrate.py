"""`s2d calibrate` on a converted tiny model: what changes, what a reader sees, the way back, the promise, bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import call
from helpers import assert_close
from PIL import Image
from s2d_runtime import Dispatcher, Manifest, Promise
from s2d_runtime.calibrate.data import read_data
from tiny import EFFORT, TINY, Listener, ask, make_folder, quadrants, turn_answers, written_plan

from s2d_convert.calibration.thresholds import confidences
from s2d_convert.conversion import options
from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import PromiseError
from s2d_convert.exporting import timing
from s2d_convert.exporting.renewal import undo
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.workflows import recalibrate
from s2d_convert.workflows.recalibrate import CalibrateOptions, calibrate_folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, converted once by a written plan, and images that the conversion did not see."""
    place = make_folder(tmp_path_factory.mktemp("converted"), 700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "EFFORTS", {**options.EFFORTS, TINY: EFFORT})
        convert(ask(place, plan=written_plan(place), preprocess="raw"), Listener())
    images, labels = quadrants(900, 11)
    np.savez(place / "fresh.npz", images=images, labels=labels)
    np.savez(place / "unlabelled.npz", images=images)
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, where latencies are measured in short."""
    monkeypatch.setattr(timing, "SECONDS", 0.05)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def manifest_of(place: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((place / "out" / "manifest.json").read_text())
    return loaded


def again(place: Path, **changes: Any) -> recalibrate.Calibrated:
    """Calibrate the copy's folder."""
    plain: dict[str, Any] = {"folder": place / "out", "data": place / "fresh.npz", "static": place / "tiny.onnx"}
    return calibrate_folder(CalibrateOptions(**{**plain, **changes}))


def test_the_folder_does_what_its_new_manifest_says(place: Path) -> None:
    before = manifest_of(place)
    found = again(place, budget=0.6)
    after = manifest_of(place)
    assert after == json.loads(json.dumps(found.manifest.to_json()))
    assert after["default_budget"] == 0.6
    assert [s["temperature"] for s in after["stages"]] != [s["temperature"] for s in before["stages"]]
    assert [s["macs"] for s in after["stages"]] == [s["macs"] for s in before["stages"]]
    images, labels = quadrants(900, 11)
    with Dispatcher(place / "out") as runner:
        answer = runner(images)
        policy = runner.policy
    share = np.bincount(answer.stage, minlength=len(after["stages"]) + 1)[1:] / 900
    np.testing.assert_allclose(share, policy.exit_share, atol=1e-3)
    assert (answer.output.argmax(axis=1) == labels).mean() == pytest.approx(policy.expected_accuracy, abs=2e-3)
    assert after["measured"]["images"] == 900
    assert "<svg" in (place / "out" / "report.html").read_text()


def test_the_new_temperatures_are_inside_the_files(place: Path) -> None:
    found = again(place).manifest
    images, _ = quadrants(50, 3)
    with Dispatcher(place / "out") as runner:
        alone = runner(images, exits=False)
    assert len({s.temperature for s in found.stages}) == len(found.stages)
    expected = confidences(alone.output[None], [found.stages[-1].temperature])[0]
    assert_close(alone.confidence, expected)


def test_undo_brings_back_every_byte(place: Path) -> None:
    out = place / "out"
    before = contents(out)
    again(place)
    undo(out)
    assert contents(out) == before
    again(place)
    assert (out / "manifest.json").read_bytes() != before["manifest.json"]
    once = (out / "manifest.json").read_bytes(), (out / "report.html").read_bytes()
    again(place, data=place / "unlabelled.npz")
    stages = len(manifest_of(place)["stages"])
    assert len(list(out.glob("stage*.onnx"))) <= 3 * stages  # as converted, and the last two calibrations
    undo(out)
    assert ((out / "manifest.json").read_bytes(), (out / "report.html").read_bytes()) == once
    assert len(list(out.glob("stage*.onnx"))) <= 2 * stages
    with Dispatcher(out) as runner:
        assert runner.manifest.data == "labelled"


def test_packed_images_are_those_that_a_device_calibrates_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place / "out")
    code, out, err = call(capsys, "calibrate", "out", "--data", "fresh.npz", "--pack", "packed.npz")
    assert (code, err) == (0, "")
    assert "python -m s2d_runtime.calibrate out packed.npz" in out
    assert contents(place / "out") == before
    images, labels = quadrants(900, 11)
    found = read_data(place / "packed.npz", Manifest.load(place / "out"))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    for y, row in enumerate(np.random.default_rng(0).integers(0, 256, (30, 20, 12, 3), np.uint8)):
        (place / "pictures" / str(y % 4)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(row).save(place / "pictures" / str(y % 4) / f"{y}.png")
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    manifest["preprocess"]["known"] = True
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert call(capsys, "calibrate", "out", "--data", "pictures", "--pack", "packed.npz")[0] == 0
    found = read_data(place / "packed.npz", Manifest.load(place / "out"))
    assert found.images.shape == (30, 3, 12, 12)
    assert sorted(np.bincount(found.labels if found.labels is not None else [])) == [7, 7, 8, 8]


def test_an_unlabelled_calibration_speaks_of_agreement(place: Path) -> None:
    found = again(place, data=place / "unlabelled.npz").manifest
    assert (found.target, found.data) == ("agreement", "unlabelled")
    assert found.measured["correct_static"] is None


def test_every_policy_keeps_the_promise_on_other_images(place: Path) -> None:
    found = again(place, max_drop=0.1)
    assert found.reached
    policies = found.manifest.policies
    assert all(p.promise == Promise(0.1, 0.95, 720) for p in policies)
    assert found.manifest.default_budget == policies[0].budget
    assert policies[0].expected_latency == min(p.expected_latency for p in policies)
    images, labels = quadrants(4000, 99)
    static = StaticModel(load_graph(place / "tiny.onnx"))
    right = static.logits(images).argmax(axis=1) == labels
    with Dispatcher(place / "out") as runner:
        for budget in [p.budget for p in policies]:
            drop = right.mean() - (runner(images, budget=budget).output.argmax(axis=1) == labels).mean()
            assert drop <= 0.1
        assert runner.set_budget(policies[0].budget / 2).budget == policies[0].budget  # cheaper ones are not there


def test_the_promise_wins_over_the_budget(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "calibrate out --data fresh.npz --model tiny.onnx --max-drop 0.1 --budget 0.01"
    code, out, err = call(capsys, *args.split())
    assert code == 3
    assert "the promise wins over the budget: asked was 0.01" in err
    assert "at most 10 % below the static model's, with 95 % confidence" in " ".join(out.split())
    policy = next(p for p in manifest_of(place)["policies"] if p["budget"] == 0.01)
    assert (policy["reached"], policy["promise"]["max_drop"]) == (False, 0.1)


def test_a_promise_for_every_class_is_told_beside_the_policies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "calibrate out --data fresh.npz --model tiny.onnx --max-drop 0.1"
    code, out, err = call(capsys, *args.split(), "--per-class")
    assert code == 0, err
    assert "Promise, for every budget: accuracy of every class is at most 10 % below" in " ".join(out.split())
    manifest = manifest_of(place)
    assert all(set(p["promise"]) == {"max_drop", "confidence", "images"} for p in manifest["policies"])
    tested = manifest["provenance"]["promise_per_class"]
    assert list(tested) == ["0", "1", "2", "3"]
    assert sum(tested.values()) == manifest["policies"][0]["promise"]["images"] == 720
    assert "accuracy of every class is at most" in (place / "out" / "report.html").read_text()
    assert call(capsys, *args.split())[0] == 0
    assert "promise_per_class" not in manifest_of(place)["provenance"]
    code, _, err = call(capsys, *args.split(), "--max-drop", "0.02", "--per-class")
    assert (code, "too few images of class '0 (" in err) == (5, True)
    code, _, err = call(capsys, "calibrate", "out", "--data", "fresh.npz", "--per-class")
    assert (code, "--per-class: means nothing without --max-drop" in err) == (2, True)


def test_a_promise_that_the_last_stage_breaks_is_refused(place: Path) -> None:
    manifest = manifest_of(place)
    last = place / "out" / manifest["stages"][-1]["file"]
    stage = onnx.load(last)
    turn_answers(stage)
    onnx.save(stage, last)
    manifest["stages"][-1]["sha256"] = hashlib.sha256(last.read_bytes()).hexdigest()
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    before = contents(place / "out")
    with pytest.raises(PromiseError, match="no policy keeps the promise: the last stage"):
        again(place, max_drop=0.02)
    assert contents(place / "out") == before


def test_without_the_static_model_the_exact_last_stage_speaks_for_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_of(place)
    manifest["provenance"]["model"] = str(place / "gone.onnx")
    manifest["exactness"] = None
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert call(capsys, "calibrate", "out", "--data", "fresh.npz")[0] == 4
    manifest["exactness"] = {"equal": "close", "max_difference": 1e-6}
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = call(capsys, "calibrate", "out", "--data", "unlabelled.npz", "--max-drop", "0.05")
    assert code == 0, err
    assert "the static model is not there" in err
    assert manifest_of(place)["measured"] == {}
    with Dispatcher(place / "out") as runner:
        images, _ = quadrants(3000, 98)
        apart = runner(images).output.argmax(axis=1) != runner(images, exits=False).output.argmax(axis=1)
    assert apart.mean() <= 0.05


def test_images_of_the_conversion_are_warned_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(place)
    manifest["provenance"]["options"]["data"] = str((place / "data.npz").resolve())
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = call(capsys, "calibrate", "out", "--data", "data.npz", "--model", "tiny.onnx")
    assert code in (0, 3)  # whether 0.7 is reached is the machine's business
    assert "training and search have seen them" in " ".join(err.split())


def test_a_reader_never_sees_half(place: Path) -> None:
    images, _ = quadrants(4, 2)
    stop, failures, opened = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                with Dispatcher(place / "out") as runner:
                    opened.append(runner(images).stage.shape)
            except ValueError as error:
                failures.append(error)
            stop.wait(0.03)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(2):
        again(place, seed=seed, data=place / ("fresh.npz" if seed % 2 else "unlabelled.npz"))
    stop.set()
    reader.join()
    assert not failures
    assert opened


def spoil(place: Path) -> None:
    """Data of every bad kind."""
    images, labels = quadrants(60, 5)
    np.savez(place / "small.npz", images=images[:, :, :8, :8], labels=labels)
    np.savez(place / "grey.npz", images=images[:, :1], labels=labels)
    np.savez(place / "one.npz", images=images, labels=np.zeros(60, np.int64))
    np.savez(place / "few.npz", images=images[:10], labels=labels[:10])
    np.savez(place / "sixty.npz", images=images, labels=labels)
    np.savez(place / "equal.npz", images=np.repeat(images[:1], 60, axis=0), labels=labels)
    nan = images.copy()
    nan[7, 0, 0, 0] = np.nan
    np.savez(place / "nan.npz", images=nan, labels=labels)
    (place / "text").mkdir()
    (place / "text" / "notes.md").write_text("no picture")
    (place / "broken").mkdir()
    for k in range(30):
        (place / "broken" / f"{k}.png").write_bytes(b"no picture")
    (place / "same").mkdir()
    for k in range(30):
        Image.fromarray(np.full((12, 12, 3), 7, np.uint8)).save(place / "same" / f"{k}.png")


def test_bad_input_is_one_sentence_and_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(place)
    before = contents(place)
    cases = [
        ("--data small.npz", 5, "(60, 3, 8, 8), expected"),
        ("--data grey.npz", 5, "(60, 1, 12, 12), expected"),
        ("--data one.npz", 5, "have label 0; expected several classes"),
        ("--data few.npz", 5, "got 10 images in all, at least 20"),
        ("--data equal.npz", 5, "are the same picture"),
        ("--data same", 5, "are the same picture"),
        ("--data nan.npz", 5, "1 of 60 images hold NaN or inf, the first is row 7"),
        ("--data text", 5, "'notes.md'; remove them"),
        ("--data broken", 5, "30 of 30 images"),
        ("--data nowhere", 5, "does not exist"),
        (
            "--data sixty.npz --max-drop 0.01",
            5,
            "takes at least 430, even if nothing is lost on them: give at least 538",
        ),
        ("--data unlabelled.npz --max-drop 0.001", 5, "takes at least 2995"),
        ("--data fresh.npz --max-drop 0", 2, "--max-drop 0:"),
        ("--data fresh.npz --max-drop 1", 2, "--max-drop 1:"),
        ("--data fresh.npz --max-drop nan", 2, "--max-drop nan:"),
        ("--data fresh.npz --max-drop 0.05 --confidence 1", 2, "--confidence 1:"),
        ("--data fresh.npz --confidence 1", 2, "--confidence: means nothing without --max-drop"),
        ("--data fresh.npz --budget 0", 2, "--budget 0:"),
        ("--data fresh.npz --seed -1", 2, "--seed -1:"),
        ("", 2, "--data"),
        ("--undo --data fresh.npz", 2, "--undo"),
        ("--undo", 6, "nothing to undo"),
        ("--data fresh.npz --model data.npz", 4, "not the model"),
    ]
    for args, code, words in cases:
        got, _, err = call(capsys, "calibrate", "out", *args.split())
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (got, len(errors)) == (code, 1), (args, err)
        assert words in errors[0], args
        assert "Traceback" not in err
    assert contents(place) == before
    assert call(capsys, "calibrate", "nowhere", "--data", "fresh.npz")[0] == 6


def test_a_conversion_with_a_promise_needs_real_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(place)
    for args, code, words in [
        ("--max-drop 0.01", 2, "made-up images"),
        ("--max-drop 0 --data data.npz", 2, "--max-drop 0:"),
        ("--max-drop 0.01 --confidence 1 --data data.npz", 2, "--confidence 1:"),
        ("--max-drop 0.01 --data data.npz", 5, "takes at least 430"),
        ("--data one.npz", 5, "several classes"),
        ("--data few.npz", 5, "at least 20"),
        ("--data equal.npz", 5, "same picture"),
        ("--data small.npz", 5, "expected"),
    ]:
        got, _, err = call(capsys, "convert", "tiny.onnx", "--out", "other", *args.split())
        assert got == code, err
        assert words in err
        assert not (place / "other").exists()
        assert not (place / "other.run").exists()

"""Whole conversions of a tiny model: what comes out, resuming, and the laws of the exported folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import call
from helpers import assert_close, run
from PIL import Image
from s2d_runtime import Dispatcher, Promise
from tiny import Listener, ask, fresh_place, make_folder, quadrants, written_plan

from s2d_convert.base.clock import Clock
from s2d_convert.conversion import finish
from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import OutputError, PromiseError
from s2d_convert.frontend.load import load_graph


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its data, made once."""
    return make_folder(tmp_path_factory.mktemp("tiny"), 700)


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the tiny model and its data, and a tiny effort."""
    return fresh_place(template, tmp_path, monkeypatch)


def test_a_labelled_conversion_is_whole(place: Path) -> None:
    result = convert(ask(place), Listener())
    out = place / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    for stage in manifest["stages"]:
        assert hashlib.sha256((out / stage["file"]).read_bytes()).hexdigest() == stage["sha256"]
    lines = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"depth", "reinforce", "random", "uniform", "finals"}
    assert all(0 <= line["accuracy"] <= 1 and line["latency"] > 0 for line in lines)
    assert (manifest["target"], manifest["data"]) == ("accuracy", "labelled")
    for policy in manifest["policies"]:
        reached = [sum(counts) for counts in policy["confidence_histogram"]]
        left = [*np.subtract(reached[:-1], reached[1:]), reached[-1]]
        assert np.array(left) / reached[0] == pytest.approx(policy["exit_share"], abs=1e-4)
        assert 0 <= policy["disagreement"] <= 1 - policy["exit_share"][-1] + 1e-4
    measured = manifest["measured"]
    cascade = len({stage["chain"] for stage in manifest["stages"]}) == 2
    last = json.loads((out / "plan.json").read_text())["chains"][-1]["units"]
    whole = all(not {"0", "2"} & {run.partition("x")[0] for run in runs.split()} for runs in last.values())
    assert whole or manifest["exactness"] is None, "the last stage is a part of the model"
    assert not (whole and cascade) or manifest["exactness"] is not None
    assert measured["images"] == result.measured.images == 116  # a third of 700 is held out, in halves
    assert sum(measured["exit_share"]) == pytest.approx(1)
    assert measured["correct_static"] > 0.6
    assert not (place / "out.run").exists()
    assert not list(place.glob(".*partial"))


def test_the_exported_folder_keeps_its_laws(place: Path) -> None:
    convert(ask(place, stages=3), Listener())
    images, _ = quadrants(40, 7)
    graph = load_graph(place / "tiny.onnx")
    with Dispatcher(place / "out") as model:
        whole = model(images)
        assert whole.output.shape == run(graph.to_model(), {"input": images})["logits"].shape
        for row in range(0, 40, 7):
            alone = model(images[row : row + 1])
            assert_close(alone.output[0], whole.output[row])
            assert alone.stage[0] == whole.stage[row]
        stages = len(model.manifest.stages)
        last = model(images, exits=False)
        assert (last.stage == stages).all()
        forced = model(images, thresholds=[1.01] * (stages - 1))
        assert_close(forced.output, last.output)


def test_unlabelled_images_are_judged_by_agreement(place: Path) -> None:
    images, _ = quadrants(400, 3)
    np.savez(place / "data.npz", images=images)
    result = convert(ask(place), Listener())
    assert result.measured.correct_dynamic is None
    assert (result.manifest.target, result.manifest.data) == ("agreement", "unlabelled")


def test_without_data_the_words_are_plain(place: Path) -> None:
    listener = Listener()
    result = convert(ask(place, data=None), listener)
    assert result.manifest.data == "made-up"
    assert any("made up" in text for text in listener.texts)
    with Dispatcher(place / "out") as model:
        assert model(quadrants(5, 0)[0]).output.shape == (5, 4)


def test_class_folders_of_pictures_convert(place: Path) -> None:
    images, labels = quadrants(120, 5)
    pixels = np.clip(128 + 40 * images.transpose(0, 2, 3, 1), 0, 255).astype(np.uint8)
    for row, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = place / "pictures" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{row}.png")
    result = convert(ask(place, data=place / "pictures", preprocess="signed"), Listener())
    assert result.manifest.preprocess is not None
    assert result.manifest.preprocess["size"] == [12, 12]


def test_pixels_are_refused_where_nobody_said_what_becomes_of_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = convert(ask(place, plan=written_plan(place)), Listener())
    assert result.manifest.preprocess is not None
    assert result.manifest.preprocess["known"] is False
    picture = np.zeros((12, 12, 3), np.uint8)
    Image.fromarray(picture).save(place / "one.png")
    np.savez(place / "pixels.npz", images=np.stack([picture] * 30), labels=np.zeros(30, np.int64))
    out = str(place / "out")
    for command in (
        ["run", out, "one.png"],
        ["evaluate", out, "--data", "pixels.npz"],
        ["calibrate", out, "--data", "."],
    ):
        code, _, err = call(capsys, *command[:-1], str(place / command[-1]))
        assert (code, "say with --preprocess" in err) == (5, True), err
    assert call(capsys, "evaluate", out, "--data", str(place / "data.npz"))[0] in (0, 3)


def test_preprocessing_that_was_given_is_recorded_for_pictures(place: Path) -> None:
    listener = Listener()
    result = convert(ask(place, plan=written_plan(place), preprocess="unit"), listener)
    assert result.manifest.preprocess is not None
    assert result.manifest.preprocess["known"] is True
    assert any("recorded for pictures that come later" in text for text in listener.texts)


@pytest.mark.parametrize("tail", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("mode", ["train", "exact", "no data"])
def test_a_model_that_answers_with_probabilities_converts(place: Path, tail: str, mode: str) -> None:
    model = onnx.load(place / "tiny.onnx")
    model.graph.node.append(onnx.helper.make_node(tail, ["logits"], ["answer"], axis=-1))
    model.graph.output[0].name = "answer"
    onnx.save(model, place / "tiny.onnx")
    changes: dict[str, dict[str, Any]] = {
        "train": {"plan": written_plan(place)}, "exact": {"mode": "exact"}, "no data": {"data": None}
    }  # fmt: skip
    result = convert(ask(place, **changes[mode]), Listener())
    assert result.manifest.output.kind == {"Softmax": "probabilities", "LogSoftmax": "log_probabilities"}[tail]
    images, _ = quadrants(50, 3)
    with Dispatcher(place / "out") as runner:
        answer, all_stages = runner(images), runner(images, exits=False)
    sums = answer.output if tail == "Softmax" else np.exp(answer.output)
    assert_close(sums.sum(axis=1), np.ones(50))
    assert_close(all_stages.output, run(place / "tiny.onnx", {"input": images})["answer"])


def test_a_budget_out_of_reach_is_flagged(place: Path) -> None:
    result = convert(ask(place, budget=0.001), Listener())
    assert not result.reached
    policy = next(p for p in result.manifest.policies if p.budget == 0.001)
    assert not policy.reached


@pytest.mark.parametrize("step", ["search", "finals", "fine-tune"])
def test_an_interrupted_run_resumes(place: Path, step: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(ask(place), Listener(interrupt_at=step))
    assert not (place / "out").exists()
    with pytest.raises(OutputError, match="--resume"):
        convert(ask(place), Listener())
    with (place / "out.run" / "search.jsonl").open("a") as trace:
        trace.write('{"torn')
    assert convert(ask(place, resume=True), Listener()).out.exists()
    assert not (place / "out.run").exists()


@pytest.mark.parametrize("step", ["search", "finals", "fine-tune"])
def test_when_the_time_is_stopped_the_best_so_far_is_exported(place: Path, step: str) -> None:
    clock = Clock()
    result = convert(ask(place), Listener(stop=(step, clock)), clock=clock)
    with Dispatcher(result.out) as model:
        assert model(quadrants(20, 3)[0]).output.shape[0] == 20
    assert not (place / "out.run").exists()


@pytest.mark.slow
def test_a_limit_of_time_is_a_conversion_like_any_other(place: Path) -> None:
    result = convert(ask(place, time=60.0), Listener())
    lines = [json.loads(line) for line in (result.out / "search.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"depth", "reinforce", "finals"}
    assert result.manifest.provenance["options"].get("time") is None, (
        "it hangs on the machine, so it makes no other run"
    )


@pytest.mark.slow
def test_a_network_that_is_too_large_to_train_in_the_time_is_solved_and_not_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d_convert.conversion.context.FEW_SEEN", math.inf)
    listener = Listener()
    result = convert(ask(place, time=60.0), listener)
    assert any("too short to train" in text for text in listener.texts)
    assert [step for step in listener.steps if step in listener.planned] == listener.planned
    assert "fine-tune" not in listener.steps
    with Dispatcher(result.out) as model:
        assert model(quadrants(20, 3)[0]).output.shape[0] == 20


def test_a_resumed_run_must_ask_for_the_same(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(ask(place), Listener(interrupt_at="finals"))
    with pytest.raises(OutputError, match="another budget"):
        convert(ask(place, resume=True, budget=0.6), Listener())
    images, labels = quadrants(410, 1)  # ten more: the splits are drawn anew, and trained images would be tested on
    np.savez(place / "data.npz", images=images, labels=labels)
    with pytest.raises(OutputError, match="another content of --data;"):
        convert(ask(place, resume=True), Listener())


def test_a_resumed_run_must_have_the_same_plan_in_its_file(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(ask(place, plan=written_plan(place)), Listener(interrupt_at="fine-tune"))
    with pytest.raises(OutputError, match="another content of --plan;"):
        convert(ask(place, plan=written_plan(place, 1), resume=True), Listener())


def test_kill_leaves_nothing_half_written(place: Path) -> None:
    command = [sys.executable, "-m", "s2d_convert", "convert", "tiny.onnx", "--data", "data.npz", "--out", "out",
               "--effort", "quick", "--no-flip"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not (place / "out.run" / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (place / "out.run").exists()
    assert not (place / "out").exists()


def test_the_copied_dispatcher_needs_no_torch(place: Path) -> None:
    convert(ask(place), Listener())
    np.save(place / "images.npy", quadrants(3, 9)[0])
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "import numpy as np; sys.path.insert(0, 'out'); import dispatcher\n"
        "print(dispatcher.Dispatcher('out')(np.load('images.npy')).stage.shape)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code.replace("'out'", repr(str(place / "out")), 1)], cwd=place,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "(3,)"


def test_a_promise_is_tested_on_images_of_its_own_and_a_refusal_loses_no_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PromiseError("no policy keeps the promise")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "promised_policies", refuse)
        with pytest.raises(PromiseError):
            convert(ask(place, plan="cascade", max_drop=0.2, budget=None), Listener())
    assert not (place / "out").exists()
    listener = Listener()
    result = convert(ask(place, plan="cascade", max_drop=0.3, budget=None, resume=True), listener)
    assert "reward" not in " ".join(listener.texts)  # not searched again
    assert result.reached
    assert result.measured.images == 58  # the other half of what is held back
    policies = result.manifest.policies
    assert {p.promise for p in policies} == {Promise(0.3, 0.95, 58)}
    assert result.manifest.default_budget == policies[0].budget
    assert "Promise, for every budget" in (place / "out" / "report.html").read_text()

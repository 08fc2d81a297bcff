"""Exact mode: without exits the folder answers as the static model, and exits are trained from cached features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import run
from s2d_runtime import Dispatcher, Exactness
from tiny import Listener, ask, fresh_place, make_folder, quadrants

from s2d_convert.conversion.exact import TAPS, Candidate, better
from s2d_convert.conversion.finish import exactness
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.prepare import prepare
from s2d_convert.conversion.run_folder import HEADS
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import VerifyError
from s2d_convert.exporting.measure import largest_difference
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.search.base import Evaluation


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and unlabelled images, made once."""
    return make_folder(tmp_path_factory.mktemp("tiny"), 500, labelled=False)


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the tiny model and its data, and a tiny effort."""
    return fresh_place(template, tmp_path, monkeypatch)


def answers_as_static(place: Path, out: Path) -> tuple[float, float]:
    """The largest difference without exits on fresh images, and the largest value."""
    images, _ = quadrants(70, 9)
    static = run((place / "tiny.onnx"), {"input": images})["logits"]
    with Dispatcher(out) as model:
        answer = model(images, exits=False)
        assert (answer.stage == len(model.manifest.stages)).all()
        return float(np.abs(answer.output - static).max()), float(np.abs(static).max())


def test_without_data_the_last_stage_is_the_original_and_exits_are_careful(place: Path) -> None:
    listener = Listener()
    result = convert(ask(place, data=None, budget=0.05, stages=3), listener)
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["data"] == "made-up"
    assert manifest["target"] == "agreement"
    assert not result.reached, "no budget may push the thresholds below their floors"
    said = manifest["exactness"]
    assert (said["equal"] == "identical") == (said["max_difference"] == 0)
    difference, scale = answers_as_static(place, place / "out")
    assert difference <= max(10 * said["max_difference"], 1e-5 * scale)
    lowest = np.min([policy["thresholds"] for policy in manifest["policies"]], axis=0)
    assert (lowest > 0.3).all(), lowest
    assert any("guess costs exits rather than answers" in text for text in listener.texts)
    assert not (place / "out.run").exists()


def test_the_mode_follows_the_data(tmp_path: Path) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "out"
    assert ConvertOptions(model, out).exact
    assert not ConvertOptions(model, out, data=tmp_path).exact
    assert ConvertOptions(model, out, data=tmp_path, mode="exact").exact
    assert not ConvertOptions(model, out, mode="train").exact


def test_training_without_data_is_warned_of(place: Path) -> None:
    listener = Listener()
    prepare(ask(place, data=None, mode="train"), listener)
    assert any("much too sure" in text for text in listener.texts)


def test_unlabelled_images_give_the_better_of_two_kinds(place: Path) -> None:
    listener = Listener()
    result = convert(ask(place, mode="exact"), listener)
    assert result.manifest.exactness is not None
    assert result.manifest.target == "agreement"
    rewards = {
        text.split(": reward ")[0]: float(text.split(": reward ")[1])
        for text in listener.texts
        if ": reward " in text and text.startswith(("exits by depth", "narrow chain"))
    }
    chains = {stage.chain for stage in result.manifest.stages}
    first, second = rewards["exits by depth"], rewards["narrow chain before the untouched model"]
    assert first == second or len(chains) == (2 if second > first else 1)  # they are told to four digits
    difference, scale = answers_as_static(place, place / "out")
    assert difference <= 1e-5 * scale
    methods = {json.loads(line)["method"] for line in (place / "out" / "search.jsonl").read_text().splitlines()}
    assert {"depth", "finals"} <= methods


@pytest.mark.parametrize("step", ["heads", "search"])
def test_an_interrupted_run_resumes(place: Path, step: str) -> None:
    options = ask(place, data=None, stages=3)
    with pytest.raises(KeyboardInterrupt):
        convert(options, Listener(interrupt_at=step))
    assert not (place / "out").exists()
    assert (place / "out.run" / HEADS).exists() == (step == "search")
    listener = Listener()
    assert convert(replace(options, resume=True), listener).out.exists()
    lines = [json.loads(line) for line in (place / "out" / "search.jsonl").read_text().splitlines()]
    assert len({(line["method"], line["index"]) for line in lines}) == len(lines)
    assert len({tuple(line[TAPS]) for line in lines}) == len(lines), "no set of exits is measured twice"


def test_quantised_without_data_exits_stay_careful(place: Path) -> None:
    result = convert(ask(place, data=None, budget=0.05, quantize="int8:early"), Listener())
    assert not result.reached, "no budget may push the thresholds below their floors"
    assert all(threshold > 0.3 for policy in result.manifest.policies for threshold in policy.thresholds)


@pytest.mark.parametrize("step", ["finals", "fine-tune"])
def test_an_interrupted_choice_of_the_first_chain_resumes(place: Path, step: str) -> None:
    options = ask(place, mode="exact")
    with pytest.raises(KeyboardInterrupt):
        convert(options, Listener(interrupt_at=step))
    listener = Listener()
    assert convert(replace(options, resume=True), listener).out.exists()
    lines = [json.loads(line) for line in (place / "out" / "search.jsonl").read_text().splitlines()]
    assert len({(line["method"], line["index"]) for line in lines}) == len(lines)
    tried = [line for line in lines if line["method"] == "finals"]
    assert len(tried) > 2
    rounds = [text for text in listener.texts if text.startswith("finals, plan ")]
    assert len(rounds) < len(tried) or step == "finals"  # what was tried before is not tried again


def test_the_higher_reward_wins_and_the_first_of_equals() -> None:
    low, high, same = (Candidate(None, None, Evaluation(0.9, 0.5, value)) for value in (0.8, 0.9, 0.8))  # type: ignore[arg-type]
    assert better(low, high) is better(high, low) is high
    assert better(low, same) is low


def test_what_equal_means_is_measured(place: Path) -> None:
    """`identical` to the last bit, `close` with the largest difference, refused beyond rounding."""
    convert(ask(place, data=None), Listener())
    pixels, _ = quadrants(40, 3)
    images = Images(pixels, make_preprocess(size=(12, 12), channels=3), np.arange(40), None, "unlabelled")
    static = StaticModel(load_graph(place / "tiny.onnx"))

    class Shifted:
        """A static model whose answers are off by a constant."""

        graph = static.graph

        def __init__(self, offset: float) -> None:
            self.offset = np.float32(offset)

        def outputs(self, data: np.ndarray) -> np.ndarray:
            return static.outputs(data) + self.offset

    with Dispatcher(place / "out") as runner:
        own, scale = largest_difference(runner, static, images)
        said = exactness(runner, static, images)
        assert said == Exactness("close" if own else "identical", own)
        assert own <= 1e-5 * scale
        near = exactness(runner, Shifted(1e-4), images)  # type: ignore[arg-type]
        assert near.equal == "close"
        assert near.max_difference == pytest.approx(1e-4, rel=0.1)
        with pytest.raises(VerifyError, match="without exits the folder differs from the static model by"):
            exactness(runner, Shifted(0.1 * scale), images)  # type: ignore[arg-type]

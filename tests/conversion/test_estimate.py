"""What a conversion tells before it begins: its steps, its time, its memory, and what to expect."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from command_line import call
from tiny import Listener, ask, fresh_place, make_folder

from s2d_convert.conversion import dry_run
from s2d_convert.conversion.estimate import steps_ahead
from s2d_convert.errors import UsageError
from s2d_convert.frontend.load import load_graph
from s2d_convert.training.settings import TrainSettings


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny"), 700)


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fresh_place(template, tmp_path, monkeypatch)


def test_a_dry_run_tells_every_step_and_writes_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    forecast = dry_run(ask(place), Listener())
    assert sorted(place.rglob("*")) == before
    assert [step.name for step in forecast.steps] == steps_ahead(ask(place), ask(place).work)
    timed = {step.name: step.seconds for step in forecast.steps}
    assert all(timed[name] > 0 for name in ("search", "finals", "fine-tune", "measure"))
    assert 2**20 < forecast.memory < 2**40
    assert 0.6 < forecast.right <= 1
    rows = forecast.expected
    assert [row.budget for row in rows] == sorted(row.budget for row in rows)
    assert all(0 <= row.right <= 1 for row in rows)
    assert [row.right for row in rows] == sorted(row.right for row in rows), "more time never costs accuracy"


def test_trainings_count_in_the_memory(place: Path) -> None:
    untrained, trained = (dry_run(ask(place, effort=effort), Listener()).memory for effort in ("instant", "quick"))
    batch = TrainSettings.batch_size * load_graph(place / "tiny.onnx").image_bytes
    assert trained - untrained >= batch


def test_with_a_limit_of_time_the_steps_fill_it(place: Path) -> None:
    steps = dry_run(ask(place, time=600.0), Listener()).steps
    assert 0.8 * 600 < sum(step.seconds for step in steps if math.isfinite(step.seconds)) <= 600


def test_where_time_does_not_suffice_for_a_training_none_is_announced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = dry_run(ask(place, time=600.0), Listener())
    monkeypatch.setattr("s2d_convert.conversion.context.FEW_SEEN", math.inf)
    untrained = dry_run(ask(place, time=600.0), Listener())
    assert {s.name for s in trained.steps} - {s.name for s in untrained.steps} == {"fine-tune"}
    assert 0.8 * 600 < sum(step.seconds for step in untrained.steps if math.isfinite(step.seconds)) <= 600
    searched, before = (next(s.seconds for s in f.steps if s.name == "search") for f in (untrained, trained))
    assert searched > before


def test_a_time_that_preparing_takes_already_is_refused_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d_convert.conversion.pipeline.LEAST_SECONDS", 1000.0)
    with pytest.raises(UsageError, match=r"--time 60 s: reading, checking and measuring .* give at least"):
        dry_run(ask(place, time=60.0), Listener())
    assert not list(place.glob("*.run"))
    with pytest.raises(UsageError, match=r"--time 5s: at least 30 s are needed"):
        ask(place, time=5.0)


def test_the_command_says_what_it_would_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys, "convert", str(place / "tiny.onnx"), "--data", str(place / "data.npz"), "--dry-run", "--effort", "quick"
    )
    assert code == 0, err
    assert "The plan: 6 steps, about" in err
    assert "before any training" in out
    assert "Nothing was trained or written" in out

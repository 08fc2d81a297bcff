"""`--max-latency`: hopeless kinds leave the space, the winner is measured again, a miss is told and ends in exit code 3."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import Listener, ask, fresh_place, make_folder

from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES
from s2d_convert.cli import convert as cli_convert
from s2d_convert.cli.main import main
from s2d_convert.conversion.context import Job
from s2d_convert.conversion.finish import Result
from s2d_convert.conversion.pipeline import plan_space
from s2d_convert.conversion.prepare import prepare
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.conversion.worst_case import confirmed, possible
from s2d_convert.exporting.timing import worst_case
from s2d_convert.latency.meter import Timing
from s2d_convert.plans.space import CASCADE, LINKED
from s2d_convert.search.base import Evaluation, SearchResult, Trial, reward


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its data, made once."""
    return make_folder(tmp_path_factory.mktemp("bound"), 500)


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the tiny model and its data, and a tiny effort."""
    return fresh_place(template, tmp_path, monkeypatch)


class FakeMeter:
    """Every stage costs this much of the static model."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = ratios

    def measure(self, models: Any) -> Timing:
        return Timing(self.ratios, 1.0, self.ratios)


@pytest.mark.parametrize(("least", "kinds"), [(0.04, {LINKED, CASCADE}), (0.2, {LINKED})])
def test_a_kind_that_cannot_keep_the_bound_is_left_out(place: Path, least: float, kinds: set[int]) -> None:
    options, listener = ask(place, max_latency=1.05), Listener()
    ready, run = prepare(options, listener), RunFolder(options.out)
    run.open({})
    space = plan_space(ready, options)
    found = possible(Job(options, ready, run, listener, lambda *_: FakeMeter(least, 1.0)), space)
    again = possible(Job(options, ready, run, listener, lambda *_: FakeMeter(9.0, 9.0)), space)
    assert again.kinds == found.kinds  # a resumed run keeps what was found
    assert set(found.kinds) == kinds


def trial(plan: str, accuracy: float, worst: float) -> Trial[Any]:
    value = reward(accuracy, 0.4, 0.5, worst=worst, max_latency=1.05)
    return Trial(0, "test", (), plan, Evaluation(accuracy, 0.4, value), False, 0.0)


def job_with(reporter: Listener, **ready: Any) -> Any:
    """What `confirmed` looks at of a job."""
    options = SimpleNamespace(max_latency=1.05)
    return SimpleNamespace(options=options, ready=SimpleNamespace(**{"table": None, **ready}), reporter=reporter)


@pytest.mark.parametrize(
    ("again", "chosen"),
    [
        ({"a": 1.03, "b": 1.0, "c": 1.0}, "a"),
        ({"a": 1.06, "b": 1.03, "c": 1.0}, "b"),  # the best was lucky
        ({"a": 1.06, "b": 1.049, "c": 1.2}, "b"),  # none with a margin: the closest
        ({"a": 1.09, "b": 1.08, "c": 1.07}, "c"),
    ],
)
def test_the_best_plan_that_keeps_the_bound_when_measured_again_wins(again: dict[str, float], chosen: str) -> None:
    trials = (trial("a", 0.9, 1.04), trial("b", 0.8, 1.02), trial("c", 0.95, 1.2))
    job: Any = SimpleNamespace(
        options=SimpleNamespace(max_latency=1.05), ready=SimpleNamespace(table=None), reporter=Listener()
    )
    results: Any = [SearchResult(trials[0], trials, "test")]
    best: Any = confirmed(job, results, measure_worst=lambda _job, plan: again[plan])  # type: ignore[index]
    assert best.plan == chosen


def test_without_a_bound_nothing_is_measured_again() -> None:
    trials = (trial("a", 0.9, 1.0), trial("b", 0.95, 1.0))
    job: Any = SimpleNamespace(options=SimpleNamespace(max_latency=None))
    best: Any = confirmed(job, [SearchResult(trials[1], trials, "test")])
    assert best.plan == "b"


def test_what_a_table_says_is_not_measured_again() -> None:
    trials = (trial("a", 0.9, 1.04), trial("b", 0.8, 1.0))
    results: Any = [SearchResult(trials[0], trials, "test")]
    job = job_with(Listener(), table=object())
    best: Any = confirmed(job, results, measure_worst=lambda *_: pytest.fail("measured here"))
    assert best.plan == "a"


def test_the_worst_case_of_a_policy_is_as_late_as_its_thresholds_allow() -> None:
    ratios = (0.25, 0.5, 1.0)
    assert worst_case(ratios, (NEVER_LEAVES, 0.9)) == pytest.approx(1.75)
    assert worst_case(ratios, (0.5, ALWAYS_LEAVES)) == pytest.approx(0.75)
    assert worst_case(ratios, (ALWAYS_LEAVES, 0.9)) == pytest.approx(0.25)
    assert worst_case(ratios[:1], ()) == pytest.approx(0.25)


def test_a_bound_that_nothing_keeps_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_convert, "TerminalReporter", lambda **_: Listener())
    args = ["convert", str(place / "tiny.onnx"), "--data", str(place / "data.npz"), "--out", str(place / "out"),
            "--effort", "quick", "--no-flip", "--budget", "1", "--max-latency", "0.01", "--device", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    assert stop.value.code == 3
    assert "--max-latency 0.01 was not kept" in err
    assert "worst case" in out
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["provenance"]["options"]["max_latency"] == 0.01
    lines = [json.loads(line) for line in (place / "out" / "search.jsonl").read_text().splitlines()]
    assert all(line["reward"] < 0 for line in lines)
    assert all(plan_kind(line) == LINKED for line in lines)


def plan_kind(line: dict[str, Any]) -> int:
    return CASCADE if len(line["plan"]["chains"]) > 1 else LINKED


@pytest.mark.parametrize(("limit", "kept"), [(None, True), (1.05, True), (1.03, False)])
def test_the_bound_is_judged_by_both_measurements_of_the_folder(limit: float | None, kept: bool) -> None:
    manifest: Any = SimpleNamespace(stages=[SimpleNamespace(latency_ratio=ratio) for ratio in (0.4, 0.6)])
    measured: Any = SimpleNamespace(worst_latency=1.08)
    result = Result(Path("out"), manifest, measured, reached=True, max_latency=limit)
    assert result.worst_latency == pytest.approx(1.04)
    assert result.within_max_latency is kept

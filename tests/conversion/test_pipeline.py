"""The pipeline: its notes on the predicted latency and on the time, the folders that it refuses, and what it compares."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import Listener, ask

from s2d_convert.conversion import pipeline
from s2d_convert.conversion.estimate import measuring_seconds, predicted_latency, time_shares
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import OutputError
from s2d_convert.search.base import Evaluation


def test_the_predicted_latency_is_the_mean_over_the_exits() -> None:
    # 70 % of the images pay for the first stage, 30 % for both.
    assert predicted_latency([0.3, 0.8], [0.7, 0.3]) == pytest.approx(0.7 * 0.3 + 0.3 * 1.1)
    assert predicted_latency([0.4], [1.0]) == pytest.approx(0.4)


def test_time_is_told_in_three_shares() -> None:
    seconds = {"supernet": 40.0, "search": 30.0, "finals": 10.0, "fine-tune": 10.0, "finish": 10.0}
    text = time_shares(seconds, {"search": 20.0, "finals": 5.0})
    assert text == "time: 100 s (training 55 %, search 10 %, measuring 35 %)"
    assert time_shares({}, {}).startswith("time: 0 s")


def test_lines_that_only_repeat_cost_nothing() -> None:
    trace = [
        {"info": {"measure_s": 1.5}, "seconds": 2.0},
        {"info": {"measure_s": 1.5}, "seconds": 0.0},
        {"info": {}, "seconds": 3.0},
    ]
    assert measuring_seconds(trace) == 1.5


def test_an_unfinished_run_is_not_begun_anew(tmp_path: Path) -> None:
    options = ask(tmp_path)
    RunFolder(options.out).open({})
    with pytest.raises(OutputError, match="an unfinished run lies there; go on with it by --resume"):
        convert(options, Listener())


def test_a_folder_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    options = ask(tmp_path)
    options.out.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        convert(options, Listener())
    assert list(options.out.iterdir()) == []


@pytest.mark.parametrize("trained", [0.3, 0.2, 0.1])
def test_exits_and_what_was_trained_are_compared_on_images_that_chose_neither(
    trained: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties go to the exits, which leave the model as it is."""
    exits, made = Made("exits", 0.9, 0.2), Made("trained", 0.4, trained)
    ready = SimpleNamespace(
        dataset=SimpleNamespace(kind="labelled"), model=None, calibration="for thresholds", target="accuracy"
    )
    listener, chosen = Listener(), list[str]()
    job: Any = SimpleNamespace(options=None, ready=ready, run=None, meter=None, reporter=listener)
    replaced: dict[str, Any] = {
        "compares_exits": lambda _options: True,
        "depth_taps": lambda _model: ["tap"],
        "_timed": lambda _run, _step: nullcontext(),
        "trained_heads": lambda _job: ({}, None),
        "depth_candidate": lambda *_: exits,
        "train_everything": lambda _job, _given, least: (made.conversion, made.tuned) if least == 0.9 else None,
        "trained_worth": lambda _job, _plan, chain, _cost, judged: chain.on[judged],
        "choose": lambda _job, conversion, _evaluation: chosen.append(conversion),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(pipeline, name, value)
    conversion, tuned = pipeline.train_and_compare(job, None)
    best = made if trained > 0.2 else exits
    assert (conversion, tuned) == (best.conversion, best.tuned)
    assert chosen == ([] if best is made else ["exits"])
    assert len(listener.texts) == len(chosen)


class Made:
    """A finished conversion: its rewards on the images for plans, and on those for thresholds."""

    def __init__(self, name: str, before: float, fair: float) -> None:
        self.conversion: Any = name
        self.evaluation = Evaluation(0.9, 0.5, before, {})
        self.tuned: Any = SimpleNamespace(chain=SimpleNamespace(on={"for thresholds": Evaluation(0.9, 0.5, fair, {})}))

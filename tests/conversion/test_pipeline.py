"""Notes of the pipeline: the predicted latency, how the time was spent; and the folders that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Listener, ask

from s2d_convert.conversion.estimate import measuring_seconds, predicted_latency, time_shares
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import OutputError


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

"""What a user gets from one command: the words of the command, rows from the lines of several seeds, and the file of results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import half_hour
from benchmarks.bench_ranking import Judged, correlations
from benchmarks.picture_options import add_picture_options, picture_options, picture_words
from benchmarks.published import RESULTS, results_text
from benchmarks.records import results_file
from benchmarks.third_party import NETWORKS


def line(name: str, right: float, mean: float, budget: float | None = None) -> dict[str, Any]:
    """A line of the table of one seed."""
    made = {"name": name, "right": right, "agree": right, "mean": mean, "apart": (mean - 0.01, mean + 0.01)}
    folder = {"budget": budget, "leave_first": None if budget is None else 0.5}
    return {**made, "worst": 1.1, "megabytes": 1.0, **folder}


SEEDS = [
    [line("static", 0.90, 1.0), line("INT8", 0.89, 0.5), line("ours", 0.88, 0.4, 0.41), line("ours", 0.89, 0.6, 0.6)],
    [line("static", 0.92, 1.0), line("INT8", 0.91, 0.5), line("ours", 0.90, 0.3, 0.31), line("ours", 0.91, 0.6, 0.6)],
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_words_of_a_network_mean_its_pixels(network: Any) -> None:
    parser = argparse.ArgumentParser()
    add_picture_options(parser)
    found, expected = picture_options(parser.parse_args(network.options())), network.pixels()
    for name in ("mean", "std"):
        np.testing.assert_allclose(found.pop(name), expected.pop(name), rtol=1e-8)
    assert found == expected


def test_no_options_are_no_words() -> None:
    parser = argparse.ArgumentParser()
    add_picture_options(parser)
    assert picture_words(picture_options(parser.parse_args([]))) == []


def test_rows_are_means_over_the_seeds_with_their_spread() -> None:
    groups = half_hour.grouped([{"rows": rows} for rows in SEEDS], (0.6,))
    assert list(groups) == ["static", "int8-static", "ours", "ours-0.6"]
    own = half_hour.made_row("ours", groups["ours"], 1000)
    assert (own["accuracy"], own["latency"], own["agreement"], own["leave_first"]) == (89.0, [0.35], 89.0, 50.0)
    assert (own["accuracy_spread"], own["latency_spread"]) == (1.41, 0.071)
    assert own["standard_error"] == pytest.approx(100 * (0.89 * 0.11 / 1000) ** 0.5, abs=0.005)
    assert "budget" not in own  # the seeds have budgets of their own
    assert half_hour.made_row("ours-0.6", groups["ours-0.6"], 1000)["budget"] == 0.6
    unlabelled = half_hour.made_row("ours", groups["ours"][:1], None)
    assert not {"accuracy", "standard_error", "accuracy_spread", "latency_spread"} & set(unlabelled)


def test_a_file_of_results_says_what_made_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", images=np.zeros((4, 2)), labels=np.zeros(4))
    pixels = {"preprocess": None, "mean": None, "std": None, "size": None, "flip": True}
    models = (Path("a.onnx"), Path("b.onnx"))
    given = half_hour.Given("tiny", "a net", "dots", models, Path("d"), tmp_path / "test.npz", pixels, True, None)
    args = half_hour.parse(
        ["tiny", "--model", "SEED.onnx", "--data", "d", "--test", "t", "--budgets", "0.6", "--", "--plan", "depth"]
    )
    assert args.more == ["--plan", "depth"]
    facts = {"test_images": 1000, "images": 50, "gigabytes": 1.5, "static_ms": 0.5}
    found = [{"rows": rows, "minutes": minutes, **facts} for rows, minutes in zip(SEEDS, (9.0, 9.4), strict=True)]
    data = half_hour.published(given, found, args)
    assert data["static"] == {"accuracy": 91.0, "milliseconds": [0.5]}
    run = data["runs"]["half hour"]
    assert (run["minutes"], run["gigabytes"], run["seeds"], run["labels"]) == (9.2, 1.5, 2, True)
    assert run["command"] == [
        "python -m benchmarks.half_hour tiny --model SEED.onnx --data d --test t --budgets 0.6 -- --plan depth"
    ]
    assert json.loads(results_text(data)) == data


def test_published_files_are_written_as_they_are_laid_out() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        if "rows" in json.loads(text):
            assert results_text(json.loads(text)) == text, path.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "not a network of third_party"),
        (["mine", "--model", "m.onnx", "--data", "d"], "needs --data and --test"),
    ],
)
def test_what_is_missing_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        half_hour.parse(words)
    assert message in capsys.readouterr().err


def test_images_are_given_without_labels_where_the_user_has_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.arange(10), labels=np.arange(10))

    def given(*, labels: bool, count: int | None) -> half_hour.Given:
        place = (tmp_path / "data.npz", tmp_path / "test.npz")
        return half_hour.Given("tiny", "net", "dots", (Path("m.onnx"),), *place, {}, labels, count)

    path = half_hour.some_images(given(labels=False, count=4), tmp_path)
    with np.load(path) as arrays:
        assert arrays.files == ["images"]
        assert arrays["images"].tolist() == [0, 1, 2, 3]
    whole = given(labels=True, count=None)
    assert half_hour.some_images(whole, tmp_path) == tmp_path / "data.npz"


def test_ranks_are_compared_before_and_after_training() -> None:
    found = [Judged(str(i), 0.5, solved=i, trained=i**2, promised=i, reached=-i) for i in range(5)]
    assert correlations(found) == pytest.approx({"agreement": 1.0, "reward": -1.0})


def test_results_of_the_stand_become_records() -> None:
    def result(method: str, accuracy: float, latency: float, **entry: Any) -> dict[str, Any]:
        measured = {"accuracy": accuracy, "static_accuracy": 0.9, "images": 1000, "exit_share": [0.75, 0.25]}
        timing = {"mean": latency, "worst": 1.2, "static_ms": 0.512}
        told = {"method": method, "budget": None, "planned": None, "facts": {}, **entry}
        return {"entry": told, "measured": {**measured, "latency": {"1x1": timing, "32x2": timing}}}

    lines = [
        result("static", 0.9, 1.0),
        result("ours", 0.88, 0.5, budget=0.5, planned=0.5),
        result("ours", 0.89, 0.7, budget=0.7, planned=0.5),
    ]
    about = {
        "network": "a net",
        "data": "dots",
        "command": ["run"],
        "machine": "A",
        "trained_on": "A",
        "images": 50,
        "labels": True,
        "note": "",
    }
    data = results_file({"results": lines, "options": {"settings": ["1x1", "32x2"]}}, about)
    assert data["static"] == {"accuracy": 90.0, "milliseconds": [0.51]}
    assert [row["name"] for row in data["rows"]] == ["static", "ours", "ours-0.7"]
    own = data["rows"][1]
    assert (own["accuracy"], own["latency"], own["at_32x2"], own["leave_first"]) == (88.0, [0.5], 0.5, 75)
    assert data["runs"]["methods"]["seeds"] == 1
    assert json.loads(results_text(data)) == data

"""The table of a device: known costs are found again, and a board file that is not sound ends in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from text_nets import residual

from s2d_convert.errors import UsageError
from s2d_convert.latency.board import Board, read_board
from s2d_convert.latency.device_table import Table, fit, prediction_error, read_table
from s2d_convert.latency.kernels import work_of

KEYS = ("Add||calls", "conv|3x3/1x1 8x8|calls", "conv|3x3/1x1 8x8|mmac", "conv|3x3/1x1 4x4|calls",
        "conv|3x3/1x1 4x4|mmac", "session||calls")  # fmt: skip
COSTS = np.array([0.01, 0.004, 0.02, 0.002, 0.05, 0.03])


def board_of(files: int = 60, seed: int = 0) -> dict[str, Any]:
    """A board file whose measurements are sums of known costs."""
    rng = np.random.default_rng(seed)
    calls = rng.integers(1, 6, (files, 3))
    amounts = np.column_stack([calls[:, 0], calls[:, 1], calls[:, 1] * rng.uniform(0.1, 3, files), calls[:, 2],
                               calls[:, 2] * rng.uniform(0.1, 3, files), np.ones(files)])  # fmt: skip
    rows = zip((amounts @ COSTS).tolist(), amounts.tolist(), strict=True)
    return {
        "format": "s2d-board", "version": 1, "model": {"name": "net.onnx", "sha256": "ab"}, "machine": "A board",
        "onnxruntime": "1.32.0", "provider": "CPUExecutionProvider", "threads": 1, "batch": 1, "clock": "wall",
        "layout_block": 8, "static_ms": 2.0, "keys": list(KEYS),
        "files": [{"ratio": r, "spread": 0.01, "amounts": a} for r, a in rows],
    }  # fmt: skip


def read(tmp_path: Path, data: Any) -> Board:
    path = tmp_path / "board.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return read_board(path)


def table_of(tmp_path: Path, data: Any) -> Table:
    return fit(read(tmp_path, data))


def test_known_costs_are_found_again(tmp_path: Path) -> None:
    table = table_of(tmp_path, board_of())
    other = read(tmp_path, board_of(30, seed=1))
    predicted = [table.predict(dict(zip(KEYS, row, strict=True))) for row in other.amounts.tolist()]
    assert prediction_error(np.array(predicted), other.ratios).most < 0.01
    assert table.held_out_error.most < 0.01


def test_a_few_disturbed_measurements_do_little(tmp_path: Path) -> None:
    data = board_of(80)
    for row in data["files"][::12]:
        row["ratio"] *= 1.8
    table, other = table_of(tmp_path, data), read(tmp_path, board_of(30, seed=1))
    predicted = [table.predict(dict(zip(KEYS, row, strict=True))) for row in other.amounts.tolist()]
    assert prediction_error(np.array(predicted), other.ratios).most < 0.04
    assert table.held_out_error.most > 0.3  # and it says that it does not explain them


def test_no_cost_is_negative(tmp_path: Path) -> None:
    data, rng = board_of(), np.random.default_rng(2)
    for row in data["files"]:
        row["ratio"] = float(rng.uniform(0.1, 1))
    table = table_of(tmp_path, data)
    assert min(*table.costs.values(), *table.coarse.values()) >= 0


def test_a_new_geometry_costs_what_its_kind_costs(tmp_path: Path) -> None:
    table = table_of(tmp_path, board_of())
    assert table.cost("conv|5x5/1x1 8x8|mmac") == table.coarse["conv||mmac"] > 0
    assert table.cost("Softmax||calls") == 0
    assert table.predict({"conv|5x5/1x1 8x8|mmac": 2.0, "session||calls": 1}) == pytest.approx(
        2 * table.coarse["conv||mmac"] + table.costs["session||calls"]
    )


def test_a_table_stands_in_for_a_meter(tmp_path: Path) -> None:
    table = table_of(tmp_path, board_of())
    model = onnx.shape_inference.infer_shapes(residual())
    timing = table.measure([model.SerializeToString()] * 2)
    expected = table.predict(work_of(model, block=8))
    assert timing.ratios == (expected, expected)
    assert timing.reference_ms == 2.0
    assert timing.median_ms == pytest.approx((2 * expected, 2 * expected))


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = board_of()
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "s2d-board"),
        ({"format": "s2d-kit"}, "s2d-board"),
        (broken(lambda d: d.update(version=2)), "'s2d-board', 2"),
        (broken(lambda d: d.pop("machine")), "machine: missing"),
        (broken(lambda d: d.update(threads=0)), "threads"),
        (broken(lambda d: d.update(batch=True)), "batch"),
        (broken(lambda d: d.update(static_ms=float("nan"))), "'NaN' is not a finite number"),
        (broken(lambda d: d.update(static_ms=0)), "static_ms: got 0"),
        (broken(lambda d: d.update(layout_block=7)), "layout_block"),
        (broken(lambda d: d.update(model="x")), "not a board file"),
        (broken(lambda d: d["keys"].append(KEYS[0])), "keys"),
        (broken(lambda d: d["keys"].__setitem__(0, "conv")), "keys"),
        (broken(lambda d: d.update(files=d["files"][:5])), "at least 20"),
        (broken(lambda d: d["files"][3].update(ratio=-1)), "files[3].ratio"),
        (broken(lambda d: d["files"][3]["amounts"].pop()), "files[3].amounts"),
        (broken(lambda d: d["files"][3]["amounts"].__setitem__(1, "2")), "files[3].amounts"),
        (broken(lambda d: d["files"][3]["amounts"].__setitem__(1, -2)), "files[3].amounts"),
        (broken(lambda d: d["files"].__setitem__(3, 1)), "not a board file"),
    ],
)
def test_a_board_file_that_is_not_sound_ends_in_one_sentence(tmp_path: Path, data: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, data)
    assert words in str(error.value)
    assert str(error.value).startswith(f"--latency {tmp_path / 'board.json'}: ")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model_sha256": "cd"}, "not the file other.onnx"),
        ({"threads": 4}, "stands for threads 1, got --threads 4"),
        ({"batch": 8}, "stands for batch 1, got --batch 8"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps(board_of()), encoding="utf-8")
    plain: dict[str, Any] = {"model": Path("other.onnx"), "model_sha256": "ab", "threads": 1, "batch": 1}
    assert read_table(path, **plain).board.machine == "A board"
    with pytest.raises(UsageError, match=words):
        read_table(path, **{**plain, **asked})
    with pytest.raises(UsageError, match="no such file"):
        read_table(tmp_path / "none.json", **plain)

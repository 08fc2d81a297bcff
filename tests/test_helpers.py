"""The comparison that other tests rest on notices what it must notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_close, open_session, random_images, run

MODEL = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,3,4] image) => (float[N,2,3,4] up, float[N,2,3,4] down)
    <float one = {1.0}>
    { up = Add(image, one)  down = Sub(image, one) }
""")


def test_all_outputs_come_back_by_name_however_the_model_is_given(tmp_path: Path) -> None:
    feeds = random_images(MODEL, 2, 0)
    path = tmp_path / "model.onnx"
    onnx.save(MODEL, str(path))
    for model in (MODEL, MODEL.SerializeToString(), path, str(path), open_session(MODEL)):
        assert_close(run(model, feeds), {"up": feeds["image"] + 1, "down": feeds["image"] - 1}, rel=1e-6)


@pytest.mark.parametrize("expected", [0.0, 0.5, -1.0, 7.0, -3000.0])
def test_the_tolerance_is_relative_to_the_largest_value_but_never_below_one(expected: float) -> None:
    values = np.array([expected, 0.0])
    allowed = 1e-3 * max(1, abs(expected))
    assert_close(values + np.array([0, 0.99 * allowed]), values, rel=1e-3)
    with pytest.raises(AssertionError, match=r"at \[1\].*1 of 2 values"):
        assert_close(values + np.array([0, 1.01 * allowed]), values, rel=1e-3)


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (np.zeros((1, 2)), np.zeros((2, 1)), "shape"),
        (np.array([0, np.nan]), np.zeros(2), "not finite"),
        (np.array([np.inf]), np.array([np.inf]), "not finite"),
        ({"a": np.zeros(1)}, {"a": np.zeros(1), "b": np.zeros(1)}, "names"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1)}, "names"),
        ({"a": np.ones(1)}, {"a": np.zeros(1)}, "output 'a'"),
        (np.zeros(1), {"a": np.zeros(1)}, "by name"),
    ],
)
def test_differences_are_noticed(got: Any, expected: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(got, expected)


def test_empty_arrays_are_equal() -> None:
    assert_close(np.zeros((0, 10)), np.zeros((0, 10)))

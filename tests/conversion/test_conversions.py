"""Whole conversions, with a tiny effort, of every family and of models that are odd in other ways than their operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from helpers import assert_close, random_images, run
from nets import FAMILIES
from patterns import PATTERNS
from s2d_runtime import Dispatcher
from tiny import Listener, ask, use_tiny_effort

from s2d_convert.conversion import prepare
from s2d_convert.conversion.pipeline import convert

QUICK = {("mobilenet_v2", "train"), ("convnext", "no data")}  # these in `make test`, all others in `make slow`
MODES: dict[str, dict[str, Any]] = {
    "train": {},
    "no data": {"data": None},
    "int8": {"quantize": "int8"},
    "three stages": {"stages": 3},
}
ODD = ("answer_with_axes_of_length_one-Softmax", "mask_of_an_earlier_map-one channel", "windows_as_rows_of_the_batch")


def case(family: str, mode: str) -> Any:
    """A parameter set, in `make slow` unless it is a quick one."""
    return pytest.param(family, mode, marks=() if (family, mode) in QUICK else pytest.mark.slow)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a conversion with a tiny effort, of nets that nobody has trained: some say one class to every image."""
    use_tiny_effort(monkeypatch)
    monkeypatch.setattr(prepare, "static_check", lambda *_: None)
    return tmp_path


def check_conversion(place: Path, model: onnx.ModelProto, **changes: Any) -> None:
    """Converts the model with unlabelled images; the folder's last stage answers as the model where it is the model."""
    onnx.save(model, place / "tiny.onnx")
    images = random_images(model, 300, 0)
    (name, pixels), *_ = images.items()
    np.savez(place / "data.npz", images=pixels)
    result = convert(ask(place, **changes), Listener())
    with Dispatcher(result.out) as runner:
        answer, last = runner(pixels[:9]), runner(pixels[:9], exits=False)
    assert answer.output.shape == last.output.shape
    assert np.isfinite(last.output).all()
    assert set(answer.stage) <= set(range(1, len(result.manifest.stages) + 1))
    if result.manifest.exactness is not None:
        (expected,) = run(place / "tiny.onnx", {name: pixels[:9]}).values()
        assert_close(last.output, expected, rel=1e-3)


@pytest.mark.parametrize(("family", "mode"), [case(family, mode) for family in FAMILIES for mode in MODES])
def test_every_family_converts(family: str, mode: str, place: Path) -> None:
    check_conversion(place, nets.export(family), **MODES[mode])


@pytest.mark.parametrize("name", ODD)
def test_odd_models_convert(name: str, place: Path) -> None:
    check_conversion(place, PATTERNS[name](), mode="train")

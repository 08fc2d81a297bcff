"""The demo's images: composed of digits that nothing else sees, the same for a seed, some easy and some hard."""

from __future__ import annotations

import importlib.util
import re
import shlex
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from s2d_convert.cli.main import load_command

pytest.importorskip("sklearn", reason="the extra s2d-convert[demo] is not installed")


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    """The module of the example."""
    path = Path(__file__).parents[2] / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_network_conversion_and_test_share_no_digit(digits: ModuleType) -> None:
    parts = digits.composers(seed=0)
    assert sum(len(part.digits) for part in parts) == 1797
    rows = [{digit.tobytes() for digit in part.digits} for part in parts]
    assert [one & other for one, other in combinations(rows, 2)] == [set()] * 3
    assert all(set(part.labels.tolist()) == set(range(10)) for part in parts)


def test_equal_seeds_compose_equal_images(digits: ModuleType) -> None:
    images, labels = digits.composers(seed=3)[1].images(40)
    again, same = digits.composers(seed=3)[1].images(40)
    other, _ = digits.composers(seed=4)[1].images(40)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, other)
    assert (images.shape, images.dtype, labels.dtype) == ((40, 1, 32, 32), torch.float32, torch.int64)
    levels = 255 * images
    assert torch.allclose(levels, levels.round(), atol=1e-3)  # so that bytes in the files are the same images
    assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_hard_images_have_small_digits_in_clutter_and_noise(digits: ModuleType) -> None:
    composer = digits.composers(seed=0)[0]
    easy, hard = (np.stack([composer._image(composer.digits[0], h) for _ in range(30)]) for h in (0.0, 1.0))
    bright = [(images > 0.3).mean() for images in (easy, hard)]
    noise = [np.median(images.std(axis=0)) for images in (easy, hard)]
    assert bright[0] > 0.15
    assert noise[1] > 2 * noise[0]


def test_the_network_takes_what_the_files_hold(digits: ModuleType, tmp_path: Path) -> None:
    images, labels = digits.composers(seed=0)[2].images(20)
    model = digits.residual_net(8).eval()
    digits.export(model, tmp_path / "digits.onnx")
    assert 0 <= digits.accuracy(tmp_path / "digits.onnx", images, labels) <= 1


def test_the_demo_asks_for_options_that_exist() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0]
    (line,) = [line for line in recipe.splitlines() if '/s2d-convert"' in line]
    text = re.sub(r"\$\(if [^()]*(?:\([^()]*\)[^()]*)*\)", "--budget 0.4", line).replace("$(DEMO)", "build/demo")
    args = shlex.split(text.replace("$(BIN)", "bin"))
    with load_command("convert").make_context("s2d-convert", args[1:]) as context:
        assert context.params["budget"] == 0.4
        assert context.params["effort"] == "instant"  # trains nothing: weights in closed form

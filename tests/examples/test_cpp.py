"""The C++ example, compiled here: the dispatcher's answers on a batch, with the library inside the Python wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from example_exports import BUDGETS, make_example
from helpers import assert_close
from s2d_runtime import Dispatcher
from text_nets import LABEL_NETS, residual
from toy_exports import CASCADE, MIXED, SINGLE, Toy, images_of, policy, write_export

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
BUILD = ROOT / "build" / "cpp-headers"
HEADERS = ("onnxruntime/onnxruntime_cxx_api.h", "nlohmann/json.hpp")
pytestmark = pytest.mark.slow


def prepared(folder: Path) -> Path:
    """A copy of the example with its headers: installed ones, or those that its own script gets. Skips without."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    installed = all((Path("/usr/include") / header).is_file() for header in HEADERS)
    kept = BUILD / "include"  # between runs
    if not installed and not all((kept / header).is_file() for header in HEADERS):
        done = subprocess.run(["make", "headers"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no headers of onnxruntime ({(done.stderr.splitlines() or ['no reason given'])[0]})")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "include", kept)
    elif not installed:
        shutil.copytree(kept, folder / "include")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled as its Makefile does it."""
    if not (shutil.which("make") and shutil.which("g++")):
        pytest.skip("make and g++ are needed")
    folder = prepared(tmp_path_factory.mktemp("cpp"))
    done = subprocess.run(["make", "-B", "CXX=g++"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "dispatcher"


def run(program: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """The program, with the library of the Python wheel."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    command = [str(program), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ORT_LIBRARY": str(library)})


@pytest.mark.parametrize("budget", [*BUDGETS, None])
@pytest.mark.parametrize("rows", [0, 1, 12])
@pytest.mark.parametrize("model", [residual, *LABEL_NETS], ids=lambda net: net.__name__)
def test_the_program_answers_like_the_dispatcher(
    program: Path, tmp_path: Path, budget: float | None, rows: int, model: Callable[[], onnx.ModelProto]
) -> None:
    example = make_example(tmp_path, model=model())
    (tmp_path / "images.bin").write_bytes(example.images[:rows].tobytes())
    done = run(program, example.folder, tmp_path / "images.bin", *([] if budget is None else [budget]))
    assert (done.returncode, done.stderr) == (0, "")
    expected = example.answers(budget or BUDGETS[0])
    assert set(expected.stage.tolist()) == {1, 2}
    found = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
    assert len(found) == rows
    if rows:
        assert found[:, 0].tolist() == expected.stage[:rows].tolist()
        assert_close(found[:, 1], expected.confidence[:rows])
        assert_close(found[:, 2:], expected.output[:rows].reshape(rows, -1))


@pytest.mark.parametrize("toys", [SINGLE, CASCADE, MIXED], ids=["single", "cascade", "mixed"])
def test_chains_and_skipping_links_to_the_last_bit(program: Path, tmp_path: Path, toys: Sequence[Toy]) -> None:
    thresholds = [0.5] * (len(toys) - 1)
    write_export(tmp_path, toys, policies=[policy(0.5, thresholds)])
    images = images_of(np.random.default_rng(0).choice([0.0, 0.5, 0.75, np.nan], (200, 4)))
    (tmp_path / "images.bin").write_bytes(images.tobytes())
    done = run(program, tmp_path, tmp_path / "images.bin")
    assert (done.returncode, done.stderr) == (0, "")
    with Dispatcher(tmp_path) as dispatcher:
        expected = dispatcher(images)
    assert set(expected.stage.tolist()) == set(range(1, len(toys) + 1))
    found = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    assert np.array_equal(found[:, 0], expected.stage)
    assert np.array_equal(found[:, 1], expected.confidence, equal_nan=True)
    assert np.array_equal(found[:, 2:], expected.output)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere", "images.bin"], "nowhere/manifest.json: cannot be read"),
        (["OUT", "nothing.bin"], "nothing.bin: expected images of 768 bytes each"),
        (["OUT", "model.onnx"], "model.onnx: expected images of 768 bytes each"),
        (["OUT"], "usage: dispatcher OUT IMAGES [BUDGET]"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    make_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = run(program, *args)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {done.stderr[7:].strip()}\n"
    assert words in done.stderr

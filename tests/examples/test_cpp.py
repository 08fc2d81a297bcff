"""The C++ example, compiled here: the dispatcher's answers on a batch, with the library inside the Python wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from example_exports import BUDGETS, make_example
from helpers import assert_close
from s2d_runtime import Dispatcher
from toy_exports import CASCADE, MIXED, SINGLE, Toy, images_of, policy, write_export

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
HEADERS = ROOT / "build" / "cpp-headers"  # kept between runs
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("libonnxruntime-dev", "nlohmann-json3-dev")
SUITE = "trixie"  # the first Debian that has onnxruntime
pytestmark = pytest.mark.slow


def includes() -> dict[str, str]:
    """Where the headers are, as the Makefile is told: installed ones, or Debian's packages unpacked. Skips without."""
    found = {"ORT_INCLUDE": "onnxruntime/onnxruntime_cxx_api.h", "JSON_INCLUDE": "nlohmann/json.hpp"}
    system = Path("/usr/include")
    if all((system / header).is_file() for header in found.values()):
        return {}
    if not (HEADERS / "usr/include" / found["ORT_INCLUDE"]).is_file():
        unpack()
    return {"ORT_INCLUDE": str(HEADERS / "usr/include/onnxruntime"), "JSON_INCLUDE": str(HEADERS / "usr/include")}


def unpack() -> None:
    """Debian's packages of headers in HEADERS; from this machine's mirror, with package lists of their own."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("no headers of onnxruntime; install libonnxruntime-dev and nlohmann-json3-dev")
    lists = HEADERS / "apt" / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)"]
    listed = [line.split(" ") for line in output_of([*asked, "Created-By: Packages"]).splitlines()]
    mirrors = [uri for uri, *words in listed if words == ["Debian", "Debian", "main"]]
    if not (mirrors and KEYS.is_file()):
        pytest.skip("no headers of onnxruntime, and no Debian mirror to have them from")
    sources = HEADERS / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {mirrors[0]} {SUITE} main\n")
    own = [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null", f"Dir::State::lists={lists}"]
    options = [word for setting in (*own, f"Dir::Cache={HEADERS / 'apt'}") for word in ("-o", setting)]
    output_of(["apt-get", *options, "update"])
    output_of(["apt-get", *options, "download", *PACKAGES])
    for package in HEADERS.glob("*.deb"):
        output_of(["dpkg", "-x", str(package), str(HEADERS)])


def output_of(command: list[str]) -> str:
    """What a command prints; skips where it fails, as everything here needs a network."""
    done = subprocess.run(command, cwd=HEADERS, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no headers of onnxruntime: {command[0]} failed: {done.stderr.strip()[-200:]}")
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled as its Makefile does it."""
    if not (shutil.which("make") and shutil.which("g++")):
        pytest.skip("make and g++ are needed")
    folder = tmp_path_factory.mktemp("cpp")
    for file in EXAMPLE.iterdir():
        shutil.copy(file, folder)
    command = ["make", "-B", "CXX=g++", *(f"{name}={value}" for name, value in includes().items())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "dispatcher"


def run(program: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """The program, with the library of the Python wheel."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    command = [str(program), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ORT_LIBRARY": str(library)})


@pytest.mark.parametrize("budget", [*BUDGETS, None])
@pytest.mark.parametrize("rows", [0, 1, 12])
def test_the_program_answers_like_the_dispatcher(
    program: Path, tmp_path: Path, budget: float | None, rows: int
) -> None:
    example = make_example(tmp_path)
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
        assert_close(found[:, 2:], expected.output[:rows])


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

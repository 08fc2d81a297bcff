"""The device's part of a profile: a kit is measured with numpy and onnxruntime alone; a fake clock, never a real time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from s2d_runtime import profile
from s2d_runtime.profile import ProfileError, Settings, fast_calls, main
from text_nets import chain
from toy_exports import BLOCKED

from s2d_convert.workflows.profile_kit import KitOptions, write_kit

RUN_THE_COPY = """
import sys, runpy
for name in sys.argv[3:]:
    sys.modules[name] = None  # importing it fails
script, board = sys.argv[1:3]
sys.argv = [script, "--save", board, "--seconds", "0.001", "--passes", "1", "--name", "A board"]
runpy.run_path(script, run_name="__main__")
"""
QUICK = Settings(seconds=0.001, passes=1)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of a small net."""
    folder = tmp_path_factory.mktemp("kit")
    onnx.save(chain(), str(folder / "model.onnx"))
    write_kit(folder / "model.onnx", folder / "kit", KitOptions(files=8))
    return folder / "kit"


class FakeClock:
    """A clock that only the calls move on, each by its own time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, seconds: Callable[[int], float]) -> Callable[[], None]:
        count = iter(range(10**6))

        def run() -> None:
            self.now += seconds(next(count))

        return run


def test_a_fast_call_counts_whatever_disturbs_the_others() -> None:
    clock = FakeClock()
    calls = [clock.call(lambda _: 2.0), clock.call(lambda n: 3.0 if n % 3 else 50.0)]
    assert fast_calls(calls, seconds=1.0, clock=clock).tolist() == [2.0, 3.0]


def test_ratios_follow_the_static_model_when_the_machine_changes_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 1.0, 7.0, 7.0, 3.0, 3.0])

    def fake(calls: list[float], *, seconds: float, clock: object) -> np.ndarray[Any, Any]:
        return np.array(calls) * next(speeds)

    monkeypatch.setattr(profile, "fast_calls", fake)
    monkeypatch.setattr(profile, "_call", lambda model, _settings: float(model))
    found = profile.measure(b"2", [str(n).encode() for n in range(1, 10)], Settings(passes=3))
    assert found.ratios == pytest.approx([n / 2 for n in range(1, 10)])
    assert found.spread == pytest.approx(np.zeros(9))
    assert found.static_ms == pytest.approx(6000)


def test_the_kit_is_measured_without_torch_and_onnx(kit: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.json"
    command = [sys.executable, "-I", "-W", "error", "-c", RUN_THE_COPY, str(kit / "s2d_profile.py"), str(board)]
    done = subprocess.run([*command, *BLOCKED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "A board" in done.stdout
    found = json.loads(board.read_text())
    about = json.loads((kit / "kit.json").read_text())
    assert (found["format"], found["machine"], found["threads"], found["batch"]) == ("s2d-board", "A board", 1, 1)
    assert found["layout_block"] in profile.LAYOUTS
    assert found["model"] == about["model"]
    assert [f["amounts"] for f in found["files"]] == about["work"][str(found["layout_block"])]["amounts"]
    assert all(f["ratio"] > 0 for f in found["files"])


def test_the_module_runs_too(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "board.json"
    assert main([str(kit), "--save", str(save), "--seconds", "0.001", "--passes", "1", "--batch", "2"]) == 0
    assert json.loads(save.read_text())["batch"] == 2
    assert str(save) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--threads 0", "--threads 0"),
        ("--batch -1", "--batch -1"),
        ("--seconds 0", "--seconds 0"),
        ("--passes 0", "--passes 0"),
        ("--clock sun", "wall, cpu"),
        ("--clock cpu --threads 2", "one thread"),
        ("--provider Nope", "--provider Nope"),
        ("--save missing/board.json --seconds 0.001 --passes 1", "missing/board.json"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    kit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(kit), *options.split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert not list(tmp_path.iterdir())


def damage(name: str, data: bytes | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

    return apply


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of kit.json."""

    def apply(folder: Path) -> None:
        kit = json.loads((folder / "kit.json").read_text())
        change(kit)
        (folder / "kit.json").write_text(json.dumps(kit))

    return apply


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage("kit.json", None), "not a kit"),
        (damage("kit.json", b"{"), "cannot be read"),
        (damage("kit.json", b"[]"), "expected the format"),
        (damage("kit.json", b'{"format": "s2d-kit", "version": 9}'), "version 1"),
        (damage("kit.json", b'{"format": "s2d-kit", "version": 1}'), "files: got None; expected a list"),
        (rewritten(lambda kit: kit.update(files=[])), "files: got none"),
        (rewritten(lambda kit: kit.update(files=[1])), r"files: got \[1\]; expected texts"),
        (rewritten(lambda kit: kit.update(model="x")), "model.name: got None; expected a text"),
        (rewritten(lambda kit: kit["files"].pop()), "work.1.amounts: expected"),
        (rewritten(lambda kit: kit["work"].pop("8")), "work.8.keys: got None"),
        (rewritten(lambda kit: kit["work"]["16"]["amounts"][0].pop()), "work.16.amounts: expected"),
        (
            rewritten(lambda kit: kit["work"]["16"]["amounts"][0].__setitem__(0, "1")),
            "work.16.amounts: expected numbers",
        ),
        (rewritten(lambda kit: kit.update(probe="../probe.onnx")), "1 files of the kit are missing"),
        (damage("stage000.onnx", None), "stage000.onnx"),
        (damage("stage000.onnx", b"nonsense"), "cannot run the kit"),
    ],
)
def test_a_damaged_kit_is_one_sentence(kit: Path, tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    for file in kit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    harm(tmp_path)
    with pytest.raises(ProfileError, match=words):
        profile.profile(tmp_path, QUICK)

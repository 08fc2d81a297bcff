"""Changed manifests and stage files: an error in one sentence, or the right answer; see fuzzing.py for both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import base_of, make_case, write_base
from s2d_runtime import DispatcherError, trial
from toy_exports import PAIR, write_export

SCRIPT = Path(__file__).parent / "fuzzing.py"
SECONDS_PER_CASE = 20  # on a busy machine; a case takes 0.05 s


def outcomes(folder: Path, first: int, count: int) -> dict[int, str]:
    """What came of every case: `answered`, `refused: ...`, or `died` where it took its process down."""
    found: dict[int, str] = {}
    number = first
    while number < first + count:
        rest = first + count - number
        command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), str(number), str(rest)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 + SECONDS_PER_CASE * rest, check=False
        )
        for line in done.stdout.splitlines():
            number = int(line.partition(" ")[0])
            found[number] = line.partition(" ")[2] or "died"
        if done.returncode > 0:
            pytest.fail(f"case {number}: {done.stderr}")
        number += 1
    return found


def check(folder: Path, first: int, count: int) -> None:
    """Every case ended as it may, and both ends were seen."""
    found = outcomes(folder, first, count)
    assert sorted(found) == list(range(first, first + count))
    kinds = [text.partition(":")[0] for text in found.values()]
    assert set(kinds) <= {"answered", "refused", "died"}
    assert kinds.count("answered") > count / 50
    assert kinds.count("refused") > count / 2
    for number in (number for number, text in found.items() if text == "died"):
        # No reader can keep onnxruntime alive; but only a model that was made for it, with its hash, gets that far,
        # and who tries such a folder in a process of its own gets a sentence.
        case = folder / f"case{number}"
        assert hashes(case) != hashes_of_base(folder, number)
        with pytest.raises(DispatcherError, match="took the process down"):
            trial(case)


def hashes(case: Path) -> list[str]:
    manifest = json.loads((case / "manifest.json").read_text(encoding="utf-8"))
    return [entry["sha256"] for entry in manifest["stages"]]


def hashes_of_base(folder: Path, number: int) -> list[str]:
    """The hashes before the change."""
    base = folder / f"base{number}"
    base.mkdir()
    write_base(base, base_of(number))
    return hashes(base)


def test_changed_folders_end_in_a_sentence_or_in_the_right_answer(tmp_path: Path) -> None:
    check(tmp_path, 0, 120)


@pytest.mark.slow
def test_thousands_of_changed_folders_end_in_a_sentence_or_in_the_right_answer(tmp_path: Path) -> None:
    check(tmp_path, 1000, 2500)


def test_cases_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_case(tmp_path / name, 7)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


# --- trial ----------------------------------------------------------------------------------------------------------


def test_a_trial_passes_a_sound_folder_and_tells_what_is_wrong_with_another(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    trial(tmp_path)
    (tmp_path / "stage2.onnx").write_bytes(b"changed")
    with pytest.raises(DispatcherError, match=r"stage2\.onnx: its sha256 is not the one in the manifest"):
        trial(tmp_path)


@pytest.mark.parametrize(
    ("script", "seconds", "message"),
    [
        ("kill -6 $$", 60, r"took the process down that tried it \(-6\)"),
        ("exec sleep 60", 1, "did not answer within 1 seconds"),
    ],
)
def test_a_trial_survives_what_the_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, message: str
) -> None:
    write_export(tmp_path, PAIR)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DispatcherError, match=message):
        trial(tmp_path, seconds=seconds)

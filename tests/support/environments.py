"""Environments of their own for tests that need packages which this project does not: made once, under build/."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

BUILD = Path(__file__).parent.parent.parent / "build"
INSTALL_S = 900


def environment(name: str, requirements: Sequence[str], *, kind: str = "serving") -> Path:
    """The Python of an environment with these requirements; skips the test where they cannot be installed."""
    home = BUILD / kind / name
    python = home / "bin" / "python"
    if not _is_made(home, requirements):
        subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=INSTALL_S)
        _install(name, python, requirements)
        _note(home, requirements)
    return python


def beside(name: str, requirements: Sequence[str], *, without_their_own: Sequence[str] = (), kind: str) -> Path:
    """A folder of packages for this Python, to be put on its path: they share torch with this project. The second ones come
    without what they require. Skips the test where they cannot be installed."""
    home = BUILD / kind / name
    wanted = (*requirements, "without their own:", *without_their_own)
    if not _is_made(home, wanted):
        home.mkdir(parents=True)
        _install(name, sys.executable, ["--target", str(home), *requirements])
        if without_their_own:
            _install(name, sys.executable, ["--no-deps", "--target", str(home), *without_their_own])
        _note(home, wanted)
    return home


def _digest(requirements: Sequence[str]) -> str:
    return hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()


def _is_made(home: Path, requirements: Sequence[str]) -> bool:
    """Whether a folder has all of this; else it is gone."""
    stamp = home / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == _digest(requirements):
        return True
    shutil.rmtree(home, ignore_errors=True)
    return False


def _note(home: Path, requirements: Sequence[str]) -> None:
    (home / "installed").write_text(_digest(requirements), encoding="utf-8")


def _install(name: str, python: str | Path, arguments: Sequence[str]) -> None:
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if done.returncode:
        pytest.skip(f"{name}: cannot be installed here ({(done.stderr.splitlines() or ['no reason given'])[-1]})")

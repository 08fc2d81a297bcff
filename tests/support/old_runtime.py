"""An environment of its own with an old onnxruntime, in build/: made once, and skipped where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

OLD = "1.17.3"
PLACE = Path(__file__).parents[2] / "build" / f"onnxruntime-{OLD}"
INSTALL_S, RUN_S = 600, 120


def old_python() -> Callable[..., str]:
    """A function that runs the old environment's Python with some arguments and returns what it printed.

    Skips the test, with the reason, where the environment cannot be made: without a network, or on a Python that the old
    release has no wheel for.
    """
    python, done = PLACE / "bin" / "python", PLACE / ".done"
    if not done.exists():
        wanted = [f"onnxruntime=={OLD}", "numpy>=1.26,<2"]
        commands: tuple[list[str | Path], ...] = (
            [sys.executable, "-m", "venv", "--clear", PLACE],
            [python, "-m", "pip", "install", "-q", *wanted],
        )
        for command in commands:
            made = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
            if made.returncode:
                pytest.skip(f"onnxruntime {OLD} cannot be installed: {(made.stderr.strip() or 'no reason')[-200:]}")
        done.touch()

    def run(*arguments: object) -> str:
        ran = subprocess.run(
            [python, "-I", *map(str, arguments)], capture_output=True, text=True, timeout=RUN_S, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run

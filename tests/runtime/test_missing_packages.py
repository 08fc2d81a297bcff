"""Commands in an environment that lacks a package: one sentence that says what to install, never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from s2d_runtime import dispatcher, profile

# Python runs this file before anything else.
BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocker())
"""
RUNTIME = Path(dispatcher.__file__).parents[1]
NUMPY = "is not installed for this Python; pip install numpy onnxruntime"


def run_without(blocked: list[str], command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with a command where these packages cannot be imported."""
    (place / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(RUNTIME)])}
    return subprocess.run([sys.executable, *command], cwd=place, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("blocked", "module", "words"),
    [
        ("numpy", "s2d_runtime.calibrate", f"numpy {NUMPY}"),
        ("onnxruntime", "s2d_runtime.calibrate", f"onnxruntime {NUMPY}"),
        ("numpy", "s2d_runtime.profile", f"numpy {NUMPY}"),
        ("numpy", "s2d_runtime.dispatcher", f"numpy {NUMPY}"),
        ("numpy", "s2d_runtime.serving.http", f"numpy {NUMPY}"),
        (
            "starlette",
            "s2d_runtime.serving.http",
            "starlette is not installed for this Python; pip install 's2d-runtime[http]'",
        ),
        (
            "uvicorn",
            "s2d_runtime.serving.http",
            "uvicorn is not installed for this Python; pip install 's2d-runtime[http]'",
        ),
        ("prometheus_client", "s2d_runtime.serving.http", "pip install 's2d-runtime[http]'"),
        (
            "kserve",
            "s2d_runtime.serving.kserve",
            "kserve is not installed for this Python; pip install 's2d-runtime[kserve]'",
        ),
    ],
)
def test_a_module_that_is_run_says_what_it_lacks(blocked: str, module: str, words: str, tmp_path: Path) -> None:
    done = run_without([blocked], ["-m", module, "OUT"], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", [dispatcher, profile])
@pytest.mark.parametrize("blocked", ["numpy", "onnxruntime"])
def test_a_file_that_was_copied_to_a_device_says_what_it_lacks(module: object, blocked: str, tmp_path: Path) -> None:
    copy = tmp_path / "copied.py"
    shutil.copyfile(str(vars(module)["__file__"]), copy)
    done = run_without([blocked], [str(copy)], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{blocked} {NUMPY}\n")


def test_an_import_stays_an_error_that_can_be_caught(tmp_path: Path) -> None:
    code = "try:\n    import s2d_runtime\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    done = run_without(["onnxruntime"], ["-c", code], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "onnxruntime\n", "")


def test_the_command_line_names_the_extra(tmp_path: Path) -> None:
    code = "from s2d_convert.cli.main import main; main(['serve', 'OUT'])"
    env = os.environ.get("PYTHONPATH", "")
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=["starlette"]), encoding="utf-8")
    paths = [str(tmp_path), str(RUNTIME), str(RUNTIME.parent), env]
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith("s2d serve: starlette is missing; pip install 's2d-runtime[http]'\n")

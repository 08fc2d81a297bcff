"""dispatcher.py stands alone: copied into an export it runs with numpy and onnxruntime and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import s2d_runtime
from s2d_runtime import Dispatcher, dispatcher
from toy_exports import BLOCKED, MIXED, PAIR, images_of, policy, write_export

RUN_THE_COPY = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import numpy as np
from dispatcher import Dispatcher
images = np.load(sys.argv[1] + "/images.npy")
with Dispatcher(sys.argv[1]) as run:
    answer = run(images, thresholds=[0.5, 0.5, 0.5])
np.savez(sys.argv[1] + "/answer.npz", output=answer.output, stage=answer.stage, confidence=answer.confidence)
"""


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export with a copy of the dispatcher in it."""
    write_export(tmp_path, MIXED, policies=[policy(0.5, [0.1, 0.2, 0.3]), policy(1.0, [1.01] * 3)])
    shutil.copyfile(dispatcher.__file__, tmp_path / "dispatcher.py")
    return tmp_path


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the interpreter without the caller's paths, warnings being errors."""
    command = [sys.executable, "-I", "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_copy_answers_like_the_package(export: Path) -> None:
    images = images_of(np.random.default_rng(0).choice([0.1, 0.9], (20, 4)))
    np.save(export / "images.npy", images)
    done = python("-c", RUN_THE_COPY, export, *BLOCKED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Dispatcher(export) as run, np.load(export / "answer.npz") as found:
        answer = run(images, thresholds=[0.5, 0.5, 0.5])
        assert set(answer.stage.tolist()) == {1, 2, 3, 4}
        for name in ("output", "stage", "confidence"):
            np.testing.assert_array_equal(found[name], getattr(answer, name))


def test_the_command_describes_its_own_folder(export: Path) -> None:
    done = python(export / "dispatcher.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == dispatcher.describe(Dispatcher(export).manifest) + "\n"
    for text in ("'image' float32 [B, 2, 4]", "logits float32 [B, 4]", "stage4.onnx", "0.5 default"):
        assert text in done.stdout


def test_the_command_describes_another_folder(export: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_export(other, PAIR)
    done = python(export / "dispatcher.py", other)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stage2.onnx" in done.stdout
    assert "stage3.onnx" not in done.stdout


def test_the_command_ends_with_one_sentence_when_the_folder_is_damaged(export: Path) -> None:
    (export / "stage2.onnx").write_bytes(b"damaged")
    done = python(export / "dispatcher.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "stage2.onnx: its sha256 is not the one in the manifest" in done.stderr


def test_main_in_process(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dispatcher.main([str(export)])
    assert "stage4.onnx" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"manifest\.json"):
        dispatcher.main([str(export / "absent")])


def test_a_policy_that_was_not_reached_is_described_as_such() -> None:
    manifest = dispatcher.Manifest(
        input=dispatcher.TensorSpec("x", (None, 1), "float32"),
        output=dispatcher.OutputSpec((None, 2), "logits"),
        target="agreement",
        data="none",
        exactness=None,
        stages=(dispatcher.Stage("a.onnx", "0" * 64, 1, True, (), (), 1.0, 0.9, 12_345_678, 9),),
        policies=(dispatcher.Policy(0.4, (), 0.9, 0.8, (1.0,), False),),
        default_budget=0.4,
        preprocess=None,
        measured={},
        provenance={},
    )
    lines = dispatcher.describe(manifest).splitlines()
    assert "0.4 default, not reached" in dispatcher.describe(manifest)
    assert "12,345,678" in dispatcher.describe(manifest)
    assert max(map(len, lines)) < 100


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import does not survive the copy"
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_dispatcher_imports_numpy_onnxruntime_and_the_standard_library() -> None:
    outside = imported(Path(dispatcher.__file__)) - set(sys.stdlib_module_names)
    assert outside == {"numpy", "onnxruntime"}


def test_no_file_of_the_package_imports_torch_or_onnx() -> None:
    files = list(Path(s2d_runtime.__file__).parent.rglob("*.py"))
    assert len(files) >= 2
    assert [str(path) for path in files if imported(path) & {"torch", "onnx", "s2d_convert"}] == []


def test_there_is_one_exit_rule() -> None:
    # Only one comparison by size mentions a confidence or a threshold: the one in `leaves`.
    tree = ast.parse(Path(dispatcher.__file__).read_text(encoding="utf-8"))
    sizes = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    ordered = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and isinstance(node.ops[0], sizes)]
    texts = [ast.unparse(node) for node in ordered]
    assert [text for text in texts if "confidence" in text.lower() or "threshold" in text] == [
        "confidence >= threshold"
    ]


def test_the_public_door() -> None:
    assert sorted(s2d_runtime.__all__) == s2d_runtime.__all__
    assert [name for name in s2d_runtime.__all__ if not hasattr(s2d_runtime, name)] == []
    names = {name: value for name, value in vars(s2d_runtime).items() if not name.startswith("_")}
    public = {name for name, value in names.items() if not isinstance(value, ModuleType)} - {"annotations"}
    assert public == set(s2d_runtime.__all__) - {"__version__"}
    assert issubclass(s2d_runtime.DispatcherError, ValueError)

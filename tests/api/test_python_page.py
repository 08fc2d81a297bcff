"""Every snippet of docs/python.md runs, in order, on a tiny model and pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_model, quadrants

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "python.md"
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# So that the page may show calls as people make them: the efforts are tiny, and preprocessing fits the tiny model.
PREAMBLE = """
from dataclasses import replace
from tiny import EFFORT
from s2d_convert.conversion import options
options.EFFORTS = {**options.EFFORTS, "standard": replace(EFFORT, evaluations=2, baselines=False)}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The files that the page names."""
    make_model(tmp_path / "model.onnx")
    for folder, count, seed in (("images", 400, 1), ("fresh", 120, 2)):
        images, labels = quadrants(count, seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / folder / f"corner {label}").mkdir(parents=True, exist_ok=True)
            pixels = np.clip(np.rint(120 + 57 * image.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"corner {label}" / f"{number}.png")
    for name in ("photo.jpg", "other.png"):
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / name)
    return tmp_path


def test_every_snippet_runs(place: Path) -> None:
    snippets = SNIPPET.findall(PAGE.read_text(encoding="utf-8"))
    assert len(snippets) >= 7
    (place / "page.py").write_text("\n".join([PREAMBLE, *snippets]), encoding="utf-8")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "runtime", ROOT / "tests" / "support")))
    env = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], cwd=place, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "convert: no argument 'buget'; did you mean budget?" in done.stdout
    assert re.search(r"^corner \d 0\.\d+ [12]$", done.stdout, re.MULTILINE)
    made = {path.name for path in place.iterdir()}
    assert {"model.s2d", "curve.png", "model_in_one.onnx", "int8.s2d", "second.s2d"} <= made

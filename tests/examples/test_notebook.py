"""The notebook runs from top to bottom, cell by cell as a notebook would, and holds nothing of the machine it was made on."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
# What a notebook does with the value at the end of a cell.
SHOW = """
def show(value):
    html = getattr(value, "_repr_html_", None)
    if value is not None:
        print("HTML" if html else "TEXT", html() if html else repr(value), flush=True)
"""


def cells(kind: str) -> list[dict[str, Any]]:
    """The cells of one kind."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def as_script() -> str:
    """All code cells, with the values at their ends shown; a semicolon hides one."""
    script = [SHOW]
    for cell in cells("code"):
        source = "".join(cell["source"])
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.Expr) and not source.rstrip().endswith(";"):
            tree.body[-1] = ast.parse(f"show({ast.unparse(last)})").body[0]
        script.append(ast.unparse(tree))
    return "\n".join(script)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(as_script(), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    env = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "cells.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [line for line in done.stdout.splitlines() if line.startswith(("HTML", "TEXT"))]
    assert len(shown) == 6
    assert sum("<table>" in line for line in shown) >= 3
    assert any(line.startswith("TEXT Prediction(labels=(Label(name='") for line in shown)
    assert "budgets, on" in done.stdout
    assert (tmp_path / "digits_in_one.onnx").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert [cell for cell in cells("code") if cell["outputs"] or cell["execution_count"] is not None] == []
    assert [line for cell in cells("code") for line in cell["source"] if line.lstrip().startswith(("%", "!"))] == []
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    assert cells("markdown")[0]["source"][0].startswith("# ")

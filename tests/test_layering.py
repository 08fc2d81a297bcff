"""Keeps the ladder: a module imports only from strictly lower rungs, at the top of the file, read with `ast`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The ladder. A new module gets its rung here: the lowest one that is above everything it imports.
RUNGS: dict[str, dict[str, int]] = {
    "s2d_runtime": {
        "dispatcher": 0,
        "profile": 0,
        "serving": 1,
        "__init__": 2,
    },
    "s2d_convert": {
        "axes": 0,
        "charts": 0,
        "entry": 0,
        "errors": 0,
        "kernels": 0,
        "muon": 0,
        "policy": 0,
        "sessions": 0,
        "wording": 0,
        "__main__": 1,
        "answers": 1,
        "batch": 1,
        "calibrate": 1,
        "latency": 1,
        "preprocess": 1,
        "search": 1,
        "synthetic": 1,
        "augment": 2,
        "decode": 2,
        "guard": 2,
        "origin": 2,
        "promise": 2,
        "reinforce": 2,
        "simplify": 2,
        "table": 2,
        "graph": 3,
        "images": 3,
        "options": 3,
        "policies": 3,
        "cli_options": 4,
        "image_arrays": 4,
        "image_folders": 4,
        "load": 4,
        "lower_base": 4,
        "lower_window": 4,
        "rules_base": 4,
        "static": 4,
        "cli_serve": 5,
        "data": 5,
        "gallery": 5,
        "lower_layers": 5,
        "lower_math": 5,
        "lower_movement": 5,
        "lower_norm": 5,
        "lower_pool": 5,
        "lower_resize": 5,
        "madeup": 5,
        "measure": 5,
        "rules_map": 5,
        "rules_mix": 5,
        "rules_move": 5,
        "lower": 6,
        "rules": 6,
        "terminal": 6,
        "stagegraph": 7,
        "walk": 7,
        "channels": 8,
        "quantize": 8,
        "taps": 9,
        "weights": 9,
        "layers": 10,
        "plan": 10,
        "effective": 11,
        "needs": 12,
        "optional": 12,
        "staged": 12,
        "hints": 13,
        "pieces": 13,
        "space": 13,
        "describe": 14,
        "split": 14,
        "train": 14,
        "elsewhere": 15,
        "export": 15,
        "heads": 15,
        "inspect_view": 15,
        "candidates": 16,
        "report": 16,
        "runfolder": 16,
        "single": 16,
        "planned": 17,
        "prepare": 17,
        "spread": 17,
        "triton": 17,
        "bound": 18,
        "finalists": 18,
        "finish": 18,
        "folders": 18,
        "overhead": 18,
        "recast": 18,
        "cli_export": 19,
        "cli_folder": 19,
        "cli_model": 19,
        "exact": 19,
        "explore": 19,
        "recalibrate": 19,
        "tune": 19,
        "cli_calibrate": 20,
        "kit": 20,
        "pipeline": 20,
        "__init__": 21,
        "cli_convert": 21,
        "cli_profile": 21,
        "cli": 22,
    },
}
# Third-party packages that a module may import; a module that is not named here is free to choose.
ALLOWED: dict[tuple[str, str], set[str]] = {
    ("s2d_runtime", "dispatcher"): {"numpy", "onnxruntime"},
    ("s2d_runtime", "profile"): {"numpy", "onnxruntime"},
    ("s2d_runtime", "__init__"): set(),
    ("s2d_convert", "errors"): set(),
}
# Third-party packages that a module must do without.
FORBIDDEN: dict[tuple[str, str], set[str]] = {
    ("s2d_runtime", "serving"): {"torch", "onnx", "s2d_convert"},
    ("s2d_convert", "needs"): {"torch"},
    ("s2d_convert", "pieces"): {"torch"},
    ("s2d_convert", "split"): {"torch"},
}

ROOT = Path(__file__).parent.parent
FOLDERS = {"s2d_convert": ROOT / "s2d_convert", "s2d_runtime": ROOT / "runtime" / "s2d_runtime"}


def module_of(package: str, path: Path) -> str:
    """Name of the rung's module that `path` belongs to: its stem, or the sub-package it lies in."""
    return path.relative_to(FOLDERS[package]).parts[0].removesuffix(".py")


def imported_names(package: str, node: ast.AST) -> Iterator[str]:
    """Absolute dotted names that one statement imports (`from a import b` gives `a.b`)."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(part for part in (package if node.level else "", node.module or "") if part)
        yield from (f"{base}.{alias.name}" for alias in node.names)


def inside_functions(tree: ast.Module) -> set[ast.AST]:
    """All nodes that lie in the body of a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {inner for function in functions for inner in ast.walk(function)}


def complaint(package: str, module: str, name: str) -> str | None:
    """What is wrong with `module` importing `name`, or None."""
    top, _, rest = name.partition(".")
    if top == package:
        target = rest.partition(".")[0]
        target = target if target in RUNGS[package] else "__init__"
        if target != module and RUNGS[package][target] >= RUNGS[package][module]:
            return f"rung {RUNGS[package][module]} imports '{name}' of rung {RUNGS[package][target]}; only lower ones"
        return None
    allowed = ALLOWED.get((package, module))
    if allowed is not None and top not in allowed and top not in sys.stdlib_module_names:
        return f"imports '{name}'; allowed are the standard library and {sorted(allowed) or 'nothing else'}"
    if top in FORBIDDEN.get((package, module), set()):
        return f"imports '{name}', which it must do without"
    return None


def complaints(package: str, module: str, source: str) -> list[str]:
    """Everything that breaks the ladder in the text of one module, each with its line."""
    if module not in RUNGS[package]:
        return [f"module '{package}.{module}' has no rung; give it one in RUNGS in tests/test_layering.py"]
    tree = ast.parse(source)
    nested = inside_functions(tree)
    found = []
    for node in ast.walk(tree):
        for name in imported_names(package, node):
            problem = complaint(package, module, name)
            if node in nested and name.partition(".")[0] in RUNGS:
                problem = f"imports '{name}' inside a function; imports of the project stand at the top"
            if problem:
                found.append(f"{package}.{module}, line {getattr(node, 'lineno', 0)}: {problem}")
    return found


def sources() -> list[tuple[str, Path]]:
    """Every module of both packages, as (package, path)."""
    return [(package, path) for package, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize(("package", "path"), [pytest.param(*s, id=f"{s[0]}/{s[1].name}") for s in sources()])
def test_a_module_imports_only_from_lower_rungs(package: str, path: Path) -> None:
    assert complaints(package, module_of(package, path), path.read_text(encoding="utf-8")) == []


def test_both_packages_were_found() -> None:
    assert {package for package, _ in sources()} == set(RUNGS)


@pytest.mark.parametrize(
    ("package", "module", "source", "expected"),
    [
        ("s2d_convert", "graph", "from s2d_convert.plan import Plan", "only lower ones"),
        ("s2d_convert", "graph", "from s2d_convert import rules", "only lower ones"),
        ("s2d_convert", "graph", "from . import channels", "only lower ones"),
        ("s2d_convert", "graph", "from s2d_convert import __version__", "only lower ones"),
        ("s2d_convert", "plan", "def f():\n    from s2d_convert.errors import S2DError", "inside a function"),
        ("s2d_convert", "cli", "def f():\n    import s2d_runtime", "inside a function"),
        ("s2d_convert", "split", "import torch.nn", "must do without"),
        ("s2d_convert", "novel", "", "has no rung"),
        ("s2d_runtime", "dispatcher", "import onnx", "allowed are"),
        ("s2d_runtime", "dispatcher", "def f():\n    import torch", "allowed are"),
        ("s2d_runtime", "dispatcher", "from s2d_convert.errors import S2DError", "allowed are"),
        ("s2d_runtime", "serving", "def f():\n    import torch", "must do without"),
    ],
)
def test_a_broken_ladder_is_noticed(package: str, module: str, source: str, expected: str) -> None:
    (found,) = complaints(package, module, source)
    assert expected in found


@pytest.mark.parametrize(
    ("package", "module", "source"),
    [
        ("s2d_convert", "cli", "import torch\nfrom s2d_convert import errors, pipeline\nimport s2d_runtime"),
        ("s2d_convert", "report", "from s2d_convert.report.page import html"),
        ("s2d_runtime", "dispatcher", "import json\nimport numpy as np\nimport onnxruntime as ort"),
        ("s2d_runtime", "__init__", "from s2d_runtime.dispatcher import Dispatcher"),
    ],
)
def test_a_sound_module_passes(package: str, module: str, source: str) -> None:
    assert complaints(package, module, source) == []


def test_the_map_in_contributing_has_every_module_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split("| | modules |")[1].split("\n\n")[0].splitlines()
    named = [name for row in rows for name in re.findall(r"`(\w+\*?)`", row.rpartition(" | ")[2])]
    modules = {module for module in RUNGS["s2d_convert"] if not module.startswith("__")}
    covered = [m for name in named for m in modules if m == name or (name.endswith("*") and m.startswith(name[:-1]))]
    assert sorted(covered) == sorted(modules)

"""The layers contract: a package imports only from packages below it, at the top of the file, read with `ast`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Lowest first. A module that lies in the folder of `s2d_convert` itself is a layer of its own.
LAYERS = {
    "s2d_runtime": (
        "dispatcher",
        "profile",
        "thresholds",
        "policies",
        "expected",
        "names",
        "preprocess",
        "pictures",
        "classifier",
        "calibrate",
        "serving",
        "__init__",
    ),
    "s2d_convert": (
        "_lazy",
        "_version",
        "errors",
        "base",
        "data",
        "calibration",
        "latency",
        "frontend",
        "channels",
        "plans",
        "slicing",
        "network",
        "training",
        "exporting",
        "search",
        "conversion",
        "workflows",
        "cli",
        "api",
        "__init__",
        "__main__",
    ),
}
MOST_MODULES = 14  # in one folder, its `__init__` aside
# Third-party packages that a layer may import; a layer that is not named here is free to choose.
ALLOWED: dict[tuple[str, str], set[str]] = {
    ("s2d_runtime", "dispatcher"): {"numpy", "onnxruntime"},
    ("s2d_runtime", "profile"): {"numpy", "onnxruntime"},
    ("s2d_runtime", "thresholds"): {"numpy"},
    ("s2d_runtime", "policies"): {"numpy"},
    ("s2d_runtime", "expected"): {"numpy"},
    ("s2d_runtime", "preprocess"): {"numpy"},
    ("s2d_runtime", "names"): set(),
    ("s2d_runtime", "classifier"): {"numpy"},
    ("s2d_runtime", "pictures"): {"numpy", "PIL"},
    ("s2d_runtime", "calibrate"): {"numpy", "onnxruntime"},
    ("s2d_runtime", "__init__"): set(),
    ("s2d_convert", "errors"): set(),
}
# Third-party packages that a layer must do without.
FORBIDDEN: dict[tuple[str, str], set[str]] = {
    ("s2d_runtime", "serving"): {"torch", "onnx", "s2d_convert"},
    **{("s2d_convert", layer): {"torch"} for layer in LAYERS["s2d_convert"][: LAYERS["s2d_convert"].index("network")]},
}

ROOT = Path(__file__).parent.parent
FOLDERS = {"s2d_convert": ROOT / "s2d_convert", "s2d_runtime": ROOT / "runtime" / "s2d_runtime"}


def layer_of(package: str, path: Path) -> str:
    """The layer that a file belongs to: the sub-package it lies in, or its own stem."""
    return path.relative_to(FOLDERS[package]).parts[0].removesuffix(".py")


def imported_names(package: str, node: ast.AST) -> Iterator[str]:
    """Absolute dotted names that one statement imports (`from a import b` gives `a.b`)."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(part for part in (package if node.level else "", node.module or "") if part)
        yield from (f"{base}.{alias.name}" for alias in node.names)


def nodes_in_functions(tree: ast.Module) -> set[ast.AST]:
    """All nodes that lie in the body of a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {inner for function in functions for inner in ast.walk(function)}


def import_problem(package: str, layer: str, name: str) -> str | None:
    """What is wrong with a module of `layer` importing `name`, or None."""
    top, _, rest = name.partition(".")
    layers = LAYERS[package]
    if top == package:
        target = rest.partition(".")[0]
        target = target if target in layers else "__init__"
        if target != layer and layers.index(target) >= layers.index(layer):
            return f"layer '{layer}' imports '{name}' of the layer '{target}' above it"
        return None
    allowed = ALLOWED.get((package, layer))
    if allowed is not None and top not in allowed and top not in sys.stdlib_module_names:
        return f"imports '{name}'; allowed are the standard library and {sorted(allowed) or 'nothing else'}"
    if top in FORBIDDEN.get((package, layer), set()):
        return f"imports '{name}', which the layer '{layer}' must do without"
    return None


def import_problems(package: str, layer: str, source: str) -> list[str]:
    """Everything in the text of one module that breaks the contract, each with its line."""
    if layer not in LAYERS[package]:
        return [f"'{package}.{layer}' is no layer; give it a place in LAYERS in tests/test_layering.py"]
    tree = ast.parse(source)
    nested = nodes_in_functions(tree)
    problems = []
    for node in ast.walk(tree):
        for name in imported_names(package, node):
            problem = import_problem(package, layer, name)
            if node in nested and name.partition(".")[0] in LAYERS:
                problem = f"imports '{name}' inside a function; imports of the project stand at the top"
            if problem:
                problems.append(f"line {getattr(node, 'lineno', 0)}: {problem}")
    return problems


@pytest.mark.parametrize("package", list(LAYERS))
def test_packages_import_only_from_those_below(package: str) -> None:
    problems = {
        str(path.relative_to(ROOT)): broken
        for path in sorted(FOLDERS[package].rglob("*.py"))
        if (broken := import_problems(package, layer_of(package, path), path.read_text(encoding="utf-8")))
    }
    assert problems == {}


@pytest.mark.parametrize("package", list(LAYERS))
def test_every_layer_is_there_and_says_what_it_is_for(package: str) -> None:
    present = {layer_of(package, path) for path in FOLDERS[package].rglob("*.py")}
    assert present == set(LAYERS[package])
    silent = [
        str(path.relative_to(ROOT))
        for path in FOLDERS[package].rglob("*.py")
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def test_no_folder_outgrows_one_look() -> None:
    folders = {path.parent for path in FOLDERS["s2d_convert"].rglob("*.py")}
    sizes = {str(f.relative_to(ROOT)): len([p for p in f.glob("*.py") if p.stem != "__init__"]) for f in folders}
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize(
    ("package", "layer", "source", "expected"),
    [
        ("s2d_convert", "frontend", "from s2d_convert.plans.plan import Plan", "above it"),
        ("s2d_convert", "frontend", "from s2d_convert import channels", "above it"),
        ("s2d_convert", "frontend", "from . import channels", "above it"),
        ("s2d_convert", "frontend", "from s2d_convert import __version__", "above it"),
        ("s2d_convert", "plans", "def f():\n    from s2d_convert.errors import S2DError", "inside a function"),
        ("s2d_convert", "cli", "def f():\n    import s2d_runtime", "inside a function"),
        ("s2d_convert", "slicing", "import torch.nn", "must do without"),
        ("s2d_convert", "novel", "", "is no layer"),
        ("s2d_runtime", "dispatcher", "import onnx", "allowed are"),
        ("s2d_runtime", "dispatcher", "def f():\n    import torch", "allowed are"),
        ("s2d_runtime", "dispatcher", "from s2d_convert.errors import S2DError", "allowed are"),
        ("s2d_runtime", "serving", "def f():\n    import torch", "must do without"),
    ],
)
def test_a_broken_contract_is_noticed(package: str, layer: str, source: str, expected: str) -> None:
    (problem,) = import_problems(package, layer, source)
    assert expected in problem


@pytest.mark.parametrize(
    ("package", "layer", "source"),
    [
        ("s2d_convert", "cli", "import torch\nfrom s2d_convert import errors, conversion\nimport s2d_runtime"),
        ("s2d_convert", "exporting", "from s2d_convert.exporting.report.page import html"),
        ("s2d_runtime", "dispatcher", "import json\nimport numpy as np\nimport onnxruntime as ort"),
        ("s2d_runtime", "__init__", "from s2d_runtime.dispatcher import Dispatcher"),
    ],
)
def test_a_sound_module_passes(package: str, layer: str, source: str) -> None:
    assert import_problems(package, layer, source) == []


def test_contributing_names_every_package_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    named = [name.strip("`/ ") for row in rows for name in row.split(",")]
    folders = [layer for layer in LAYERS["s2d_convert"] if (FOLDERS["s2d_convert"] / layer).is_dir()]
    assert [name for name in named if name in folders] == folders

"""docs/coverage.md from what a sweep has found."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime
import torch

from zoo.table import MEMBERS

INTRODUCTION = """\
# Coverage

Full-size architectures with random weights, exported with torch's classic exporter (opset 17, BatchNorm folded, dynamic
batch) and taken through load, analysis, split and the laws by `python tests/support/zoo/sweep.py`. This page is written by
the same script with `--page`. The models come from timm and pytorchcv, every row is a process of its own. The image is smaller
than usual where the model allows it.

- *splits*: the share of the multiply-accumulates that can be divided among stages by channels; the rest splits by depth only.
- *identity*: one stage equals the static model. *depth*: with exits by depth, the last stage equals the static model.
  *width*: for a random plan (any taps, every unit in a random stage or in none) the chain of stage files in onnxruntime
  equals one masked forward pass in torch, at every exit. Relative error at most 1e-4 (width: 1e-3), two images.
- *load* is everything from the file to the simplified graph (onnxruntime's optimisations, the check that rows are independent);
  *split* cuts and builds the files of a one-stage plan. Seconds, one thread, on two cores that did other things too.
"""
LAWS = ("identity", "depth", "width")


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page; members that no sweep has tried yet are left out."""
    rows = [found[m.name] for m in MEMBERS if m.name in found]
    passed = sum("failed" not in row for row in rows)
    versions = (
        f"torch {torch.__version__.split('+')[0]}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    lines = [
        INTRODUCTION,
        f"{passed} of {len(rows)} members pass everything ({versions}, {platform.machine()}).",
        "",
        "| family | member | image | nodes | splits | taps | identity | depth | width | load s | analyse s | split s |",
        "|---|---|---:|---:|---:|---:|---|---|---|---:|---:|---:|",
        *map(_row, sorted(rows, key=lambda row: (row["family"].lower(), row["name"]))),
        "",
        *_notes(rows),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    name = row["name"].rpartition(".")[2]
    failed = row.get("failed")
    laws = ["yes" if f"{law}_s" in row else "**no**" if failed == law else "-" for law in LAWS]
    splits = f"{100 * row['splits']:.1f} %" if "splits" in row else "-"
    seconds = [f"{row[key]:.1f}" if key in row else "-" for key in ("load_s", "analyse_s", "split_s")]
    cells = [row["family"], name, row["size"], row.get("nodes", "-"), splits, row.get("taps", "-"), *laws, *seconds]
    return "| " + " | ".join(map(str, cells)) + " |"


def _notes(rows: list[Mapping[str, Any]]) -> list[str]:
    lines = ["## What fails", ""]
    failures = [f"- {row['name']}, {row['failed']}: {row['error']}" for row in rows if "failed" in row]
    lines += failures or ["Nothing."]
    lines += ["", "## What splits by depth only, and why", ""]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.get("opaque", ()):
            reasons.setdefault(reason, []).append(row["name"].rpartition(".")[2])
    lines += [f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]
    return lines

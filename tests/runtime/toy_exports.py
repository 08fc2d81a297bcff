"""Exports made by hand: tiny stages whose confidences the test writes into the images, and a row-by-row reference.

An image is float32 [2, 4]. Its first line holds the confidence of stage 1 to 4, its second line the payload. Every
stage adds up the payloads of all that it reads, answers ``3 * sum + its number``, and hands that on, with the
confidences, in its links. All of it is exact in float32, so answers can be compared to the last bit, and every wrong
row, stage or link shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Toy:
    """What a toy stage reads and writes."""

    chain: int = 1
    image: bool = True
    links_in: tuple[str, ...] = ()
    links_out: tuple[str, ...] = ()


# One chain of two stages, as most exports are; and a narrow first stage before the untouched model.
# Packages of the development environment that a deployed device does not have.
BLOCKED = (
    "torch",
    "onnx",
    "s2d_runtime",
    "s2d_convert",
    "scipy",
    "PIL",
    "click",
    "rich",
    "sklearn",
    "onnx_graphsurgeon",
)

PAIR = (Toy(links_out=("link1",)), Toy(image=False, links_in=("link1",)))
CASCADE = (Toy(), Toy(chain=2))
SINGLE = (Toy(),)
# Everything at once: skipping links, a late reader of the image, a link that nobody reads, three chains.
MIXED = (
    Toy(links_out=("a", "dead")),
    Toy(chain=2, links_out=("b", "c")),
    Toy(chain=2, image=False, links_in=("c",)),
    Toy(chain=2, links_in=("b",)),
)


def stage_text(number: int, toy: Toy) -> str:
    """A toy stage as ONNX text; `number` counts from 1."""
    reads = [*(["image"] if toy.image else []), *toy.links_in]
    inputs = ", ".join(f"float[N,2,4] {name}" for name in reads)
    links = "".join(f", float[N,2,4] {name}" for name in toy.links_out)
    lines = [f"pay_{name} = Gather<axis = 1>({name}, one)" for name in reads]
    lines += [f"sum = Sum({', '.join(f'pay_{name}' for name in reads)})", "tripled = Mul(sum, three)"]
    lines += ["output = Add(tripled, number)", f"sure = Gather<axis = 1>({reads[0]}, zero)"]
    lines += ["confidence = Gather<axis = 1>(sure, own)"]
    if toy.links_out:
        lines += ["sure_up = Unsqueeze(sure, axes)", "output_up = Unsqueeze(output, axes)"]
    lines += [f"{name} = Concat<axis = 1>(sure_up, output_up)" for name in toy.links_out]
    axes = "int64[1] axes = {1}, " if toy.links_out else ""  # onnxruntime complains of constants without a reader
    constants = f"int64 zero = {{0}}, int64 one = {{1}}, int64 own = {{{number - 1}}}, float three = {{3}}"
    return "\n".join(
        [
            f'<ir_version: 8, opset_import: ["" : 13]> stage{number} ({inputs})',
            f"=> (float[N,4] output, float[N] confidence{links})",
            f"<{axes}{constants}, float number = {{{number}}}> {{",
            *lines,
            "}",
        ]
    )


@cache
def model_bytes(text: str) -> bytes:
    """A stage file's content from ONNX text."""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def policy(budget: float, thresholds: Sequence[float]) -> dict[str, Any]:
    """A policy of a manifest; its expectations say nothing."""
    stages = len(thresholds) + 1
    return {
        "budget": budget,
        "thresholds": list(thresholds),
        "expected_latency": budget,
        "expected_accuracy": 0.5,
        "exit_share": [0.0] * (stages - 1) + [1.0],
        "reached": True,
        "disagreement": None,
        "confidence_histogram": [],
        "promise": None,
    }


def manifest_of(
    toys: Sequence[Toy], texts: Sequence[str], *, policies: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """What manifest.json says about toy stages; without `policies` there is one, which never leaves early."""
    rows = list(policies) or [policy(1.0, [1.01] * (len(toys) - 1))]
    return {
        "format": "s2d-convert",
        "version": 1,
        "input": {"name": "image", "shape": [None, 2, 4], "dtype": "float32"},
        "output": {"shape": [None, 4], "kind": "logits"},
        "target": "accuracy",
        "data": "labelled",
        "exactness": None,
        "stages": [
            {
                "file": f"stage{number}.onnx",
                "sha256": hashlib.sha256(model_bytes(text)).hexdigest(),
                "chain": toy.chain,
                "image": toy.image,
                "links_in": list(toy.links_in),
                "links_out": [{"name": name, "shape": [None, 2, 4]} for name in toy.links_out],
                "temperature": 1.5,
                "latency_ratio": 0.25,
                "macs": 100 * number,
                "parameters": 10,
            }
            for number, (toy, text) in enumerate(zip(toys, texts, strict=True), start=1)
        ],
        "policies": rows,
        "default_budget": rows[0]["budget"],
        "preprocess": None,
        "measured": {},
        "provenance": {"model": "toy.onnx"},
    }


def write_export(
    folder: Path,
    toys: Sequence[Toy],
    *,
    policies: Sequence[dict[str, Any]] = (),
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a whole export and return its manifest; `texts` replace the stages' own."""
    texts = list(texts) or [stage_text(number, toy) for number, toy in enumerate(toys, start=1)]
    manifest = manifest_of(toys, texts, policies=policies)
    for entry, text in zip(manifest["stages"], texts, strict=True):
        (folder / entry["file"]).write_bytes(model_bytes(text))
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: object) -> None:
    """Write manifest.json as it is, NaN included."""
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@cache
def _session(text: str) -> Any:
    return ort.InferenceSession(model_bytes(text), providers=["CPUExecutionProvider"])


def answer_of_row(toys: Sequence[Toy], image: Floats, thresholds: Sequence[float] | None) -> tuple[Floats, int, float]:
    """Output [4], stage and confidence of one image [2, 4], by brute force: every stage, one row, no shortcut.

    `thresholds` None: exits are off.
    """
    values: dict[str, Any] = {"image": image[None]}
    with np.errstate(over="ignore"):
        limits = None if thresholds is None else [np.float32(threshold) for threshold in thresholds]
    for number, toy in enumerate(toys, start=1):
        session = _session(stage_text(number, toy))
        names = [node.name for node in session.get_outputs()]
        found = session.run(names, {node.name: values[node.name] for node in session.get_inputs()})
        values.update(zip(names, found, strict=True))
        sure = values["confidence"][0]
        if number == len(toys) or (limits is not None and sure >= limits[number - 1]):
            return values["output"][0], number, sure
    raise AssertionError("unreachable: the last stage answers")


def images_of(confidences: object, *, seed: int = 0) -> Floats:
    """Images [B, 2, 4] with these confidences [B, 4] and random whole numbers as payload."""
    sure = np.asarray(confidences, dtype=np.float32).reshape(-1, 4)
    payload = np.random.default_rng(seed).integers(-50, 50, sure.shape).astype(np.float32)
    return np.stack([sure, payload], axis=1)

"""An export with two stages and random weights for the examples in other languages, and what the dispatcher answers on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from s2d_runtime import Answer, Dispatcher
from text_nets import residual

from s2d_convert.data.preprocess import Preprocess
from s2d_convert.workflows.split_model import SplitOptions, split_model

BUDGETS = (0.4, 0.8)  # the first lets most images leave early, the second few
PREPROCESS = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255, (8, 8), 3)


@dataclass(frozen=True)
class Example:
    """pixels: uint8 [B, 8, 8, 3]; images: float32 [B, 3, 8, 8], the same as model input."""

    folder: Path
    pixels: NDArray[np.uint8]
    images: NDArray[np.float32]

    def answers(self, budget: float) -> Answer:
        """What the dispatcher says, image by image as the examples do it."""
        with Dispatcher(self.folder) as dispatcher:
            rows = [dispatcher(image[None], budget=budget) for image in self.images]
        parts = ([getattr(row, name) for row in rows] for name in ("output", "stage", "confidence"))
        return Answer(*(np.concatenate(part) for part in parts))


def make_example(folder: Path, *, images: int = 12, model: onnx.ModelProto | None = None) -> Example:
    """A folder `OUT` in `folder`; its thresholds lie in wide gaps between confidences, so that rounding changes no exit."""
    onnx.save(model or residual(), str(folder / "model.onnx"))
    out = folder / "OUT"
    split_model(SplitOptions(folder / "model.onnx", plan="width", stages=2, out=out))
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 3), np.uint8)
    model_input = PREPROCESS(pixels)
    with Dispatcher(out) as dispatcher:
        sure = np.sort(dispatcher(model_input, thresholds=[-1.0]).confidence)
    edit(out / "manifest.json", [_gap(sure[: images // 2]), _gap(sure[images // 2 :])])
    return Example(out, pixels, model_input)


def _gap(values: NDArray[np.float32]) -> float:
    """The middle of the widest gap between neighbours."""
    widest = int(np.argmax(np.diff(values)))
    return float(values[widest : widest + 2].mean())


def edit(path: Path, thresholds: list[float]) -> None:
    """Give a manifest the preprocessing and a policy for each of BUDGETS."""
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    policy = manifest["policies"][0]
    manifest["policies"] = [
        policy | {"budget": budget, "thresholds": [threshold]}
        for budget, threshold in zip(BUDGETS, thresholds, strict=True)
    ]
    manifest |= {"default_budget": BUDGETS[0], "preprocess": PREPROCESS.to_json()}
    path.write_text(json.dumps(manifest), encoding="utf-8")

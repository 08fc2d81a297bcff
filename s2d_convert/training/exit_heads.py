"""Exit heads on a frozen backbone: features are computed once, then small heads are trained on them.

onnxruntime runs the static model once over the images. Its outputs are the logits and, for every candidate tap, the means
over a grid of cells. A head is one hidden layer on that grid. Means over whole maps would lose where things are in the
image, and with it most of what the early layers of a thin network can tell (docs/experiments.md).

Letters: B rows, F features of a tap, K classes, T taps.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.files import naming
from s2d_convert.base.sessions import make_session
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.augment import Level
from s2d_convert.data.images import Images
from s2d_convert.frontend.proto import set_nodes
from s2d_convert.frontend.reference import to_logits
from s2d_convert.network.layers import Head
from s2d_convert.plans.weights import ExitHead
from s2d_convert.training.loss import exit_loss
from s2d_convert.training.settings import Progress, TrainSettings, schedule

MAX_FEATURES = 2048  # per tap; limits the head's work and the space on disk (8 KB a row)
MAX_SIDE = 8  # cells along one axis
MIN_HIDDEN, MAX_HIDDEN = 128, 512
FEATURE_BATCH = 100
MAX_COPIES = 10
HEAD_BATCH, HEAD_RATE, MIN_STEPS = 256, 3e-3, 400
TEMPERATURE = 2.0

Report = Callable[[int, int], None]  # rows done, all rows


@dataclass(frozen=True)
class Features:
    """What the heads learn from: per tap float32 [B, F], the static model's logits [B, K], and labels if any."""

    taps: Mapping[str, Array]
    logits: Array
    labels: Array | None


@dataclass(frozen=True)
class Copies:
    """How often images are taken: once unchanged, and in every further copy augmented in another way."""

    count: int = 1
    level: Level = "light"
    flip: bool = True
    seed: int = 0

    def augmented(self, images: Images, rows: slice, rng: np.random.Generator) -> Array:
        """Return some of the images augmented, as model input."""
        return images.augmented(rows, rng, level=self.level, flip=self.flip)


ONCE = Copies()


def head_cell(model: AnalysedModel, tap: str) -> tuple[int, int] | None:
    """Return height and width of the cells over which a head averages a tap, None for a tap that is a vector."""
    shape, axis = list(model.graph.shapes[tap]), model.channels.layouts[tap].axis
    if len(shape) == 1:
        return None
    width = shape.pop(axis)
    side = min(MAX_SIDE, max(1, math.isqrt(MAX_FEATURES // width))) if width <= MAX_FEATURES else 1
    return math.ceil(shape[0] / side), math.ceil(shape[1] / side)


def feature_count(model: AnalysedModel, tap: str) -> int:
    """Return F, the number of features of a tap."""
    shape, axis = list(model.graph.shapes[tap]), model.channels.layouts[tap].axis
    cell = head_cell(model, tap)
    if cell is None:
        return shape[0]
    width = shape.pop(axis)
    return width * (shape[0] // cell[0]) * (shape[1] // cell[1])


def row_bytes(model: AnalysedModel, taps: Sequence[str]) -> int:
    """Return the bytes of one image's features at all these taps, with its logits."""
    return 4 * (model.graph.classes + sum(feature_count(model, tap) for tap in taps))


# --- features ---------------------------------------------------------------------------------------------


def feature_model(model: AnalysedModel, taps: Sequence[str]) -> onnx.ModelProto:
    """Return the static model with the features of every tap as further outputs, in the order of `taps`."""
    extended = model.graph.to_logits_model()
    nodes = list(extended.graph.node)
    for index, tap in enumerate(taps):
        source, cell = tap, head_cell(model, tap)
        steps: list[tuple[str, dict[str, Any]]] = []
        if cell is not None and model.channels.layouts[tap].axis == 2:
            steps.append(("Transpose", {"perm": [0, 3, 1, 2]}))
        if cell is not None:
            steps.append(("AveragePool", {"kernel_shape": list(cell), "strides": list(cell)}))
        for number, (op, attributes) in enumerate([*steps, ("Flatten", {"axis": 1})]):
            output = f"s2d.features{index}.{number}"
            nodes.append(helper.make_node(op, [source], [output], name=output, **attributes))
            source = output
        shape: list[str | int | None] = ["N", feature_count(model, tap)]
        extended.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, shape))
    set_nodes(extended.graph, nodes)
    return extended


class Extractor:
    """A session of the static model that computes the features of heads, shared by all data splits."""

    def __init__(self, model: AnalysedModel, taps: Sequence[str], *, threads: int, provider: str) -> None:
        self.graph, self.taps = model.graph, tuple(taps)
        self._widths = [feature_count(model, tap) for tap in taps]
        serialized = feature_model(model, taps).SerializeToString()
        self._session = make_session(serialized, threads=threads, provider=provider)

    def features(
        self, images: Images, *, copies: Copies = ONCE, store: Path | None = None, report: Report | None = None
    ) -> Features:
        """Return the features of copies of the images.

        store: a folder that holds the features instead of memory. It appears when it is complete; if it exists, the
        features are read from it. report: called after every batch.
        """
        rows = copies.count * len(images)
        partial = None if store is None else store.with_name(store.name + ".partial")
        if store is not None and store.exists():
            return self._read(store, images, copies.count)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        shapes = [(rows, self.graph.classes), *((rows, width) for width in self._widths)]
        arrays = [_new_array(partial, index, shape) for index, shape in enumerate(shapes)]
        done = 0
        for copy in range(copies.count):
            rng = np.random.default_rng([copies.seed, 4, copy])
            for part in slices(len(images), self.graph.batch_of(FEATURE_BATCH)):
                batch = images.batch(part) if copy == 0 else copies.augmented(images, part, rng)
                outputs = self._session.run(None, {self.graph.image: np.ascontiguousarray(batch)})
                outputs[0] = to_logits(outputs[0], self.graph.logits_kind)
                for array, value in zip(arrays, outputs, strict=True):
                    array[done : done + len(value)] = value
                done += len(batch)
                if report is not None:
                    report(done, rows)
        if store is None or partial is None:
            return self._gathered(arrays, images, copies.count)
        for array in arrays:
            array.flush()  # type: ignore[attr-defined]
        partial.rename(store)
        return self._read(store, images, copies.count)

    def _read(self, store: Path, images: Images, copies: int) -> Features:
        arrays = [np.load(store / f"{index}.npy", mmap_mode="r") for index in range(1 + len(self.taps))]
        return self._gathered(arrays, images, copies)

    def _gathered(self, arrays: Sequence[Array], images: Images, copies: int) -> Features:
        labels = None if images.labels is None else np.concatenate([images.labels] * copies)
        return Features(dict(zip(self.taps, arrays[1:], strict=True)), arrays[0], labels)


def _new_array(folder: Path | None, index: int, shape: tuple[int, int]) -> Array:
    if folder is None:
        return np.empty(shape, np.float32)
    file = folder / f"{index}.npy"
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    if sys.platform == "linux":  # raises an error for a full disk; a write into the map would kill the process
        with naming(file), file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
    return array


# --- training ---------------------------------------------------------------------------------------------


def new_head(model: AnalysedModel, tap: str, *, seed: int) -> ExitHead:
    """Return an untrained head for features of standard deviation 1. Equal seeds give equal heads."""
    rng = np.random.default_rng([seed, 5, *tap.encode()])
    width, hidden = feature_count(model, tap), min(MAX_HIDDEN, max(MIN_HIDDEN, model.graph.classes // 2))
    first = rng.normal(0, math.sqrt(2 / width), (hidden, width)).astype(np.float32)
    last = rng.normal(0, math.sqrt(1 / hidden), (model.graph.classes, hidden)).astype(np.float32)
    layers = ((first, np.zeros(hidden, np.float32)), (last, np.zeros(model.graph.classes, np.float32)))
    return ExitHead(layers, head_cell(model, tap))


def train_heads(
    model: AnalysedModel,
    features: Features,
    *,
    epochs: float,
    seed: int,
    device: torch.device,
    seconds: float = math.inf,
    on_step: Callable[[Progress], None] | None = None,
) -> dict[str, ExitHead]:
    """Train a head for every tap, all in one loop over the same batches, for so many epochs and so many seconds at most, and
    return them by tap."""
    taps = list(features.taps)
    scales = [_scale(features.taps[tap]) for tap in taps]
    heads = [_module(model, t, new_head(model, t, seed=seed)).to(device) for t in taps]
    rows = len(features.logits)
    size = min(HEAD_BATCH, rows)
    settings = TrainSettings(
        steps=max(MIN_STEPS, round(epochs * rows / size)),
        batch_size=size,
        learning_rate=HEAD_RATE,
        temperature=TEMPERATURE,
    )
    parameters = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    started = time.monotonic()
    for step in range(settings.steps):
        share = max(step / settings.steps, (time.monotonic() - started) / seconds) if seconds > 0 else 1.0
        if share >= 1:
            break
        epoch, number = divmod(step, rows // size)
        order = np.random.default_rng([seed, 6, epoch]).permutation(rows)
        batch = np.sort(order[number * size : (number + 1) * size])
        inputs = [torch.from_numpy(features.taps[t][batch] / s).to(device) for t, s in zip(taps, scales, strict=True)]
        soft = torch.from_numpy(features.logits[batch]).to(device)
        labels = None if features.labels is None else torch.from_numpy(features.labels[batch]).to(device)
        logits = [head.logits(x) for head, x in zip(heads, inputs, strict=True)]
        optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(share, settings.warmup)
        loss = exit_loss(logits, soft, labels, settings, several=model.graph.task.several)
        optimizer.zero_grad(set_to_none=True)
        (loss * len(taps)).backward()
        optimizer.step()
        if on_step is not None:
            spent = time.monotonic() - started
            seconds_left = min(spent / (step + 1) * (settings.steps - step - 1), max(0.0, seconds - spent))
            on_step(Progress(step + 1, settings.steps, float(loss.detach()), seconds_left))
    return {t: _rescaled(head.numpy(), scale) for t, head, scale in zip(taps, heads, scales, strict=True)}


def head_logits(model: AnalysedModel, heads: Mapping[str, ExitHead], features: Features) -> Array:
    """Return the logits [T, B, K] of all heads, in the order of `heads`."""
    rows = []
    for tap, head in heads.items():
        module = _module(model, tap, head)
        with torch.no_grad():
            rows.append(module.logits(torch.from_numpy(np.ascontiguousarray(features.taps[tap]))).numpy())
    return np.stack(rows)


def _module(model: AnalysedModel, tap: str, head: ExitHead) -> Head:
    return Head(model.channels.layouts[tap].axis, head)


def _scale(values: Array) -> Array:
    """Return the standard deviation of each feature, at least 1 % of the mean one, so that constant features stay harmless."""
    deviation = values.std(axis=0)
    return np.maximum(deviation, max(1e-2 * float(deviation.mean()), 1e-6)).astype(np.float32)


def _rescaled(head: ExitHead, scale: Array) -> ExitHead:
    """Return the equivalent head for features that are not divided by `scale`."""
    (weight, bias), *rest = head.layers
    return ExitHead(((weight / scale, bias), *rest), head.cell)

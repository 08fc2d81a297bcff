"""A tiny classifier that converts in seconds: which quadrant of a 12x12 image is bright."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from s2d_convert.base.clock import Clock
from s2d_convert.base.reporting import PlannedStep
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.conversion import options
from s2d_convert.conversion.options import ConvertOptions, Effort
from s2d_convert.frontend.load import load_graph
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.heuristics import simple_chains
from s2d_convert.plans.space import PlanSpace
from s2d_convert.plans.weights import static_weights

EFFORT = Effort(
    evaluations=5,
    finetune_epochs=0.1,
    finetune_min_steps=12,
    baselines=True,
    groups=2,
    made_up_images=400,
    head_images=400,
    head_epochs=6.0,
    trial_steps=4,
)
MODEL, DATA = "tiny.onnx", "data.npz"
TINY = "quick"  # the effort whose amounts the tests replace by EFFORT


def use_tiny_effort(monkeypatch: object) -> None:
    """Make `--effort quick` tiny for one test."""
    monkeypatch.setattr(options, "EFFORTS", {**options.EFFORTS, TINY: EFFORT})  # type: ignore[attr-defined]


def quadrants(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [B, 3, 12, 12] and labels int64 [B] of 4 classes; some are noisy, so that some are hard."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.normal(0, 1, (count, 3, 12, 12)) * rng.uniform(0.2, 2.0, (count, 1, 1, 1))
    for row, label in enumerate(labels):
        top, left = 6 * (label // 2), 6 * (label % 2)
        images[row, :, top : top + 6, left : left + 6] += 1.0
    return images.astype(np.float32), labels.astype(np.int64)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def make_model(path: Path) -> None:
    """Train for some seconds and export."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), Block(32),
        nn.AvgPool2d(3), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(60):
        images, labels = quadrants(64, step)
        loss = nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net, (torch.zeros(1, 3, 12, 12),), str(path), dynamo=False, opset_version=17,
            input_names=["input"], output_names=["logits"], dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip


def make_folder(folder: Path, count: int, *, labelled: bool = True) -> Path:
    """Put the tiny model and `count` images into a folder; returns the folder."""
    make_model(folder / MODEL)
    images, labels = quadrants(count, 1)
    if labelled:
        np.savez(folder / DATA, images=images, labels=labels)
    else:
        np.savez(folder / DATA, images=images)
    return folder


def fresh_place(template: Path, place: Path, monkeypatch: object) -> Path:
    """Copy what `make_folder` has made to `place`, and make `--effort quick` tiny for one test; returns the place."""
    use_tiny_effort(monkeypatch)
    for name in (MODEL, DATA):
        (place / name).write_bytes((template / name).read_bytes())
    return place


def turn_answers(stage: onnx.ModelProto) -> None:
    """Spoil the answers of a stage of the tiny model, in place: its logits come out in another order."""
    makers = {name: node for node in stage.graph.node for name in node.output}
    node = makers[makers["output"].input[0]] if makers["output"].op_type != "Gemm" else makers["output"]
    while node.op_type != "Gemm":
        node = makers[node.input[0]]
    (weight,) = [i for i in stage.graph.initializer if i.name == node.input[1]]
    turned = np.roll(onnx.numpy_helper.to_array(weight), 1, axis=0).copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(turned, weight.name))


def ask(folder: Path, **changes: object) -> ConvertOptions:
    """Options for a conversion of the tiny model in `folder`."""
    plain = {"model": folder / "tiny.onnx", "out": folder / "out", "data": folder / "data.npz", "budget": 0.7,
             "effort": TINY, "flip": False, "device": "cpu"}  # fmt: skip
    return ConvertOptions(**{**plain, **changes})  # type: ignore[arg-type]


def written_plan(folder: Path, number: int = 0) -> str:
    """The path of a file with a plan for the tiny model in `folder`: a first chain before the untouched model. For tests
    that must not hang on what a search finds, whose reward is measured."""
    graph = load_graph(folder / "tiny.onnx")
    channels = analyse(graph)
    divisions = divide(AnalysedModel(graph, channels), static_weights(graph, channels), groups=2, block=4)
    plans = list(simple_chains(PlanSpace(AnalysedModel(graph, channels), divisions, stages=2), 1.0))
    file = folder / "plan.json"
    file.write_text(json.dumps(plans[number].to_json(channels)), encoding="utf-8")
    return str(file)


class Listener:
    """A reporter that remembers, and can interrupt at a step, or stop a clock there."""

    def __init__(self, interrupt_at: str = "", *, stop: tuple[str, Clock] | None = None) -> None:
        self.stop = stop
        self.planned: list[str] = []
        self.steps: list[str] = []
        self.texts: list[str] = []
        self.interrupt_at = interrupt_at

    def plan(self, steps: Sequence[PlannedStep], *, memory_bytes: int | None = None) -> None:
        self.planned = [step.name for step in steps]

    def step(self, name: str) -> None:
        self.steps.append(name)

    def note(self, text: str) -> None:
        self.texts.append(text)

    def detail(self, text: str) -> None:
        self.texts.append(text)

    def warn(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, done: int, total: int, what: str, seconds_left: float, *, detail: str = "") -> None:
        if self.stop is not None and self.steps and self.steps[-1] == self.stop[0] and done > 1:
            self.stop[1].stop()
        if self.steps and self.steps[-1] == self.interrupt_at and done > 1:
            raise KeyboardInterrupt

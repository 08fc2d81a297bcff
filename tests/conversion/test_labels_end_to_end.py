"""A network with several labels per image, converted whole: its exits answer in the same form and give labels nearly as well."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close, open_session
from s2d_runtime import Dispatcher
from tiny import Block, Listener, ask, use_tiny_effort
from torch import nn

from s2d_convert.conversion.pipeline import convert


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [B, 3, 12, 12] of which every quadrant is bright by itself, and labels int64 [B, 4]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 4))
    images = rng.normal(0, 0.5, (count, 3, 12, 12))
    images += labels.reshape(-1, 1, 2, 2).repeat(6, axis=2).repeat(6, axis=3)
    return images.astype(np.float32), labels


def make_model(path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), Block(32),
        nn.AvgPool2d(3), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(60):
        images, labels = (torch.from_numpy(x) for x in pictures(64, step))
        loss = nn.functional.binary_cross_entropy_with_logits(net(images), labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole = nn.Sequential(net, nn.Sigmoid()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            whole, (torch.zeros(1, 3, 12, 12),), str(path), dynamo=False, opset_version=17,
            input_names=["input"], output_names=["labels"], dynamic_axes={"input": {0: "N"}, "labels": {0: "N"}},
        )  # fmt: skip


def f1(given: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * (given & labels).sum() / (given.sum() + labels.sum()))


@pytest.mark.parametrize(
    ("mode", "labelled"),
    [
        ("train", True),
        ("exact", False),
        pytest.param("train", False, marks=pytest.mark.slow),
        pytest.param("exact", True, marks=pytest.mark.slow),
    ],
)
def test_labels_are_kept(mode: str, labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "tiny.onnx")
    images, labels = pictures(700, 1001)
    arrays = {"images": images, "labels": labels} if labelled else {"images": images}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    use_tiny_effort(monkeypatch)
    result = convert(ask(tmp_path, mode=mode), Listener())
    assert result.manifest.output.kind == "sigmoid"
    scores = result.measured.labels
    assert scores is not None
    assert scores.agreement >= result.measured.agreement
    assert (scores.micro_f1_dynamic is not None) == labelled
    images, labels = pictures(300, 1002)
    static = open_session(tmp_path / "tiny.onnx").run(None, {"input": images})[0]
    with Dispatcher(tmp_path / "out") as runner:
        stages = len(runner.manifest.stages)
        early = runner(images, thresholds=[0.0] * (stages - 1)).output
        assert ((early >= 0) & (early <= 1)).all()
        if runner.manifest.exactness is not None:
            assert_close(runner(images, exits=False).output, static)
        served = runner(images).output
    truth = labels > 0
    assert f1(static > 0.5, truth) > 0.9
    assert f1(served > 0.5, truth) > f1(static > 0.5, truth) - 0.05

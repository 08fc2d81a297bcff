"""The teacher's features, and exits that learn them."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from chain_law import analysed, random_plan
from helpers import assert_close, random_images, run
from torch import nn

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.frontend.graph import Graph
from s2d_convert.network.layers import Exit
from s2d_convert.network.staged_net import StagedNet, feature_source
from s2d_convert.plans.assignment import Effective
from s2d_convert.training.distillation import Hints, teacher_in_onnxruntime, teacher_in_torch

CPU = torch.device("cpu")


class Classifier(nn.Module):
    """A body, then what a test puts behind it."""

    def __init__(self, *tail: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *tail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x)
        return logits


POOLED = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
TAILS = {
    "linear on means": (*POOLED, nn.Linear(6, nets.CLASSES)),
    "two layers": (*POOLED, nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, nets.CLASSES)),
    "convolution, then the mean": (nn.Conv2d(6, nets.CLASSES, 1), *POOLED),
    "softmax behind": (*POOLED, nn.Linear(6, nets.CLASSES), nn.Softmax(1)),
}
COUNTS = {"linear on means": 6, "two layers": 9, "convolution, then the mean": 6, "softmax behind": 6}


@pytest.mark.parametrize("family", nets.FAMILIES)
def test_both_teachers_say_what_the_file_says(family: str) -> None:
    """onnxruntime and torch agree on what the layer of the logits reads, and the logits are the file's."""
    model = nets.export(family)
    graph, channels, weights = analysed(model)
    feeds = random_images(model, 8, 0)
    wanted = run(graph.to_model(), feeds)[graph.output].reshape(8, -1)
    teachers = (
        teacher_in_onnxruntime(AnalysedModel(graph, channels)),
        teacher_in_torch(AnalysedModel(graph, channels), weights, CPU),
    )
    first, second = (teacher.say(feeds[graph.image]) for teacher in teachers)
    assert_close(first.logits.numpy(), wanted)
    assert_close(second.logits.numpy(), wanted)
    for teacher, lesson in zip(teachers, (first, second), strict=True):
        assert (lesson.features is None) == (teacher.width is None)
        assert lesson.features is None or lesson.features.shape == (8, teacher.width)
    if first.features is not None and second.features is not None:
        assert_close(first.features.numpy(), second.features.numpy())


@pytest.mark.parametrize("name", TAILS)
def test_features_are_what_the_layer_of_the_logits_reads(name: str) -> None:
    graph, channels, _ = analysed(nets.to_onnx(Classifier(*TAILS[name]).eval()))
    source = feature_source(AnalysedModel(graph, channels))
    assert source is not None
    assert teacher_in_onnxruntime(AnalysedModel(graph, channels)).width == COUNTS[name]
    (reader,) = {node.op for node, _ in graph.consumers[source]}
    assert reader in ("Conv", "Gemm", "MatMul")


def test_a_sum_of_two_classifiers_has_no_features() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *POOLED)
            self.one, self.two = nn.Linear(6, nets.CLASSES), nn.Linear(6, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.body(x)
            return self.one(features) + self.two(features).relu()

    graph, channels, weights = analysed(nets.to_onnx(Two().eval()))
    teacher = teacher_in_onnxruntime(AnalysedModel(graph, channels))
    assert teacher.width is None
    assert teacher.say(np.zeros((2, *graph.shapes[graph.image]), np.float32)).features is None
    assert StagedNet(AnalysedModel(graph, channels), weights).feature_count(graph.output) is None


def one_exit(graph: Graph) -> tuple[str, ...]:
    return (graph.output,)


def test_the_loss_is_the_share_that_stays_unexplained() -> None:
    graph, channels, weights = analysed(nets.to_onnx(Classifier(*TAILS["linear on means"]).eval()))
    hints = Hints(StagedNet(AnalysedModel(graph, channels), weights), 2)
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.normal(size=(64, 6)).astype(np.float32))
    wanted = own[:, :2] * torch.tensor([3.0, 1.0]) + 2
    exits = [Exit(own, own)]
    nothing = hints.loss(one_exit(graph), exits, wanted)
    assert nothing.item() == pytest.approx(float((wanted.square()).mean() / wanted.var()), rel=1e-5)
    optimizer = torch.optim.SGD(hints.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        hints.loss(one_exit(graph), exits, wanted).backward()
        optimizer.step()
    assert hints.loss(one_exit(graph), exits, wanted).item() < 1e-3


def test_an_exit_without_features_costs_nothing() -> None:
    graph, channels, weights = analysed(nets.to_onnx(Classifier(*TAILS["linear on means"]).eval()))
    hints = Hints(StagedNet(AnalysedModel(graph, channels), weights), 2)
    logits = torch.zeros(4, nets.CLASSES)
    assert hints.loss(one_exit(graph), [Exit(logits, None)], torch.ones(4, 2)).item() == 0


def test_features_that_never_change_give_no_infinite_loss() -> None:
    graph, channels, weights = analysed(nets.to_onnx(Classifier(*TAILS["linear on means"]).eval()))
    hints = Hints(StagedNet(AnalysedModel(graph, channels), weights), 2)
    own = torch.ones(4, 6)
    assert hints.loss(one_exit(graph), [Exit(own, own)], torch.zeros(4, 2)).item() == 0


@pytest.mark.parametrize("seed", range(4))
def test_every_exit_of_a_plan_has_features_of_its_own_channels(seed: int) -> None:
    graph, channels, weights = analysed(nets.export("resnet_basic"))
    plan = random_plan(graph, channels, seed)
    net = StagedNet(AnalysedModel(graph, channels), weights, taps=plan.taps[:-1]).eval()
    masks = net.masks(Effective(AnalysedModel(graph, channels), plan))
    images = torch.from_numpy(random_images(graph.to_model(), 4, 0)[graph.image])
    with torch.no_grad():
        exits = net.exits(images, masks)
        logits = net(images, masks)
    for tap, columns, found, own in zip(plan.taps, masks.columns, exits, logits, strict=True):
        assert torch.equal(found.logits, own)
        assert found.features is not None
        count = found.features.shape[1]
        assert (len(found.features), count) == (4, net.feature_count(tap))
        if columns is not None:
            assert not found.features[:, columns.repeat_interleave(count // len(columns)) == 0].any()

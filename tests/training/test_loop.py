"""The staged module and its training: functions kept, losses lowered, runs resumed bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from chain_law import analysed, random_plan
from helpers import assert_close, random_images, run
from tiny import quadrants
from torch import nn

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import DataError
from s2d_convert.frontend.graph import Node
from s2d_convert.network.converters.lower import lower
from s2d_convert.network.masks import Masks
from s2d_convert.network.norms import all_norms, insert_norms, recalibrate
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import identity_plan
from s2d_convert.slicing.split import split
from s2d_convert.training.distillation import Hints, Lesson
from s2d_convert.training.lessons import Lessons
from s2d_convert.training.loop import Learner, exit_logits, train
from s2d_convert.training.settings import Progress, TrainSettings, has_bfloat16

FAMILY = "resnet_preact"  # convs that get a norm back, and BatchNormalizations of its own


LARGEST = float(np.finfo(np.float32).max)


def staged(family: str = FAMILY) -> tuple[StagedNet, Masks, dict[str, np.ndarray]]:
    model = nets.export(family)
    graph, channels, weights = analysed(model)
    net = StagedNet(AnalysedModel(graph, channels), weights).eval()
    return (
        net,
        net.masks(Effective(AnalysedModel(graph, channels), identity_plan(AnalysedModel(graph, channels)))),
        random_images(model, 16, 0),
    )


def images32(count: int, *, labelled: bool = True) -> Images:
    """The quadrant task, its images in the corner of 32x32 ones."""
    corner, labels = quadrants(count, 0)
    pixels = np.zeros((count, 3, 32, 32), dtype=np.float32)
    pixels[:, :, :12, :12] = corner
    preprocess = make_preprocess(size=(32, 32), channels=3)
    rows = np.arange(count)
    if labelled:
        return Images(pixels, preprocess, rows, labels, "labelled")
    return Images(pixels, preprocess, rows, None, "unlabelled")


class Corner(nn.Module):
    """A small classifier that looks at the corner."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(32, nets.CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x[:, :, :12, :12])
        return logits


def small_net32() -> tuple[StagedNet, Masks]:
    graph, channels, weights = analysed(nets.to_onnx(Corner().eval()))
    net = StagedNet(AnalysedModel(graph, channels), weights)
    return net, net.masks(Effective(AnalysedModel(graph, channels), identity_plan(AnalysedModel(graph, channels))))


def test_putting_norms_back_keeps_the_function() -> None:
    net, masks, feeds = staged()
    data = torch.from_numpy(feeds["input"])
    with torch.no_grad():
        before = net(data, masks)[0]
        insert_norms(net, [data])
        assert len(all_norms(net)) > len([n for n in net.graph.nodes if n.op == "BatchNormalization"])
        assert_close(net(data, masks)[0].numpy(), before.numpy())


def test_norms_fold_into_the_exported_weights() -> None:
    net, masks, feeds = staged()
    data = torch.from_numpy(feeds["input"])
    insert_norms(net, [data])
    with torch.no_grad():
        for norm in all_norms(net):
            norm.scale.mul_(torch.linspace(0.8, 1.2, len(norm.scale)))
            norm.shift.add_(0.1)
        expected = net(data, masks)[0].numpy()
    (stage,) = split(net.graph, net.channels, identity_plan(net.model), net.weights())
    assert_close(run(stage.model, feeds)["output"], expected)


def test_recalibrated_statistics_are_those_of_the_batches() -> None:
    net, masks, feeds = staged("vgg_bn")
    data = torch.from_numpy(feeds["input"])
    insert_norms(net, [data])
    first = all_norms(net)[0]
    first.running_mean.fill_(7.0)
    recalibrate(net, [data], masks)
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(data, masks)
    assert_close(first.running_mean.numpy(), seen[0].mean((0, 2, 3)).numpy())


@pytest.mark.parametrize("family", ["mobilenet_v2", "vgg_bn", "squeezenet"])
def test_hidden_weights_are_those_of_full_convolutions_and_inner_layers(family: str) -> None:
    """No weights of groups, and not those of the logits, which lie last."""
    graph, channels, weights = analysed(nets.export(family))
    net = StagedNet(AnalysedModel(graph, channels), weights)
    mixing = [node for node in graph.nodes if node.name in weights.mix]
    wanted = [weights.mix[node.name][0].shape for node in mixing[:-1] if node.attrs.get("group", 1) == 1]
    found = net.hidden_weights()
    assert [tuple(weight.shape) for weight in found] == wanted
    assert {id(weight) for weight in found} < {id(p) for p in net.parameters()}


@pytest.mark.parametrize("labelled", [True, False])
def test_training_lowers_the_loss(labelled: bool) -> None:
    net, masks = small_net32()
    losses: list[float] = []

    def teacher(batch: np.ndarray) -> Lesson:
        means = batch[:, 0, :12, :12].reshape(len(batch), 2, 6, 2, 6).mean((2, 4)).reshape(len(batch), 4)
        wide = np.full((len(batch), nets.CLASSES), -5.0, dtype=np.float32)
        wide[:, :4] = 5 * means
        return Lesson(torch.from_numpy(wide))

    settings = TrainSettings(steps=40, batch_size=32, learning_rate=0.05, level="none")
    images = images32(256, labelled=labelled)
    train(Learner(net, masks), Lessons(images, teacher, 0), settings=settings, on_step=lambda p: losses.append(p.loss))
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    net, masks = small_net32()

    def teacher(batch: np.ndarray) -> Lesson:
        return Lesson(torch.full((len(batch), nets.CLASSES), math.nan))

    with pytest.raises(DataError, match="the loss is nan at step 1 of 4; look at the images' range"):
        train(
            Learner(net, masks),
            Lessons(images32(64, labelled=False), teacher, 0),
            settings=TrainSettings(steps=4),
        )


@pytest.mark.parametrize("family", nets.FAMILIES)
def test_every_family_trains_in_mixed_precision(family: str) -> None:
    """Weights and their gradients stay float32, and the answers are those of float32 but for bfloat16's rounding."""
    graph, channels, weights = analysed(nets.export(family))
    plan = random_plan(graph, channels, 1, prune=False)
    net = StagedNet(AnalysedModel(graph, channels), weights, taps=plan.taps[:-1]).eval()
    masks = net.masks(Effective(AnalysedModel(graph, channels), plan))
    images = torch.from_numpy(random_images(graph.to_model(), 8, 0)[graph.image])
    plain = torch.stack(net(images, masks)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = torch.stack([logits.float() for logits in net(images, masks)])
    mixed.square().mean().backward()
    scale = float(plain.abs().max())
    assert float((mixed.detach() - plain).abs().mean()) < 0.1 * scale
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert found
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in found)


@pytest.mark.parametrize("groups", [1, 2, 12])
@pytest.mark.parametrize("size", [32, 56])
def test_a_dilated_convolution_has_the_gradient_of_float32(groups: int, size: int) -> None:
    torch.manual_seed(0)
    node = Node("c", "Conv", ("x", "w"), ("y",), {"group": groups, "dilations": (2, 2), "pads": (2, 2, 2, 2)})
    convolve = lower(node, {})
    images = torch.randn(8, 12, size, size).to(memory_format=torch.channels_last)
    kept = torch.randn(12, 12 // groups, 3, 3).to(memory_format=torch.channels_last)
    found = []
    for mixed in (False, True):
        x, weight = images.clone().requires_grad_(), kept.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            y = convolve(torch.relu(x), weight)
        assert isinstance(y, torch.Tensor)
        y.float().square().mean().backward()
        assert x.grad is not None
        assert weight.grad is not None
        found.append((x.grad, weight.grad))
    for plain, got in zip(*found, strict=True):
        assert float((got - plain).abs().max()) < 0.03 * float(plain.abs().max())


def test_mixed_precision_learns_what_float32_learns() -> None:
    images = images32(256)
    right = {}
    for mixed in (False, True):
        net, masks = small_net32()
        settings = TrainSettings(steps=60, batch_size=32, learning_rate=0.05, level="none", distill=0.0, mixed=mixed)
        train(Learner(net, masks), Lessons(images, undecided, 0), settings=settings)
        assert all(p.dtype == torch.float32 for p in net.parameters())
        right[mixed] = (exit_logits(net, images, masks)[-1].argmax(axis=1) == images.labels).mean()
    assert right[True] > 0.9 * right[False] > 0.5


@pytest.mark.parametrize(
    ("can", "wanted"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_mixed_precision_is_for_processors_that_have_it(
    can: dict[str, bool], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert has_bfloat16(torch.device("cpu")) is wanted


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d_convert.training.loop.CHECKPOINT_SECONDS", 0.0)
    settings = TrainSettings(steps=8, batch_size=32)

    def trained(stop: Callable[[Progress], None] | None = None, checkpoint: Path | None = None) -> nn.ModuleList:
        net, masks = small_net32()
        both = nn.ModuleList([net, hints := Hints(net, 3)])
        learner, lessons = Learner(net, masks, hints), Lessons(images32(96), undecided, 3)
        train(learner, lessons, settings=settings, checkpoint=checkpoint, on_step=stop)
        return both

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(stop, tmp_path / "c.pt")
    again = trained(checkpoint=tmp_path / "c.pt")
    for (key, value), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_a_training_ends_when_its_seconds_are_spent_or_something_stops_it() -> None:
    def steps(seconds: float, stop_at: int) -> list[int]:
        net, masks = small_net32()
        done: list[int] = []
        train(
            Learner(net, masks), Lessons(images32(96), undecided, 3),
            settings=TrainSettings(steps=6, seconds=seconds, batch_size=32),
            on_step=lambda progress: done.append(progress.step), stopped=lambda: len(done) >= stop_at,
        )  # fmt: skip
        assert not net.training
        return done

    assert steps(1e-9, 100) == []
    assert steps(math.inf, 4) == [1, 2, 3, 4]
    assert steps(math.inf, 100) == [1, 2, 3, 4, 5, 6]


def undecided(batch: np.ndarray) -> Lesson:
    """A teacher that finds all classes equal, by features that are means of pixels."""
    return Lesson(torch.zeros(len(batch), nets.CLASSES), torch.from_numpy(batch.mean((2, 3))))


@pytest.mark.parametrize("bounds", [(0.0, LARGEST), (-LARGEST, 6.0), (-LARGEST, LARGEST)])
def test_a_clip_without_a_bound_trains_in_mixed_precision(bounds: tuple[float, float]) -> None:
    """Files say "no bound" by the largest float32, which bfloat16 does not have."""

    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.conv(x).clamp(*bounds).mean((2, 3)))
            return logits

    graph, channels, weights = analysed(nets.to_onnx(Clipped().eval()))
    assert "Clip" in {node.op for node in graph.nodes}
    net = StagedNet(AnalysedModel(graph, channels), weights)
    masks = net.masks(Effective(AnalysedModel(graph, channels), identity_plan(AnalysedModel(graph, channels))))
    images = torch.ones(2, *graph.shapes[graph.image])
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = net(images, masks)
    assert torch.isfinite(logits).all()

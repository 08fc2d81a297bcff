"""Trainings on a GPU; they are left out where torch sees none."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from chain_law import analysed, random_plan
from helpers import assert_close, random_images, run
from s2d_runtime import Dispatcher
from tiny import Listener, ask, make_model, quadrants, use_tiny_effort

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.prepare import torch_device
from s2d_convert.frontend.load import load_graph
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.training.distillation import teacher_in_torch
from s2d_convert.training.muon import Muon

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.mark.parametrize("family", nets.FAMILIES)
def test_a_plan_computes_there_what_it_computes_on_the_cpu(family: str) -> None:
    device = torch_device("cuda")
    graph, channels, weights = analysed(nets.export(family))
    plan = random_plan(graph, channels, 1)
    images = torch.from_numpy(random_images(graph.to_model(), 4, 0)[graph.image])
    answers = []
    for place in (torch.device("cpu"), device):
        net = StagedNet(AnalysedModel(graph, channels), weights, taps=plan.taps[:-1]).to(place).eval()
        with torch.no_grad():
            answers.append(
                [
                    x.cpu().numpy()
                    for x in net(images.to(place), net.masks(Effective(AnalysedModel(graph, channels), plan)))
                ]
            )
    for one, other in zip(*answers, strict=True):
        assert_close(other, one)


def test_the_teacher_says_there_what_the_file_says() -> None:
    graph, channels, weights = analysed(nets.export("resnet_basic"))
    feeds = random_images(graph.to_model(), 4, 0)
    lesson = teacher_in_torch(AnalysedModel(graph, channels), weights, torch_device("cuda")).say(feeds[graph.image])
    assert_close(lesson.logits.cpu().numpy(), run(graph.to_model(), feeds)[graph.output])


def test_muon_moves_weights_there_as_on_the_cpu() -> None:
    start, gradient = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    moved = []
    for place in ("cpu", "cuda"):
        weight = torch.nn.Parameter(start.clone().to(place))
        weight.grad = gradient.to(place)
        Muon([weight], lr=0.1).step()
        moved.append(weight.detach().cpu())
    assert torch.allclose(moved[0], moved[1], atol=1e-5)


@pytest.mark.parametrize("plan", ["search", "width", "cascade"])
def test_a_conversion_there_is_whole(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last step compares the files, in onnxruntime, with the network that was trained."""
    use_tiny_effort(monkeypatch)
    make_model(tmp_path / "tiny.onnx")
    images, labels = quadrants(700, 1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    convert(ask(tmp_path, device="cuda", plan=plan), Listener())
    with Dispatcher(tmp_path / "out") as model:
        answer = model(images[:40])
    shape = run(load_graph(tmp_path / "tiny.onnx").to_model(), {"input": images[:40]})["logits"].shape
    assert answer.output.shape == shape

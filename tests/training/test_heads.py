"""What must always hold, for every usual head and every usual activation of a small net."""

from __future__ import annotations

from functools import cache

import nets
import onnx
import pytest
import torch
from chain_law import analysed, check_chain_law, check_depth_law, check_identity_law
from helpers import assert_close, random_images, run
from nets.heads import ACTIVATIONS, HEADS, residual_net
from torch import nn

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.workflows.inspect import describe

every_head = pytest.mark.parametrize("name", HEADS)
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


@cache
def exported_head(name: str) -> onnx.ModelProto:
    return nets.to_onnx(HEADS[name]())


@cache
def exported_activation(name: str) -> onnx.ModelProto:
    return nets.to_onnx(residual_net(name))


def assert_answers_as_torch(model: onnx.ModelProto, net: nn.Module) -> None:
    feeds = random_images(model, 3, 0)
    with torch.no_grad():
        expected = net(torch.from_numpy(feeds[nets.INPUT])).numpy()
    assert expected.std(axis=0).mean() > 1e-3, "the net answers the same to all images"
    assert_close(run(model, feeds), {nets.OUTPUT: expected})


def check_laws(model: onnx.ModelProto) -> None:
    check_identity_law(model)
    check_depth_law(model)
    for seed in range(2):
        check_chain_law(model, seed)


@every_head
def test_the_export_of_a_head_answers_as_torch(name: str) -> None:
    assert_answers_as_torch(exported_head(name), HEADS[name]())


@every_head
def test_laws_on_heads(name: str) -> None:
    check_laws(exported_head(name))


@every_activation
def test_the_export_of_an_activation_answers_as_torch(name: str) -> None:
    assert_answers_as_torch(exported_activation(name), residual_net(name))


@every_activation
def test_laws_on_activations(name: str) -> None:
    check_laws(exported_activation(name))


@every_activation
def test_nearly_all_of_the_work_around_an_activation_is_splittable(name: str) -> None:
    graph, channels, _ = analysed(exported_activation(name))
    assert describe(AnalysedModel(graph, channels))["splittable_macs"] >= 0.9

"""Every family of architectures is what it claims to be, and its ONNX export answers as torch does."""

from __future__ import annotations

import onnx
import pytest
import torch
from helpers import assert_close, open_session, random_images, run
from nets import CLASSES, FAMILIES, INPUT, OUTPUT, export
from nets.common import family
from torch import nn

every_family = pytest.mark.parametrize("name", FAMILIES)
# The dynamo exporter takes seconds: two exports full of movement in `make test`, the rest in `make slow`.
DYNAMO_QUICK = {("resnet_option_a", False), ("shufflenet_v2", True)}


def count(model: onnx.ModelProto, op: str) -> int:
    """How many nodes of the model have this operator."""
    return sum(node.op_type == op for node in model.graph.node)


def norms(name: str) -> int:
    """How many BatchNorms the torch net has."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in FAMILIES[name]().modules())


def assert_answers_as_torch(name: str, model: onnx.ModelProto) -> None:
    """Fails unless the model is valid and onnxruntime answers as the torch net, for one image and for three."""
    onnx.checker.check_model(model, full_check=True)
    session, net = open_session(model), FAMILIES[name]()
    for batch in (1, 3):
        feeds = random_images(model, batch, 0)
        with torch.no_grad():
            expected = net(torch.from_numpy(feeds[INPUT])).numpy()
        assert expected.shape == (batch, CLASSES)
        assert_close(run(session, feeds), {OUTPUT: expected})


def test_all_families_are_there() -> None:
    assert set(FAMILIES) >= {
        *("lenet", "alexnet", "vgg_bn", "squeezenet", "googlenet", "inception", "densenet"),
        *("resnet_basic", "resnet_option_a", "resnet_bottleneck", "resnet_preact", "wide_resnet", "resnext"),
        *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "efficientnet", "shufflenet_v1", "shufflenet_v2"),
        *(
            "nin",
            "inception_v4",
            "inception_resnet",
            "xception",
            "resnet_d",
            "se_resnet",
            "sknet",
            "eca_resnet",
            "res2net",
        ),
        *("resnest", "antialiased", "dpn", "cspnet", "vovnet", "dla", "hrnet", "darknet", "mobilenet_v4", "mnasnet"),
        *(
            "fbnet",
            "mixnet",
            "efficientnet_v2",
            "ghostnet",
            "ghostnet_v2",
            "regnet_y",
            "repvgg",
            "repvgg_train",
            "rexnet",
        ),
        *("mobileone_train", "selecsls", "genet", "nfnet", "convnext", "convnext_v2", "starnet", "cbam", "edgenext"),
        *("fastvit", "poolformer"),
    }


@every_family
def test_the_folded_export_answers_as_torch(name: str) -> None:
    model = export(name)
    assert_answers_as_torch(name, model)
    assert count(model, "BatchNormalization") < max(1, norms(name))


@every_family
def test_the_unfolded_export_answers_as_torch_and_keeps_every_norm(name: str) -> None:
    model = export(name, fold_bn=False)
    assert_answers_as_torch(name, model)
    assert count(model, "BatchNormalization") == norms(name)


@pytest.mark.parametrize(
    ("name", "fold_bn"),
    [
        pytest.param(name, fold_bn, marks=[] if (name, fold_bn) in DYNAMO_QUICK else [pytest.mark.slow])
        for name in FAMILIES
        for fold_bn in (True, False)
    ],
)
def test_the_dynamo_export_answers_as_torch(name: str, fold_bn: bool) -> None:
    assert_answers_as_torch(name, export(name, dynamo=True, fold_bn=fold_bn))


@every_family
def test_weights_are_repeatable_and_logits_sane(name: str) -> None:
    net, again = FAMILIES[name](), FAMILIES[name]()
    assert not net.training
    for (key, value), other in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    images = torch.from_numpy(random_images(export(name), 16, 0)[INPUT])
    with torch.no_grad():
        logits = net(images)
    assert 0.05 < logits.std(0).mean() < 10
    assert logits.abs().max() < 50


@every_family
def test_members_are_small(name: str) -> None:
    assert sum(parameter.numel() for parameter in FAMILIES[name]().parameters()) < 150_000


@every_family
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_width_scales_the_channels(name: str, width: float) -> None:
    plain, scaled = (sum(p.numel() for p in net.parameters()) for net in (FAMILIES[name](), FAMILIES[name](width)))
    assert (scaled < plain) if width < 1 else (scaled > plain)


@pytest.mark.parametrize("opset", [13, 15, 17])
def test_the_options_of_the_classic_export_are_heeded(opset: int) -> None:
    model = export("resnet_basic", opset=opset, dynamic_batch=False)
    assert [o.version for o in model.opset_import] == [opset]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    symbolic = export("resnet_basic", opset=opset)
    assert symbolic.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    feeds = random_images(model, 1, 0)
    assert_close(run(model, feeds), run(symbolic, feeds))


def test_every_export_is_a_copy_of_its_own() -> None:
    first = export("lenet")
    del first.graph.node[:]
    assert export("lenet").graph.node


def test_registering_a_family_twice_is_an_error() -> None:
    def lenet(width: float) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match="family lenet is registered already"):
        family(lenet)

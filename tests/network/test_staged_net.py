"""The torch module: norms that change nothing, masks, and weights that come out as they went in."""

from __future__ import annotations

from collections.abc import Callable

import nets
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from chain_law import analysed, random_plan, run_chain
from helpers import assert_close, random_images, run
from onnx import numpy_helper
from text_nets import chain, net, residual
from torch import Tensor

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.network.layers import EPSILON, MOMENTUM
from s2d_convert.network.masks import Masks
from s2d_convert.network.norms import all_norms, insert_norms, recalibrate
from s2d_convert.network.staged_net import StagedNet, unsupported_nodes
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan, identity_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.split import split

NETS: list[Callable[[], onnx.ModelProto]] = [chain, residual]


def built(model: onnx.ModelProto, *, taps: tuple[str, ...] = ()) -> StagedNet:
    graph, channels, weights = analysed(model)
    return StagedNet(AnalysedModel(graph, channels), weights, taps=taps).eval()


def images(model: onnx.ModelProto, batch: int, seed: int) -> Tensor:
    return torch.from_numpy(next(iter(random_images(model, batch, seed).values())))


def identity(staged: StagedNet) -> Masks:
    plan = identity_plan(staged.model)
    return staged.masks(Effective(staged.model, plan))


def narrow(staged: StagedNet) -> Masks:
    """Two stages, the first with an exit at 'y' and the even units of every class."""
    stages = [1 + u % 2 for u in range(staged.channels.units)]
    return staged.masks(Effective(staged.model, Plan(("y", "logits"), tuple(stages))))


@torch.no_grad()
def answers(staged: StagedNet, masks: Masks, batch: Tensor) -> list[np.ndarray]:
    return [logits.numpy() for logits in staged(batch, masks)]


@pytest.mark.parametrize("make", NETS)
def test_without_masks_it_is_the_static_model(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    staged = built(model)
    assert identity(staged).columns == (None,)
    assert set(identity(staged).mix.values()) == {None}
    expected = run(model, random_images(model, 3, 0))["logits"]
    assert_close(answers(staged, identity(staged), images(model, 3, 0))[0], expected)


# --- norms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_inserted_norms_keep_the_function(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    staged = built(model, taps=("y",))
    before = [answers(staged, masks, images(model, 4, 9)) for masks in (identity(staged), narrow(staged))]
    insert_norms(staged, [images(model, 8, 0), images(model, 5, 1)])
    assert len(all_norms(staged)) == [n.op for n in staged.graph.nodes].count("Conv")
    after = [answers(staged, masks, images(model, 4, 9)) for masks in (identity(staged), narrow(staged))]
    assert_close(after[0][0], before[0][0])
    # Under masks a bias and a norm's shift play the same part, so the masked function is kept too.
    for got, expected in zip(after[1], before[1], strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("make", NETS)
def test_norms_fold_back_into_the_weights_they_came_from(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    staged = built(model, taps=("y",))
    before = static_weights(staged.graph, staged.channels)
    insert_norms(staged, [images(model, 8, 0)])
    after = staged.weights()
    assert sorted(after.mix) == sorted(before.mix)
    for name, (weight, bias) in before.mix.items():
        folded, folded_bias = after.mix[name]
        assert_close(folded, weight)
        if bias is not None or folded_bias is not None:  # a norm leaves a bias of zero where there was none
            assert folded_bias is not None
            assert_close(folded_bias, np.zeros(len(weight)) if bias is None else bias)
    assert after.heads["y"].layers[0][0].shape == (staged.graph.classes, len(staged.channels.layouts["y"].units))


def test_only_convs_that_make_a_map_get_a_norm() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,2] logits) {
            a = Conv(image, wa)  q = GlobalAveragePool(a)  e = Conv(q, we)  s = Sigmoid(e)  m = Mul(a, s)
            p = GlobalAveragePool(m)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), we=(4, 4, 1, 1), wl=(2, 4),
    )  # fmt: skip
    staged = built(model)
    insert_norms(staged, [images(model, 4, 0)])
    assert [key for key, module in staged.mixing.items() if getattr(module, "norm", None) is not None] == ["n0"]


def pre_activation() -> onnx.ModelProto:
    """A net whose BatchNormalization stands before its conv and ReLU, so that loading cannot fold it."""
    model = net(
        """g (float[N,3,6,6] image) => (float[N,2] logits) {
            x = MaxPool<kernel_shape=[1,1]>(image)  n = BatchNormalization(x, s, b, m, v)  r = Relu(n)  y = Conv(r, wa)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        s=(3,), b=(3,), m=(3,), v=(3,), wa=(4, 3, 3, 3), wl=(2, 4),
    )  # fmt: skip
    (variance,) = [i for i in model.graph.initializer if i.name == "v"]
    variance.CopyFrom(numpy_helper.from_array(np.array([0.5, 1.0, 2.0], np.float32), "v"))
    return model


def test_norms_of_the_model_itself_come_out_as_operands() -> None:
    model = pre_activation()
    staged = built(model)
    (node,) = [n for n in staged.graph.nodes if n.op == "BatchNormalization"]
    operands = staged.weights().operands
    for index in range(1, 5):
        assert_close(operands[node.name, index], staged.graph.constants[node.inputs[index]])
    expected = run(model, random_images(model, 2, 0))["logits"]
    assert_close(answers(staged, identity(staged), images(model, 2, 0))[0], expected)


def test_recalibration_takes_the_statistics_of_the_masked_network() -> None:
    model = chain()
    staged = built(model, taps=("y",))
    insert_norms(staged, [images(model, 8, 0)])
    masks = narrow(staged)
    batches = [images(model, 6, 1), images(model, 6, 2)]
    recalibrate(staged, batches, masks)

    convolved = [F.conv2d(batch, torch.tensor(staged.graph.constants["wa"])) for batch in batches]
    mean = torch.stack([c.mean((0, 2, 3)) for c in convolved]).mean(0)  # of two batches, each counting once
    assert_close(all_norms(staged)[0].running_mean, mean)
    var = torch.stack([c.var((0, 2, 3)) for c in convolved]).mean(0)
    assert_close(all_norms(staged)[0].running_var, var)
    assert not staged.training
    assert not any(norm.training for norm in all_norms(staged))
    assert {norm.momentum for norm in all_norms(staged)} == {MOMENTUM}


def test_recalibration_under_other_masks_gives_other_statistics() -> None:
    model = chain()
    staged = built(model, taps=("y",))
    insert_norms(staged, [images(model, 8, 0)])
    recalibrate(staged, [images(model, 6, 1)], identity(staged))
    whole = all_norms(staged)[1].running_mean.clone()
    recalibrate(staged, [images(model, 6, 1)], narrow(staged))
    moved = (all_norms(staged)[1].running_mean - whole).abs() > 1e-4
    # Of the second conv the even units are in stage 1 and lose half of what they read; the odd ones read all.
    assert moved.tolist() == [True, False] * 8


# --- masks ------------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    staged = built(chain(), taps=("y",))
    stages = (1,) * 4 + (2,) * 4 + (1,) * 4 + (2,) * 12 + (1,) * 5
    masks = staged.masks(Effective(staged.model, Plan(("y", "logits"), stages)))
    names = [n.name for n in staged.graph.nodes if n.op == "Conv"]
    assert masks.mix[names[0]] is None  # everything may read the image
    both = masks.mix[names[1]]
    assert both is not None
    mask, alive = both
    assert mask.shape == (16, 8, 1, 1)
    assert mask[:4, :, 0, 0].tolist() == [[1.0] * 4 + [0.0] * 4] * 4
    assert bool(mask[4:].all())
    assert bool(alive.all())
    assert masks.columns[0] is not None
    assert masks.columns[0].tolist() == [1.0] * 4 + [0.0] * 12
    assert masks.columns[1] is None


def test_a_pruned_block_is_dead_with_its_norms() -> None:
    model = residual()
    staged = built(model)
    stages = np.ones(staged.channels.units, dtype=int)
    stages[list(staged.channels.classes[1].units)] = 0
    masks = staged.masks(Effective(staged.model, Plan(("logits",), tuple(stages.tolist()))))
    before = answers(staged, masks, images(model, 3, 1))
    insert_norms(staged, [images(model, 8, 0)])
    assert_close(answers(staged, masks, images(model, 3, 1))[0], before[0])
    constants = staged.graph.constants
    x = F.conv2d(images(model, 3, 1), torch.tensor(constants["ws"]), torch.tensor(constants["bs"]), padding=1).relu()
    expected = x.mean((2, 3)) @ torch.tensor(constants["wl"]).T + torch.tensor(constants["bl"])
    assert_close(before[0], expected)
    # The whole network still has the block, with its biases and norms.
    static = run(model, random_images(model, 3, 1))["logits"]
    assert_close(answers(staged, identity(staged), images(model, 3, 1))[0], static)


# --- state ------------------------------------------------------------------------------------------


def test_a_state_dict_carries_everything_that_training_changes() -> None:
    model = residual()
    first, second = built(model, taps=("y",)), built(model, taps=("y",))
    for staged, seed in ((first, 0), (second, 5)):
        insert_norms(staged, [images(model, 8, seed)])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    batch, masks = images(model, 3, 1), narrow(first)
    assert not np.allclose(answers(first, masks, batch)[0], answers(second, masks, batch)[0], atol=1e-3)
    second.load_state_dict(first.state_dict())
    for got, expected in zip(answers(second, masks, batch), answers(first, masks, batch), strict=True):
        assert_close(got, expected, rel=1e-6)
    for name, (weight, _) in first.weights().mix.items():
        assert_close(second.weights().mix[name][0], weight, rel=1e-6)


def test_weights_are_copies() -> None:
    staged = built(chain())
    name, (weight, _) = next(iter(staged.weights().mix.items()))
    weight += 1
    assert not np.allclose(staged.weights().mix[name][0], weight)


def test_constants_are_no_parameters_and_not_in_the_state() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,2] logits) {
            a = Conv(image, wa)  m = Mul(a, scale)  p = GlobalAveragePool(m)  f = Flatten(p)
            logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), scale=(1, 4, 4), wl=(2, 4),
    )  # fmt: skip
    assert sorted(built(model).state_dict()) == ["mixing.n0.weight", "mixing.n4.weight"]


def test_operators_without_a_builder_are_listed_all_at_once() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,2] logits) {
            a = Conv(image, wa)  c = Acosh(a)  d = Sinh(c)  p = GlobalAveragePool(d)  f = Flatten(p)
            logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), wl=(2, 4),
    )  # fmt: skip
    graph, _, _ = analysed(model)
    assert [n.op for n in unsupported_nodes(graph)] == ["Acosh", "Sinh"]
    assert unsupported_nodes(analysed(chain())[0]) == ()


def test_a_norm_undoes_itself_on_its_statistics() -> None:
    staged = built(chain())
    insert_norms(staged, [images(chain(), 8, 0)])
    for norm in all_norms(staged):
        factor, offset = norm.affine()
        assert_close(factor.detach(), np.ones(len(factor)))
        assert_close(offset.detach(), np.zeros(len(offset)))
        assert norm.epsilon == EPSILON


@pytest.mark.parametrize("family", ["convnext_v2", "poolformer", "resnet_preact", "mobilenet_v3"])
def test_everything_that_is_trained_comes_out_in_the_stages(family: str) -> None:
    model = nets.export(family, fold_bn=False)
    graph, channels, weights = analysed(model)
    plan = random_plan(graph, channels, 3)
    staged = StagedNet(AnalysedModel(graph, channels), weights, taps=list(dict.fromkeys(plan.taps[:-1]))).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in staged.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    batch = images(model, 2, 0)
    found = run_chain(split(graph, channels, plan, staged.weights()), {graph.image: batch.numpy()})
    expected = answers(staged, staged.masks(Effective(AnalysedModel(graph, channels), plan)), batch)
    for stage, (got, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        assert_close(got["output"], wanted, what=f"exit {stage}")


def test_scales_of_norms_are_trained_and_constants_of_the_image_are_not() -> None:
    model = net(
        """g (float[N,3,8,8] image) => (float[N,4] logits) <float[3,1,1] mean = {0.1,0.2,0.3}> {
            c = Sub(image, mean)  a = Conv(c, wa)  m = Mul(a, s)  x = PRelu(m, p)
            g = GlobalAveragePool(x)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(5, 3, 3, 3), s=(1, 5, 1, 1), p=(5, 1, 1), wl=(4, 5),
    )  # fmt: skip
    staged = built(model)
    shapes = sorted(tuple(p.shape) for name, p in staged.named_parameters() if "mixing" not in name)
    assert shapes == [(5, 1, 1)]  # onnxruntime has folded the other scale into the conv
    assert [name for name, _ in staged.named_buffers() if "mixing" not in name] == ["n0_1"]

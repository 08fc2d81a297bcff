"""Laws of the closed-form reconstruction: what it must give back, what it must equal, and that it never makes things worse."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from chain_law import analysed, random_plan
from helpers import Array, assert_close, random_images
from onnx import numpy_helper
from patterns import PATTERNS
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.channels.kinds import Kind
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.divisions import importance
from s2d_convert.plans.plan import Plan, identity_plan
from s2d_convert.plans.weights import Weights
from s2d_convert.training.reconstruction.plan_solver import Settings, Solved
from s2d_convert.training.reconstruction.reconstruction import Reconstruction
from s2d_convert.training.reconstruction.selection import data_importance
from s2d_convert.training.reconstruction.targets import Targets

EXACT = Settings(ridge=0.0, positions=1000)


def images_of(model: onnx.ModelProto, count: int = 48) -> Array:
    return next(iter(random_images(model, count, 0).values())).astype(np.float32)


@torch.no_grad()
def logits(graph: Graph, channels: Channels, weights: Weights, plan: Plan, images: Array) -> list[Array]:
    """The logits of every exit, [B, K] each."""
    taps = [t for t in dict.fromkeys(plan.taps) if t != graph.output]
    staged = StagedNet(AnalysedModel(graph, channels), weights, taps=taps).eval()
    return [
        y.numpy()
        for y in staged(torch.from_numpy(images), staged.masks(Effective(AnalysedModel(graph, channels), plan)))
    ]


def error(graph: Graph, channels: Channels, static: Weights, weights: Weights, plan: Plan, images: Array) -> Array:
    """Mean squared errors of every exit against the static model's logits, [S]."""
    (wanted,) = logits(graph, channels, static, identity_plan(AnalysedModel(graph, channels)), images)
    return np.array([np.square(y - wanted).mean() for y in logits(graph, channels, weights, plan, images)])


def halved(graph: Graph, channels: Channels) -> Plan:
    """One stage with the even units of every class that can be divided."""
    stages = np.ones(channels.units, dtype=np.int64)
    for group in channels.classes:
        if group.splittable:
            stages[list(group.units[1::2])] = 0
    return Plan((graph.output,), tuple(stages.tolist()))


@pytest.mark.parametrize("make", [chain, residual])
def test_a_plan_that_keeps_everything_gives_the_static_model_back(make: object) -> None:
    model = make()  # type: ignore[operator]
    graph, channels, weights = analysed(model)
    analysed_model = AnalysedModel(graph, channels)
    solved = Reconstruction(analysed_model, weights, images_of(model)).solve(identity_plan(analysed_model))
    for name, (weight, bias) in weights.mix.items():
        found, shift = solved.weights.mix[name]
        assert np.array_equal(found, weight), name
        assert shift is bias is None or np.array_equal(shift, bias), name  # type: ignore[arg-type]


def linear_net() -> onnx.ModelProto:
    return net(
        """g (float[N,3,6,6] image) => (float[N,4] logits) {
            a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, wa, ba)  b = Conv<pads=[0,1,1,0]>(a, wb, bb)
            p = GlobalAveragePool(b)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl, bl)
        }""",
        wa=(6, 3, 3, 3), ba=(6,), wb=(5, 6, 2, 2), bb=(5,), wl=(4, 5), bl=(4,),
    )  # fmt: skip


def test_on_a_linear_net_the_solve_is_least_squares() -> None:
    model = linear_net()
    graph, channels, weights = analysed(model)
    plan, images = halved(graph, channels), images_of(model)
    solved = Reconstruction(AnalysedModel(graph, channels), weights, images, settings=EXACT).solve(plan)
    kept = np.flatnonzero(np.array(plan.stages_of_units)[channels.layouts["a"].units])
    rows = np.flatnonzero(np.array(plan.stages_of_units)[channels.layouts["b"].units])
    with torch.no_grad():
        (wa, ba), (wb, bb) = (map(torch.tensor, weights.mix[name]) for name in ("Conv_0", "Conv_1"))
        a = F.conv2d(torch.from_numpy(images), wa, ba, stride=2, padding=1)
        b = F.conv2d(F.pad(a, (1, 0, 0, 1)), wb, bb)
        columns = F.unfold(F.pad(a[:, kept], (1, 0, 0, 1)), 2)
    x = columns.transpose(1, 2).reshape(-1, columns.shape[1]).double().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    wanted = b.flatten(2).transpose(1, 2).reshape(len(x), -1)[:, rows].double().numpy()
    expected = np.linalg.lstsq(x, wanted, rcond=None)[0]
    weight, bias = solved.weights.mix["Conv_1"]
    assert bias is not None
    assert_close(weight[np.ix_(rows, kept)].reshape(len(rows), -1), expected[:-1].T, rel=1e-3)
    assert_close(bias[rows], expected[-1], rel=1e-3)


@pytest.mark.parametrize("make", [chain, residual])
def test_the_order_of_the_images_does_not_matter(make: object) -> None:
    model = make()  # type: ignore[operator]
    graph, channels, weights = analysed(model)
    plan, images = halved(graph, channels), images_of(model)
    settings = Settings(positions=10)
    order = np.random.default_rng(0).permutation(len(images))
    first, second = (
        Reconstruction(AnalysedModel(graph, channels), weights, i, settings=settings).solve(plan)
        for i in (images, images[order])
    )
    for name, (weight, _) in first.weights.mix.items():
        assert_close(second.weights.mix[name][0], weight, rel=1e-3, what=name)


@cache
def built(name: str) -> tuple[onnx.ModelProto, Graph, Channels, Weights]:
    model = PATTERNS[name]()
    return model, *analysed(model)


def pattern_images(graph: Graph, count: int = 40) -> Array:
    """Images that differ in colour and contrast."""
    rng, shape = np.random.default_rng(0), graph.shapes[graph.image]
    rows = [rng.uniform(0.3, 1.2) * (rng.normal(size=shape) + rng.normal(size=(1, 1, shape[-1]))) for _ in range(count)]
    return np.stack(rows).astype(np.float32)


def check_better(graph: Graph, channels: Channels, static: Weights, plan: Plan, images: Array) -> Solved:
    solved = Reconstruction(AnalysedModel(graph, channels), static, images).solve(plan)
    for name, found in solved.errors.items():
        assert np.isfinite(found.after)
        assert found.after <= found.before + 1e-9, name
    before, after = (error(graph, channels, static, w, plan, images) for w in (static, solved.weights))
    assert (after <= before * (1 + 1e-3) + 1e-9).all(), (before, after)
    return solved


# Every fifth pattern in `make test`, all of them in `make slow`.
LAWFUL = [
    name if number % 5 == 0 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(PATTERNS)
]


@pytest.mark.parametrize("name", LAWFUL)
def test_a_solved_net_is_nearer_to_the_static_model_than_the_cut_one(name: str) -> None:
    _, graph, channels, weights = built(name)
    check_better(graph, channels, weights, halved(graph, channels), pattern_images(graph))


@pytest.mark.parametrize("name", LAWFUL)
def test_random_linked_plans_stay_finite(name: str) -> None:
    _, graph, channels, weights = built(name)
    plan = random_plan(graph, channels, 0)
    images = pattern_images(graph)
    solved = Reconstruction(AnalysedModel(graph, channels), weights, images, settings=Settings(positions=9)).solve(plan)
    for answer in logits(graph, channels, solved.weights, plan, images):
        assert np.isfinite(answer).all()
    mixing = (Kind.MIX, Kind.GROUPED)
    assert set(solved.errors) >= {
        n.name for n in graph.nodes if channels.roles[n.name].kind in mixing and n.outputs[0] == graph.output
    }


@pytest.mark.parametrize("what", ["constant", "zero", "not finite", "one"])
def test_degenerate_images_leave_finite_weights(what: str) -> None:
    model = residual()
    graph, channels, weights = analysed(model)
    images = images_of(model, 12)
    if what == "constant":
        images[:] = 1.0
    elif what == "zero":
        images[:] = 0.0
    elif what == "not finite":
        images[3] = np.nan
        images[5, 0, 0, 0] = np.inf
    else:
        images = images[:1]
    solved = Reconstruction(AnalysedModel(graph, channels), weights, images).solve(halved(graph, channels))
    for name, (weight, bias) in solved.weights.mix.items():
        assert np.isfinite(weight).all(), name
        assert bias is None or np.isfinite(bias).all(), name


def test_the_first_layer_of_a_pair_is_fitted_to_what_the_second_makes() -> None:
    model = chain()
    graph, channels, weights = analysed(model)
    plan, images = halved(graph, channels), images_of(model, 200)
    alone, paired = (
        Reconstruction(AnalysedModel(graph, channels), weights, images, settings=Settings(pair_steps=steps)).solve(plan)
        for steps in (0, 5)
    )
    before, after = (error(graph, channels, weights, s.weights, plan, images) for s in (alone, paired))
    assert after[0] < before[0]
    assert not np.array_equal(alone.weights.mix["Conv_0"][0], paired.weights.mix["Conv_0"][0])


@pytest.mark.parametrize("values_bytes", [0, 20_000, 10**9])
def test_memory_for_values_changes_nothing_but_time(values_bytes: int) -> None:
    model = residual()
    graph, channels, weights = analysed(model)
    plan, images = halved(graph, channels), images_of(model, 150)
    plain = Reconstruction(AnalysedModel(graph, channels), weights, images).solve(plan)
    settings = Settings(values_bytes=values_bytes, targets_bytes=0)
    scarce = Reconstruction(AnalysedModel(graph, channels), weights, images, settings=settings).solve(plan)
    for name, (weight, _) in plain.weights.mix.items():
        assert_close(scarce.weights.mix[name][0], weight, rel=1e-3, what=name)


def test_a_left_out_block_is_made_up_for_by_the_layer_before_it() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,4] logits) {
            s = Conv<pads=[1,1,1,1]>(image, ws, bs)  x = Relu(s)
            a = Conv<pads=[1,1,1,1]>(x, wa, ba)  r = Relu(a)  b = Conv(r, wb, bb)  t = Add(b, x)  y = Relu(t)
            c = Conv<pads=[1,1,1,1]>(y, wc, bc)  q = Relu(c)  d = Conv(q, wd, bd)  u = Add(d, y)  z = Relu(u)
            p = GlobalAveragePool(z)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl, bl)
        }""",
        ws=(4, 3, 3, 3), bs=(4,), wa=(6, 4, 3, 3), ba=(6,), wb=(4, 6, 1, 1), bb=(4,), wc=(6, 4, 3, 3), bc=(6,),
        wd=(4, 6, 1, 1), bd=(4,), wl=(4, 4), bl=(4,),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    stages = np.ones(channels.units, dtype=np.int64)
    stages[channels.layouts["c"].units] = 0
    plan = Plan((graph.output,), tuple(stages.tolist()))
    net_ = StagedNet(AnalysedModel(graph, channels), weights).eval()
    effective = Effective(AnalysedModel(graph, channels), plan)

    def evaluate(node: Node, x: torch.Tensor) -> torch.Tensor:
        return net_.run_node(node, {graph.computed(node)[0]: x}, net_.masks(effective))[0]

    nodes = {n.outputs[0]: n for n in graph.nodes}
    target = Targets(effective, evaluate).of(nodes["b"])
    assert (target.tensor, target.others) == ("u", (("x", 1.0),))
    assert target.activation is nodes["z"] or target.activation is nodes["y"]
    assert Targets(effective, evaluate).of(nodes["a"]).tensor == "a"
    solved = check_better(graph, channels, weights, plan, images_of(model))
    same = {
        tensor: np.array_equal(solved.weights.mix[nodes[tensor].name][0], weights.mix[nodes[tensor].name][0])
        for tensor in ("s", "b", "logits")
    }
    assert same == {"s": True, "b": False, "logits": False}, "what comes before the cut is right as it is"
    assert [solved.errors[nodes[tensor].name].after for tensor in ("s", "a")] == [0.0, 0.0]


def test_elimination_keeps_the_channel_that_nothing_can_stand_in_for() -> None:
    model = net(
        """g (float[N,3,6,6] image) => (float[N,4] logits) {
            a = Conv<pads=[1,1,1,1]>(image, wa)  x = Relu(a)  b = Conv(x, wb)  y = Relu(b)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), wb=(8, 4, 3, 3), wl=(4, 8),
    )  # fmt: skip
    for initializer in model.graph.initializer:
        if initializer.name == "wa":
            value = numpy_helper.to_array(initializer).copy()
            value[1] = 3 * value[0]  # two strong channels that say the same
            value[2] *= 0.3
            initializer.CopyFrom(numpy_helper.from_array(value, "wa"))
    graph, channels, weights = analysed(model)
    score = data_importance(Reconstruction(AnalysedModel(graph, channels), weights, images_of(model)))
    units = channels.layouts["a"].units
    by_norm = importance(AnalysedModel(graph, channels), weights)[units]
    assert by_norm.argmin() == 2
    assert min(score[units[0]], score[units[1]]) == score[units].min()


@pytest.mark.parametrize("make", [chain, residual])
def test_a_chain_that_reads_the_image_smaller_is_solved_for_the_logits_of_the_whole_image(make: object) -> None:
    model = make()  # type: ignore[operator]
    graph, channels, static = analysed(model)
    whole = AnalysedModel(graph, channels)
    images = images_of(model)
    (wanted,) = logits(graph, channels, static, identity_plan(whole), images)
    small = at_scale(whole, 0.75)
    plan = replace(identity_plan(whole), scale=0.75)
    solved = Reconstruction(whole, static, images).solve(plan)
    (before,) = logits(small.graph, small.channels, static, plan, images)
    (after,) = logits(small.graph, small.channels, solved.weights, plan, images)
    assert np.square(after - wanted).mean() < 0.9 * np.square(before - wanted).mean()

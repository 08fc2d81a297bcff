"""What the stand compares with: pruning by other packages on tiny nets, small networks, and rows that could not be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from helpers import assert_close, run
from onnx import numpy_helper
from text_nets import chain, net, residual

from benchmarks import compare, earlyon_exits, int8, onnxsim_pruning, pruning
from benchmarks.least_pruning import Pruned, least_pruned, with_own_weights
from benchmarks.methods import METHODS, Method
from benchmarks.small_nets import replacement
from benchmarks.stand import Entry, NotRun, Stand
from benchmarks.tables import reasons
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.data.images import Images
from s2d_convert.errors import ModelError
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.latency.meter import Meter
from s2d_convert.plans.heuristics import depth_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import Chain, build_stages

needs_torch_pruning = pytest.mark.skipif(not pruning.AVAILABLE, reason="torch-pruning is not installed")
needs_onnxsim = pytest.mark.skipif(not onnxsim_pruning.AVAILABLE, reason="onnxsim 0.8 or newer is not installed")
needs_earlyon = pytest.mark.skipif(not earlyon_exits.AVAILABLE, reason="earlyon is not installed")


class ByMacs:
    """A meter whose latencies are multiply-accumulates relative to a model's."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._all = total_macs(graph_from_proto(model))

    def measure(self, models: list[bytes]) -> Any:
        """Return an object with `ratios`, as a meter does."""
        sizes = [total_macs(graph_from_proto(onnx.load_from_string(model))) for model in models]
        return SimpleNamespace(ratios=tuple(size / self._all for size in sizes))


class SomeImages:
    """Random model input, as `Images` gives it."""

    def __init__(self, shape: tuple[int, ...], count: int = 64) -> None:
        self._images = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: Any) -> Any:
        """Return the images of these rows."""
        return self._images[rows]


def test_the_least_that_meets_the_budget_is_found_by_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.least_pruning.check", lambda model: None)
    asked: list[float] = []

    def prune(ratio: float) -> Any:
        asked.append(ratio)
        return SimpleNamespace(SerializeToString=lambda: b"%.9f" % (1 - ratio))

    meter = cast(Meter, SimpleNamespace(measure=lambda models: SimpleNamespace(ratios=(float(models[0]),))))
    most = Pruned(prune(0.8), 0.8, 0.2)
    found = least_pruned(prune, meter, budget=0.53, most=most)
    assert asked[1:] == pytest.approx([0.4, 0.6, 0.5, 0.45, 0.475, 0.4625])
    assert (found.ratio, found.latency) == pytest.approx((0.475, 0.525))
    assert least_pruned(prune, meter, budget=0.1, most=most) is most


def three_convolutions() -> onnx.ModelProto:
    """conv a(8) -> conv b(8) -> conv c(8) -> pooled linear(3); the weights of every other channel of `a` are small."""
    model = net(
        """g (float[N,3,8,8] image) => (float[N,3] logits) {
            a = Conv(image, wa)  x = Relu(a)  b = Conv(x, wb)  y = Relu(b)  c = Conv(y, wc)  z = Relu(c)
            p = GlobalAveragePool(z)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(8, 3, 1, 1), wb=(8, 8, 1, 1), wc=(8, 8, 1, 1), wl=(3, 8),
    )  # fmt: skip
    weights = {w.name: w for w in model.graph.initializer}
    for name, small in (("wa", np.s_[::2]), ("wb", np.s_[:, ::2])):
        values = numpy_helper.to_array(weights[name]).copy()
        values[small] *= 1e-3
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@needs_torch_pruning
def test_isomorphic_pruning_ranks_layers_of_one_pattern_against_each_other() -> None:
    """Of the 16 channels of `a` and `b` together a quarter goes: the four small ones. `c`, before the classifier, is another
    pattern and gives its own quarter."""
    model = AnalysedModel.of(graph_from_proto(three_convolutions()))
    left = {}
    for isomorphic in (False, True):
        small = graph_from_proto(pruning.pruned(model, 0.25, round_to=1, isomorphic=isomorphic))
        left[isomorphic] = [small.constants[name].shape[0] for name in ("wa", "wb", "wc")]
    assert left == {False: [6, 6, 6], True: [4, 8, 6]}


def test_nodes_get_constants_of_their_own() -> None:
    """Two convolutions share weight and bias; after it they share nothing and compute the same."""
    shared = net(
        """g (float[N,4,8,8] image) => (float[N,4] logits) {
            a = Conv(image, w, b)  x = Relu(a)  c = Conv(x, w, b)  p = GlobalAveragePool(c)  logits = Flatten(p)
        }""",
        w=(4, 4, 1, 1), b=(4,),
    )  # fmt: skip
    graph = graph_from_proto(shared)
    model = with_own_weights(graph)
    constants = [name for node in model.graph.node for name in node.input if name.startswith(("w", "b"))]
    assert len(set(constants)) == len(constants) == 4
    assert {weight.name for weight in model.graph.initializer} >= set(constants)
    assert all(node.name for node in model.graph.node)
    images = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    (expected,), (got,) = (run(m, {"image": images}).values() for m in (shared, model))
    np.testing.assert_array_equal(got, expected)


@needs_onnxsim
@pytest.mark.parametrize("build", [chain, residual])
def test_onnxsim_prunes_to_the_budget_and_tunes_without_labels(build: Any) -> None:
    graph = graph_from_proto(build())
    images = cast(Any, SomeImages(graph.shapes[graph.image]))
    meter = cast(Meter, ByMacs(graph.to_model()))
    made = onnxsim_pruning.prune_to(graph, images, meter, budget=0.7)
    small = graph_from_proto(made.model)
    assert small.classes == graph.classes
    assert total_macs(small) <= 0.7 * total_macs(graph)
    assert made.facts["latency"] <= 0.7
    assert made.facts["agreement"][made.facts["tuning"]] == max(made.facts["agreement"].values())
    assert made.facts["agreement"][made.facts["tuning"]] >= made.facts["agreement"]["none"]


@needs_onnxsim
def test_onnxsim_agrees_with_itself() -> None:
    graph = graph_from_proto(chain())
    model = with_own_weights(graph)
    some = onnxsim_pruning.feeds(graph, cast(Any, SomeImages(graph.shapes[graph.image])), 0)
    assert onnxsim_pruning.agreement(model, model, some) == 1.0


def stand_with(tmp_path: Path, smaller: Path | None) -> Stand:
    """A stand of the net `chain`, with a file to replace it."""
    stand = SimpleNamespace(
        root=tmp_path,
        options=SimpleNamespace(replacement=smaller),
        ready=SimpleNamespace(graph=graph_from_proto(chain())),
    )
    return cast(Stand, stand)


def test_a_replacement_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    onnx.save(chain(), str(path))
    entry = replacement(stand_with(tmp_path, path), 0, 0.5)
    images = np.random.default_rng(0).normal(size=(2, *graph_from_proto(chain()).shapes["image"])).astype(np.float32)
    made = onnx.load(str(tmp_path / entry.path))
    (expected,) = run(chain(), {"image": images}).values()
    (got,) = run(made, {made.graph.input[0].name: images}).values()
    np.testing.assert_array_equal(got, expected)


def test_a_replacement_with_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    onnx.save(residual(), str(path))
    with pytest.raises(ModelError, match="image, classes and kind of output are"):
        replacement(stand_with(tmp_path, path), 0, 0.5)
    with pytest.raises(ModelError, match="no smaller model was given"):
        replacement(stand_with(tmp_path, None), 0, 0.5)


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    """Methods of this test in place of the stand's."""
    chosen: dict[str, Method] = {}
    monkeypatch.setattr(compare, "METHODS", chosen)
    monkeypatch.setattr("benchmarks.methods.METHODS", chosen)
    return chosen


def test_a_rival_that_cannot_be_run_is_a_row_that_says_why(methods: dict[str, Method]) -> None:
    def refuse(stand: Stand, seed: int, budget: float) -> Entry:
        raise ModelError("it finds no layer to prune")

    methods["absent"] = Method(refuse, True, "", rival=True, missing="some-package")
    methods["helpless"] = Method(refuse, False, "", rival=True)
    methods["ours"] = Method(refuse, True, "")
    reporter = SimpleNamespace(step=lambda text: None, note=lambda text: None)
    stand = cast(Stand, SimpleNamespace(known=lambda kind, name: None, reporter=reporter))
    expected = {
        "absent": NotRun("absent", 0, 0.5, "some-package is not installed"),
        "helpless": NotRun("helpless", 0, None, "it finds no layer to prune"),
    }
    for name, line in expected.items():
        assert compare.run_method(stand, name, 0, 0.5, only_known=False) == line
    with pytest.raises(ModelError, match="no layer to prune"):
        compare.run_method(stand, "ours", 0, 0.5, only_known=False)


def test_reasons_stand_below_the_table_once() -> None:
    lines = [NotRun("pruned", seed, budget, "x is not installed") for seed in (0, 1) for budget in (0.3, 0.5)]
    assert reasons(lines) == "\n- `pruned` was not run: x is not installed\n"
    assert reasons([]) == ""


def test_every_rival_of_a_package_tells_when_it_is_missing() -> None:
    by_onnxsim = {"onnxsim": onnxsim_pruning, "onnxsim-tuned": onnxsim_pruning}
    needed = {"pruned": pruning, "isomorphic": pruning, **by_onnxsim, "earlyon": earlyon_exits}
    assert {name for name, method in METHODS.items() if method.missing} == {
        name for name, module in needed.items() if not module.AVAILABLE
    }


@needs_earlyon
def test_heads_of_earlyon_answer_in_stage_files_as_in_the_package() -> None:
    graph = graph_from_proto(residual())
    model = AnalysedModel.of(graph)
    conversion = depth_plan(model, 2)
    plan = conversion.chains[0]
    wrapper = earlyon_exits.wrapped(model, plan.taps[:-1]).eval()
    images = np.random.default_rng(0).normal(size=(5, *graph.shapes[graph.image])).astype(np.float32)
    with torch.no_grad():
        early, last = (logits.numpy() for logits in wrapper(torch.from_numpy(images), mode="training"))
    assert_close(last, run(graph.to_model(), {graph.image: images})[graph.output].reshape(len(last), -1))
    heads = {plan.taps[0]: earlyon_exits.head_of(wrapper.exit_heads["tap0"])}
    weights = replace(static_weights(graph, model.channels), heads=heads)
    first, _ = build_stages([Chain(model, plan, weights)])
    assert_close(run(first.model, {graph.image: images})["output"].reshape(len(early), -1), early)


@needs_earlyon
def test_earlyon_trains_its_heads_and_nothing_else() -> None:
    graph = graph_from_proto(residual())
    model = AnalysedModel.of(graph)
    plan = depth_plan(model, 2).chains[0]
    wrapper = earlyon_exits.wrapped(model, plan.taps[:-1])
    before = [p.detach().clone() for p in wrapper.backbone.parameters()]
    head = [p.detach().clone() for p in wrapper.exit_heads.parameters()]
    images = cast(Images, SomeAugmented(graph.shapes[graph.image]))
    labels = np.arange(len(images)) % graph.classes
    epochs = earlyon_exits.Epochs(images, labels, 0)
    assert [len(batch) for batch, _ in epochs] == [64]
    two_stage = pytest.importorskip("earlyon.training.two_stage_trainer")
    two_stage.stage2_train_exits(wrapper, epochs, epochs=2, on_epoch_end=lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(before, wrapper.backbone.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(head, wrapper.exit_heads.parameters(), strict=True))


class SomeAugmented(SomeImages):
    """Random model input that looks the same whatever the augmentation."""

    def augmented(self, rows: Any, _rng: Any, *, level: str) -> Any:
        """Return the images of these rows."""
        assert level == "light"
        return self.batch(rows)


def test_int8_of_the_whole_model_is_the_fastest_of_the_recipes_that_are_right() -> None:
    def made(right: float, latency: float) -> int8.Made:
        return int8.Made(b"", {}, right, latency)

    exact, as_good, poor = made(0.90, 1.0), made(0.895, 0.4), made(0.80, 0.3)
    assert int8.best_of([exact, as_good, poor], images=1000) is as_good  # a standard error is 0.0095
    assert int8.best_of([exact, as_good, poor], images=10_000) is exact

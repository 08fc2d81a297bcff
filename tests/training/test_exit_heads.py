"""Exit heads with cells and hidden layers: cached features, torch and stage files agree."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
import torch
from chain_law import analysed, random_plan, run_chain
from helpers import assert_close, random_images
from text_nets import net

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.space import depth_taps
from s2d_convert.slicing.split import split
from s2d_convert.training.exit_heads import (
    Copies,
    Extractor,
    Features,
    feature_count,
    head_cell,
    head_logits,
    new_head,
    train_heads,
)


def as_images(pixels: np.ndarray, labels: np.ndarray | None = None) -> Images:
    """Images that the model takes as they are."""
    channels, height, width = pixels.shape[1:]
    preprocess = make_preprocess(size=(height, width), channels=channels)
    return Images(pixels, preprocess, np.arange(len(pixels)), labels, "unlabelled")


def channels_last() -> onnx.ModelProto:
    """A net whose last feature map has its channels at the end."""
    return net(
        """g (float[N,3,6,6] image) => (float[N,5] logits) {
            a = Conv<pads=[1,1,1,1]>(image, wa)  b = Relu(a)  c = Conv(b, wb)
            t = Transpose<perm=[0,2,3,1]>(c)  m = MatMul(t, wm)  r = Relu(m)  s = MatMul(r, ws)
            p = ReduceMean<axes=[1,2], keepdims=0>(s)  logits = Gemm<transB=1>(p, wl)
        }""",
        wa=(8, 3, 3, 3), wb=(8, 8, 1, 1), wm=(8, 12), ws=(12, 8), wl=(5, 8),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: nets.export("resnet_option_a"), lambda: nets.export("densenet"), channels_last]
)
def test_heads_on_features_are_those_of_the_module_and_of_the_stage_file(make: object) -> None:
    model = make()  # type: ignore[operator]
    graph, channels, weights = analysed(model)
    taps = depth_taps(AnalysedModel(graph, channels))
    heads = {tap: new_head(AnalysedModel(graph, channels), tap, seed=1) for tap in taps}
    feeds = random_images(model, 5, 0)
    extractor = Extractor(AnalysedModel(graph, channels), taps, threads=1, provider="CPUExecutionProvider")
    features = extractor.features(as_images(feeds[graph.image]))
    cached = head_logits(AnalysedModel(graph, channels), heads, features)
    ones = (1,) * channels.units
    module = StagedNet(AnalysedModel(graph, channels), weights.with_heads(heads), taps=taps).eval()
    for tap, found in zip(taps, cached, strict=True):
        plan = Plan((tap, graph.output), ones)
        with torch.no_grad():
            in_torch, last = module(
                torch.from_numpy(feeds[graph.image]), module.masks(Effective(AnalysedModel(graph, channels), plan))
            )
        assert_close(found, in_torch.numpy(), what=f"torch, {tap}")
        assert_close(features.logits, last.numpy(), what="static")
        answers = run_chain(split(graph, channels, plan, weights.with_heads(heads)), feeds)
        assert_close(answers[0]["output"], found, what=f"onnxruntime, {tap}")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [lambda: nets.export("wide_resnet"), channels_last])
def test_heads_with_cells_read_the_channels_of_their_stage_only(make: object, seed: int) -> None:
    model = make()  # type: ignore[operator]
    graph, channels, weights = analysed(model)
    plan = random_plan(graph, channels, seed)
    weights = weights.with_heads({t: new_head(AnalysedModel(graph, channels), t, seed=2) for t in plan.taps[:-1]})
    module = StagedNet(AnalysedModel(graph, channels), weights, taps=list(dict.fromkeys(plan.taps[:-1]))).eval()
    feeds = random_images(model, 3, seed)
    with torch.no_grad():
        expected = module(
            torch.from_numpy(feeds[graph.image]), module.masks(Effective(AnalysedModel(graph, channels), plan))
        )
    answers = run_chain(split(graph, channels, plan, weights), feeds)
    for answer, logits in zip(answers, expected, strict=True):
        assert_close(answer["output"], logits.numpy())


def test_cells_bound_the_features_and_fit_into_the_map() -> None:
    graph, channels, _ = analysed(nets.export("resnet_option_a"))
    for tap in depth_taps(AnalysedModel(graph, channels)):
        width, height, breadth = graph.shapes[tap]
        cell = head_cell(AnalysedModel(graph, channels), tap)
        assert cell is not None
        assert (
            feature_count(AnalysedModel(graph, channels), tap)
            == width * (height // cell[0]) * (breadth // cell[1])
            <= 2048
        )


def test_features_are_stored_whole_and_read_again(tmp_path: Path) -> None:
    model = nets.export("resnet_option_a")
    graph, channels, _ = analysed(model)
    taps = depth_taps(AnalysedModel(graph, channels))
    images = as_images(random_images(model, 6, 0)[graph.image], np.arange(6))
    extractor = Extractor(AnalysedModel(graph, channels), taps, threads=1, provider="CPUExecutionProvider")
    plain = extractor.features(images)
    store = tmp_path / "features"
    store.with_name("features.partial").mkdir()  # of a run that was killed
    twice = extractor.features(images, copies=Copies(2), store=store)
    assert len(twice.logits) == 12
    assert twice.labels is not None
    np.testing.assert_array_equal(twice.labels, [*range(6), *range(6)])
    for tap in taps:
        assert_close(twice.taps[tap][:6], plain.taps[tap])
        assert np.abs(twice.taps[tap][6:] - plain.taps[tap]).max() > 1e-3  # augmented
    again = Extractor(AnalysedModel(graph, channels), taps, threads=1, provider="CPUExecutionProvider").features(
        images, copies=Copies(2), store=store
    )
    np.testing.assert_array_equal(again.logits, twice.logits)
    assert not store.with_name("features.partial").exists()


def test_training_finds_what_lies_where_and_is_repeatable() -> None:
    """Two classes that differ by the half that is bright have equal means: cells tell them apart."""
    graph, channels, _ = analysed(
        net(
            """g (float[N,1,4,4] image) => (float[N,2] logits) {
                a = Conv(image, wa)  b = Relu(a)  c = Conv(b, wb)  p = GlobalAveragePool(c)  f = Flatten(p)
                logits = Gemm<transB=1>(f, wl)
            }""",
            wa=(4, 1, 1, 1), wb=(4, 4, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    tap = "b"
    rng = np.random.default_rng(0)
    sides = rng.integers(0, 2, 600)
    values = rng.normal(0, 0.1, (600, 4, 4, 4)).astype(np.float32)
    for row, side in enumerate(sides):
        values[row, :, :, 2 * side : 2 * side + 2] += 1
    cell = head_cell(AnalysedModel(graph, channels), tap)
    assert cell == (1, 1)
    soft = np.where(np.arange(2) == sides[:, None], 5, -5).astype(np.float32)
    features = Features({tap: values.reshape(600, -1)}, soft, None)

    def trained(seed: int) -> dict[str, object]:
        return train_heads(AnalysedModel(graph, channels), features, epochs=10, seed=seed, device=torch.device("cpu"))  # type: ignore[return-value]

    without_time = train_heads(
        AnalysedModel(graph, channels), features, epochs=10, seed=0, device=torch.device("cpu"), seconds=0.0
    )
    assert list(without_time) == [tap]
    heads = trained(0)
    found = head_logits(AnalysedModel(graph, channels), heads, features)[0].argmax(axis=1)  # type: ignore[arg-type]
    assert (found == sides).mean() > 0.99
    for (weight, _), (other, _) in zip(trained(0)[tap].layers, heads[tap].layers, strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(weight, other)
    assert np.abs(trained(1)[tap].layers[0][0] - heads[tap].layers[0][0]).max() > 0  # type: ignore[attr-defined]

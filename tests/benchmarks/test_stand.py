"""The measuring stand: pruning by another package, tables, and a whole run on a tiny model that is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import assert_close, run
from text_nets import chain, residual
from tiny import make_model, quadrants

from benchmarks import compare, pruning
from benchmarks.measuring import Setting
from benchmarks.methods import METHODS
from benchmarks.nets import NETS
from benchmarks.small_nets import forget, small_conversion
from benchmarks.stand import Stand
from benchmarks.tables import markdown, plot, rows
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.channels.macs import total_macs
from s2d_convert.errors import DataError, OutputError
from s2d_convert.exporting.provenance import sha256_of
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.latency.meter import Meter
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.weights import static_weights

needs_pruning = pytest.mark.skipif(not pruning.AVAILABLE, reason="torch-pruning is not installed")


def result(method: str, seed: int, accuracy: float, latency: float, **entry: Any) -> dict[str, Any]:
    """One line of results.json."""
    measured = {"accuracy": accuracy, "exit_share": [0.75, 0.25], "images": 10,
                "latency": {"1x1": {"mean": latency, "worst": 1.2}, "32x2": {"mean": latency + 0.1, "worst": 1.3}}}  # fmt: skip
    plain = {"method": method, "seed": seed, "budget": None, "planned": None, "facts": {}, **entry}
    return {"entry": plain, "measured": {**measured, **({"predicted": 0.5} if "budget" in entry else {})}}


def test_a_table_by_hand() -> None:
    results = [
        result("static", 0, 0.88, 1.0),
        result("ours", 0, 0.86, 0.50, budget=0.5, planned=0.5, facts={"reward": 0.9}),
        result("ours", 1, 0.87, 0.52, budget=0.5, planned=0.5, facts={"reward": 0.8}),
        result("depth", 0, 0.80, 0.45, budget=0.7, planned=0.5),
    ]
    text = markdown(rows(results, "1x1")).splitlines()
    assert text[2] == "| static |  | 1 | 88.00 | +0.00 | 1.000 | 1.20 | 1.100 | 75 % |  |  |"
    assert (
        text[3] == "| ours | 0.5 | 2 | 86.50 ± 0.71 | -1.50 | 0.510 ± 0.014 | 1.20 | 0.610 | 75 % | +2.0 % | 0.8500 |"
    )
    assert text[4].startswith("| depth | 0.7 (plan for 0.5) | 1 | 80.00 | -8.00 |")


def test_a_plot_is_written(tmp_path: Path) -> None:
    plot(rows([result("static", 0, 0.88, 1.0)], "1x1"), tmp_path / "plot.png", title="by hand")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_setting_is_spelt_as_it_is_read() -> None:
    assert Setting.parse("32x2") == Setting(batch=32, threads=2)
    assert Setting.parse("32x2").name == "32x2"


@pytest.mark.parametrize("build", [chain, residual])
def test_plain_layers_compute_what_the_graph_does(build: Any) -> None:
    graph = graph_from_proto(build())
    images = np.random.default_rng(0).normal(size=(3, *graph.shapes[graph.image])).astype(np.float32)
    with torch.no_grad():
        found = pruning.Plain(graph).eval()(torch.from_numpy(images)).numpy()
    assert_close(found, run(graph.to_model(), {graph.image: images})[graph.output])


@needs_pruning
def test_pruning_keeps_the_classes_and_takes_channels(tmp_path: Path) -> None:
    graph = graph_from_proto(chain())
    model = pruning.pruned(AnalysedModel.of(graph), 0.5, round_to=1)
    small = reloaded(model)
    assert small.classes == graph.classes
    assert total_macs(small) < 0.6 * total_macs(graph)
    images = np.zeros((2, *graph.shapes[graph.image]), dtype=np.float32)
    assert run(small.to_model(), {small.image: images})[small.output].shape == (2, graph.classes)


@needs_pruning
def test_nothing_is_pruned_beyond_need() -> None:
    graph = graph_from_proto(chain())
    image = np.zeros((1, *graph.shapes[graph.image]), dtype=np.float32)
    meter = Meter(graph.to_model().SerializeToString(), image, seconds=0.0)
    found, ratio, _latency = pruning.prune_to(AnalysedModel.of(graph), meter, budget=100.0, block=1)
    assert ratio < 0.05
    assert total_macs(reloaded(found)) > 0.8 * total_macs(graph)


def reloaded(model: Any) -> Graph:
    """The pruned model as the tool reads it."""
    return graph_from_proto(model)


def test_a_network_that_forgot_is_random_and_seeded() -> None:
    graph = graph_from_proto(residual())
    channels = analyse(graph)
    nets = [StagedNet(AnalysedModel(graph, channels), static_weights(graph, channels)) for _ in range(3)]
    for net, seed in zip(nets[1:], (1, 1), strict=True):
        forget(net, seed=seed)
    before, first, second = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, second)
    assert not torch.allclose(before, first)
    assert torch.isfinite(first).all()


def test_a_small_network_that_was_chosen_stays_whatever_is_measured_later() -> None:
    graph = graph_from_proto(residual())
    channels = analyse(graph)
    kept: dict[tuple[str, str], Any] = {}
    stand = SimpleNamespace(
        ready=SimpleNamespace(
            graph=graph,
            channels=channels,
            model=AnalysedModel(graph, channels),
            weights=static_weights(graph, channels),
            block=2,
        ),
        meter=SimpleNamespace(measure=lambda models: SimpleNamespace(ratios=(0.0,))),
        known=lambda kind, name: kept.get((kind, name)),
        keep=lambda kind, name, data: kept.update({(kind, name): data}),
    )
    widest = small_conversion(cast(Stand, stand), 0.5)
    stand.meter.measure = lambda models: SimpleNamespace(ratios=(9.0,))
    assert small_conversion(cast(Stand, stand), 0.5) == widest
    assert small_conversion(cast(Stand, stand), 0.4) != widest


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_net_answers_ten_classes(name: str) -> None:
    net = NETS[name](10).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(tmp_path / "tiny.onnx")
    (tmp_path / "own.onnx").write_bytes((tmp_path / "tiny.onnx").read_bytes())
    for name, count, seed in (("data", 700, 1), ("test", 300, 9)):
        images, labels = quadrants(count, seed)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    amounts = "--evaluations 4 --finetune-epochs 0.1 --finetune-min-steps 8 --trial-steps 4"
    asked = [
        *("--model", str(tmp_path / "tiny.onnx"), "--data", str(tmp_path / "data.npz")),
        *("--test", str(tmp_path / "test.npz"), "--out", str(tmp_path / "run")),
        *("--replacement", str(tmp_path / "own.onnx")),
        *amounts.split(), "--groups", "2", "--no-flip", "--budgets", "0.5", "0.8", "--other-budgets", "0.8",
    ]  # fmt: skip
    compare.main([*asked, "--methods", "static", "depth", "--build-only"])
    folder = tmp_path / "run"
    before = {p: p.stat().st_mtime_ns for p in (folder / "folders").rglob("*.onnx")}
    assert before
    compare.main([*asked, "--seeds", "2"])
    assert all(p.stat().st_mtime_ns == when for p, when in before.items())
    written = json.loads((folder / "results.json").read_text())
    results = written["results"]
    not_run = {line["method"] for line in written["not_run"]}
    assert (
        {name for name, method in METHODS.items() if method.missing}
        <= not_run
        <= {n for n, m in METHODS.items() if m.rival}
    )
    found = {(r["entry"]["method"], r["entry"]["seed"], r["entry"]["budget"]) for r in results}
    assert {("ours", seed, budget) for seed in (0, 1) for budget in (0.5, 0.8)} <= found
    assert {m for m, _, _ in found} == set(METHODS) - not_run
    assert not {"first", "replacement"} & not_run
    for line in results:
        measured = line["measured"]
        assert measured["images"] == 300
        assert 0 <= measured["accuracy"] <= 1
        assert sum(measured["exit_share"]) == pytest.approx(1)
        assert all(t["mean"] > 0 for t in measured["latency"].values())
    for manifest in (folder / "folders").glob("*/manifest.json"):  # so that `s2d evaluate` knows the static model
        digest = json.loads(manifest.read_text())["provenance"]["model_sha256"]
        assert digest == sha256_of(tmp_path / "tiny.onnx")
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert (folder / "plot.png").exists()
    with pytest.raises(OutputError, match="another evaluations"):
        compare.main([*asked, "--evaluations", "9"])
    with pytest.raises(OutputError, match="nothing was made there yet"):
        compare.main([*asked, "--out", str(tmp_path / "empty"), "--measure-only"])
    images, _ = quadrants(40, 5)
    np.savez(tmp_path / "bare.npz", images=images)
    with pytest.raises(DataError, match="no labels; the stand compares accuracies"):
        compare.main([*asked, "--out", str(tmp_path / "empty2"), "--test", str(tmp_path / "bare.npz")])
    (tmp_path / "tiny.onnx").write_bytes((tmp_path / "tiny.onnx").read_bytes() + b"\x32\x00")
    with pytest.raises(OutputError, match="another model"):
        compare.main(asked)

"""Measuring an exported folder: shares, ways out and batches; never how long anything takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import analysed
from s2d_runtime import Dispatcher
from text_nets import residual

from s2d_convert.base.files import check_out, whole_folder, write_json
from s2d_convert.base.sessions import Running, make_session
from s2d_convert.calibration.thresholds import NEVER_LEAVES
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import OutputError, UsageError
from s2d_convert.exporting.measure import measure
from s2d_convert.exporting.timing import bench, image_latency, path_costs, thresholds_for_exit
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.latency.meter import Meter
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.chain import stage_logits
from s2d_convert.slicing.split import split
from s2d_convert.workflows.split_model import SplitOptions, open_export, split_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A residual net split by depth into two stages."""
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, out=tmp_path / "out"))
    return tmp_path / "out"


def images_of(count: int) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
    preprocess = make_preprocess(size=(8, 8), channels=3)
    return Images(pixels, preprocess, np.arange(count), rng.integers(0, 3, count), "labelled")


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_folder_that_never_exits_answers_as_the_static_model(folder: Path, batch: int) -> None:
    with open_export(folder) as (runner, static):
        found = measure(runner, static, images_of(30), running=Running(batch=batch))
    assert found.exit_share == (0.0, 1.0)
    assert found.agreement == 1.0
    assert found.correct_dynamic == found.correct_static
    assert found.static_macs > 0
    assert min(found.mean_latency, found.median_latency, found.worst_latency) > 0


def test_thresholds_send_every_row_to_one_exit(folder: Path) -> None:
    assert thresholds_for_exit(3, 2) == (NEVER_LEAVES, 0.0)
    with Dispatcher(folder) as runner:
        for stage in (1, 2):
            answer = runner(images_of(5).batch(np.arange(5)), thresholds=thresholds_for_exit(2, stage))
            assert answer.stage.tolist() == [stage] * 5


def test_a_way_out_costs_at_least_what_the_one_before_costs(folder: Path) -> None:
    rounds = cycle([[0.002, 0.001, 0.0008], [0.002, 0.001, 0.0008], [0.009, 0.001, 0.0008]])  # static, exits 1 and 2
    with open_export(folder) as (runner, static):
        costs = path_costs(runner, static, images_of(1).batch(np.arange(1)), time_round=lambda _calls: next(rounds))
    assert costs.static_ms == pytest.approx(2.0)
    assert costs.ratios == pytest.approx((0.5, 0.5))
    assert costs.per_stage == pytest.approx((0.5, 0), abs=1e-3)
    assert min(costs.per_stage) > 0


@pytest.mark.parametrize("batch", [1, 2])
def test_the_worst_is_never_below_the_median(folder: Path, batch: int) -> None:
    """By a clock on which every image takes longer than the longest way out."""
    exits = np.array([1, 2, 2, 1, 2, 2, 2, 2])
    by_calls = {2: [0.001, 0.0012], 3: [0.001, 0.0004, 0.0009]}
    with open_export(folder) as (runner, static):
        found = image_latency(
            runner, static, images_of(8), exits, batch=batch, time_round=lambda calls: by_calls[len(calls)]
        )
    assert (found.mean, found.median, found.worst) == pytest.approx((1.2, 1.2, 1.2))


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
def test_answers_and_exits_are_those_of_the_dispatcher(folder: Path, budget: float) -> None:
    images = images_of(70)
    with open_export(folder) as (runner, static):
        manifest = runner.manifest
        sure = np.sort(runner(images.batch(np.arange(70)), thresholds=thresholds_for_exit(2, 1)).confidence)
    shares = {0.3: 20, 0.6: 50, 1.0: 69}  # by budget, the row after which confidence is enough
    policies = [replace(manifest.policies[0], budget=b, thresholds=(float(sure[70 - n]),)) for b, n in shares.items()]
    write_json(folder / "manifest.json", replace(manifest, policies=tuple(policies), default_budget=1.0).to_json())
    with open_export(folder) as (runner, static):
        runner.set_budget(budget)
        found = measure(runner, static, images, running=Running())
        answer = runner(images.batch(np.arange(70)))
        reference = static.logits(images.batch(np.arange(70))).argmax(axis=1)
    assert found.exit_share == pytest.approx(np.bincount(answer.stage, minlength=3)[1:] / 70)
    assert 0 < found.exit_share[0] < 1
    assert found.correct_dynamic == (answer.output.argmax(axis=1) == images.labels).mean()
    assert found.correct_static == (reference == images.labels).mean()
    assert found.agreement == (answer.output.argmax(axis=1) == reference).mean()


def test_classes_have_the_names_that_the_folder_records(folder: Path) -> None:
    names = ["no", "may be", "yes"]
    images = images_of(60)
    for recorded, expected in (({}, {"0", "1", "2"}), ({"class_names": names}, set(names))):
        with open_export(folder) as (runner, static):
            manifest = runner.manifest
            plain = replace(manifest, provenance={**manifest.provenance, **recorded})
            write_json(folder / "manifest.json", plain.to_json())
        with open_export(folder) as (runner, static):
            found = measure(runner, static, images, running=Running())
        assert {row.name for row in found.per_class} == expected
        assert sum(row.images for row in found.per_class) == 60
        assert found.mistakes == ()  # nothing leaves early


def test_every_way_out_is_timed(folder: Path) -> None:
    with open_export(folder) as (runner, static):
        costs = path_costs(runner, static, images_of(1).batch(np.arange(1)))
        rows = bench(runner, static, batch=2, seconds=0.05)["rows"]
    assert len(costs.ratios) == 2
    assert [row["name"] for row in rows] == ["static", "exit 1", "exit 2"]


def test_stage_logits_are_those_of_the_dispatcher(folder: Path) -> None:
    graph, channels, weights = analysed(residual())
    images = images_of(9)
    stages = split(graph, channels, Plan(("x", "logits"), (1,) * channels.units), weights)
    logits = stage_logits(graph, stages, images)
    with Dispatcher(folder) as runner:
        last = runner(images.batch(np.arange(9)), exits=False).output
    assert logits.shape == (2, 9, 3)
    np.testing.assert_allclose(logits[1], last, rtol=1e-4, atol=1e-5)


def test_equal_models_are_measured_once() -> None:
    model = graph_from_proto(residual()).to_model().SerializeToString()
    meter = Meter(model, images_of(1).batch(np.arange(1)), seconds=0.01)
    first = meter.measure([model])
    assert meter.measure([model]) is first
    assert len(first.ratios) == 1
    with pytest.raises(UsageError, match="--provider Nope"):
        make_session(model, provider="Nope")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        with whole_folder(out) as partial:
            (partial / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.killed.partial").mkdir()
    with whole_folder(out) as partial:
        (partial / "all").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="exists already"):
        check_out(out)

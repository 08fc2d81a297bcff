"""The division of the held-out images: plans are compared on one half, thresholds are chosen on the other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import nets
import numpy as np
import pytest
import torch

from s2d_convert.base.clock import Clock
from s2d_convert.calibration.answered import Answered
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion import context
from s2d_convert.conversion.context import EVEN, LEAST_HALF, MORE_TRAINING, NO_TRAINING, Job, Prepared
from s2d_convert.conversion.options import EFFORTS, TIMED
from s2d_convert.conversion.prepare import changed_copies
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.frontend.reference import StaticModel


def answered(count: int) -> Answered:
    """Images that hold their own numbers."""
    preprocess = make_preprocess("unit", size=(2, 2), channels=1, layout="NCHW", dtype="float32")
    pixels = np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 1, 2, 2))
    labels = np.arange(count, dtype=np.int64) % 3
    images = Images(pixels, preprocess, np.arange(count), labels, "labelled")
    return Answered(images, np.eye(3, dtype=np.float32)[labels], labels)


def prepared(held_out: Answered) -> Prepared:
    """A Prepared of which only the held-out images count."""
    unused: dict[str, object] = dict.fromkeys(("model", "weights", "preprocess", "dataset", "static", "device"))
    return Prepared(held_out=held_out, **unused)  # type: ignore[arg-type]


def numbers(part: Answered) -> set[int]:
    """The images of a part, whose logits and classes are seen to be theirs."""
    rows = part.images.raw(slice(None))[:, 0, 0, 0].astype(int)
    assert (part.logits.argmax(axis=1) == rows % 3).all()
    assert (part.right_classes == rows % 3).all()
    return set(rows.tolist())


@pytest.mark.parametrize("count", [2 * LEAST_HALF, 2 * LEAST_HALF + 1, 1000])
def test_no_image_serves_plans_and_thresholds(count: int) -> None:
    ready = prepared(answered(count))
    plans, thresholds = numbers(ready.validation), numbers(ready.calibration)
    assert not plans & thresholds
    assert plans | thresholds == set(range(count))
    assert len(plans) == count // 2


def test_of_few_images_copies_serve_for_thresholds() -> None:
    few, many = answered(10), answered(40)
    ready = replace(prepared(few), copies=many)
    assert ready.validation is few
    assert ready.calibration is many
    assert ready.calibrated_on == 10
    assert prepared(answered(1000)).calibrated_on == 500


@pytest.mark.parametrize("count", [10, 2 * LEAST_HALF - 1])
def test_few_images_serve_both(count: int) -> None:
    ready = prepared(answered(count))
    assert numbers(ready.validation) == numbers(ready.calibration) == set(range(count))


@pytest.mark.parametrize(("affordable", "count"), [(1e12, 80), (25, 20), (19, 10), (0, 10)])
def test_copies_are_fewer_of_a_large_network(affordable: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """affordable: passes of the model over an image, which are counted in multiply-accumulates."""
    graph = graph_from_proto(nets.export("vgg_bn"))
    monkeypatch.setattr("s2d_convert.conversion.prepare.COPY_MACS", affordable * total_macs(graph))
    shape, static = graph.shapes[graph.image], StaticModel(graph)
    preprocess = make_preprocess("unit", size=(shape[1], shape[2]), channels=3, layout="NCHW", dtype="float32")
    pixels = np.random.default_rng(0).random((10, *shape), dtype=np.float32)
    images = Images(pixels, preprocess, np.arange(10), None, "unlabelled")
    logits = static.logits(images.batch(slice(0, 10)))
    held_out = Answered(images, logits, graph.task.answers(logits))
    copies = changed_copies(static, held_out, SimpleNamespace(seed=0, flip=True))  # type: ignore[arg-type]
    assert len(copies.images) == len(copies.logits) == len(copies.right_classes) == count
    np.testing.assert_allclose(copies.logits, static.logits(copies.images.batch(slice(None))), rtol=1e-4, atol=1e-5)


def job_of(seconds: float | None, *, image_ms: float, images: int) -> Job:
    """A job of which the time, the static model's latency and the number of training images count."""
    options = SimpleNamespace(budget=0.5, work=TIMED if seconds else EFFORTS["quick"], running=None, batch=1)
    solver = SimpleNamespace(rough_seconds=lambda image_seconds: 1000 * image_seconds)
    dataset = SimpleNamespace(train=range(images))
    ready = SimpleNamespace(dataset=dataset, solver=solver, table=None)
    meter = SimpleNamespace(measure=lambda _models: SimpleNamespace(reference_ms=image_ms * torch.get_num_threads()))
    unused: Any = None
    return Job(options, ready, unused, unused, lambda *_: meter, Clock(seconds))  # type: ignore[arg-type]


def test_steps_are_timed_on_this_machine_for_whatever_device_the_plans_are(monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = SimpleNamespace(measure=lambda _models: SimpleNamespace(reference_ms=5000.0))
    monkeypatch.setattr(context, "interleave", lambda calls, _seconds: np.array([[calls[0]()]] * 9))
    monkeypatch.setattr(context, "timing_images", lambda _ready, batch: 0.003 * batch)
    options, unused = SimpleNamespace(running=None, batch=2), cast("Any", None)
    ready = replace(prepared(answered(10)), table=board)
    job = Job(cast("Any", options), ready, unused, unused, lambda *_: board)
    vars(job)["timed_static"] = SimpleNamespace(outputs=lambda seconds: seconds)
    assert job.image_seconds == pytest.approx(0.003)


def test_the_time_goes_where_it_helps() -> None:
    assert job_of(600, image_ms=1, images=2000).timetable is EVEN
    assert job_of(600, image_ms=1, images=50_000).timetable is MORE_TRAINING
    assert job_of(6000, image_ms=1, images=50_000).timetable is EVEN
    assert job_of(600, image_ms=10, images=50_000).timetable is EVEN, "the search needs its time"
    assert job_of(600, image_ms=100, images=50_000).timetable is NO_TRAINING
    assert job_of(None, image_ms=100, images=50_000).timetable is EVEN, "without a limit everything has its time"


def test_where_time_does_not_suffice_nothing_is_trained() -> None:
    short, long = (job_of(seconds, image_ms=100, images=700).work for seconds in (300, 9000))
    assert long is TIMED
    assert (short.trial_steps, short.finetune_epochs, short.finetune_min_steps) == (0, 0, 0)
    assert (short.evaluations, short.head_epochs) == (TIMED.evaluations, TIMED.head_epochs)


def test_the_parts_of_a_timetable_follow_each_other() -> None:
    for times in (EVEN, MORE_TRAINING, NO_TRAINING):
        parts = [times.heads, times.search, times.first_round, times.finals, times.training]
        assert parts == sorted(parts)
        assert 0 < parts[0] < parts[-1] < 1

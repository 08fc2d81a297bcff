"""Drift: counters against brute force, chances against scipy, and how often a monitor warns with and without a reason."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from s2d_runtime import Answer, Dispatcher, DispatcherError, Manifest, Monitor, Policy, histogram
from s2d_runtime.dispatcher import BINS, chance_of_counts, chance_of_more
from toy_exports import CASCADE, MIXED, PAIR, images_of, manifest_of, policy, stage_text, write_export

LEVELS = (0.05, 0.2, 0.45, 0.7, 0.95)
SHARES = np.array([0.02, 0.03, 0.05, 0.1, 0.2, 0.2, 0.4])  # of images over bins 13 to 19 of stage 1
FIRST = np.concatenate([np.zeros(13), SHARES])
SECOND = np.concatenate([np.zeros(10), np.full(10, 0.1)])


def calibrated(images: int, seed: int = 0) -> dict[str, Any]:
    """A policy whose threshold is 0.9 and whose histograms come from FIRST and SECOND."""
    rng = np.random.default_rng(seed)
    first = rng.multinomial(images, FIRST)
    gone = int(first[18:].sum())
    second = rng.multinomial(images - gone, SECOND)
    return policy(0.5, [0.9]) | {
        "confidence_histogram": [first.tolist(), second.tolist()],
        "exit_share": [gone / images, 1 - gone / images],
        "disagreement": 0.02,
    }


class StandIn:
    """A dispatcher that is never asked: `seen` goes straight to the monitor."""

    def __init__(self, images: int, seed: int) -> None:
        texts = [stage_text(k, toy) for k, toy in enumerate(PAIR, start=1)]
        self.manifest = Manifest.from_json(manifest_of(PAIR, texts, policies=[calibrated(images, seed)]))

    def monitor(self, **options: Any) -> Monitor:
        chosen = {"sample": 0.0, "window": 1000, "false_alarm": 0.01, "background": False} | options
        return Monitor(self, **chosen)  # type: ignore[arg-type]

    @property
    def policy(self) -> Policy:
        return self.manifest.policies[0]


def draw(rng: np.random.Generator, count: int, first: NDArray[Any], second: NDArray[Any]) -> list[NDArray[Any]]:
    """Confidences of `count` images of a given distribution over bins, for both stages."""
    one = ((rng.choice(BINS, count, p=first) + 0.5) / BINS).astype(np.float32)
    two = ((rng.choice(BINS, int((one < 0.9).sum()), p=second) + 0.5) / BINS).astype(np.float32)
    return [one, two]


def feed(monitor: Monitor, policy_: Policy, seen: list[NDArray[Any]]) -> None:
    """A call of `len(seen[0])` images, counted at once."""
    blank = np.zeros((len(seen[0]), 1), np.float32)
    monitor._take(policy_, blank, Answer(blank, np.ones(len(blank), np.int64), seen[0]), seen)
    monitor.report()


# --- chances --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(10, 300), min_size=2, max_size=20), st.integers(0, 2**20))
def test_the_chance_of_counts_is_that_of_a_contingency_table(wanted: list[int], seed: int) -> None:
    first = np.array(wanted)
    second = np.random.default_rng(seed).integers(10, 300, len(wanted))
    table = np.stack([first, second])
    if (scipy.stats.contingency.expected_freq(table) < 5).any():
        return
    reference = scipy.stats.chi2_contingency(table, correction=False).pvalue
    assert chance_of_counts(first, second) == pytest.approx(reference, rel=1e-6, abs=1e-300)


def test_bins_with_few_images_are_joined() -> None:
    first, second = np.array([1, 2, 2, 40, 0, 1]), np.array([0, 3, 2, 20, 0, 0])
    assert chance_of_counts(first, second) == 1.0  # one cell is left
    first, second = np.array([1, 9, 5, 40, 0, 1]), np.array([0, 13, 2, 20, 0, 0])
    cells = np.array([[1 + 9, 5 + 40 + 1], [13, 2 + 20]])
    assert chance_of_counts(first, second) == pytest.approx(
        scipy.stats.chi2_contingency(cells, correction=False).pvalue
    )
    assert chance_of_counts(first, np.zeros(6, np.int64)) == 1.0


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 400), st.integers(1, 400))
def test_the_chance_of_more_is_fishers(hits: int, drawn: int, before: int, drawn_before: int) -> None:
    hits, before = min(hits, drawn), min(before, drawn_before)
    table = [[hits, drawn - hits], [before, drawn_before - before]]
    reference = scipy.stats.fisher_exact(table, alternative="greater").pvalue
    assert chance_of_more(hits, drawn, before, drawn_before) == pytest.approx(reference, rel=1e-6, abs=1e-12)


# --- how often it warns ---------------------------------------------------------------------------------------------


def test_without_drift_it_warns_as_rarely_as_promised() -> None:
    runs, looks, false_alarm = 200, 12, 0.2
    warned = 0
    for seed in range(runs):
        stand_in = StandIn(800, seed)  # the calibration is a draw too
        monitor = stand_in.monitor(window=500, false_alarm=false_alarm)
        rng = np.random.default_rng(10_000 + seed)
        for _ in range(looks):
            feed(monitor, stand_in.policy, draw(rng, 500, FIRST, SECOND))
        warned += bool(monitor.report()[0].warnings)
    assert warned >= 1  # a test that never warns would pass the next line too
    assert scipy.stats.binom.sf(warned - 1, runs, false_alarm) > 1e-4


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (np.roll(FIRST, -2), SECOND, "share of images per exit"),
        (np.roll(FIRST, -1), SECOND, "confidence of stage 1"),
        (FIRST, np.roll(SECOND, -4), "confidence of stage 2"),
    ],
)
def test_drift_is_noticed_in_one_window(
    caplog: pytest.LogCaptureFixture, first: NDArray[Any], second: NDArray[Any], what: str
) -> None:
    stand_in = StandIn(1000, 1)
    monitor = stand_in.monitor()
    rng = np.random.default_rng(2)
    with caplog.at_level(logging.WARNING, "s2d_runtime"):
        feed(monitor, stand_in.policy, draw(rng, 1000, FIRST, SECOND))
        assert caplog.messages == []
        feed(monitor, stand_in.policy, draw(rng, 1000, first, second))
        warnings = monitor.report()[0].warnings
        assert any(what in text and "calibrate again" in text for text in warnings)
        assert tuple(caplog.messages) == warnings
        feed(monitor, stand_in.policy, draw(rng, 1000, first, second))
        assert len(caplog.messages) == len({text.partition(" (")[0] for text in caplog.messages})  # once each
        monitor.reset()
        assert monitor.report() == ()
        caplog.clear()
        feed(monitor, stand_in.policy, draw(rng, 1000, first, second))
        assert any(what in text for text in caplog.messages)


def test_a_manifest_that_knows_nothing_is_counted_and_not_compared(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR, policies=[policy(1.0, [0.5])])
    with Dispatcher(tmp_path) as run:
        monitor = run.monitor(window=1)
        run(images_of([[0.9, 0, 0, 0]] * 3))
        (report,) = monitor.report()
    assert (report.images, report.exit_share, report.warnings) == (3, (1.0, 0.0), ())


# --- counters -------------------------------------------------------------------------------------------------------


def test_the_counters_are_those_of_the_answers(tmp_path: Path) -> None:
    policies = [policy(0.5, [0.5, 0.5, 0.5]), policy(1.0, [0.2, 0.6, 0.9])]
    write_export(tmp_path, MIXED, policies=policies)
    rng = np.random.default_rng(0)
    with Dispatcher(tmp_path) as run:
        monitor = run.monitor(sample=0)
        calls = {0.5: [], 1.0: []}  # type: dict[float, list[tuple[NDArray[Any], Answer]]]
        for k in range(150):
            images = images_of(rng.choice(LEVELS, (int(rng.integers(0, 5)), 4)))
            budget = (0.5, 1.0)[k % 2]
            calls[budget].append((images, run(images) if budget == 0.5 else run(images, budget=1.0)))
            run(images, thresholds=[0.1] * 3)  # none of these is counted
            run(images, policy=run.policy)
            run(images, exits=False)
            run(images, timings=True)
        run.warm_up(3)
        reports = {report.budget: report for report in monitor.report()}
    for budget, made in calls.items():
        stages = np.concatenate([answer.stage for _, answer in made])
        sure = np.concatenate([images[:, 0] for images, _ in made])
        assert reports[budget].images == len(stages)
        assert reports[budget].exit_share == pytest.approx([(stages == k).mean() for k in range(1, 5)])
        assert reports[budget].confidence_histogram == tuple(
            tuple(histogram(sure[stages > k, k]).tolist()) for k in range(4)
        )


def test_eight_threads_lose_no_image(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR, policies=[policy(1.0, [0.5])])
    with Dispatcher(tmp_path) as run, ThreadPoolExecutor(8) as pool:
        monitor = run.monitor(sample=0.2)

        def work(seed: int) -> int:
            rng = np.random.default_rng(seed)
            rows = 0
            for _ in range(100):
                images = images_of(rng.choice(LEVELS, (int(rng.integers(1, 4)), 4)))
                run(images)
                rows += len(images)
            return rows

        total = sum(pool.map(work, range(8)))
        (report,) = monitor.report()
        assert sum(report.confidence_histogram[0]) == report.images == total
        assert sum(report.exit_share) == pytest.approx(1)


# --- audits ---------------------------------------------------------------------------------------------------------


def test_audited_images_are_run_to_the_end(tmp_path: Path) -> None:
    # Both stages answer 3 * payload + number: the same class, unless stage 1 answers the other way round.
    other = stage_text(1, CASCADE[0]).replace("output = Add(tripled, number)", "output = Neg(tripled)")
    write_export(tmp_path, CASCADE, policies=[policy(1.0, [0.5])], texts=[other, stage_text(2, CASCADE[1])])
    images = images_of([[0.9, 0, 0, 0], [0.1, 0, 0, 0], [0.8, 0, 0, 0], [0.7, 0, 0, 0]], seed=3)
    images[3, 1] = 0  # all classes equal: both stages say the first
    with Dispatcher(tmp_path) as run:
        monitor = run.monitor(sample=1, background=False)
        mine = images.copy()
        answer = run(mine)
        mine[:] = 0  # the caller's array is the caller's
        expected = answer.output.argmax(axis=1) != run(images, exits=False).output.argmax(axis=1)
        assert monitor.audit() == 4
        assert monitor.audit() == 0
        (report,) = monitor.report()
    assert (answer.stage == [1, 2, 1, 1]).all()
    assert expected.tolist() == [True, False, True, False]
    assert (report.audited, report.disagreement) == (4, expected.mean())


def test_disagreement_that_grows_is_noticed() -> None:
    stand_in = StandIn(1000, 1)
    monitor = stand_in.monitor()
    tally = monitor._tally(stand_in.policy)
    tally.audited, tally.parted = 200, 4  # 2 %, as at calibration
    feed(monitor, stand_in.policy, draw(np.random.default_rng(3), 1000, FIRST, SECOND))
    assert monitor.report()[0].warnings == ()
    tally.audited, tally.parted = 200, 30
    feed(monitor, stand_in.policy, draw(np.random.default_rng(4), 1000, FIRST, SECOND))
    (warning,) = monitor.report()[0].warnings
    assert "disagreement with the last stage (calibration / now: 2.0% / 15.0% of 200)" in warning


def test_images_are_drawn_at_the_asked_rate_each_by_itself() -> None:
    stand_in = StandIn(1000, 1)
    monitor = stand_in.monitor(sample=0.05)
    monitor._random = np.random.default_rng(7)  # a test that may fail by chance is no test
    monitor.reset()
    chosen: list[float] = []
    numbers = np.arange(20_000, dtype=np.float32)
    rng = np.random.default_rng(0)
    for part in np.split(numbers, np.sort(rng.choice(len(numbers), 3000, replace=False))):
        images = part[:, None]
        sure = np.full(len(part), 0.95, np.float32)
        monitor._take(stand_in.policy, images, Answer(images, np.ones(len(part), np.int64), sure), [sure])
        chosen += [float(image[0]) for _, _, image in monitor._waiting if image is not None]
        monitor._waiting.clear()
    assert len(set(chosen)) == len(chosen)
    assert scipy.stats.binomtest(len(chosen), len(numbers), 0.05).pvalue > 1e-4
    assert scipy.stats.kstest(chosen, "uniform", (0, len(numbers))).pvalue > 1e-4


def test_a_thread_beside_the_requests_audits(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR, policies=[policy(1.0, [0.5])])
    with Dispatcher(tmp_path) as run:
        monitor = run.monitor(sample=1)
        for _ in range(5):
            run(images_of([[0.9, 0, 0, 0]]))
            for thread in [t for t in threading.enumerate() if t.name == "s2d-audit"]:
                thread.join()
        (report,) = monitor.report()
    assert (report.audited, report.disagreement) == (5, 0.0)


def test_where_no_thread_can_be_started_the_call_is_answered_and_a_later_one_audits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    write_export(tmp_path, PAIR, policies=[policy(1.0, [0.5])])
    with Dispatcher(tmp_path) as run:
        monitor = run.monitor(sample=1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert run(images_of([[0.9, 0, 0, 0]])).stage.tolist() == [1]
        run(images_of([[0.9, 0, 0, 0]]))
        for thread in [t for t in threading.enumerate() if t.name == "s2d-audit"]:
            thread.join()
        (report,) = monitor.report()
    assert report.audited == 2


def test_closing_ends_the_monitor(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR, policies=[policy(1.0, [0.5])])
    run = Dispatcher(tmp_path)
    monitor = run.monitor(sample=1, background=False)
    run(images_of([[0.9, 0, 0, 0]]))
    run.close()
    with pytest.raises(DispatcherError, match="closed"):
        monitor.audit()
    assert monitor.report()[0].images == 1


@pytest.mark.parametrize(
    ("options", "place"),
    [({"sample": 1.5}, "sample"), ({"sample": -1}, "sample"), ({"window": 0}, "window"), ({"false_alarm": 2}, "false_alarm")],
)  # fmt: skip
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], place: str) -> None:
    write_export(tmp_path, PAIR)
    with Dispatcher(tmp_path) as run, pytest.raises(DispatcherError, match=f"{place}: got"):
        run.monitor(**options)

"""The dispatcher against a row-by-row reference, in any batch, and everything that a call may be asked for."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2d_runtime import Answer, Dispatcher, DispatcherError, dispatcher, histogram, leaves
from toy_exports import (
    CASCADE,
    MIXED,
    PAIR,
    SINGLE,
    Floats,
    Toy,
    answer_of_row,
    images_of,
    policy,
    stage_text,
    write_export,
)

NAN, INF = math.nan, math.inf
# Confidences and thresholds from one small set, so that they are often equal.
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
CONFIDENCES = st.sampled_from((*LEVELS, NAN, 1.0000001, 0.1))
THRESHOLDS = st.sampled_from((*LEVELS, 0.1, -1.0, 1.01, 1e300, INF, -INF))


@st.composite
def toys_strategy(draw: st.DrawFn) -> tuple[Toy, ...]:
    """1 to 4 stages in any number of chains, with any links that go forward."""
    toys: list[Toy] = []
    open_links: list[str] = []
    chain = 0
    for number in range(1, draw(st.integers(1, 4)) + 1):
        if chain == 0 or draw(st.booleans()):
            chain, open_links = chain + 1, []
        links_in = tuple(draw(st.lists(st.sampled_from(open_links), unique=True))) if open_links else ()
        image = not links_in or draw(st.booleans())
        links_out = tuple(f"link{number}{letter}" for letter in "ab"[: draw(st.integers(0, 2))])
        toys.append(Toy(chain, image, links_in, links_out))
        open_links += links_out
    return tuple(toys)


@st.composite
def call_strategy(draw: st.DrawFn) -> tuple[tuple[Toy, ...], Floats, tuple[float, ...]]:
    """Stages, images of any batch size, and thresholds."""
    toys = draw(toys_strategy())
    rows = draw(st.lists(st.tuples(*[CONFIDENCES] * 4), max_size=7))
    thresholds = draw(st.tuples(*[THRESHOLDS] * (len(toys) - 1)))
    return toys, images_of(rows, seed=len(rows)), thresholds


def export_to(folder: Path, toys: Sequence[Toy], **policies: Any) -> Dispatcher:
    write_export(folder, toys, **policies)
    return Dispatcher(folder)


def assert_same(answer: Answer, toys: Sequence[Toy], images: Floats, thresholds: Sequence[float] | None) -> None:
    """The answer is, row by row and to the last bit, that of the reference."""
    assert [str(a.dtype) for a in (answer.output, answer.stage, answer.confidence)] == ["float32", "int64", "float32"]
    assert answer.output.shape == (len(images), 4)
    assert answer.stage.shape == answer.confidence.shape == (len(images),)
    for row, image in enumerate(images):
        output, stage, confidence = answer_of_row(toys, image, thresholds)
        assert answer.stage[row] == stage
        np.testing.assert_array_equal(answer.output[row], output)
        np.testing.assert_array_equal(answer.confidence[row], np.float32(confidence))


# --- laws -----------------------------------------------------------------------------------------------------------


@given(call_strategy())
def test_every_row_is_answered_as_if_it_were_alone(call: tuple[tuple[Toy, ...], Floats, tuple[float, ...]]) -> None:
    toys, images, thresholds = call
    before = images.copy()
    with tempfile.TemporaryDirectory() as folder, export_to(Path(folder), toys) as run:
        assert_same(run(images, thresholds=thresholds), toys, images, thresholds)
        assert_same(run(images, exits=False), toys, images, None)
        for row in range(len(images)):
            one = images[row : row + 1]
            assert_same(run(one, thresholds=thresholds), toys, one, thresholds)
    np.testing.assert_array_equal(images, before)  # and the caller's images stay as they were


@given(call_strategy(), st.randoms(use_true_random=False))
def test_the_order_of_answers_is_the_order_of_images(
    call: tuple[tuple[Toy, ...], Floats, tuple[float, ...]], random: Any
) -> None:
    toys, images, thresholds = call
    order = random.sample(range(len(images)), len(images))
    with tempfile.TemporaryDirectory() as folder, export_to(Path(folder), toys) as run:
        straight, shuffled = run(images, thresholds=thresholds), run(images[order], thresholds=thresholds)
    for name in ("output", "stage", "confidence"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(straight, name)[order])


@given(st.lists(CONFIDENCES, max_size=9), st.integers(1, 4), st.integers(0, 8))
def test_cutting_a_batch_changes_nothing(sure: list[float], size: int, seed: int) -> None:
    images = images_of([[c, 1 - c, 0, 0] for c in sure], seed=seed)
    with tempfile.TemporaryDirectory() as folder, export_to(Path(folder), PAIR) as run:
        whole = run(images, thresholds=[0.5])
        parts = [run(images[i : i + size], thresholds=[0.5]) for i in range(0, len(images), size)]
    for name in ("output", "stage", "confidence"):
        pieces = [getattr(whole, name)[:0], *(getattr(part, name) for part in parts)]
        np.testing.assert_array_equal(np.concatenate(pieces), getattr(whole, name))


# --- the exit rule, laid out by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "threshold", "expected"),
    [
        (0.7, 0.7, True),
        (0.6999, 0.7, False),
        (0.0, 0.0, True),
        (1.0, 1.0, True),
        (1.0, 1.01, False),
        (1.0, INF, False),
        (NAN, 0.0, False),
        (NAN, -INF, False),
        (0.0, -1.0, True),
    ],
)
def test_the_exit_rule(confidence: float, threshold: float, expected: bool) -> None:
    (found,) = leaves(np.array([confidence], dtype=np.float32), np.float32(threshold))
    assert found == expected


def test_confidence_and_threshold_meet_in_float32(tmp_path: Path) -> None:
    # 0.7 in float64 is above 0.7 in float32; the row leaves all the same.
    with export_to(tmp_path, PAIR) as run:
        assert run(images_of([[0.7, 0, 0, 0]]), thresholds=[0.7]).stage.tolist() == [1]


def test_rows_leave_where_the_picture_says(tmp_path: Path) -> None:
    sure = [
        [0.9, 0.0, 0.0, 0.2],
        [0.1, 0.9, 0.0, 0.2],
        [0.1, 0.1, 0.9, 0.2],
        [0.1, 0.1, 0.1, 0.2],
        [NAN, NAN, NAN, NAN],
    ]
    images = images_of(sure)
    with export_to(tmp_path, MIXED) as run:
        answer = run(images, thresholds=[0.5, 0.5, 0.5])
        assert answer.stage.tolist() == [1, 2, 3, 4, 4]
        np.testing.assert_array_equal(answer.confidence, np.array([0.9, 0.9, 0.9, 0.2, NAN], np.float32))
        payload = images[:, 1]
        np.testing.assert_array_equal(answer.output[0], 3 * payload[0] + 1)
        np.testing.assert_array_equal(answer.output[1], 3 * payload[1] + 2)
        np.testing.assert_array_equal(answer.output[2], 3 * (3 * payload[2] + 2) + 3)  # reads c
        np.testing.assert_array_equal(answer.output[3], 3 * (payload[3] + 3 * payload[3] + 2) + 4)  # reads image and b


@given(st.lists(CONFIDENCES, max_size=9))
def test_a_histogram_counts_as_the_page_says(sure: list[float]) -> None:
    bins = [0 if math.isnan(c) else min(19, int(np.float32(c) * 20)) for c in sure]
    assert histogram(np.array(sure, np.float32)).tolist() == [bins.count(k) for k in range(20)]


# --- batches and images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toys", [SINGLE, PAIR, CASCADE, MIXED])
@pytest.mark.parametrize("exits", [True, False])
def test_no_image_gets_no_answer(tmp_path: Path, toys: Sequence[Toy], exits: bool) -> None:
    with export_to(tmp_path, toys) as run:
        assert_same(run(images_of([]), exits=exits), toys, images_of([]), None)


def test_images_need_not_lie_contiguously(tmp_path: Path) -> None:
    images = images_of([[c, 0, 0, 0] for c in (0.1, 0.9, 0.4, 0.8, 0.2)])
    with export_to(tmp_path, PAIR) as run:
        assert_same(run(images[::2], thresholds=[0.3]), PAIR, images[::2], [0.3])
        assert_same(run(np.asfortranarray(images), thresholds=[0.5]), PAIR, images, [0.5])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((2, 2, 4)), "got float64 [2, 2, 4]; expected a numpy array, float32 [B, 2, 4]"),
        (np.zeros((2, 2, 4), ">f4"), "got >f4 [2, 2, 4]"),
        (np.zeros((2, 4), np.float32), "the batch axis first, as images[None] adds it"),
        (np.zeros((1, 4, 2), np.float32), "got float32 [1, 4, 2]"),
        (np.zeros((1, 1, 2, 4), np.float32), "got float32 [1, 1, 2, 4]"),
        (np.float32(1), "got float32"),
        (np.zeros((), np.float32), "got float32 []"),
        ([[[0.0] * 4] * 2], "got list"),
        (None, "got NoneType"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(tmp_path: Path, images: Any, expected: str) -> None:
    with export_to(tmp_path, PAIR) as run, pytest.raises(DispatcherError) as caught:
        run(images)
    assert str(caught.value).startswith("images: ")
    assert expected in str(caught.value)


def test_what_calls_share_cannot_be_written(tmp_path: Path) -> None:
    with export_to(tmp_path, PAIR) as run:
        answer = run(images_of([[0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="read-only"):
        answer.stage[0] = 7


def test_answers_stay_when_the_dispatcher_goes_on(tmp_path: Path) -> None:
    images = images_of([[0.1, 0, 0, 0], [0.9, 0, 0, 0]])
    with export_to(tmp_path, PAIR) as run:
        answers = [run(images[:1]), run(images, thresholds=[0.5]), run(images, exits=False)]
        copies = [(a.output.copy(), a.stage.copy(), a.confidence.copy()) for a in answers]
        for seed in range(20):
            run(images_of([[0.5, 0, 0, 0]] * 2, seed=seed))
    for answer, (output, stage, confidence) in zip(answers, copies, strict=True):
        np.testing.assert_array_equal(answer.output, output)
        np.testing.assert_array_equal(answer.stage, stage)
        np.testing.assert_array_equal(answer.confidence, confidence)


# --- budgets --------------------------------------------------------------------------------------------------------

# Budget -> threshold; confidence 0.35 leaves at stage 1 for the two smaller budgets only.
BUDGETS = {0.6: 0.5, 0.3: 0.1, 0.45: 0.3, 1.0: 0.9}
POLICIES = tuple(policy(budget, [threshold]) for budget, threshold in BUDGETS.items())


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (0.3, 0.3),
        (0.45, 0.45),
        (0.6, 0.6),
        (1.0, 1.0),
        (1, 1.0),
        (np.float32(0.5), 0.45),
        (0.59, 0.45),  # between two: keeps the promise
        (0.7 - 0.1, 0.6),  # 0.6 but for the last bit
        (0.99, 0.6),
        (0.01, 0.3),  # out of reach: the smallest
    ],
)
def test_a_budget_is_served_by_the_largest_calibrated_one_that_keeps_it(
    tmp_path: Path, asked: float, served: float
) -> None:
    image = images_of([[0.35, 0, 0, 0]])
    with export_to(tmp_path, PAIR, policies=POLICIES) as run:
        expected = 1 if BUDGETS[served] <= 0.35 else 2
        assert run.policy.budget == 0.6  # the default
        assert run(image, budget=asked).stage.tolist() == [expected]
        assert run.policy.budget == 0.6  # a call's own budget is forgotten
        assert run.set_budget(asked).budget == served
        assert run.policy.budget == served
        assert run(image).stage.tolist() == [expected]
        assert run.set_budget(None).budget == 0.6
    with Dispatcher(tmp_path, budget=asked) as run:
        assert run.policy.budget == served


@pytest.mark.parametrize("budget", [0, 0.0, -0.5, 1.01, NAN, INF, "0.5", [0.5]])
def test_a_budget_out_of_range_is_refused_and_changes_nothing(tmp_path: Path, budget: Any) -> None:
    image = images_of([[0.35, 0, 0, 0]])
    with export_to(tmp_path, PAIR, policies=POLICIES) as run:
        for ask in (lambda: run(image, budget=budget), lambda: run.set_budget(budget)):
            with pytest.raises(DispatcherError, match=r"budget: got .* above 0 and at most 1"):
                ask()
        assert run.policy.budget == 0.6
    with pytest.raises(DispatcherError, match="budget: got"):
        Dispatcher(tmp_path, budget=budget)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], 0.5, [NAN], ["0.5"], [None], "0"])
def test_thresholds_that_do_not_fit_are_refused(tmp_path: Path, thresholds: Any) -> None:
    with (
        export_to(tmp_path, PAIR) as run,
        pytest.raises(DispatcherError, match=r"thresholds: got .* a list of 1 numbers"),
    ):
        run(images_of([[0, 0, 0, 0]]), thresholds=thresholds)


def test_thresholds_are_rounded_once_so_that_measuring_with_them_costs_nothing(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    before = dispatcher._limits.cache_info().misses
    with Dispatcher(tmp_path) as run:
        for _ in range(3):
            run(images_of([[0.6, 0, 0, 0]]), thresholds=[0.123456789])
    assert dispatcher._limits.cache_info().misses == before + 1


@pytest.mark.parametrize("thresholds", [(0.5,), [0.5], np.array([0.5]), np.array([0.5], np.float32)])
def test_thresholds_may_be_any_list_of_numbers(tmp_path: Path, thresholds: Any) -> None:
    with export_to(tmp_path, PAIR) as run:
        assert run(images_of([[0.6, 0, 0, 0], [0.4, 0, 0, 0]]), thresholds=thresholds).stage.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"budget": 0.5, "thresholds": [0.5]}, "exclude each other"),
        ({"exits": False, "budget": 0.5}, "exits=False"),
        ({"exits": False, "thresholds": [0.5]}, "exits=False"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with export_to(tmp_path, PAIR) as run, pytest.raises(DispatcherError, match=expected):
        run(images_of([[0, 0, 0, 0]]), **options)


# --- what runs ------------------------------------------------------------------------------------------------------


def broken_when_run(number: int, toy: Toy) -> str:
    """A toy stage that loads, and fails when it runs: it gathers a line that is not there."""
    return (
        stage_text(number, toy)
        .replace(
            "output = Add(tripled, number)",
            "index = Cast<to = 7>(number)\nfar = Mul(index, index)\n"
            "beyond = Mul(far, thousand)\nline = Gather<axis = 1>(tripled, beyond)\n"
            "up = Unsqueeze(line, last)\nwrong = Add(tripled, up)\noutput = Add(wrong, number)",
        )
        .replace("int64 zero", "int64 thousand = {1000}, int64[1] last = {1}, int64 zero")
    )


def test_without_exits_an_earlier_chain_does_not_run(tmp_path: Path) -> None:
    texts = [broken_when_run(1, MIXED[0]), *(stage_text(k, toy) for k, toy in enumerate(MIXED[1:], start=2))]
    images = images_of([[0.5] * 4] * 3)
    with export_to(tmp_path, MIXED, texts=texts) as run:
        assert_same(run(images, exits=False), MIXED, images, None)
        with pytest.raises(DispatcherError, match=r"^stage 1: .*Gather"):
            run(images)


def test_without_exits_a_stage_that_the_last_one_does_not_need_does_not_run(tmp_path: Path) -> None:
    # Stage 3 of MIXED reads c, but the last stage reads only b and the image.
    texts = [stage_text(k, toy) for k, toy in enumerate(MIXED, start=1)]
    texts[2] = broken_when_run(3, MIXED[2])
    images = images_of([[0.5] * 4] * 3)
    with export_to(tmp_path, MIXED, texts=texts) as run:
        assert_same(run(images, exits=False), MIXED, images, None)
        with pytest.raises(DispatcherError, match=r"^stage 3: "):
            run(images)


def test_with_exits_a_stage_whose_threshold_never_fires_still_runs(tmp_path: Path) -> None:
    # Who measures the way through all stages relies on it.
    texts = [broken_when_run(1, CASCADE[0]), stage_text(2, CASCADE[1])]
    with (
        export_to(tmp_path, CASCADE, texts=texts) as run,
        pytest.raises(DispatcherError, match=r"^stage 1: "),
    ):
        run(images_of([[0.5] * 4]), thresholds=[1.01])


def test_a_stage_with_too_many_rows_is_noticed(tmp_path: Path) -> None:
    twice = "once = Add(tripled, number)\noutput = Concat<axis = 0>(once, once)"
    text = stage_text(1, SINGLE[0]).replace("output = Add(tripled, number)", twice)
    with (
        export_to(tmp_path, SINGLE, texts=[text]) as run,
        pytest.raises(DispatcherError, match=r"stage 1: 'output': got \[4, 4\]; expected \[2, 4\]"),
    ):
        run(images_of([[0.5] * 4] * 2))


# --- life and threads -----------------------------------------------------------------------------------------------


def test_closed_is_closed(tmp_path: Path) -> None:
    run = export_to(tmp_path, PAIR)
    assert [type(session) for session in run.sessions] == [ort.InferenceSession] * 2
    with run as same:
        assert same is run
    run.close()
    assert run.sessions == ()
    assert run.manifest.default_budget == 1.0
    with pytest.raises(DispatcherError, match="closed"):
        run(images_of([[0, 0, 0, 0]]))


def test_threads_reach_onnxruntime(tmp_path: Path) -> None:
    images = images_of([[0.1, 0, 0, 0], [0.9, 0, 0, 0]])
    write_export(tmp_path, PAIR)
    with Dispatcher(tmp_path) as run:
        options = run.sessions[0].get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
        assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    with Dispatcher(tmp_path, threads=2) as run:
        options = run.sessions[0].get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert_same(run(images, thresholds=[0.5]), PAIR, images, [0.5])


def test_own_session_options_are_used_as_they_are(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    with Dispatcher(tmp_path, session_options=options) as run:
        found = run.sessions[1].get_session_options()
        assert found.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        assert found.intra_op_num_threads == 2
    for more in ({"threads": 2}, {"shared": True}):
        with pytest.raises(DispatcherError, match="threads, shared: session_options says both"):
            Dispatcher(tmp_path, session_options=options, **more)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None])
def test_a_number_of_threads_that_makes_no_sense_is_refused(tmp_path: Path, threads: Any) -> None:
    write_export(tmp_path, PAIR)
    with pytest.raises(DispatcherError, match="threads: got"):
        Dispatcher(tmp_path, threads=threads)


def test_providers_reach_onnxruntime(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    wanted: list[Any]
    for wanted in (["CPUExecutionProvider"], [("CPUExecutionProvider", {"use_arena": "0"})]):
        with Dispatcher(tmp_path, providers=wanted) as run:
            assert run.sessions[0].get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("providers", [["GPU"], [], ["CPUExecutionProvider", "GPU"], [("GPU", {})]])
def test_a_provider_that_is_not_here_is_an_error_and_no_warning(tmp_path: Path, providers: Any) -> None:
    write_export(tmp_path, PAIR)
    with pytest.raises(DispatcherError, match=r"providers: got .*CPUExecutionProvider"):
        Dispatcher(tmp_path, providers=providers)


def test_eight_threads_share_a_dispatcher(tmp_path: Path) -> None:
    # While one thread keeps changing the budget, every answer is whole: all of one policy or all of another.
    policies = [policy(0.5, [0.2, 0.2, 0.2]), policy(1.0, [0.8, 0.8, 0.8])]
    ready, stop = threading.Barrier(9), threading.Event()
    with export_to(tmp_path, MIXED, policies=policies) as run:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            ready.wait()
            for _ in range(60):
                images = images_of(rng.choice(LEVELS, (int(rng.integers(0, 5)), 4)), seed=int(rng.integers(1000)))
                own = rng.choice(LEVELS, 3).tolist()
                assert_same(run(images, thresholds=own), MIXED, images, own)
                answer = run(images)
                stages = [[answer_of_row(MIXED, i, [t] * 3)[1] for i in images] for t in (0.2, 0.8)]
                assert answer.stage.tolist() in stages

        def flip() -> None:
            ready.wait()
            while not stop.is_set():
                run.set_budget(0.5)
                run.set_budget(1.0)

        with ThreadPoolExecutor(9) as pool:
            flipping = pool.submit(flip)
            working = [pool.submit(work, seed) for seed in range(8)]
            try:
                for job in working:
                    job.result()
            finally:
                stop.set()
            flipping.result()

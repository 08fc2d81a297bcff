"""How a dispatcher runs: stages opened late, shared machines, a call's own policy, timings, warm-up."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s2d_runtime import Dispatcher, DispatcherError, dispatcher
from toy_exports import CASCADE, MIXED, PAIR, images_of, policy, write_export, write_manifest

SURE, UNSURE = [[0.9, 0, 0, 0]], [[0.1, 0, 0, 0]]


# --- lazy stages ----------------------------------------------------------------------------------------------------


def test_a_lazy_stage_is_opened_when_an_image_needs_it(tmp_path: Path) -> None:
    write_export(tmp_path, MIXED)
    images = images_of([[0.9, 0, 0, 0], [0.1, 0.9, 0, 0], [0.1, 0.1, 0.1, 0]])
    with Dispatcher(tmp_path) as eager, Dispatcher(tmp_path, lazy=True) as run:
        for opened, rows in enumerate((images[:1], images[:2], images), start=1):
            found, wanted = (model(rows, thresholds=[0.5] * 3) for model in (run, eager))
            for name in ("output", "stage", "confidence"):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
            opened = {1: 1, 2: 2, 3: 4}[opened]
            assert [session is not None for session in run.sessions] == [k < opened for k in range(4)]


def test_what_is_wrong_with_a_lazy_stage_is_told_when_it_is_needed(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    file = tmp_path / "stage2.onnx"
    whole = file.read_bytes()
    file.write_bytes(b"changed")
    with Dispatcher(tmp_path, lazy=True) as run:
        assert run(images_of(SURE), thresholds=[0.5]).stage.tolist() == [1]
        for _ in range(2):
            with pytest.raises(DispatcherError, match=r"stage 2: .*stage2\.onnx: its sha256 is not the one"):
                run(images_of(UNSURE), thresholds=[0.5])
        file.write_bytes(whole)
        assert run(images_of(UNSURE), thresholds=[0.5]).stage.tolist() == [2]
    write_manifest(tmp_path, {})
    with pytest.raises(DispatcherError, match=r"manifest\.json"):
        Dispatcher(tmp_path, lazy=True)


def test_a_lazy_stage_is_found_after_the_process_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "OUT").mkdir()
    write_export(tmp_path / "OUT", PAIR)
    monkeypatch.chdir(tmp_path)
    with Dispatcher("OUT", lazy=True) as run:
        monkeypatch.chdir("/")
        assert run(images_of(UNSURE), thresholds=[0.5]).stage.tolist() == [2]


def test_threads_that_need_a_lazy_stage_at_once_open_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(tmp_path, PAIR)
    opened: list[str] = []
    true_open = dispatcher._open

    def counting(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path.name)
        return true_open(path, *args, **options)

    monkeypatch.setattr(dispatcher, "_open", counting)
    ready = threading.Barrier(8)
    with Dispatcher(tmp_path, lazy=True) as run, ThreadPoolExecutor(8) as pool:

        def work(_: int) -> list[int]:
            ready.wait()
            found: list[int] = run(images_of(UNSURE), thresholds=[0.5]).stage.tolist()
            return found

        assert list(pool.map(work, range(8))) == [[2]] * 8
    assert opened == ["stage1.onnx", "stage2.onnx"]


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "shared", "entries"),
    [
        (1, False, {}),
        (1, True, {}),
        (2, False, {"session.force_spinning_stop": "1"}),
        (2, True, {"session.intra_op.allow_spinning": "0"}),
    ],
)
def test_pools_do_not_spin_where_they_would_disturb(
    tmp_path: Path, threads: int, shared: bool, entries: dict[str, str]
) -> None:
    write_export(tmp_path, PAIR)
    with Dispatcher(tmp_path, threads=threads, shared=shared) as run:
        for session in run.sessions:
            options = session.get_session_options()
            assert options.intra_op_num_threads == threads
            for name in ("session.force_spinning_stop", "session.intra_op.allow_spinning"):
                if name in entries:
                    assert options.get_session_config_entry(name) == entries[name]
                else:
                    with pytest.raises(RuntimeError, match="does not have configuration"):
                        options.get_session_config_entry(name)
        assert run(images_of(UNSURE), thresholds=[0.5]).stage.tolist() == [2]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_warm_up_runs_every_stage(tmp_path: Path, batch: int) -> None:
    write_export(tmp_path, CASCADE, policies=[policy(1.0, [0.0])])  # every image would leave at stage 1
    with Dispatcher(tmp_path, lazy=True) as run:
        run.warm_up(batch)
        assert None not in run.sessions
        assert run(images_of(UNSURE)).stage.tolist() == [1]


@pytest.mark.parametrize("batch", [0, -1, 1.0, None])
def test_a_warm_up_needs_a_batch(tmp_path: Path, batch: Any) -> None:
    write_export(tmp_path, PAIR)
    with Dispatcher(tmp_path) as run, pytest.raises(DispatcherError, match="batch: got"):
        run.warm_up(batch)


# --- a call's own -----------------------------------------------------------------------------------------------------


def test_a_call_may_bring_its_policy(tmp_path: Path) -> None:
    image = images_of([[0.35, 0, 0, 0]])
    write_export(tmp_path, PAIR, policies=[policy(0.3, [0.1]), policy(1.0, [0.9])])
    with Dispatcher(tmp_path) as run:
        low, high = run.manifest.policies
        assert run.policy == low
        assert [run(image, policy=p).stage.tolist() for p in (low, high)] == [[1], [2]]
        own = dataclasses.replace(high, thresholds=(0.35,))
        assert run(image, policy=own).stage.tolist() == [1]
        assert run.policy == low
        with pytest.raises(DispatcherError, match="a list of 1 numbers"):
            run(image, policy=dataclasses.replace(high, thresholds=()))
        with pytest.raises(DispatcherError, match=r"policy: got 0\.3; expected a Policy"):
            run(image, policy=0.3)  # type: ignore[arg-type]
        for more in ({"budget": 0.3}, {"thresholds": [0.5]}, {"exits": False}):
            with pytest.raises(DispatcherError, match=r"exclude each other|exits=False"):
                run(image, policy=low, **more)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_timings_tell_which_stages_ran(tmp_path: Path, rows: int) -> None:
    write_export(tmp_path, MIXED)
    images = images_of([[0.1, 0.9, 0, 0]] * rows)
    with Dispatcher(tmp_path) as run:
        plain, timed = run(images, thresholds=[0.5] * 3), run(images, thresholds=[0.5] * 3, timings=True)
        straight = run(images, exits=False, timings=True)
    assert plain.stage_ms is None
    for name in ("output", "stage", "confidence"):
        np.testing.assert_array_equal(getattr(timed, name), getattr(plain, name))
    assert [ms > 0 for ms in timed.stage_ms or ()] == [rows > 0, rows > 0, False, False]
    assert [ms > 0 for ms in straight.stage_ms or ()] == [False, rows > 0, False, rows > 0]

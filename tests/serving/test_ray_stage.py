"""Stage by stage as Ray Serve does it, without Ray: every row gets the dispatcher's answer, and only rows that stay go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s2d_runtime import Answer, Dispatcher
from s2d_runtime.serving.options import OptionError, RayOptions
from s2d_runtime.serving.ray_stage import Limits, Rows, StageWorker, deployment_options, limits_for, serve_config
from toy_exports import CASCADE, MIXED, PAIR, SINGLE, Toy, images_of, policy, write_export


class Chain:
    """The workers of an export; every stage is asked for two requests at once. `rows` are those that each stage got."""

    def __init__(self, folder: Path, stages: int) -> None:
        self.workers = [StageWorker(folder, number) for number in range(1, stages + 1)]
        self.rows = [0] * stages

    async def ask(self, number: int, values: Rows, limits: Limits) -> Answer:
        """The answer for one request that came as far as stage `number`."""
        worker = self.workers[number - 1]

        async def run(rows: Rows) -> Rows:
            self.rows[number - 1] += len(next(iter(rows.values())))
            other, found = worker.run([{name: array[:1] for name, array in rows.items()}, rows])
            assert len(other["output"]) == 1
            for array in found.values():
                array.flags.writeable = False  # parts of what others read
            return found

        return await worker.answer(values, limits, run=run, go_on=lambda v, li: self.ask(number + 1, v, li))


@pytest.mark.parametrize("toys", [PAIR, CASCADE, SINGLE, MIXED], ids=["pair", "cascade", "single", "mixed"])
@pytest.mark.parametrize("budget", [None, 1.0])
def test_the_stages_together_answer_like_the_dispatcher(
    toys: Sequence[Toy], budget: float | None, tmp_path: Path
) -> None:
    thresholds = [0.3, 0.5, 0.7][: len(toys) - 1]
    write_export(tmp_path, toys, policies=[policy(0.5, thresholds), policy(1.0, [1.01] * len(thresholds))])
    chain = Chain(tmp_path, len(toys))
    images = images_of(np.random.default_rng(1).choice([0.2, 0.4, 0.6, 0.9, np.nan], (40, 4)))
    images.flags.writeable = False  # as Ray hands arrays over
    runner = Dispatcher(tmp_path)
    expected = runner(images, budget=budget)
    found = asyncio.run(chain.ask(1, {"image": images}, limits_for(runner.manifest, budget)))
    for name in ("output", "stage", "confidence"):
        wanted: Any = getattr(expected, name)
        assert getattr(found, name).dtype == wanted.dtype
        np.testing.assert_array_equal(getattr(found, name), wanted)
    assert chain.rows == [int((expected.stage >= number).sum()) for number in range(1, len(toys) + 1)]


def test_only_what_is_read_later_goes_on(tmp_path: Path) -> None:
    write_export(tmp_path, MIXED, policies=[policy(0.5, [0.5] * 3)])
    seen: list[set[str]] = []

    async def go_on(values: Rows, limits: Limits) -> Answer:
        seen.append(set(values))
        raise LookupError

    for number, values in ((1, {"image"}), (2, {"image"}), (3, {"b", "c", "image"})):
        worker = StageWorker(tmp_path, number)
        rows = {name: images_of([[0.1] * 4]) for name in values}

        async def run(wanted: Rows, worker: StageWorker = worker) -> Rows:
            return worker.run([wanted])[0]

        with pytest.raises(LookupError):
            asyncio.run(worker.answer(rows, limits_for(worker.manifest, None), run=run, go_on=go_on))
    assert seen == [{"image"}, {"image", "b", "c"}, {"image", "b"}]  # the dead link `a` goes nowhere


def test_every_stage_takes_two_batches_and_only_the_first_has_a_door() -> None:
    options = RayOptions(budget=0.4, max_batch=8, replicas=3, queue=9, timeout_s=2)
    config = serve_config(Path("net.s2d"), options, stages=2)
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 2}
    (application,) = config["applications"]
    assert application["import_path"] == "s2d_runtime.serving.ray:build"
    assert application["args"].pop("folder") == str(Path("net.s2d").resolve())
    assert application["name"] == application["args"]["name"] == "net"
    assert RayOptions(**{**application["args"], "name": None}) == options
    first, second = application["deployments"]
    assert first["max_queued_requests"] == 9
    assert "max_queued_requests" not in second
    assert first["user_config"] == {"max_batch": 8, "wait_ms": 2.0, "budget": 0.4}
    assert second["user_config"] == {"max_batch": 8, "wait_ms": 2.0}
    for number, stage in ((1, first), (2, second)):
        assert stage == deployment_options(options, number)
        assert stage["name"] == f"stage{number}"
        assert stage["max_ongoing_requests"] >= stage["user_config"]["max_batch"]
        assert stage["autoscaling_config"]["max_replicas"] == 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"port": 70000}, "--port 70000"),
        ({"max_batch": 0}, "--max-batch 0"),
        ({"replicas": 0}, "--replicas 0"),
        ({"timeout_s": float("nan")}, "--timeout-s nan"),
    ],
)
def test_options_out_of_range(changed: dict[str, Any], words: str) -> None:
    RayOptions().check()
    with pytest.raises(OptionError, match=words):
        RayOptions(**changed).check()

"""The search on a cluster: what is sent and returned, and that the searches find the same. A stand-in plays Ray."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import Listener, ask, make_folder, use_tiny_effort

from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import UsageError
from s2d_convert.search import ray as spread
from s2d_convert.search.base import Evaluation, SearchResult, evaluate_all, random_search
from s2d_convert.search.ray import ClusterLogits, on_cluster
from s2d_convert.search.reinforce import Settings, reinforce


class RayError(Exception):
    """Stands for Ray's."""


class Handle:
    """An actor: its methods have `remote`, and run at once; a future is a function."""

    def __init__(self, ray: FakeRay, actor: Any) -> None:
        self.ray, self.actor, self.calls = ray, actor, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)

        def remote(*args: Any) -> Callable[[], Any]:
            self.calls += 1
            broken = self.ray.broken
            result = None if broken else method(*args)

            def get() -> Any:
                if broken:
                    raise RayError
                return result

            return get

        return SimpleNamespace(remote=remote)


class FakeRay(ModuleType):
    """As much of Ray as the search uses; `nodes_` are cores by machine, and this is `here`."""

    def __init__(self, **nodes: int) -> None:
        super().__init__("ray")
        self.cores, self.broken = nodes, False
        self.handles: list[tuple[dict[str, Any], Handle]] = []
        self.waited = self.killed = 0
        self.log: list[str] = []
        self.exceptions = SimpleNamespace(RayError=RayError)

    def init(self, *, address: str, **_: Any) -> None:
        if address != "auto":
            raise ConnectionError(f"nothing\nat {address}")
        self.log.append("init")

    def shutdown(self) -> None:
        self.log.append("shutdown")

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"NodeID": name, "Alive": True, "Resources": {"CPU": float(n)}} for name, n in self.cores.items()]
        return [*alive, {"NodeID": "dead", "Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def hire(*args: Any, kind: type) -> Handle:
            self.handles.append((options, Handle(self, kind(*args))))
            return self.handles[-1][1]

        return lambda kind: SimpleNamespace(remote=lambda *args: hire(*args, kind=kind))

    def put(self, value: Any) -> Any:
        return value

    def get(self, future: Callable[[], Any]) -> Any:
        return future()

    def wait(self, futures: Sequence[Any], *, num_returns: int) -> None:
        assert num_returns == len(futures)
        self.waited += 1

    def kill(self, actor: Handle) -> None:
        self.killed += 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and its data."""
    return make_folder(tmp_path_factory.mktemp("spread"), 400)


def searched(place: Path, name: str, *, ray: str | None) -> dict[str, Any]:
    """What a search found of every plan that does not hang on the clock (who goes on in the finals does)."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_effort(patch)
        options = ask(place, out=place / name, ray=ray)
        with pytest.raises(KeyboardInterrupt):
            convert(options, Listener(interrupt_at="fine-tune"))
    (trace,) = place.glob(f"{name}.run/search.jsonl")
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    return {json.dumps(line["plan"]): line["info"]["exit_accuracy"] for line in lines if line["method"] != "finals"}


@pytest.fixture(scope="module")
def plain(place: Path) -> dict[str, Any]:
    """The same without a cluster."""
    return searched(place, "plain", ray=None)


@pytest.mark.parametrize(
    ("nodes", "workers", "holds"), [({"here": 2}, 2, False), ({"here": 2, "there": 3, "far": 1}, 4, True)]
)
def test_a_search_on_a_cluster(
    nodes: dict[str, int],
    workers: int,
    holds: bool,
    place: Path,
    plain: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = FakeRay(**nodes)
    real_import = importlib.import_module
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    found: dict[str, Any] = {"ray": ray, "ray.util.scheduling_strategies": strategies}
    monkeypatch.setattr(importlib, "import_module", lambda name: found.get(name) or real_import(name))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    on_cluster = searched(place, f"out{workers}", ray="auto")
    assert ray.log == ["init", "shutdown"]
    hired = [handle for options, handle in ray.handles if "max_restarts" in options]
    held = [options for options, _ in ray.handles if "max_restarts" not in options]
    assert len(hired) == workers
    assert held == ([{"num_cpus": 2, "scheduling_strategy": ("here", False)}] if holds else [])
    assert ray.killed == len(ray.handles)
    assert bool(ray.waited) is not holds  # this machine's own cores are idle while it measures
    assert min(handle.calls for handle in hired) > 0
    assert cores is None or os.sched_getaffinity(0) == cores
    common = set(plain) & set(on_cluster)
    assert len(common) >= 2
    assert {plan: plain[plan] for plan in common} == {plan: on_cluster[plan] for plan in common}


def test_chunks_are_even_and_what_fails_is_computed_here() -> None:
    ray = FakeRay(here=1)

    class Local:
        def __call__(self, conversion: Any) -> Any:
            return ("here", conversion)

    class Remote:
        def many(self, conversions: Sequence[Any]) -> list[Any]:
            assert 2 <= len(conversions) <= 3
            return [("there", c) for c in conversions]

    workers = [Handle(ray, Remote()) for _ in range(3)]
    plans: Any = list(range(8))
    logits: Any = ClusterLogits(ray, Local(), workers, wait=False)  # type: ignore[arg-type]
    logits.ahead(plans)
    logits.ahead(plans[:4])  # told twice, asked once
    assert [worker.calls for worker in workers] == [1, 1, 1]
    assert [logits(plan) for plan in plans] == [("there", plan) for plan in plans]
    ray.broken = True
    logits.ahead(plans)
    assert [logits(plan) for plan in plans] == [("here", plan) for plan in plans]


def test_without_an_address_nothing_changes() -> None:
    evaluator: Any = SimpleNamespace(logits="own")
    with on_cluster(None, evaluator, threads=1):
        assert evaluator.logits == "own"


def test_no_ray_or_no_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(UsageError, match="Ray is missing; pip install"):
            spread._connect("auto")
    monkeypatch.setattr(importlib, "import_module", lambda name: FakeRay(here=1))
    with pytest.raises(UsageError, match=r"--ray 10.0.0.9:1: no cluster there \(nothing at 10.0.0.9:1\); give auto"):
        spread._connect("10.0.0.9:1")


class Space:
    """Three decisions of three options; the last one changes nothing."""

    sizes = (3, 3, 3)

    def allowed(self, prefix: tuple[int, ...]) -> Any:
        return np.ones(3, np.bool_)

    def decode(self, actions: tuple[int, ...]) -> tuple[int, ...]:
        return actions[:-1]


class Told:
    """An evaluation that is told what comes next, and is asked for nothing else."""

    def __init__(self) -> None:
        self.known: set[Any] = set()
        self.most = 0

    def ahead(self, plans: Sequence[Any]) -> None:
        assert len(set(plans)) == len(plans)
        assert self.known.isdisjoint(plans)
        self.known |= set(plans)
        self.most = max(self.most, len(plans))

    def __call__(self, plan: tuple[int, ...]) -> Evaluation:
        assert plan in self.known
        return Evaluation(0.5, 1.0, reward=sum(plan) / 10)


SEARCHES: dict[str, Callable[[Any], SearchResult[Any]]] = {
    "reinforce": lambda e: reinforce(
        Space(), e, evaluations=7, seed=3, settings=Settings(warm_start=((0, 0, 0), (1, 1, 1)))
    ),
    "random": lambda e: random_search(Space(), e, evaluations=8, seed=3),
    "all": lambda e: evaluate_all(Space(), e, [(0, 1, 2), (0, 1, 1), (2, 2, 2)], method="all"),
}


@pytest.mark.parametrize("name", list(SEARCHES))
def test_searches_say_what_comes_next_and_find_the_same(name: str) -> None:
    told = Told()
    found = SEARCHES[name](told)
    plain = SEARCHES[name](lambda plan: Evaluation(0.5, 1.0, reward=sum(plan) / 10))
    assert [trial.actions for trial in found.trials] == [trial.actions for trial in plain.trials]
    assert told.most >= 2

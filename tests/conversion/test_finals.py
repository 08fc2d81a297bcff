"""Finals: short trainings decide which conversion is trained for long, and an interrupted run tries nothing twice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nets
import numpy as np
import pytest
from chain_law import analysed
from helpers import run
from hypothesis import given
from hypothesis import strategies as st
from small_spaces import by_hand, space_of
from tiny import Listener, ask, make_model, quadrants, use_tiny_effort

from s2d_convert.base.clock import Clock
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion import finals, pipeline
from s2d_convert.conversion.context import EVEN, Job, Tuned
from s2d_convert.conversion.finals import FAVOURITES, KEPT, METHOD, ROUNDS, Finals, favourites, halving
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.conversion.training_steps import finetune
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.heuristics import simple_chains
from s2d_convert.plans.macs import chain_macs
from s2d_convert.plans.plan import Conversion, Plan, identity_plan
from s2d_convert.plans.space import CASCADE, LINKED
from s2d_convert.search.base import Evaluation, Trial, trial_to_json
from s2d_convert.slicing.chain import Chain, build_stages


@given(worths=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=12))
def test_halving_keeps_the_best_third_of_every_round(worths: list[list[float]]) -> None:
    seen: list[list[int]] = [[], [], []]

    def worth(candidate: int, number: int) -> tuple[float]:
        seen[number].append(candidate)
        return (worths[candidate][number],)

    best = halving(range(len(worths)), worth, rounds=3)
    assert seen[0] == list(range(len(worths)))
    for number in (1, 2):
        before = seen[number - 1]
        assert len(seen[number]) == -(-len(before) // KEPT)
        out = set(before) - set(seen[number])
        least = min(worths[c][number - 1] for c in seen[number])
        assert all(worths[c][number - 1] <= least for c in out)
    assert worths[best][2] == max(worths[c][2] for c in seen[2])


@pytest.mark.parametrize("stages", [2, 3])
def test_the_simple_chains_are_cascades_of_several_sizes(stages: int) -> None:
    space = by_hand(stages)
    found = list(simple_chains(space, 1.0))
    assert len(found) > 1
    assert all(len(plan.chains) == 2 and plan.chains[0].stages == 1 for plan in found)
    assert all(plan.chains[1] == identity_plan(space.model) for plan in found)


@pytest.mark.parametrize("name", ["resnet_option_a", "mobilenet_v3", "densenet"])
def test_what_costs_more_than_the_budget_is_left_out_but_never_all(name: str) -> None:
    space = space_of(name, 2)
    macs = {c: chain_macs(space.model, c.chains[0]) for c in simple_chains(space, 1.0)}
    for budget in (0.5, 0.3, 0.001):
        kept = set(simple_chains(space, budget))
        affordable = {c for c in macs if macs[c] < budget * total_macs(space.graph)}
        assert kept == (affordable or {min(macs, key=lambda c: macs[c])})


@pytest.mark.parametrize("name", ["resnet_option_a", "mobilenet_v3", "densenet", "vgg_bn"])
def test_counted_multiply_accumulates_are_those_of_the_files(name: str) -> None:
    graph, channels, weights = analysed(nets.export(name))
    space, classes = space_of(name, 2), len(channels.layouts[graph.output].units)
    for conversion in simple_chains(space, 1.0):
        chain = conversion.chains[0]
        (stage,) = build_stages([Chain(AnalysedModel(graph, channels), chain, weights)])
        read = int(Effective(AnalysedModel(graph, channels), chain).readable(chain.taps[0], 1).sum())
        counted = chain_macs(AnalysedModel(graph, channels), chain) + read * classes
        assert stage.macs <= counted
        if name != "densenet":  # whose dense layers leave bottlenecks behind that nobody reads
            assert stage.macs == counted


def test_of_equals_the_first_goes_on() -> None:
    assert halving([3, 1, 2], lambda _candidate, _number: (0.5,), rounds=2) == 3
    assert halving([3, 1, 2], lambda candidate, _number: (0.5, -candidate), rounds=2) == 1


def test_fewer_blocks_leave_out_what_can_be_left_out() -> None:
    space = space_of("resnet_option_a", 2)
    actions = space.thinned(CASCADE, 0.5, 1.0)
    inner = [a for a, d in zip(actions[2:], space.divisions, strict=True) if d.optional]
    assert 0 in inner
    assert any(inner)
    outer = [(a, d) for a, d in zip(actions[2:], space.divisions, strict=True) if not d.optional]
    assert all(a == d.levels for a, d in outer)


def test_favourites_are_the_best_of_every_kind_each_once() -> None:
    space = by_hand(2)
    rng, lines = np.random.default_rng(0), []
    for index in range(30):
        actions = random_actions(space, rng)
        plan, reward = space.decode(actions), float(rng.random())
        value = Evaluation(0.5, 0.5, reward, {})
        lines.append(
            trial_to_json(Trial(index, "random", actions, plan, value, False, 0.1), plan.to_json(space.channels))
        )
    found = favourites([*lines, *lines], space.channels)
    for kind in (LINKED, CASCADE):
        best: dict[Conversion, float] = {}
        for line in lines:
            if line["actions"][0] == kind:
                plan = Conversion.from_json(line["plan"], space.channels)
                best[plan] = max(best.get(plan, 0.0), line["reward"])
        expected = sorted(best, key=lambda c: -best[c])[:FAVOURITES]
        assert [c for c, a in found.items() if a[0] == kind] == expected


@pytest.mark.parametrize(("budget", "least", "plays"), [(None, 0.3, False), (None, 0.1, True), (0.5, 0.3, True)])
def test_plans_that_cannot_save_as_much_as_what_is_there_do_not_take_part(
    budget: float | None, least: float, plays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = by_hand(2)
    work, channels = SimpleNamespace(trial_steps=8), space.channels
    options = SimpleNamespace(plan="search", budget=budget, max_latency=None)
    tried = RunFolder(tmp_path / "out")
    tried.path.mkdir()
    job: Any = SimpleNamespace(
        options=options,
        work=work,
        timetable=EVEN,
        ready=SimpleNamespace(channels=channels),
        run=tried,
        reporter=Listener(),
        clock=Clock(),
    )
    latency: Any = lambda _conversion: (0.8, 1.0)  # noqa: E731 - at most a fifth can be saved
    first = next(iter(simple_chains(space, 1.0)))
    asked: list[int] = []

    def stop(_job: object, contenders: int) -> None:
        asked.append(contenders)
        raise InterruptedError

    monkeypatch.setattr(finals, "afford_solves", stop)
    if plays:
        with pytest.raises(InterruptedError):
            finals.play_finals(job, space, first, latency, least=least)
    else:
        assert finals.play_finals(job, space, first, latency, least=least) is None
    assert bool(asked) is plays


class Played:
    """Finals between the simple chains of a small space, whose trainings write a number and can be killed."""

    def __init__(self, folder: Path, *, dies_at: int = 10**6) -> None:
        space = by_hand(2)
        self.trained: list[tuple[str, int]] = []
        self.dies_at = dies_at
        self.run = RunFolder(folder / "out")
        self.run.path.mkdir(exist_ok=True)
        work = SimpleNamespace(trial_steps=8)
        ready = SimpleNamespace(channels=space.channels, target="accuracy")
        job: Any = SimpleNamespace(
            work=work, timetable=EVEN, ready=ready, run=self.run, reporter=Listener(), clock=Clock()
        )
        self.finals = Finals(job, simple_chains(space, 1.0), train=self.train, worth=self.worth)

    def train(self, conversion: Conversion, before: Path | None, after: Path, steps: int, seconds: float) -> None:
        assert seconds == math.inf, "without a limit of time"
        self.trained.append((conversion.digest(), steps))
        done = int(before.read_text()) if before is not None else 0
        after.write_text(str(done + steps))
        if len(self.trained) == self.dies_at:
            raise KeyboardInterrupt

    def worth(self, conversion: Conversion, file: Path) -> Evaluation:
        reward = int(conversion.digest()[:4], 16) / 2**16 + int(file.read_text()) / 1000
        return Evaluation(0.5, 0.5, reward, {"exit_accuracy": [0.5], "stage_latency": [0.3]})


def test_a_round_goes_on_from_the_one_before_and_equal_steps_are_never_trained_twice(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = Played(tmp_path / "a")
    winner, value, file = whole.finals.best()
    assert file.read_text() == str(sum(round(r * 8) for r in ROUNDS))
    assert len(set(whole.trained)) == len(whole.trained)
    for dies_at in range(1, len(whole.trained) + 1):
        before = Played(tmp_path / "b", dies_at=1)
        with pytest.raises(KeyboardInterrupt):
            before.finals.best()
        assert dies_at == len(list((tmp_path / "b" / "out.run").glob(f"{METHOD}-*")))
    again = Played(tmp_path / "b")
    assert again.finals.best() == (winner, value, again.run.path / file.name)
    assert not again.trained
    lines = list(again.run.trace())
    assert len({line["index"] for line in lines}) == len(lines) == len(whole.trained)


@pytest.mark.parametrize("plan", ["cascade", "depth"])
def test_an_interrupted_final_resumes_and_its_best_is_trained_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    use_tiny_effort(monkeypatch)
    make_model(tmp_path / "tiny.onnx")
    images, labels = quadrants(400, 1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    options = ask(tmp_path, plan=plan)
    with pytest.raises(KeyboardInterrupt):
        convert(options, Listener(interrupt_at="finals"))
    seen: list[Path | None] = []

    def spy(job: Job, plan: Plan, *, start: Path | None = None) -> Tuned:
        seen.append(start)
        return finetune(job, plan, start=start)

    monkeypatch.setattr(pipeline, "finetune", spy)
    out = convert(replace(options, resume=True), Listener()).out
    lines = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    finals = [line for line in lines if line["method"] == METHOD]
    assert len({line["index"] for line in finals}) == len(finals)
    last = (line for line in finals if line["info"]["round"] == len(ROUNDS))
    best = max(last, key=lambda line: (line["reward"], -line["latency"]))  # easy images: equal rewards are common
    assert json.loads((out / "plan.json").read_text()) == best["plan"]
    assert len(seen) == 1
    assert seen[0] is not None
    kinds = {line["actions"][0] for line in finals if line["actions"]}
    assert kinds
    assert plan != "depth" or kinds == {LINKED}


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3", "resnet_option_a"])
def test_a_simple_chain_sees_the_image(name: str) -> None:
    graph, channels, weights = analysed(nets.export(name))
    image = np.random.default_rng(0).normal(0, 1, (2, *graph.shapes[graph.image])).astype(np.float32)
    for conversion in simple_chains(space_of(name, 2), 1.0):
        (stage,) = build_stages([Chain(AnalysedModel(graph, channels), conversion.chains[0], weights)])
        first, second = run(stage.model, {graph.image: image})["output"]
        assert np.abs(first - second).max() > 0

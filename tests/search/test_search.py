"""The controller as a distribution, and the searches on problems whose best plan is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from s2d_convert.plans.decisions import Actions, checked, neighbour, random_actions
from s2d_convert.search.base import (
    Evaluation,
    Hooks,
    SearchResult,
    Trial,
    evaluate_all,
    evaluation_from_json,
    random_search,
    reward,
    speed_reward,
    trial_to_json,
)
from s2d_convert.search.controller import LSTMController
from s2d_convert.search.reinforce import Settings, reinforce

Search = Callable[..., SearchResult[Actions]]


class Free:
    """Every option is allowed; a plan is its actions."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def allowed(self, prefix: Actions) -> NDArray[np.bool_]:
        return np.ones(self.sizes[len(prefix)], dtype=bool)

    def decode(self, actions: Actions) -> Actions:
        return actions


class Rising(Free):
    """No decision may be below the one before it; the last decision does not change the plan."""

    def allowed(self, prefix: Actions) -> NDArray[np.bool_]:
        options = np.arange(self.sizes[len(prefix)])
        return options >= min(prefix[-1], options[-1]) if prefix else options >= 0

    def decode(self, actions: Actions) -> Actions:
        return actions[:-1]


class Knapsack(Free):
    """Values and costs per decision, and a bonus for pairs of neighbours: a stand-in for accuracy, latency and the way in
    which layers depend on each other."""

    def __init__(self, seed: int, *, decisions: int, options: int) -> None:
        super().__init__(*[options] * decisions)
        rng = np.random.default_rng(seed)
        shape = (decisions, options)
        self.value = np.sort(rng.random(shape), axis=1) * rng.gamma(1, 1, (decisions, 1))
        self.cost = np.sort(rng.random(shape), axis=1)
        self.bonus = 0.15 * rng.normal(size=(decisions - 1, options, options))
        self.budget = 0.45 * self.cost[:, -1].sum() + 0.55 * self.cost[:, 0].sum()

    def evaluate(self, plan: Actions) -> Evaluation:
        steps, options = np.arange(len(plan)), np.array(plan)
        value = self.value[steps, options].sum() + self.bonus[steps[:-1], options[:-1], options[1:]].sum()
        accuracy = float(max(value, 0) / self.value[:, -1].sum())
        latency = float(self.cost[steps, options].sum() / self.budget)
        return Evaluation(accuracy, latency, reward(accuracy, latency, 1.0))


class Network:
    """A model in two stages: decision 0 is the tap, the others the width of every class; classes behind the tap have one
    option only. The accuracy falls with every narrow class before the tap, and with all that lies behind it."""

    def __init__(self, seed: int, *, classes: int = 18, levels: int = 4, budget: float = 0.6) -> None:
        rng = np.random.default_rng(seed)
        self.levels, self.budget = levels, budget
        self.macs, self.need = rng.dirichlet(3 * np.ones(classes)), rng.dirichlet(1.5 * np.ones(classes))
        self.taps = np.arange(classes // 3, classes + 1, 2)
        self.sizes = (len(self.taps), *[levels] * classes)

    def allowed(self, prefix: Actions) -> NDArray[np.bool_]:
        options = np.arange(self.sizes[len(prefix)])
        behind = bool(prefix) and len(prefix) > self.taps[prefix[0]]
        return options == options[-1] if behind else options >= 0

    def decode(self, actions: Actions) -> Actions:
        return actions

    def evaluate(self, plan: Actions) -> Evaluation:
        depth = self.taps[plan[0]]
        width = (1 + np.array(plan[1 : depth + 1])) / self.levels
        macs = (self.macs[:depth] * width * np.append(1, width[:-1])).sum()
        lost = 0.4 * (self.need[:depth] * np.square(1 - width)).sum() + 0.4 * self.macs[depth:].sum() ** 1.5
        first, rest = 0.05 + 0.95 * macs, 1.1 - macs
        leaving = float(np.clip(1 - (self.budget - first) / rest, 0, 1))
        accuracy = float(0.9 - (0.05 + lost) * leaving**2)
        latency = float(first + (1 - leaving) * rest)
        return Evaluation(accuracy, latency, reward(accuracy, latency, self.budget))


def total(plan: Actions) -> Evaluation:
    return Evaluation(sum(plan), 1.0, sum(plan))


@st.composite
def spaces(draw: st.DrawFn) -> Free:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return draw(st.sampled_from([Free, Rising]))(*sizes)


def sequences(space: Free) -> list[Actions]:
    every = product(*(range(size) for size in space.sizes))
    return [a for a in every if all(space.allowed(a[:i])[option] for i, option in enumerate(a))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(policy: LSTMController, seed: int) -> LSTMController:
    """The policy with scores that are far from even."""
    with torch.no_grad():
        policy.head.copy_(2 * torch.randn(policy.head.shape, generator=generator(seed)))
    return policy


# The policy


@settings(max_examples=15)
@given(spaces(), st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_policy_is_a_distribution_over_the_space(space: Free, seed: int, explore: float) -> None:
    policy = stirred(LSTMController(space.sizes, hidden=8, seed=seed), seed)
    with torch.no_grad():
        found = policy.log_prob(sequences(space), space.allowed, explore=explore)
    chances = found.log_prob.double().exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    # The entropies along a sequence are a sample of the whole entropy: their mean is it.
    assert float((chances * found.entropy).sum()) == pytest.approx(-float((chances * chances.log()).sum()), abs=1e-4)


@settings(max_examples=15)
@given(spaces(), st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_what_is_drawn_is_allowed_and_has_its_probability(space: Free, seed: int, explore: float) -> None:
    policy = stirred(LSTMController(space.sizes, hidden=8, seed=seed), seed)
    drawn = policy.sample(space.allowed, generator=generator(seed), count=5, explore=explore)
    assert set(drawn.actions) <= set(sequences(space))
    again = policy.log_prob(drawn.actions, space.allowed, explore=explore)
    torch.testing.assert_close(drawn.log_prob, again.log_prob)
    torch.testing.assert_close(drawn.entropy, again.entropy)


def test_draws_are_as_frequent_as_they_say() -> None:
    space = Rising(3, 3)
    policy = stirred(LSTMController(space.sizes, hidden=8, seed=3), 3)
    drawn = policy.sample(space.allowed, generator=generator(0), count=4000, explore=0.2)
    scored = policy.log_prob(sequences(space), space.allowed, explore=0.2)
    for actions, log_prob in zip(scored.actions, scored.log_prob.tolist(), strict=True):
        assert drawn.actions.count(actions) / 4000 == pytest.approx(np.exp(log_prob), abs=0.03)


def test_the_policy_starts_even_and_repeatable_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = LSTMController((2, 3, 4), seed=5), LSTMController((2, 3, 4), seed=5)
    space = Free(2, 3, 4)
    drawn = first.sample(space.allowed, generator=generator(1), count=3)
    assert drawn.actions == second.sample(space.allowed, generator=generator(1), count=3).actions
    torch.testing.assert_close(drawn.log_prob, torch.full((3,), -np.log(24)).float())
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_policy_can_tie_decisions_together() -> None:
    space, wanted = Free(2, 2, 2), [(0, 0, 1), (1, 1, 0)]
    policy = LSTMController(space.sizes, hidden=16, seed=0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        (-policy.log_prob(wanted, space.allowed).log_prob.mean()).backward()
        optimizer.step()
    drawn = policy.sample(space.allowed, generator=generator(0), count=100).actions
    assert set(drawn) == set(wanted)


def test_a_policy_without_choice_is_named() -> None:
    policy = LSTMController((2, 2))
    with pytest.raises(ValueError, match=r"decision 0 after \(\): no option is allowed"):
        policy.sample(lambda prefix: np.zeros(2, dtype=bool), generator=generator(0))
    with pytest.raises(ValueError, match="at least one decision"):
        LSTMController(())


# The searches


@pytest.mark.parametrize(
    ("latency", "expected"), [(0.3, 0.8), (0.5, 0.8), (1.0, 0.8 * 0.25), (float("inf"), 0.0)], ids=str
)
def test_reward_falls_with_the_missed_budget(latency: float, expected: float) -> None:
    assert reward(0.8, latency, 0.5) == pytest.approx(expected)
    assert reward(0.8, latency, 0.5, exponent=0) == pytest.approx(0.8)


@given(st.floats(0, 1), st.floats(0.01, 3), st.floats(0.5, 2), st.floats(0.001, 2), st.floats(1.0001, 3))
def test_over_the_bound_any_plan_loses_and_is_led_back(
    accuracy: float, latency: float, bound: float, over: float, further: float
) -> None:
    within = reward(accuracy, latency, 0.5, worst=bound, max_latency=bound)
    assert within == reward(accuracy, latency, 0.5)
    first = reward(1.0, 0.1, 0.5, worst=bound * (1 + over), max_latency=bound)
    second = reward(1.0, 0.1, 0.5, worst=bound * (1 + over) * further, max_latency=bound)
    assert within > first > second >= -1


@pytest.mark.parametrize("search", [reinforce, random_search])
@settings(max_examples=6)
@given(spaces(), st.integers(0, 99))
def test_a_small_space_is_searched_whole(search: Search, space: Free, seed: int) -> None:
    plans = {space.decode(a) for a in sequences(space)}
    evaluated: list[Actions] = []

    def evaluate(plan: Actions) -> Evaluation:
        evaluated.append(plan)
        return total(plan)

    found = search(space, evaluate, evaluations=10_000, seed=seed)
    assert sorted(evaluated) == sorted(plans)  # each once, however often it was proposed
    assert found.best.evaluation == max((total(p) for p in plans), key=lambda e: e.reward)
    assert [t.index for t in found.trials] == list(range(len(found.trials)))
    assert sum(not t.repeated for t in found.trials) == len(plans)


@pytest.mark.parametrize("search", [reinforce, random_search])
def test_a_search_ends_with_its_evaluations_and_repeats_with_its_seed(search: Search) -> None:
    problem = Knapsack(0, decisions=12, options=3)
    seen: list[Trial[Actions]] = []
    first = search(problem, problem.evaluate, evaluations=25, seed=1, hooks=Hooks(seen.append))
    second = search(problem, problem.evaluate, evaluations=25, seed=1)
    other = search(problem, problem.evaluate, evaluations=25, seed=2)
    assert [t.actions for t in first.trials] == [t.actions for t in second.trials]
    assert [t.actions for t in first.trials] != [t.actions for t in other.trials]
    assert tuple(seen) == first.trials
    assert len({t.plan for t in first.trials}) == 25
    assert not first.trials[-1].repeated


@pytest.mark.parametrize("search", [reinforce, random_search])
@pytest.mark.parametrize("killed_after", [1, 13, 30])
def test_a_killed_search_goes_the_same_way_again(search: Search, killed_after: int) -> None:
    problem = Knapsack(3, decisions=7, options=3)
    whole = search(problem, problem.evaluate, evaluations=30, seed=3)
    lines = [json.dumps(trial_to_json(t, list(t.plan))) for t in whole.trials[:killed_after]]
    known = {tuple(e["plan"]): evaluation_from_json(e) for e in map(json.loads, lines)}
    fresh: list[Actions] = []

    def evaluate(plan: Actions) -> Evaluation:
        assert plan not in known
        fresh.append(plan)
        return problem.evaluate(plan)

    resumed = search(problem, evaluate, evaluations=30, seed=3, hooks=Hooks(known=known))
    assert [(t.actions, t.evaluation, t.repeated) for t in resumed.trials] == [
        (t.actions, t.evaluation, t.repeated) for t in whole.trials
    ]
    assert len(known) + len(fresh) == 30


def test_at_equal_reward_the_faster_plan_is_best() -> None:
    space = Free(3)
    found = evaluate_all(space, lambda p: Evaluation(1.0, (0.5, 0.3, 0.3)[p[0]], 1.0), sequences(space), method="all")
    assert found.best.actions == (1,)
    assert found.method == "all"


def test_sequences_to_start_from_come_first_and_count() -> None:
    problem = Knapsack(1, decisions=10, options=3)
    starts = [(0,) * 10, (1,) * 10, (0,) * 10]
    found = reinforce(problem, problem.evaluate, evaluations=8, seed=0, settings=Settings(warm_start=tuple(starts)))
    assert [t.actions for t in found.trials[:3]] == starts
    assert [t.repeated for t in found.trials[:3]] == [False, False, True]
    assert sum(not t.repeated for t in found.trials) == 8
    short = reinforce(problem, problem.evaluate, evaluations=1, seed=0, settings=Settings(warm_start=tuple(starts)))
    assert [t.actions for t in short.trials] == starts[:1]


def test_starts_that_there_is_no_time_for_make_way_for_the_controller() -> None:
    problem, made = Knapsack(1, decisions=10, options=3), list[Trial[Actions]]()
    starts = [(k % 3,) * 9 + (k // 3,) for k in range(9)]
    hooks = Hooks(made.append, starts_over=lambda: len(made) >= 4)
    found = reinforce(
        problem, problem.evaluate, evaluations=12, seed=0, settings=Settings(warm_start=tuple(starts)), hooks=hooks
    )
    assert [t.actions for t in found.trials[:4]] == starts[:4]
    assert found.trials[4].actions not in starts
    assert sum(not t.repeated for t in found.trials) == 12


def test_a_collapsed_policy_explores_again() -> None:
    problem = Knapsack(2, decisions=10, options=4)
    hasty = Settings(learning_rate=1.0, explore=0.0, explore_end=0.0, entropy=0.0)
    found = reinforce(problem, problem.evaluate, evaluations=40, seed=0, settings=hasty)
    assert len({t.plan for t in found.trials}) == 40
    assert len(found.trials) > 40  # it did collapse; neighbours of its plans are new now and then


def test_a_small_optimum_is_found() -> None:
    """Of 729 plans, 100 are evaluated: the best one is met mostly, and otherwise one that is nearly as good."""
    gaps = []
    for number in range(4, 8):
        problem = Knapsack(number, decisions=6, options=3)
        best = max(problem.evaluate(a).reward for a in sequences(problem))
        found = reinforce(problem, problem.evaluate, evaluations=100, seed=0)
        gaps.append(best - found.best.evaluation.reward)
    assert max(gaps) < 0.02
    assert gaps.count(0.0) >= 2


@pytest.mark.parametrize(
    ("make", "evaluations"),
    [(lambda seed: Knapsack(seed, decisions=24, options=4), 60), (Network, 60)],
    ids=["knapsack", "network"],
)
def test_learning_beats_chance(make: Callable[[int], Knapsack | Network], evaluations: int) -> None:
    """Over ten seeds: higher mean reward, and better on nearly every problem."""
    ahead = []
    for seed in range(10):
        problem = make(seed)
        learned = reinforce(problem, problem.evaluate, evaluations=evaluations, seed=seed)
        drawn = random_search(problem, problem.evaluate, evaluations=evaluations, seed=seed)
        evens = [problem.evaluate(random_actions(problem, np.random.default_rng(s))).reward for s in range(60)]
        ahead.append((learned.best.evaluation.reward - drawn.best.evaluation.reward) / np.std(evens))
    assert np.mean(ahead) > 0.3  # in units of the spread between plans drawn evenly
    assert np.sum(np.array(ahead) > 0) >= 8


@pytest.mark.parametrize(
    ("make", "least"),
    [(lambda seed: Knapsack(seed, decisions=24, options=4), 0.5), (Network, 0.15)],
    ids=["knapsack", "network"],
)
def test_learning_beats_what_it_starts_from(make: Callable[[int], Knapsack | Network], least: float) -> None:
    """From the best tenth of many plans, on average over eight problems, in units of the spread of all plans."""
    ahead = []
    for seed in range(8):
        problem, rng = make(seed), np.random.default_rng(seed)
        drawn = [random_actions(problem, rng) for _ in range(240)]
        rewards = np.array([problem.evaluate(actions).reward for actions in drawn])
        start = [drawn[i] for i in np.argsort(-rewards)[:24]]
        settings = Settings(warm_start=tuple(start))
        learned = reinforce(problem, problem.evaluate, evaluations=60, seed=seed, settings=settings)
        ahead.append((learned.best.evaluation.reward - rewards.max()) / np.std(rewards))
    assert np.mean(ahead) > least


@given(spaces(), st.integers(0, 2**20))
def test_a_neighbour_is_allowed_and_changes_two_decisions_at_most_where_all_are_free(space: Free, seed: int) -> None:
    rng = np.random.default_rng(seed)
    actions = random_actions(space, rng)
    near = checked(space, neighbour(space, actions, rng))
    if type(space) is Free:
        assert sum(a != b for a, b in zip(actions, near, strict=True)) <= 2


def test_proposals_go_to_whom_finds_better_plans() -> None:
    """Where every other decision ruins a plan, only neighbours of the best find better ones, and get most proposals."""

    def evaluate(plan: Actions) -> Evaluation:
        wrong = sum(action > 1 for action in plan)
        return Evaluation(1.0, 1.0, -10.0 * wrong + sum(action == 1 for action in plan))

    space = Free(*[8] * 24)
    found = reinforce(space, evaluate, evaluations=80, seed=0, settings=Settings(warm_start=((0,) * 24,)))
    changed = [sum(a != b for a, b in zip(t.actions, found.best.actions, strict=True)) for t in found.trials[40:]]
    assert found.best.evaluation.reward > 1
    assert np.mean(np.array(changed) <= 12) > 0.6


def test_what_cannot_be_searched_is_named() -> None:
    space = Rising(3, 3)
    with pytest.raises(ValueError, match="evaluations=0"):
        random_search(space, total, evaluations=0, seed=0)
    with pytest.raises(ValueError, match=r"option 0 at decision 1; allowed are \[2\]"):
        reinforce(space, total, evaluations=5, seed=0, settings=Settings(warm_start=((2, 0),)))
    with pytest.raises(ValueError, match="got 1 decisions; expected 2"):
        evaluate_all(space, total, [(2,)], method="all")
    with pytest.raises(ValueError, match="reward nan"):
        Evaluation(0.5, 0.5, float("nan"))


def test_the_reward_of_speed_is_what_is_saved_where_enough_is_right() -> None:
    assert speed_reward(0.9, 0.4, 0.89) == pytest.approx(0.6)
    assert speed_reward(0.9, 1.2, 0.89) == pytest.approx(-0.2)
    slow, wrong, wronger = (speed_reward(a, latency, 0.89) for a, latency in ((0.9, 1.9), (0.88, 0.1), (0.5, 0.1)))
    assert slow > wrong > wronger
    late = speed_reward(0.9, 0.4, 0.89, worst=1.5, max_latency=1.05)
    assert late < wronger
    assert speed_reward(0.9, 0.4, 0.89, worst=1.2, max_latency=1.05) > late

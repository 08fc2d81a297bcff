"""The search of a conversion: its space of plans, their evaluation, and the trace of the search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from s2d_convert.base.clock import Clock
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion.context import Job, Prepared, goal_of
from s2d_convert.conversion.exact import DEPTH_METHOD
from s2d_convert.conversion.options import NAMED_PLANS, ConvertOptions
from s2d_convert.conversion.run_folder import ALLOCATED, BASELINES, KERNELS
from s2d_convert.conversion.worst_case import confirmed
from s2d_convert.latency.kernel_costs import KernelCosts
from s2d_convert.plans.allocation import Allocated, Allocation, vanishing
from s2d_convert.plans.decisions import Actions
from s2d_convert.plans.heuristics import simple_chains
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.plan_option import restricted, trainable_plan
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.search.allocation import LatencyModel, allocated, exits_within, in_turn, pairs_of, slim_lasts
from s2d_convert.search.base import (
    Evaluation,
    Hooks,
    SearchResult,
    Trial,
    evaluate_all,
    evaluation_from_json,
    random_search,
    ranked,
    trial_to_json,
)
from s2d_convert.search.evaluate import MAX_IMAGES, Evaluator, SolvedLogits, StageLatency
from s2d_convert.search.ray import on_cluster
from s2d_convert.search.reinforce import Settings, reinforce

STARTS = 0.5  # share of the evaluations that the plans to start from take, at most
EXITS = (0.6, 0.3, 0.15)  # latencies of the early exits that a search without a budget starts from
SCREENING, MOST_SCREENED, SCREENED_BY = 16, 3, "screening"  # first chains in exact mode: tried, kept, and their method
HARDLY = 0.05
LEFT_BY_TRAINING = 0.6  # of the answers of roughly solved chains that part from the static model's (docs/search.md)
JUDGED_MACS, LEAST_JUDGED = 6e11, 100  # the static model's MACs on the images that a candidate is judged by; images
MOST_LEFT_OUT = 8e10  # MACs of all blocks' models together for which the error without each block is measured


def search(
    job: Job, space: PlanSpace, evaluate: Evaluator, given: Conversion | None = None, *, least: float = -math.inf
) -> Conversion:
    """Return the conversion with the highest reward, and write the trace to the run folder, one line per candidate.

    `--plan` restricts the space. A `given` conversion is evaluated and returned without a search. least: the reward that a
    conversion which is there already has. The search does not start from first stages that miss the budget or, without one,
    cannot save as much as that.
    """
    ready, options, run, reporter = job.ready, job.options, job.run, job.reporter
    stored = run.read_plan()
    if stored is not None:
        return Conversion.from_json(stored, ready.channels)
    if given is not None:
        choose(job, given, evaluate(given))
        return given
    space = restricted(space, options.plan)
    rows = allocate(job, space) if options.plan in ("search", "cascade", "width") else ()
    starts: list[Actions] = []
    if rows:
        latency, total = latency_model(job, space), options.work.evaluations
        starts = starting_points(space, rows, latency, total, budget=options.budget, least=least)
    run.rewrite_trace()
    trace = [line for line in run.trace() if line["method"] != DEPTH_METHOD]  # those have trained heads
    known = {Conversion.from_json(line["plan"], ready.channels): evaluation_from_json(line) for line in trace}
    traced = {(line["method"], line["index"]) for line in trace}
    met: Counter[str] = Counter()

    def on_trial(trial: Trial[Conversion]) -> None:
        known[trial.plan] = trial.evaluation
        if (trial.method, trial.index) not in traced:
            run.append_trace(trial_to_json(trial, trial.plan.to_json(ready.channels)))
        if not trial.repeated:
            met[trial.method] += 1
            detail = f"{trial.method}, reward {trial.evaluation.reward:.4f}"
            reporter.progress(met[trial.method], options.work.evaluations, "plans tried", math.nan, detail=detail)

    with on_cluster(options.ray, evaluate, threads=options.threads):
        results = _explore(job, space, evaluate, starts, hooks=Hooks(on_trial, known))
    for result in results:
        value = result.best.evaluation
        reporter.detail(
            f"{result.method}: reward {value.reward:.4f} ({ready.target} {value.accuracy:.4f}, latency {value.latency:.3f}, "
            f"worst {value.info['worst_latency']:.3f})"
        )
    best = confirmed(job, results)
    value = best.evaluation
    reporter.note(
        f"{len(known)} plans tried; the best has {ready.target} {100 * value.accuracy:.1f} % at {value.latency:.2f} of the "
        "static time"
    )
    run.write_json(BASELINES, {r.method: _summary(r) for r in results})
    choose(job, best.plan, best.evaluation)
    return best.plan


def written_plan(options: ConvertOptions, ready: Prepared) -> Conversion | None:
    """Return the conversion in the file that `--plan` names, None if it is to be searched for. Raises UsageError."""
    if options.plan in NAMED_PLANS:
        return None
    return trainable_plan(options.plan, ready.model, names=NAMED_PLANS)


def choose(job: Job, conversion: Conversion, evaluation: Evaluation) -> None:
    """Save the chosen conversion in the run folder."""
    facts = {**evaluation.info, "reward": evaluation.reward, "plan": conversion.digest()}
    job.run.write_plan(conversion.to_json(job.ready.channels), facts)


def allocate(job: Job, space: PlanSpace) -> tuple[Allocated, ...]:
    """Return first chains for a row of latencies, from the slowest to the fastest, and keep them in the run folder.

    Without real images there are none: the channels' errors would be those on made-up ones.
    """
    ready, run = job.ready, job.run
    if ready.dataset.kind == "made-up":
        return ()
    stored = run.read_json(ALLOCATED)
    if stored is None:
        pairs = pairs_of(space)
        alone = {i: pairs.decode(pairs.without(i)).chains[0] for i in vanishing(ready.model, space.divisions)}
        if len(alone) * total_macs(ready.graph) > MOST_LEFT_OUT:
            alone = {}
        latency, left_out = latency_model(job, space), ready.solver.errors(alone)
        stored = [asdict(row) for row in Allocation(pairs, ready.solver.importance, latency, left_out=left_out).best()]
        run.write_json(ALLOCATED, stored)
    return tuple(Allocated(tuple(row["levels"]), row["latency"], row["error"]) for row in stored)


def latency_model(job: Job, space: PlanSpace) -> LatencyModel:
    """Return what predicts the latency of first chains, and keep its costs in the run folder."""
    ready, pairs, stored = job.ready, pairs_of(space), job.run.read_json(KERNELS)
    if stored is not None:
        return LatencyModel(pairs, ready.weights, KernelCosts(stored), block=ready.block)
    model = LatencyModel.fitted(pairs, ready.weights, job.meter, block=ready.block)
    job.run.write_json(KERNELS, dict(model.costs.costs))
    return model


def with_slim_lasts(job: Job, space: PlanSpace) -> PlanSpace:
    """Return the space, with last chains that are slimmer than the model where the search may use them."""
    if job.options.plan not in ("search", "cascade") or CASCADE not in space.kinds:
        return space
    rows = allocate(job, space)
    return space.with_lasts(slim_lasts(space, rows)) if rows else space


def _explore(
    job: Job, space: PlanSpace, evaluate: Evaluator, starts: Sequence[Actions], *, hooks: Hooks[Conversion]
) -> list[SearchResult[Conversion]]:
    """Return the results of the controller's search and, if requested, of the baselines."""
    options = job.options
    total, seed = options.work.evaluations, options.seed
    if options.plan == "uniform":
        return [evaluate_all(space, evaluate, space.uniform(), method="uniform", hooks=hooks)]
    until = job.timetable.search
    timed = replace(hooks, out_of_time=lambda: job.clock.left(until) <= 0, starts_over=_halfway(job.clock, until))
    learned = controller_search(space, evaluate, total, seed, starts=starts, hooks=timed)
    if not options.work.baselines or options.plan != "search":
        return [learned]
    return [learned, *baselines(space, evaluate, total, seed, hooks)]


def _halfway(clock: Clock, until: float) -> Callable[[], bool]:
    """Return what tells whether half of the time of a search that begins now, and ends at that share of all time, is gone."""
    if not clock.limited:
        return lambda: False
    half = clock.left(until) / 2
    return lambda: clock.left(until) <= half


def starting_points(
    space: PlanSpace,
    rows: Sequence[Allocated],
    latency: LatencyModel,
    total: int,
    *,
    budget: float | None,
    least: float = -math.inf,
) -> list[Actions]:
    """Return what a search of `total` evaluations starts from: allocated chains and early exits in turn.

    least: the reward that a conversion which is there already has; without a budget it is the share of the latency that is
    saved. No first stage misses the budget, or cannot save as much, as far as it is known.
    """
    count = round(STARTS * total)
    below = 1 - least if budget is None else budget
    budgets = [one for one in EXITS if one < below] if budget is None else [budget]
    return in_turn([allocated(space, rows, count, below=below), exits_within(space, latency, budgets)])[:count]


def controller_search(
    space: PlanSpace,
    evaluate: Any,
    total: int,
    seed: int,
    *,
    starts: Sequence[Actions] = (),
    hooks: Hooks[Conversion] | None = None,
) -> SearchResult[Conversion]:
    """Search with the controller. The `starts` come first, or else simple plans, up to a quarter of the evaluations."""
    if not starts:
        simple = space.starts()
        some = np.unique(np.linspace(0, len(simple) - 1, min(len(simple), total // 4)).round().astype(int))
        starts = [simple[i] for i in some]
    settings = Settings(warm_start=tuple(dict.fromkeys(starts)))
    return reinforce(space, evaluate, evaluations=total, seed=seed, settings=settings, hooks=hooks)


def baselines(
    space: PlanSpace, evaluate: Any, total: int, seed: int, hooks: Hooks[Conversion]
) -> list[SearchResult[Conversion]]:
    """Return the results of random search with `total` evaluations, and of the uniform plans."""
    by_chance = random_search(space, evaluate, evaluations=total, seed=seed, hooks=hooks)
    uniform = evaluate_all(space, evaluate, space.uniform()[:total], method="uniform", hooks=hooks)
    return [by_chance, uniform]


def screened(job: Job, space: PlanSpace, evaluate: Evaluator, *, least: float) -> dict[Conversion, Actions]:
    """Return the best MOST_SCREENED of many first chains before the untouched model, by their solved weights, best first.

    Chains that no training could make win are left out: those that cost more than a conversion with the reward `least`, and
    those that are hardly more accurate than the most frequent answer.
    """
    rows = allocate(job, space)
    pairs = pairs_of(space)
    chains = {pairs.decode(a): a for a in allocated(pairs, rows, SCREENING)} if rows else {}
    chains |= {c: a for c, a in simple_chains(space, job.options.budget or 1.0).items() if c not in chains}
    run, channels = job.run, job.ready.channels
    run.rewrite_trace()
    lines = [line for line in run.trace() if line["method"] == SCREENED_BY]
    known = {Conversion.from_json(line["plan"], channels): evaluation_from_json(line) for line in lines}

    def on_trial(trial: Trial[Conversion]) -> None:
        if trial.index >= len(lines):
            run.append_trace(trial_to_json(trial, trial.plan.to_json(channels)))
        job.reporter.progress(trial.index + 1, len(chains), "first chains tried", math.nan)

    hooks = Hooks(on_trial, known)
    result = evaluate_all(pairs, evaluate, list(chains.values()), method=SCREENED_BY, hooks=hooks)
    counts = np.unique(job.ready.validation.right_classes, return_counts=True, axis=0)[1]
    often = float(counts.max() / counts.sum())
    hopeful = [
        trial.plan
        for trial in ranked([result])
        if trial.evaluation.info["exit_accuracy"][0] > often + HARDLY
        and (job.options.budget is not None or 1 - trial.evaluation.info["stage_latency"][0] > least)
    ]
    return {plan: chains[plan] for plan in hopeful[:MOST_SCREENED]}


def make_evaluator(job: Job, *, trained: bool = True) -> Evaluator:
    """Return the evaluator of candidates: solved weights, and latencies measured together with the static model's.

    trained: judge candidates by what they can become where training follows.
    """
    ready = job.ready
    left = LEFT_BY_TRAINING if trained and job.work.trial_steps else 1.0
    by_work = max(LEAST_JUDGED, int(JUDGED_MACS / max(1, total_macs(ready.graph))))
    judged = ready.validation.take(slice(0, min(MAX_IMAGES, by_work)))
    logits = SolvedLogits(ready.model, ready.solver.rough, judged.images, judged.logits, left)
    latency = StageLatency(ready.model, ready.weights, job.meter, job.overhead_ms)
    return Evaluator(ready.task, logits, latency, judged=judged, goal=goal_of(job))


def _summary(result: SearchResult[Conversion]) -> dict[str, Any]:
    value = result.best.evaluation
    return {
        "reward": value.reward,
        "accuracy": value.accuracy,
        "latency": value.latency,
        "worst_latency": value.info["worst_latency"],
        "plan": result.best.plan.digest(),
        "evaluations": len({t.plan for t in result.trials}),
    }

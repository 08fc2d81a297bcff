"""The steps of a conversion, one function each. Only this module connects the others.

prepare -> search -> finals -> fine-tune -> finish. Every step leaves its result in the run folder, so that an interrupted or
killed run can be resumed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from s2d_convert.base.clock import Clock, as_duration
from s2d_convert.base.reporting import Reporter
from s2d_convert.channels.image_scale import offered_scales
from s2d_convert.conversion.context import Job, Prepared, Tuned
from s2d_convert.conversion.estimate import (
    Forecast,
    closing_notes,
    compares_exits,
    forecast,
    memory_bytes,
    planned,
    too_large_to_train,
)
from s2d_convert.conversion.exact import (
    Candidate,
    better,
    cascade_candidate,
    depth_candidate,
    own_candidate,
    trained_heads,
)
from s2d_convert.conversion.explore import choose, make_evaluator, screened, search, with_slim_lasts, written_plan
from s2d_convert.conversion.finals import finals_of, play_finals
from s2d_convert.conversion.finish import Result, finish
from s2d_convert.conversion.options import FIRST, LEAST_SECONDS, NAMED_PLANS, ConvertOptions
from s2d_convert.conversion.prepare import prepare
from s2d_convert.conversion.requantize import Requantization, requantize
from s2d_convert.conversion.run_folder import CHOSEN, PLAIN, SECONDS, RunFolder
from s2d_convert.conversion.training_steps import finetune, finishing_seconds
from s2d_convert.conversion.worst_case import possible
from s2d_convert.conversion.worth import dispatched_costs, trained_worth
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.exporting.folder import check_target
from s2d_convert.exporting.provenance import model_sha256, sha256_of
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.exit_points import NOWHERE, candidate_taps
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE, PlanSpace, depth_taps
from s2d_convert.search.evaluate import StageLatency

__all__ = ["Forecast", "Reporter", "Result", "convert", "dry_run"]


def convert(options: ConvertOptions, reporter: Reporter, *, clock: Clock | None = None) -> Result:
    """Convert a model from file to folder. Raises S2DError for everything that the caller can fix.

    clock: one that the caller may stop, from when on the best so far is finished (None: one of the options' time).
    """
    check_target(options.out, force=options.force)
    job, given, hashes = _begin(options, reporter, clock or Clock(options.time))
    ready, run = job.ready, job.run
    if options.plan != FIRST and not candidate_taps(ready.model):
        raise ModelError(NOWHERE)
    reporter.plan(planned(job), memory_bytes=memory_bytes(job))
    if too_large_to_train(job):
        reporter.note(
            "the time is too short to train so large a network: its first stages keep the weights that are solved in closed form"
        )
    conversion, tuned = best_conversion(job, given)
    provenance = {"model_sha256": hashes["MODEL"], "seconds": run.read_json(SECONDS)}
    with _timed(run, "finish"):
        result = _finished(job, tuned, conversion, provenance=provenance)
    for text in closing_notes(job, conversion, result):
        reporter.note(text)
    run.remove()
    return result


def dry_run(options: ConvertOptions, reporter: Reporter) -> Forecast:
    """Return what `convert` would do and take, and what may be expected of it. Nothing is trained or written."""
    with TemporaryDirectory() as folder:
        elsewhere = replace(options, out=Path(folder) / "out", resume=False)
        job, _, _ = _begin(elsewhere, reporter, Clock(options.time))
        return forecast(job, None if options.exact or options.plan == FIRST else plan_space(job.ready, options))


def _begin(
    options: ConvertOptions, reporter: Reporter, clock: Clock
) -> tuple[Job, Conversion | None, dict[str, str | None]]:
    """Prepare a conversion, and open its run folder once all options are checked.

    Returns the job, the written plan if there is one, and the hashes of `contents`.
    """
    run = RunFolder(options.out)
    run.refuse_leftover(resume=options.resume)
    ready = prepare(options, reporter)
    given, hashes = written_plan(options, ready), contents(options, ready)
    job = Job(options, ready, run, reporter, clock=clock)
    clock.add(sum((run.read_json(SECONDS) or {}).values()))
    if not options.resume:  # which may be out of time, and then writes what it has
        _check_time(job)
    run.open(
        {**options.fingerprint(), **{f"content of {name}": digest for name, digest in hashes.items()}},
        options.to_json(),
    )
    return job, given, hashes


def _check_time(job: Job) -> None:
    """Raise UsageError if the time that was given is spent on preparing and measuring alone."""
    if job.options.time is not None:
        least = job.clock.spent() + finishing_seconds(job) + LEAST_SECONDS
        if least > job.options.time:
            raise UsageError(
                f"--time {as_duration(job.options.time)}: reading, checking and measuring this model on these images take about "
                f"{as_duration(least - LEAST_SECONDS)}; give at least {as_duration(2 * least)}, or fewer images"
            )


def contents(options: ConvertOptions, ready: Prepared) -> dict[str, str | None]:
    """Return hashes of the files that the options name, by option. A run whose files have changed is another run."""
    plan = None if options.plan in NAMED_PLANS else Path(options.plan)
    files = {"--latency": options.latency, "--plan": plan, "--data": options.picture}
    found = {name: None if path is None else sha256_of(path) for name, path in files.items()}
    found["--first"] = None if ready.own is None else ready.own.facts.sha256
    found["MODEL"] = model_sha256(options.model)
    if ready.dataset.kind != "made-up":  # made-up images depend on the seed, the model and the picture only
        found["--data"] = ready.dataset.digest()
    return found


def _finished(job: Job, tuned: Tuned, conversion: Conversion, *, provenance: Mapping[str, Any]) -> Result:
    """Return the exported folder. With --quantize, a float32 one is made in the run folder first."""
    options, ready = job.options, job.ready
    if options.quantize is None:
        return finish(job, tuned, conversion, provenance=provenance)
    plain = job.run.path / PLAIN
    shutil.rmtree(plain, ignore_errors=True)
    finish(job, tuned, conversion, provenance=provenance, out=plain)
    job.reporter.step("quantize")
    asked = Requantization(options.quantize, options.running, force=options.force)
    manifest, measured = requantize(
        plain,
        options.out,
        asked,
        dataset=replace(ready.dataset, calib=ready.calibration.images),
        static=job.timed_static,
        note=job.reporter.note,
    )
    reached = manifest.default_policy.reached
    return Result(options.out, manifest, measured, reached, options.max_latency, options.max_loss)


def best_conversion(job: Job, given: Conversion | None) -> tuple[Conversion, Tuned]:
    """Return the conversion with the highest reward: what is trained or searched for, or the network of --first before the model.

    given: the written plan, if there is one.
    """
    own = None if job.ready.own is None else own_candidate(job, job.ready.own)
    if own is not None and job.options.plan == FIRST:
        return chosen_first(job, own)
    conversion, tuned = keep_original(job) if job.options.exact else train_and_compare(job, given)
    if own is None:
        return conversion, tuned
    made = Candidate(conversion, tuned, trained_worth(job, conversion, tuned.chain, partial(dispatched_costs, job)))
    if better(made, own) is made:
        job.reporter.note(
            f"what the tool has made is worth as much as --first or more: {compared(job, made, own)}; it is written"
        )
        return conversion, tuned
    job.reporter.note(f"--first is worth more than what the tool has made: {compared(job, own, made)}; it is written")
    return chosen_first(job, own)


def chosen_first(job: Job, own: Candidate) -> tuple[Conversion, Tuned]:
    """Return the conversion with the user's own network, whose evaluation the run folder keeps. Its plan is left as it was: what
    was searched for is compared anew when the run is resumed."""
    facts = {**own.evaluation.info, "reward": own.evaluation.reward, "plan": own.conversion.digest()}
    job.run.write_json(CHOSEN, facts)
    return own.conversion, own.tuned


def compared(job: Job, best: Candidate, other: Candidate) -> str:
    """Return the accuracy and the latency of two candidates in words."""
    one, two = (
        f"{100 * c.evaluation.accuracy:.1f} % at {c.evaluation.latency:.2f} of the static time" for c in (best, other)
    )
    return f"{job.ready.target} {one}, against {two}"


def train_and_compare(job: Job, given: Conversion | None) -> tuple[Conversion, Tuned]:
    """The best of what is trained and, where any plan may be chosen, of exits on the unchanged backbone, whose heads take
    seconds."""
    if not compares_exits(job.options) or job.ready.dataset.kind == "made-up" or not depth_taps(job.ready.model):
        made = train_everything(job, given)
        assert made is not None  # there is nothing that it had to be better than
        return made
    with _timed(job.run, "heads"):
        exits = depth_candidate(job, job.meter, *trained_heads(job))
    made = train_everything(job, given, least=exits.evaluation.reward)
    if made is None:
        choose(job, exits.conversion, exits.evaluation)
        job.reporter.note("no other plan can be faster than exits on the unchanged model; none is trained")
        return exits.conversion, exits.tuned
    by_exits, by_made = (fair_reward(job, *candidate) for candidate in ((exits.conversion, exits.tuned), made))
    if by_made > by_exits:
        return made
    choose(job, exits.conversion, exits.evaluation)
    job.reporter.note("exits on the unchanged model are worth more than what was trained")
    return exits.conversion, exits.tuned


def fair_reward(job: Job, conversion: Conversion, tuned: Tuned) -> float:
    """Return the reward of a finished conversion on the images for thresholds. On those for plans the best of many sets of exits
    and the best of many chains look better than they are, and not equally so."""
    cost = partial(dispatched_costs, job)
    return trained_worth(job, conversion, tuned.chain, cost, judged=job.ready.calibration).reward


def train_everything(
    job: Job, given: Conversion | None, *, least: float = -math.inf
) -> tuple[Conversion, Tuned] | None:
    """Search, play the finals and fine-tune; return the best conversion, or the `given` one, with its first chain.

    None, and nothing is trained, where no conversion that was found can reach the reward `least`.
    """
    with _timed(job.run, "search"):
        job.reporter.step("search")
        space, conversion, latency = _searched(job, given, least=least)
    with _timed(job.run, "finals"):
        winner = play_finals(job, space, conversion, latency, least=least)
    if winner is None:
        return None
    conversion, start = winner
    with _timed(job.run, "fine-tune"):
        return conversion, finetune(job, conversion.chains[0], start=start)


def _searched(job: Job, given: Conversion | None, *, least: float) -> tuple[PlanSpace, Conversion, StageLatency]:
    """Return the space, the best plan in it, and the latencies of stages; what judged the plans, and its memory, ends here."""
    space = possible(job, with_slim_lasts(job, plan_space(job.ready, job.options)))
    evaluate = make_evaluator(job)
    return space, search(job, space, evaluate, given, least=least), evaluate.latency


def keep_original(job: Job) -> tuple[Conversion, Tuned]:
    """Return the best conversion whose last stage is the static model: exits by depth, or a narrow chain before it.

    Without data there are exits by depth only, because a chain trained on made-up images is far too confident on real ones.
    """
    ready, candidates = job.ready, []
    if job.options.plan != "cascade":
        with _timed(job.run, "heads"):
            heads, logits = trained_heads(job)
        with _timed(job.run, "search"):
            job.reporter.step("search")
            candidates.append(depth_candidate(job, job.meter, heads, logits))
    if ready.dataset.kind != "made-up" and job.options.plan != "depth":
        space = possible(job, plan_space(ready, job.options))
        if CASCADE in space.kinds:
            candidates += narrow_chain(
                job, space, least=max((c.evaluation.reward for c in candidates), default=-math.inf)
            )
    if not candidates:
        raise ModelError("--plan cascade: no first chain before the model can be faster than it; leave --plan out")
    best = reduce(better, candidates)
    return best.conversion, best.tuned


def narrow_chain(job: Job, space: PlanSpace, *, least: float) -> list[Candidate]:
    """Return the best first chain before the untouched model, trained for long; [] if no chain can reach the reward `least`."""
    run = job.run
    job.reporter.step("finals")
    with _timed(run, "finals"):
        contenders = screened(job, space, make_evaluator(job), least=least)
        if not contenders:
            job.reporter.note("no chain before the model can be faster than exits by depth; none is trained")
            return []
        conversion, value, file = finals_of(job, contenders, partial(dispatched_costs, job)).best()
        choose(job, conversion, value)
    with _timed(run, "fine-tune"):
        tuned = finetune(job, conversion.chains[0], start=file)
    return [cascade_candidate(job, conversion, tuned)]


@contextmanager
def _timed(run: RunFolder, step: str) -> Iterator[None]:
    """Add the seconds of the block to those that the run has spent on the step, also when it is interrupted.

    The seconds of a killed process are lost.
    """
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = run.read_json(SECONDS) or {}
        run.write_json(SECONDS, {**seconds, step: round(seconds.get(step, 0.0) + time.monotonic() - started, 1)})


def plan_space(ready: Prepared, options: ConvertOptions) -> PlanSpace:
    """Return the search space of the model. Raises ModelError when there is nowhere to put an exit."""
    score = None if ready.dataset.kind == "made-up" else ready.solver.importance
    divisions = divide(ready.model, ready.weights, groups=options.work.groups, block=ready.block, score=score)
    space = PlanSpace(ready.model, divisions, stages=options.stages, scales=offered_scales(ready.model))
    if not space.taps:
        raise ModelError(NOWHERE)
    return space

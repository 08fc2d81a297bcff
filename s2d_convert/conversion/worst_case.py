"""The bound on the worst case, `--max-latency`: the kinds of plan that can keep it, and the best plans that do.

The worst case is an image that runs through every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from s2d_convert.conversion.context import Job, timing_images
from s2d_convert.conversion.run_folder import KINDS
from s2d_convert.exporting.folder import draft_manifest, trial_folder
from s2d_convert.exporting.timing import path_costs
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.search.base import SearchResult, Trial, ranked
from s2d_convert.slicing.chain import build_stages, chains_of
from s2d_convert.slicing.split import StageModel

HOPELESS = 1.03  # a kind is left out if its cheapest plan exceeds the bound by more than this factor, beyond noise
MARGIN = 0.01  # by how much a plan must stay below the bound before it is trained: the noise of a second measurement
MOST_CONFIRMED = 8


def possible(job: Job, space: PlanSpace) -> PlanSpace:
    """Return the space, without cascades if not even the cheapest of them keeps `--max-latency`.

    The measurement is kept in the run folder, so that a resumed run searches the same space.
    """
    limit, reporter = job.options.max_latency, job.reporter
    if limit is None or CASCADE not in space.kinds or len(space.kinds) == 1:
        return space
    stored: Any = job.run.read_json(KINDS)
    if stored is None:
        stages = _models(job, space.decode(space.narrowest(max(space.options_of_kind))))
        least = sum(job.meter.measure([m.model.SerializeToString() for m in stages]).ratios)
        stored = {
            "least_cascade": least,
            "kinds": [k for k in space.kinds if k != CASCADE or least <= limit * HOPELESS],
        }
        job.run.write_json(KINDS, stored)
    if CASCADE not in stored["kinds"]:
        reporter.note(
            f"no cascades: even the least costs {stored['least_cascade']:.3f} of static where every stage runs "
            f"(--max-latency {limit:g})"
        )
    return PlanSpace(
        space.model, space.divisions, stages=space.stages, kinds=stored["kinds"], scales=space.scales, lasts=space.lasts
    )


def confirmed(
    job: Job,
    results: Sequence[SearchResult[Conversion]],
    *,
    measure_worst: Callable[[Job, Conversion], float] | None = None,
) -> Trial[Conversion]:
    """Return the best trial. With a bound, it must keep it in a second measurement, from files and with the dispatcher.

    The search picks the best of many noisy measurements, so plans near the bound were often just lucky. If none of the
    MOST_CONFIRMED best trials keeps the bound, the one that comes closest is returned.
    """
    order = ranked(results)
    limit = job.options.max_latency
    if limit is None or job.ready.table is not None:  # predictions have no noise
        return order[0]
    closest, least = order[0], float("inf")
    for trial in order[:MOST_CONFIRMED]:
        worst = (measure_worst or rehearse)(job, trial.plan)
        if _within(worst, limit):
            return trial
        job.reporter.note(f"measured again, a plan costs {worst:.3f} where every stage runs (--max-latency {limit:g})")
        if worst < least:
            closest, least = trial, worst
    return closest


def keeps_max_latency(job: Job, conversion: Conversion) -> bool:
    """Return whether a conversion keeps `--max-latency` when it is measured from files. Without a bound it always does."""
    limit = job.options.max_latency
    return limit is None or job.ready.table is not None or _within(rehearse(job, conversion), limit)


def _within(worst: float, limit: float) -> bool:
    """Return whether a measured worst case is below the limit by more than the noise of a second measurement."""
    return worst <= limit * (1 - MARGIN)


def rehearse(job: Job, conversion: Conversion) -> float:
    """Measure the worst latency of a conversion, relative to static, from stage files with the static model's weights."""
    models, options = _models(job, conversion), job.options
    draft = draft_manifest(job.ready.graph, conversion, models)
    with trial_folder(draft, models, running=options.running) as runner:
        return path_costs(runner, job.timed_static, timing_images(job.ready, options.batch)).ratios[-1]


def _models(job: Job, conversion: Conversion) -> tuple[StageModel, ...]:
    ready = job.ready
    return build_stages(chains_of(ready.model, conversion.chains, ready.weights))

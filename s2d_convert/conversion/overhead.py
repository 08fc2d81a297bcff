"""The dispatcher's overhead beyond its sessions, so that the search times plans as users will run them.

On a thin network, tens of microseconds per stage are a few percent of the static latency. No dependence on the plan could be
measured. So the overhead is measured once, on two copies of the smallest stage of the space, where it stands out most.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from s2d_convert.conversion.context import Prepared, timing_images
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.exporting.folder import draft_manifest, trial_folder
from s2d_convert.exporting.timing import thresholds_for_exit
from s2d_convert.latency.meter import interleave
from s2d_convert.plans.plan import Conversion, Plan
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.slicing.chain import build_stages, chains_of

SECONDS, WARM_UP = 0.5, 3


def dispatch_overhead(ready: Prepared, space: PlanSpace, options: ConvertOptions) -> tuple[float, float]:
    """Return the milliseconds that the dispatcher adds to the first stage of a run and to every further one, at least 0."""
    narrow = space.decode(space.actions(CASCADE, [0] * (space.stages - 1), [0.0] * (space.stages - 1))).chains[0]
    narrow = Plan(narrow.taps[:1], tuple(min(s, 1) for s in narrow.stages_of_units))
    conversion = Conversion((narrow, narrow))
    models = build_stages(chains_of(ready.model, conversion.chains, ready.weights))
    image = timing_images(ready, options.batch)
    sessions = [options.running.session(m.model.SerializeToString()) for m in models]
    with trial_folder(draft_manifest(ready.graph, conversion, models), models, running=options.running) as runner:
        calls = [
            *(partial(s.run, None, {ready.graph.image: image}) for s in sessions),
            *(partial(runner, image, thresholds=thresholds_for_exit(2, k)) for k in (1, 2)),
        ]
        for call in calls * WARM_UP:
            call()
        medians = 1e3 * np.median(interleave(calls, SECONDS), axis=0)
    extra = medians[2:] - np.cumsum(medians[:2])
    return max(0.0, float(extra[0])), max(0.0, float(extra[1] - extra[0]))

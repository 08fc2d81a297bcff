"""The dispatcher's overhead beyond its sessions, so that a search times plans as users will run them.

On a thin network, tens of microseconds per stage are a few percent of the static latency. No dependence on the plan could be
measured. So the overhead is measured once, on two copies of a small stage, where it is easiest to measure.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import Running
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.exporting.folder import draft_manifest, trial_folder
from s2d_convert.exporting.timing import thresholds_for_exit
from s2d_convert.latency.meter import interleave
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.plan import Conversion, Plan
from s2d_convert.plans.weights import Weights
from s2d_convert.slicing.chain import build_stages, chains_of

SECONDS, WARM_UP = 0.5, 3


def dispatch_overhead(model: AnalysedModel, weights: Weights, images: Array, running: Running) -> tuple[float, float]:
    """Return the milliseconds that the dispatcher adds to the first stage of a run on `images` and to every further one, at
    least 0; nothing for a model that has nowhere to put an exit."""
    taps = candidate_taps(model)
    if not taps:
        return 0.0, 0.0
    first = Plan(taps[:1], (1,) * model.channels.units)
    conversion = Conversion((first, first))
    models = build_stages(chains_of(model, conversion.chains, weights))
    sessions = [running.session(m.model.SerializeToString()) for m in models]
    with trial_folder(draft_manifest(model.graph, conversion, models), models, running=running) as runner:
        calls = [
            *(partial(s.run, None, {model.graph.image: images}) for s in sessions),
            *(partial(runner, images, thresholds=thresholds_for_exit(2, k)) for k in (1, 2)),
        ]
        for call in calls * WARM_UP:
            call()
        medians = 1e3 * np.median(interleave(calls, SECONDS), axis=0)
    extra = medians[2:] - np.cumsum(medians[:2])
    return max(0.0, float(extra[0])), max(0.0, float(extra[1] - extra[0]))

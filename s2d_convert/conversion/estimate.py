"""The forecast of a conversion, before anything takes long: its time, its memory, and what may be expected of it; and how far it
came true.

The times come from that of the static model in onnxruntime: solves take some passes of their images through it, a training step
`STEP` times its work on the batch, for the share of it that a first chain has.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s2d_convert.base.reporting import PlannedStep
from s2d_convert.conversion.context import FIRST_CHAIN, Job
from s2d_convert.conversion.exact import HEAD_SECONDS, images_and_copies
from s2d_convert.conversion.explore import allocate, make_evaluator
from s2d_convert.conversion.finals import METHOD, ROUNDS
from s2d_convert.conversion.finish import Result
from s2d_convert.conversion.options import FIRST, PLANS, ConvertOptions, Effort
from s2d_convert.conversion.run_folder import CHOSEN, SECONDS
from s2d_convert.conversion.training_steps import MOST_PASSES, finishing_seconds
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import PlanSpace, depth_taps
from s2d_convert.search.allocation import allocated, pairs_of
from s2d_convert.search.base import Evaluation
from s2d_convert.training.exit_heads import row_bytes
from s2d_convert.training.reconstruction import MAX_COLUMNS, Settings
from s2d_convert.training.settings import TrainSettings, batch_size, step_seconds

PREPARING = 12.0  # statistics and allocation, relative to a rough solve
FULL_SOLVE = 5.0  # relative to a rough one
GRAMS = 4  # float64 matrices of the widest layer at a time
MEASURING = 0.6  # seconds for the latency of a candidate
CONTENDERS = 6  # in the finals, about
METHODS = 3  # of search, where the baselines run too
SHOWN = 6  # first chains of a forecast
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def steps_ahead(options: ConvertOptions, work: Effort) -> list[str]:
    """Return the steps of a conversion after the model has shown that it works on the data, with these amounts of work. A
    resumed run may leave some out."""
    names: list[str] = []
    training = ["fine-tune"] if work.finetune_epochs or work.finetune_min_steps else []
    if options.exact and options.plan != FIRST:
        narrow = ["finals", *training] if options.data is not None and options.picture is None else []
        names = ["heads", "search", *narrow]
    elif options.plan != FIRST:
        names = [
            *(["heads"] if compares_exits(options) else []),
            "search",
            *(["finals"] if options.plan in PLANS else []),
        ]
        names += training
    return [*names, "export", "measure", *(["quantize"] if options.quantize else [])]


def too_large_to_train(job: Job) -> bool:
    """Return whether a training is left out only because the time does not allow it."""
    return steps_ahead(job.options, job.work) != steps_ahead(job.options, job.options.work)


def compares_exits(options: ConvertOptions) -> bool:
    """Return whether what is trained has a rival in exits on the unchanged backbone; their heads are trained, too."""
    real = options.data is not None and options.picture is None
    return real and options.plan == "search" and options.work.trial_steps > 0


def planned(job: Job) -> list[PlannedStep]:
    """Return the steps to come and how long each will take. Of exact mode only what the clock says is known."""
    seconds: dict[str, float] = {"measure": finishing_seconds(job)}
    if job.clock.limited:
        left, until = job.clock.left, job.timetable
        seconds["heads"] = left(until.heads)
        seconds["search"] = left(until.search) - seconds["heads"]
        seconds["finals"] = left(until.finals) - left(until.search)
        seconds["fine-tune"] = max(0.0, left(until.training) - left(until.finals) - seconds["measure"])
    elif not job.options.exact:
        seconds |= _by_effort(job)
    return [PlannedStep(name, seconds.get(name, math.nan)) for name in steps_ahead(job.options, job.work)]


def _by_effort(job: Job) -> dict[str, float]:
    """Return the seconds that the steps take at the requested effort."""
    ready, work = job.ready, job.options.work
    image = job.image_seconds / torch.get_num_threads()
    step = step_seconds(TrainSettings.batch_size, image, FIRST_CHAIN)
    solve = ready.solver.rough_seconds(job.image_seconds)
    candidates = work.evaluations * (METHODS if work.baselines and job.options.plan == "search" else 1)
    epochs = round(work.finetune_epochs * len(ready.dataset.train) / TrainSettings.batch_size)
    trials = (CONTENDERS * ROUNDS[0] + math.ceil(CONTENDERS / 3) * ROUNDS[1]) * work.trial_steps
    rows = min(work.head_images, HEAD_SECONDS / image)
    return {
        "heads": 2 * rows * image,
        "search": PREPARING * solve + candidates * (solve + MEASURING),
        "finals": CONTENDERS * FULL_SOLVE * solve + trials * step,
        "fine-tune": max(epochs * MOST_PASSES / 2, work.finetune_min_steps) * step,
    }


def memory_bytes(job: Job) -> int:
    """Return about how much memory the conversion will take: what was taken so far, and what its steps keep."""
    unit = 1 if sys.platform == "darwin" else 1024
    steps = steps_ahead(job.options, job.work)
    trains = _batch_bytes(job) if "fine-tune" in steps else 0
    heads = _feature_bytes(job) if "heads" in steps else 0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _solve_bytes(job) + max(trains, heads)


def _solve_bytes(job: Job) -> int:
    """Return the bytes of the values that a full solve keeps, and of the Gram matrices of its widest layer."""
    graph, images = job.ready.graph, min(1000, len(job.ready.dataset.train))
    largest = max(4 * math.prod(shape) for shape in graph.shapes.values())
    kept = Settings.values_bytes + Settings.targets_bytes
    columns = [weight[0].size for weight, _ in job.ready.weights.mix.values()]
    grams = GRAMS * 8 * max((count for count in columns if count <= MAX_COLUMNS), default=0) ** 2
    return min(kept, 4 * largest * images) + grams


def _batch_bytes(job: Job) -> int:
    """Return the bytes of the values of a training step, which its backward pass needs together."""
    return batch_size(job.ready.graph.image_bytes) * job.ready.graph.image_bytes


def _feature_bytes(job: Job) -> int:
    """Return the bytes of the features from which exit heads learn."""
    taps = depth_taps(job.ready.model)
    return math.prod(images_and_copies(job, taps)) * row_bytes(job.ready.model, taps)


@dataclass(frozen=True)
class Expected:
    """What a mean latency, relative to static, costs in accuracy (or agreement): the share that is right, without training."""

    budget: float
    right: float


@dataclass(frozen=True)
class Forecast:
    """The steps of a conversion with their seconds, its memory in bytes, and what its first chains are worth before training.

    right: the share of right answers of the static model on the same images; target: what is right, accuracy or agreement.
    """

    steps: tuple[PlannedStep, ...]
    memory: int
    target: str
    right: float
    expected: tuple[Expected, ...] = ()


def forecast(job: Job, space: PlanSpace | None) -> Forecast:
    """Return what a conversion will take, and what solved first chains are worth for a row of budgets. Nothing is trained."""
    steps, task = tuple(planned(job)), job.ready.task
    right = float(job.ready.validation.static_right(task).mean())
    expected = tuple(_expected(job, space)) if space is not None and job.ready.dataset.kind != "made-up" else ()
    return Forecast(steps, memory_bytes(job), job.ready.target, right, expected)


def _expected(job: Job, space: PlanSpace) -> Iterator[Expected]:
    evaluate, pairs = make_evaluator(job, trained=False), pairs_of(space)
    chains = [pairs.decode(actions) for actions in allocated(pairs, allocate(job, space), SHOWN)]
    for budget in BUDGETS:
        values: list[Evaluation] = [evaluate.at_budget(budget)(chain) for chain in chains]
        within = [value.accuracy for value in values if value.latency <= budget]
        if within:
            yield Expected(budget, max(within))


# Afterwards


def closing_notes(job: Job, conversion: Conversion, result: Result) -> Iterator[str]:
    """Yield notes on how well the search predicted the latency, and how the time was spent."""
    run, chosen = job.run, job.run.read_json(CHOSEN)
    same = chosen is not None and chosen["plan"] == conversion.digest() and job.options.quantize is None
    if same and job.ready.table is None:  # a table speaks of another device
        predicted = predicted_latency(chosen["stage_latency"], result.measured.exit_share)
        measured = result.measured.mean_latency
        yield (
            f"mean latency: {predicted:.3f} by the search's stage times, {measured:.3f} measured from the files "
            f"({100 * (measured / predicted - 1):+.1f} %)"
        )
    timed = {
        "search": measuring_seconds(line for line in run.trace() if line["method"] != METHOD),
        "finals": measuring_seconds(line for line in run.trace() if line["method"] == METHOD),
    }
    yield time_shares(run.read_json(SECONDS), timed)


def predicted_latency(stage_latency: Sequence[float], exit_share: Sequence[float]) -> float:
    """Return the mean latency that the stage times of the search give with these shares of exits, relative to static."""
    return float(np.dot(np.cumsum(stage_latency), exit_share))


def time_shares(seconds: Mapping[str, float], measuring: Mapping[str, float]) -> str:
    """Return the shares of a conversion's time, in words. measuring: the seconds of a step that went into timing models."""
    rest = {step: max(0.0, value - measuring.get(step, 0.0)) for step, value in seconds.items()}
    parts = {
        "training": sum(value for step, value in rest.items() if step not in ("search", "finish")),
        "search": rest.get("search", 0.0),
        "measuring": sum(measuring.values()) + seconds.get("finish", 0.0),
    }
    total = max(sum(parts.values()), 1e-9)
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts.items())
    return f"time: {total:.0f} s ({shares})"


def measuring_seconds(trace: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds that timing the candidates of a trace took. Lines that repeat a candidate took none."""
    return float(sum(line["info"].get("measure_s", 0.0) for line in trace if line["seconds"] > 0))

"""Conversions whose last stage is the unchanged model (`--mode exact`): a wrong guess costs an exit, never an answer.

Depth exits leave the backbone unchanged. Only their heads are trained (`training.exit_heads`):

1. Compute the features of all candidate taps and the static model's logits, once.
2. Train a head for every tap, and compute its logits on the calibration images.
3. Measure every exit alone in onnxruntime, and predict the cost of sets of exits from this (a beam search over sets).
4. Measure the best sets themselves, together with the static model. The highest reward wins.

The other kinds are a pruned first chain before the unchanged model, which `pipeline` trains, and the user's own network before
it (`--first`). `better` compares them.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import write_bytes
from s2d_convert.conversion.context import Job, Tuned
from s2d_convert.conversion.run_folder import DEPTH, FEATURES, HEADS
from s2d_convert.conversion.worth import (
    dispatched_costs,
    stage_costs,
    timed_costs,
    trained_worth,
    with_overhead,
    worth,
)
from s2d_convert.data.augment import Level
from s2d_convert.errors import ModelError
from s2d_convert.latency import LatencyMeter
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.exit_points import NOWHERE
from s2d_convert.plans.plan import Conversion, Plan, identity_plan
from s2d_convert.plans.space import depth_taps
from s2d_convert.plans.weights import ExitHead
from s2d_convert.search.base import Evaluation, Trial, evaluation_from_json, trial_to_json
from s2d_convert.slicing.chain import Chain, build_stages
from s2d_convert.slicing.own_network import OwnNetwork
from s2d_convert.training.exit_heads import MAX_COPIES, Copies, Extractor, Features, head_logits, row_bytes, train_heads
from s2d_convert.training.settings import Progress

DEPTH_METHOD = "depth"  # of trials of sets of exits in the trace
TAPS = "taps"  # the key of a depth trial's taps in the trace, as indices
BEAM = 6
LEAST_SHARE = 0.01  # an exit that fewer images take only adds cost
HEAD_SECONDS, HEAD_BYTES, LEAST_ROWS = 120.0, 1e9, 500  # of the features of heads; training may take as long again
LEAST_MEASURED = 4  # least number of sets of exits whose latency is measured


@dataclass(frozen=True)
class Candidate:
    """A conversion with its trained weights, and its evaluation on the calibration images."""

    conversion: Conversion
    tuned: Tuned
    evaluation: Evaluation


def better(first: Candidate, second: Candidate) -> Candidate:
    """Return the candidate with the higher reward, the first one if they are equal."""
    return second if second.evaluation.reward > first.evaluation.reward else first


# --- heads ------------------------------------------------------------------------------------------------


def trained_heads(job: Job) -> tuple[dict[str, ExitHead], Array]:
    """Train a head for every candidate tap. Return the heads and their logits [T, B, K] on the validation images."""
    ready, options, run, reporter = job.ready, job.options, job.run, job.reporter
    reporter.step("heads")
    taps = depth_taps(ready.model)
    if not taps:
        raise ModelError(NOWHERE)
    extractor = Extractor(ready.model, taps, threads=torch.get_num_threads(), provider=options.provider)
    heads = _read_heads(run.path / HEADS, taps)
    if heads is None:
        features = _training_features(job, extractor)

        def show(progress: Progress) -> None:
            loss = f"loss {progress.loss:.3f}"
            reporter.progress(progress.step, progress.steps, "training steps", progress.seconds_left, detail=loss)

        heads = train_heads(
            ready.model, features,
            epochs=options.work.head_epochs, seed=options.seed, device=ready.device,
            seconds=min(HEAD_SECONDS, job.clock.left(job.timetable.heads)), on_step=show,
        )  # fmt: skip
        _write_heads(run.path / HEADS, heads)
    logits = head_logits(ready.model, heads, extractor.features(ready.validation.images))
    agree = ready.validation.counted(ready.task, logits).mean(axis=1)
    reporter.detail("heads: right on held-out images " + ", ".join(f"{100 * a:.0f} %" for a in agree))
    return heads, logits


def _training_features(job: Job, extractor: Extractor) -> Features:
    """Return the features of the training images. If there are few, further augmented copies are added."""
    ready, options = job.ready, job.options
    count, copies = images_and_copies(job, extractor.taps)
    images = ready.dataset.train.take(slice(0, count))
    level: Level = "strong" if images.kind == "made-up" else "light"

    def show(done: int, total: int) -> None:
        job.reporter.progress(done, total, "images computed", math.nan)

    augmented = Copies(copies, level, options.flip, options.seed)
    return extractor.features(images, copies=augmented, store=job.run.path / FEATURES, report=show)


def images_and_copies(job: Job, taps: Sequence[str]) -> tuple[int, int]:
    """Return how many images heads at these taps learn from, and how often each is taken."""
    most, train = most_rows(job, taps), job.ready.dataset.train
    images = min(most, len(train))
    return images, 1 if train.kind == "made-up" else max(1, min(MAX_COPIES, most // images))


def most_rows(job: Job, taps: Sequence[str]) -> int:
    """Return how many rows of features are computed: as many as the effort asks for, and time and memory allow."""
    seconds = min(HEAD_SECONDS, 0.5 * job.clock.left(job.timetable.heads))
    by_time = seconds * torch.get_num_threads() / job.image_seconds
    rows = min(job.options.work.head_images, by_time, HEAD_BYTES / row_bytes(job.ready.model, taps))
    return max(LEAST_ROWS, int(rows))


def _write_heads(path: Path, heads: Mapping[str, ExitHead]) -> None:
    arrays: dict[str, Any] = {}
    for index, head in enumerate(heads.values()):
        for layer, (weight, bias) in enumerate(head.layers):
            arrays |= {f"{index}.{layer}.weight": weight, f"{index}.{layer}.bias": bias}
        arrays[f"{index}.cell"] = np.array(head.cell or (), dtype=np.int64)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def _read_heads(path: Path, taps: Sequence[str]) -> dict[str, ExitHead] | None:
    """Return the heads that an interrupted run has trained, None if there are none."""
    if not path.exists():
        return None
    heads = {}
    with np.load(path) as stored:
        for index, tap in enumerate(taps):
            count = sum(name.startswith(f"{index}.") and name.endswith(".weight") for name in stored.files)
            layers = tuple((stored[f"{index}.{k}.weight"], stored[f"{index}.{k}.bias"]) for k in range(count))
            cell = tuple(stored[f"{index}.cell"].tolist())
            heads[tap] = ExitHead(layers, (cell[0], cell[1]) if cell else None)
    return heads


# --- search over sets of exits ----------------------------------------------------------------------------

Taps = tuple[int, ...]  # indices of the taps of all exits but the last, ascending


class DepthSearch:
    """The search for the best set of depth exits, from the logits [T, B, K] of all heads and measured latencies."""

    def __init__(self, job: Job, heads: Mapping[str, ExitHead], logits: Array, meter: LatencyMeter) -> None:
        self.job, self.ready, self.logits, self.meter = job, job.ready, logits, meter
        self.taps = tuple(heads)
        self.weights = job.ready.weights.with_heads(heads)
        self._singles: dict[int, tuple[float, ...]] = {}

    def chain(self, taps: Taps) -> Chain:
        """Return the chain with exits at these taps."""
        model = self.ready.model
        plan = Plan((*(self.taps[t] for t in taps), model.graph.output), (1,) * model.channels.units)
        return Chain(model, plan, self.weights)

    def measured(self, taps: Taps) -> Evaluation:
        """Evaluate a set of exits with its measured latency."""
        cost, seconds = timed_costs(partial(stage_costs, self.meter), build_stages([self.chain(taps)]))
        value = self._worth(taps, _whole(cost))
        return replace(value, info={**value.info, "measure_s": seconds})

    def predicted(self, taps: Taps) -> Evaluation:
        """Evaluate a set of exits with a latency predicted from those of its single exits."""
        singles = [self._single(t) for t in taps]
        # The cost before each exit's head, from where the next stage continues. A single exit has no earlier heads.
        before = (0.0, *(1 - rest for _, rest in singles))
        cost = [max(1e-4, first - start) for (first, _), start in zip(singles, before, strict=False)]
        return self._worth(taps, [*cost, singles[-1][1]])

    def _single(self, tap: int) -> tuple[float, ...]:
        """Return the measured latencies of the stages before and behind one exit."""
        if tap not in self._singles:
            self._singles[tap] = _whole(stage_costs(self.meter, build_stages([self.chain((tap,))])))
        return self._singles[tap]

    def _worth(self, taps: Taps, cost: Sequence[float]) -> Evaluation:
        logits = np.concatenate([self.logits[list(taps)], self.ready.validation.logits[None]])
        return worth(self.job, logits, with_overhead(self.job, cost))

    def shortlist(self, count: int) -> list[Taps]:
        """Return the sets with the highest predicted rewards, best first. Sets are grown exit by exit (beam search)."""
        every = range(len(self.taps))
        scores: dict[Taps, float] = {}
        level: set[Taps] = {(t,) for t in every}
        for _ in range(self.job.options.stages - 1):
            scores |= {taps: self.predicted(taps).reward for taps in sorted(level)}
            best = sorted(level, key=lambda taps: (-scores[taps], taps))[:BEAM]
            level = {tuple(sorted({*taps, t})) for taps in best for t in every if t not in taps}
        return sorted(scores, key=lambda taps: (-scores[taps], taps))[:count]

    def best(self) -> Taps:
        """Measure the shortlist and return the set with the highest reward, if possible one without idle exits.

        On a busy machine the cost of an idle exit is hidden by noise. Every measured set is written to the trace, so a
        resumed run does not measure it again.
        """
        job, measured = self.job, []
        job.run.rewrite_trace()
        known = {tuple(line[TAPS]): evaluation_from_json(line) for line in job.run.trace() if TAPS in line}
        listed = self.shortlist(max(LEAST_MEASURED, job.options.work.evaluations // 4))
        for number, taps in enumerate(listed):
            if taps not in known:
                known[taps] = self._tried(taps, len(known))
            value = known[taps]
            reward = f"reward {value.reward:.4f}"
            job.reporter.progress(number + 1, len(listed), "sets of exits measured", math.nan, detail=reward)
            idle = min(value.info["exit_share"][:-1]) < LEAST_SHARE
            measured.append((not idle, value.reward, -number, taps))
        return max(measured)[-1]

    def _tried(self, taps: Taps, index: int) -> Evaluation:
        """Measure a set of exits and append it to the trace."""
        started = time.perf_counter()
        value = self.measured(taps)
        conversion = Conversion((self.chain(taps).plan,))
        trial = Trial(index, DEPTH_METHOD, (), conversion, value, False, time.perf_counter() - started)
        line = trial_to_json(trial, conversion.to_json(self.ready.channels))
        self.job.run.append_trace({**line, TAPS: list(taps)})
        return value


def _whole(ratios: Sequence[float]) -> tuple[float, ...]:
    """Return the latencies of the stages of a depth split, scaled up if their sum is below 1.

    Together the stages do all that the static model does. A smaller sum means that the machine changed its speed.
    """
    total = sum(ratios)
    return tuple(ratio / min(1.0, total) for ratio in ratios)


def depth_candidate(job: Job, meter: LatencyMeter, heads: Mapping[str, ExitHead], logits: Array) -> Candidate:
    """Return the best chain of exits on the unchanged backbone. heads, logits: from `trained_heads`."""
    search = DepthSearch(job, heads, logits, meter)
    stored = job.run.read_json(DEPTH)
    taps: Taps = search.best() if stored is None else tuple(stored)
    job.run.write_json(DEPTH, list(taps))
    chain, value = search.chain(taps), search.measured(taps)
    _tell(job, "exits by depth", value)
    ready, chosen = job.ready, chain.plan.taps[:-1]
    net = StagedNet(ready.model, chain.weights, taps=chosen).to(ready.device).eval()
    masks = net.masks(Effective(ready.model, chain.plan))
    return Candidate(Conversion((chain.plan,)), Tuned.trained(net, masks, chain), value)


def cascade_candidate(
    job: Job, conversion: Conversion, tuned: Tuned, *, name: str = "narrow chain before the untouched model"
) -> Candidate:
    """Return the candidate of a first chain before the unchanged model. name: what it is called in a note."""
    value = trained_worth(job, conversion, tuned.chain, partial(dispatched_costs, job))
    _tell(job, name, value)
    return Candidate(conversion, tuned, value)


def own_candidate(job: Job, own: OwnNetwork) -> Candidate:
    """Return the candidate of the user's own network before the unchanged model."""
    conversion = Conversion((identity_plan(job.ready.model),), own.facts)
    return cascade_candidate(
        job, conversion, Tuned(own.chain, own.logits), name=f"{own.facts.file} before the untouched model"
    )


def _tell(job: Job, name: str, value: Evaluation) -> None:
    job.reporter.note(
        f"{name}: {job.ready.target} {100 * value.accuracy:.1f} % at {value.latency:.2f} of the static time"
    )
    job.reporter.detail(f"{name}: reward {value.reward:.4f}")

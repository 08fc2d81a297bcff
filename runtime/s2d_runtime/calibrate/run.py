"""The calibration: measure the stages here, choose thresholds for a row of budgets, publish the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from s2d_runtime.calibrate.answers import BATCH, Answers, collect, open_reference
from s2d_runtime.calibrate.data import Data, read_data
from s2d_runtime.calibrate.folder import publish, restore
from s2d_runtime.calibrate.record import calibrated_manifest, measured_numbers
from s2d_runtime.calibrate.timing import Costs, Latency, median_costs, policy_latency, stage_costs
from s2d_runtime.dispatcher import Dispatcher, DispatcherError, Manifest, Policy
from s2d_runtime.policies import MAX_LOSS, AskedFor, accurate_row, bounded_row, budget_row, counted
from s2d_runtime.profile import machine
from s2d_runtime.thresholds import observed

TRIES = 4
FEW = 100  # images; with fewer, an accuracy is uncertain by about ten points
SHARE_SLACK = 0.01  # by how much shares of exits may differ between batches of other sizes


@dataclass(frozen=True)
class Options:
    """What to calibrate on. `model`: the static model's file, None where the last stage is that model.

    `budget`: the new default budget. `max_loss`: instead, the default is the cheapest policy that loses at most this share of
    accuracy; in exact mode it bounds every policy, and is MAX_LOSS unless given. Without either, the folder stays what it was
    asked to be: within a loss, or within its default budget.
    """

    folder: Path
    data: Path
    model: Path | None = None
    budget: float | None = None
    max_loss: float | None = None
    threads: int = 1
    seconds: float = 3.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.max_loss is not None:
            raise DispatcherError("--budget and --max-loss exclude each other; give one of them")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise DispatcherError(f"--budget {self.budget:g}: above 0 and at most 1 is allowed")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise DispatcherError(f"--max-loss {self.max_loss:g}: at least 0 and below 1 is allowed")
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= 3600):
            raise DispatcherError(f"--seconds {self.seconds:g}: above 0 and at most 3600 is allowed")


@dataclass(frozen=True)
class Calibrated:
    """The new manifest and warnings."""

    manifest: Manifest
    warnings: tuple[str, ...]


def calibrate(options: Options) -> Calibrated:
    """Set the thresholds and latencies of a folder anew. Raises DispatcherError, and leaves the folder as it was then.

    Thresholds are chosen by the latencies of the stages, then the folder is timed with them. If the two contradict each other,
    both are measured again, up to TRIES times; policies come from the medians.
    """
    with Dispatcher(options.folder, threads=options.threads) as runner:
        before = runner.manifest
        data = read_data(options.data, before)
        reference, warning = open_reference(options.model, runner, threads=options.threads)
        said = collect(runner, reference, data)
        warnings = [warning] if warning else []
        tries: list[Costs] = []
        while True:
            tries.append(stage_costs(runner, reference, data.images[:1], seconds=options.seconds))
            costs = median_costs(tries)
            row, default = choose(before, said, cost=costs.per_stage, options=options)
            chosen = next(policy for policy in row if policy.budget == default)
            latency = policy_latency(runner, reference, data.images, chosen, said.confidence)
            if not latency.contradicts(chosen.expected_latency):
                break
            if len(tries) == TRIES:
                warnings.append(_busy(chosen, latency))
                break
    measured = measured_numbers(before, said, chosen, costs=costs, latency=latency) | {
        "threads": options.threads,
        "machine": f"{options.name or machine()}, onnxruntime {ort.__version__}",
    }
    calibration = {"data": str(options.data.resolve()), "images": len(data.images), "max_loss": options.max_loss}
    after = calibrated_manifest(before, row, default, costs=costs, measured=measured, calibration=calibration)
    publish(options.folder, after, try_out=partial(check, data=data, threads=options.threads))
    return Calibrated(after, (*warnings, *_to_mind(before, len(data.images))))


def undo(folder: Path) -> None:
    """Bring back the manifest before the last calibration. Raises DispatcherError."""
    restore(folder)


def choose(manifest: Manifest, said: Answers, *, cost: Sequence[float], options: Options) -> tuple[list[Policy], float]:
    """Return policies, ascending by budget, and the default budget, chosen as the converter chooses them."""
    confidence, correct, static = said.confidence, said.expected, said.static
    asked_for = AskedFor.of(manifest.provenance)
    loss = options.max_loss if options.max_loss is not None or options.budget else asked_for.loss
    if asked_for.exact:
        before = manifest.default_budget
        asked = options.budget or (before if before < 1 and loss is None else None)
        loss = MAX_LOSS if loss is None else loss
        row, default = bounded_row(confidence, correct, static, cost=cost, budget=asked, max_loss=loss)
    elif loss is not None:
        row, default = accurate_row(confidence, correct, static, cost=cost, max_loss=loss)
    else:
        default = options.budget or manifest.default_budget
        row = budget_row(confidence, correct, cost=cost, budget=default)
    row = counted(row, confidence, said.correct, cost=cost)
    return [observed(policy, confidence, said.as_last) for policy in row], default


def check(folder: Path, *, data: Data, threads: int) -> None:
    """Open a folder and run it on the images. Raises DispatcherError when exits are not shared as its manifest says."""
    with Dispatcher(folder, threads=threads) as runner:
        runner.warm_up()
        stages = [runner(data.images[start : start + BATCH]).stage for start in range(0, len(data.images), BATCH)]
        expected = runner.policy.exit_share
    share = np.bincount(np.concatenate(stages), minlength=len(expected) + 1)[1:] / len(data.images)
    if np.abs(share - expected).max() > SHARE_SLACK:
        raise DispatcherError(
            f"the calibrated folder lets {share.round(3).tolist()} of the images leave at its stages, {list(expected)} was "
            "expected; the manifest is as it was, please report this"
        )


def _busy(policy: Policy, latency: Latency) -> str:
    return (
        f"the machine is busy: mean latency {policy.expected_latency:.3f} by the times of the stages, {latency.mean:.3f} "
        f"measured, and still apart after {TRIES} tries; calibrate again when it is idle"
    )


def _to_mind(before: Manifest, images: int) -> Iterator[str]:
    """Yield warnings about few images and lost promises."""
    if images < FEW:
        yield f"only {images} images: accuracies are uncertain by about ten points; give some hundred"
    if any(policy.promise is not None for policy in before.policies):
        yield "the promise (--max-drop) does not carry over to thresholds that are chosen anew; s2d calibrate tests it again"

"""The result of an exported folder on images: accuracy, exits, latency, and the effect on classes.

Answers and exits come from the stage files, by the runtime's exit rule. Latency is that of the dispatcher (`timing`).

Letters: S stages, B images, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from s2d_runtime import Dispatcher, Manifest
from s2d_runtime.dispatcher import CONFIDENCE, OUTPUT
from s2d_runtime.names import class_names

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import Running, run_stages
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import Scores
from s2d_convert.calibration.thresholds import exits
from s2d_convert.calibration.verdict import Outcome, outcomes
from s2d_convert.data.images import Images
from s2d_convert.exporting.per_class import (
    ClassResult,
    LabelScores,
    Mistake,
    answers_on,
    class_results,
    label_scores,
    lost_classes,
    mistakes,
)
from s2d_convert.exporting.provenance import Origin
from s2d_convert.exporting.timing import PathCosts, image_latency
from s2d_convert.frontend.reference import StaticModel, to_logits

RUN_BATCH = 64
EXACT_BATCH = 32


@dataclass(frozen=True)
class Measured:
    """The numbers of an exported folder on a set of images.

    Latencies are ratios to the static model, measured in the same run. `correct_*`: the share of right answers, None without
    labels; `agreement`: the share of answers like the static model's. `balanced_*`: where classes are unequal.
    `per_class`: of every class, which matters where `classes_differ`, because they are unequal or one is lost. `lost_classes`:
    sentences on classes that a stage loses. `mistakes`: images that became wrong. `outcomes`: of every policy of the folder.

    Where images have several labels, an answer is right if all of its labels are, and `labels` has the numbers of each.
    """

    images: int
    exit_share: tuple[float, ...]
    correct_static: float | None
    correct_dynamic: float | None
    agreement: float
    static_ms: float
    mean_latency: float
    median_latency: float
    worst_latency: float
    static_macs: int
    mean_macs: float
    static_parameters: int
    parameters: int
    threads: int
    batch: int
    balanced_static: float | None = None
    balanced_dynamic: float | None = None
    per_class: tuple[ClassResult, ...] = ()
    classes_differ: bool = False
    lost_classes: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    labels: LabelScores | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return asdict(self)

    def to_mind(self) -> tuple[str, ...]:
        """Return warnings that belong to the numbers: that they rest on few images, and the classes that a stage loses."""
        what, share = ("agreement", self.agreement)
        if self.correct_dynamic is not None:
            what, share = ("accuracy" if self.labels is None else "exact match"), self.correct_dynamic
        few = few_images(f"measured {what}", share, self.images)
        return (*([few] if few else []), *self.lost_classes)


def measure(runner: Dispatcher, static: StaticModel, images: Images, *, running: Running) -> Measured:
    """Measure the folder behind `runner` on `images`, by the policy that the runner uses."""
    task, stages = static.graph.task, runner.manifest.stages
    scores, confidence = _run(runner, static, images)
    left_at = exits(confidence, runner.policy.thresholds)
    dynamic = scores.classes[left_at, np.arange(len(images))]
    share = np.bincount(left_at, minlength=len(stages)) / max(1, len(images))
    latency = image_latency(runner, static, images, left_at + 1, batch=running.batch)
    labels, origin = images.labels, Origin.of(runner.manifest)
    static_answers = scores.static_classes
    answers = answers_on(images, static_answers, dynamic, left_at + 1, classes=static.graph.classes, task=task)
    names = class_names(runner.manifest) or images.class_names
    lost = lost_classes(answers, names)
    shown = answers.unequal or bool(lost)
    balanced = shown and answers.labelled and not task.several
    return Measured(
        images=len(images),
        exit_share=tuple(share.tolist()),
        correct_static=None if labels is None else float(task.agree(static_answers, labels).mean()),
        correct_dynamic=None if labels is None else float(task.agree(dynamic, labels).mean()),
        agreement=float(task.agree(static_answers, dynamic).mean()),
        static_ms=latency.static_ms,
        mean_latency=latency.mean,
        median_latency=latency.median,
        worst_latency=latency.worst,
        static_macs=origin.macs,
        mean_macs=float((share * np.cumsum([stage.macs for stage in stages])).sum()),
        static_parameters=origin.parameters,
        parameters=int(sum(stage.parameters for stage in stages)),
        threads=running.threads,
        batch=running.batch,
        balanced_static=answers.balanced(static_answers) if balanced else None,
        balanced_dynamic=answers.balanced(dynamic) if balanced else None,
        per_class=class_results(answers, names),
        classes_differ=shown,
        lost_classes=lost,
        mistakes=mistakes(answers, confidence[left_at, np.arange(len(images))]),
        outcomes=folder_outcomes(runner.manifest, scores),
        labels=label_scores(answers) if task.several else None,
    )


def _run(runner: Dispatcher, static: StaticModel, images: Images) -> tuple[Scores, Array]:
    """Return what all stages and the static model say on images, and the stages' confidence, float32 [S, B]."""
    manifest, task = runner.manifest, static.graph.task
    logits, confidence, reference = [], [], []
    for part in slices(len(images), static.graph.batch_of(RUN_BATCH)):
        data = np.ascontiguousarray(images.batch(part))
        made = [outputs for _, outputs in run_stages(runner.sessions, {manifest.input.name: data})]
        logits.append(np.stack([to_logits(outputs[OUTPUT], manifest.output.kind) for outputs in made]))
        confidence.append(np.stack([outputs[CONFIDENCE] for outputs in made]))
        reference.append(task.answers(static.logits(data)))
    scores = Scores(np.concatenate(logits, axis=1), np.concatenate(reference), images.labels, task=task)
    return scores, np.concatenate(confidence, axis=1)


def folder_outcomes(manifest: Manifest, scores: Scores) -> tuple[Outcome, ...]:
    """Return what every policy of a folder does on images with these scores, by the latencies that the manifest has."""
    stages = manifest.stages
    temperatures, cost = [s.temperature for s in stages], [s.latency_ratio for s in stages]
    return outcomes(manifest.policies, scores, temperatures, cost=cost)


def largest_difference(runner: Dispatcher, static: StaticModel, images: Images) -> tuple[float, float]:
    """Return the largest difference of an output between the dispatcher without exits and the static model on the same
    batches, and the largest absolute output of the static model."""
    difference = scale = 0.0
    for part in slices(len(images), static.graph.batch_of(EXACT_BATCH)):
        data = np.ascontiguousarray(images.batch(part))
        expected, got = static.outputs(data), runner(data, exits=False).output
        difference = max(difference, float(np.abs(expected - got).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return difference, scale


def measured_elsewhere(measured: Measured, costs: PathCosts) -> Measured:
    """Return the same answers and exits with the latencies of a device with these costs."""
    share, upto = np.array(measured.exit_share), np.array(costs.ratios)
    median = float(upto[np.searchsorted(np.cumsum(share), 0.5 - 1e-9)])
    return replace(
        measured,
        static_ms=costs.static_ms,
        mean_latency=float(share @ upto),
        median_latency=median,
        worst_latency=float(upto[-1]),
    )

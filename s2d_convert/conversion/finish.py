"""The last step of a conversion: calibrate, write, verify and measure the exported folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from s2d_runtime import Dispatcher, Exactness, Manifest, Policy
from s2d_runtime.policies import MAX_LOSS

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.careful import bounded_policies, careful_policies
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import (
    Chosen,
    Divided,
    Scores,
    accurate_policies,
    budget_policies,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.thresholds import softmax
from s2d_convert.calibration.verdict import Verdict, verdict
from s2d_convert.conversion.context import Job, Prepared, Tuned, timing_images
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.prepare import promise_images, static_logits
from s2d_convert.conversion.worth import later_chains
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import VerifyError
from s2d_convert.exporting.folder import PLAN, TRACE, FolderWriter, draft_manifest, new_folder
from s2d_convert.exporting.measure import Measured, largest_difference, measure, measured_elsewhere
from s2d_convert.exporting.provenance import FIRST_NETWORK, model_facts, recorded_names
from s2d_convert.exporting.steady import Costs, steadily
from s2d_convert.exporting.timing import machine, path_costs, predicted_costs
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.latency.device_table import Table
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.layers import layers_of
from s2d_convert.plans.plan import Conversion, is_untouched
from s2d_convert.slicing.chain import Chain, build_stages, stage_logits
from s2d_convert.slicing.split import StageModel
from s2d_convert.training.loop import exit_logits

VERIFY_IMAGES, EXACT_IMAGES = 64, 256
VERIFY_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Result:
    """The result of a conversion.

    The folder and its manifest; the measurements on unseen images; whether the budget was reached; the latency that
    `--max-latency` allows, None for any; the loss that the verdict allows.
    """

    out: Path
    manifest: Manifest
    measured: Measured
    reached: bool
    max_latency: float | None = None
    max_loss: float = MAX_LOSS

    @property
    def worst_latency(self) -> float:
        """The latency of an image that needs every stage, relative to static: the mean of what the stages and what whole images
        took. A busy machine sets the two apart by a few percent."""
        by_stages = sum(stage.latency_ratio for stage in self.manifest.stages)
        return (by_stages + self.measured.worst_latency) / 2

    @property
    def within_max_latency(self) -> bool:
        """Whether such an image takes no longer than `--max-latency` allows."""
        return self.max_latency is None or self.worst_latency <= self.max_latency

    @property
    def verdict(self) -> Verdict:
        """The verdict on the measured images."""
        manifest = self.manifest
        budget, target = manifest.default_budget, manifest.target_name
        return verdict(self.measured.outcomes, budget=budget, max_loss=self.max_loss, target=target)


def finish(
    job: Job, tuned: Tuned, conversion: Conversion, *, provenance: Mapping[str, Any], out: Path | None = None
) -> Result:
    """Calibrate, verify, write and measure. All numbers in the manifest are measured from the files themselves.

    out: the folder to write, None for the one in the options.
    """
    ready, options, reporter = job.ready, job.options, job.reporter
    out = out or options.out
    reporter.step("export")
    parts = [tuned.chain, *later_chains(ready, conversion)]
    scores = calibration_scores(job, tuned, parts)
    temperatures = fit_temperatures(scores)
    calibrated = [replace(p, weights=replace(p.weights, temperatures=temperatures)) for p in parts]
    models = build_stages(calibrated, weights=options.weights)
    draft = replace(
        draft_manifest(ready.graph, conversion, models, temperatures),
        target=ready.target,
        data=ready.dataset.kind,
        preprocess=recorded(ready.preprocess, ready.dataset.train, options).to_json(),
        provenance={
            **_provenance(ready, options, provenance),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "layers": [layer.to_json() for layer in layers_of(ready.model, conversion)],
            **({} if conversion.first is None else {FIRST_NETWORK: asdict(conversion.first)}),
        },
    )
    with new_folder(out, draft, models, running=options.running, force=options.force) as writer:
        keeps_original = options.exact or keeps_the_original(ready, conversion, tuned)

        def deliver(cost: Costs) -> Measured:
            # Costs do not depend on answers, so a promise that is tested again with other costs is still tested once.
            writer.calibrate(choose_policies(job, models, scores, temperatures, cost=cost), cost)
            return measure_folder(job, writer, models, exact=keeps_original)

        reporter.step("measure")
        measure_costs = partial(measured_costs, job, writer, models)
        measured = steadily(measure_costs, deliver, note=reporter.note, warn=reporter.warn)
        add_records(job, writer, conversion)
    policy = writer.manifest.default_policy
    for text in to_mind(policy, measured, ready):
        reporter.warn(text)
    reached = policy.reached or (options.risk_bound is not None and options.budget is None)
    return Result(out, writer.manifest, measured, reached, options.max_latency, options.max_loss)


def calibration_scores(job: Job, tuned: Tuned, parts: Sequence[Chain]) -> Scores:
    """Verify the stages and return the scores of the images for calibration."""
    ready, options, held_out = job.ready, job.options, job.ready.calibration
    logits = stage_logits(ready.graph, build_stages(parts), held_out.images)
    verify(ready, tuned, parts[1:], logits)
    if options.weights != "float32" or options.provider != "CPUExecutionProvider":  # as they will answer
        models = build_stages(parts, weights=options.weights)
        logits = stage_logits(ready.graph, models, held_out.images, provider=options.provider)
    return Scores(
        logits,
        ready.task.answers(held_out.logits),
        held_out.images.labels,
        task=ready.task,
        static_logits=held_out.told_logits,
    )


def measured_costs(job: Job, writer: FolderWriter, models: Sequence[StageModel]) -> tuple[float, ...]:
    """Return the latency of every stage relative to the static model, by the device's table if there is one."""
    if job.ready.table is not None:
        return predicted_costs(job.ready.table, models).per_stage
    with writer.dispatcher() as runner:
        return path_costs(runner, job.timed_static, timing_images(job.ready, job.options.batch)).per_stage


def measure_folder(job: Job, writer: FolderWriter, models: Sequence[StageModel], *, exact: bool) -> Measured:
    """Measure the folder on the images for the report, and write the results into its manifest.

    exact: measure also how far its last stage is from the static model.
    """
    ready, changes = job.ready, dict[str, Any]()
    with writer.dispatcher() as runner:
        measured = measure(runner, job.timed_static, reported(job), running=job.options.running)
        if exact:
            images = ready.dataset.calib.take(slice(0, EXACT_IMAGES))
            changes["exactness"] = exactness(runner, job.timed_static, images)
    if ready.table is not None:
        measured = measured_elsewhere(measured, predicted_costs(ready.table, models))
    search = job.run.read_baselines()
    writer.update(
        measured={**measured.to_json(), **stands_for(ready.table)},
        provenance={**writer.manifest.provenance, "search": search},
        **changes,
    )
    return measured


def add_records(job: Job, writer: FolderWriter, conversion: Conversion) -> None:
    """Write the plan, the search's trace and the report."""
    writer.add_json(PLAN, conversion.to_json(job.ready.channels))
    trace = job.run.whole_trace()
    if trace is not None:
        writer.add(TRACE, trace)
    writer.add_report(reported(job), trace=writer.folder / TRACE)


def to_mind(policy: Policy, measured: Measured, ready: Prepared) -> Iterator[str]:
    """Yield warnings that belong to the numbers: that they rest on few images, and the classes that a stage loses."""
    few = few_images(f"expected {ready.target}", policy.expected_accuracy, ready.calibrated_on)
    if few:
        yield f"{few}; `s2d calibrate` with some hundred images sets thresholds that can be relied on"
    yield from measured.to_mind()


def recorded(preprocess: Preprocess, images: Images, options: ConvertOptions) -> Preprocess:
    """Return the preprocessing for the manifest: not known if the data were model input and no option says it."""
    return preprocess if options.says_preprocessing or not images.is_model_input else replace(preprocess, known=False)


def stands_for(table: Table | None) -> dict[str, Any]:
    """Return the manifest's entries on the latencies: their machine, and whether they were measured or predicted."""
    if table is None:
        return {"machine": machine(), "latency": "measured"}
    return {"machine": str(table.board), "latency": "predicted", "prediction_error": asdict(table.held_out_error)}


def keeps_the_original(ready: Prepared, conversion: Conversion, tuned: Tuned) -> bool:
    """Return whether the last stage answers as the static model does: a chain that is the model, or exits on its weights."""
    if conversion.later:
        return is_untouched(ready.graph, conversion.chains[-1])
    return tuned.chain.weights.mix is ready.weights.mix


def exactness(runner: Dispatcher, static: StaticModel, images: Images) -> Exactness:
    """Return the manifest's `exactness`, measured in onnxruntime. Raises VerifyError for more than rounding errors."""
    difference, scale = largest_difference(runner, static, images)
    if not difference <= VERIFY_TOLERANCE * max(1.0, scale):
        raise VerifyError(
            f"without exits the folder differs from the static model by {difference:.1e} (at most "
            f"{VERIFY_TOLERANCE * max(1.0, scale):.0e} is allowed); please report this model"
        )
    return Exactness("close" if difference else "identical", difference)


def choose_policies(
    job: Job, models: Sequence[StageModel], scores: Scores, temperatures: Sequence[float], *, cost: Sequence[float]
) -> Chosen:
    """Return the policies. A promise is tested on images on which nothing was chosen, not even the plan."""
    ready, options = job.ready, job.options
    if job.careful:
        return careful_policies(scores, temperatures, cost=cost, budget=options.budget, max_loss=options.max_loss)
    if options.risk_bound is None:
        if options.exact:
            return bounded_policies(scores, temperatures, cost=cost, budget=options.budget, max_loss=options.max_loss)
        if options.budget is None:
            return accurate_policies(scores, temperatures, cost=cost, max_loss=options.max_loss)
        return budget_policies(scores, temperatures, cost=cost, budget=options.budget)
    images = promise_images(ready.dataset)
    static_answers = ready.task.answers(static_logits(ready.static, images))
    logits = stage_logits(ready.graph, models, images, provider=options.provider)
    test = Scores(logits, static_answers, images.labels, images.class_names, ready.task)
    return promised_policies(
        Divided(scores, test), temperatures, cost=cost, risk_bound=options.risk_bound, budget=options.budget
    )


def reported(job: Job) -> Images:
    """Return the images on which nothing was chosen."""
    test = job.ready.dataset.test
    return test if job.options.risk_bound is None else test.take(slice(len(promise_images(job.ready.dataset)), None))


def verify(ready: Prepared, tuned: Tuned, later: Sequence[Chain], logits: Array) -> None:
    """Compare the exported stages with the torch modules, and an untouched last stage with the static model, on images.

    Raises VerifyError if they differ by more than VERIFY_TOLERANCE.
    """
    compared = ready.calibration.take(slice(0, min(VERIFY_IMAGES, len(ready.calibration))))
    images = compared.images
    expected = [*tuned.logits(images)]
    for chain in later:
        if is_untouched(ready.graph, chain.plan):
            expected.append(compared.logits)
        else:
            net = StagedNet(chain.model, chain.weights).to(ready.device).eval()
            expected += [*exit_logits(net, images, net.masks(Effective(chain.model, chain.plan)))]
    pairs = [*zip(logits[:, : len(images)], expected, strict=True)]
    if ready.graph.logits_kind.endswith("probabilities"):  # the files tell logits up to a constant per row only
        pairs = [(softmax(got), softmax(wanted)) for got, wanted in pairs]
    for stage, (got, wanted) in enumerate(pairs, start=1):
        error = float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))
        if not error <= VERIFY_TOLERANCE:
            raise VerifyError(
                f"stage {stage}: the exported file differs from the trained module by {error:.1e} "
                f"(relative; at most {VERIFY_TOLERANCE:.0e} is allowed); please report this model"
            )


def _provenance(ready: Prepared, options: ConvertOptions, extra: Mapping[str, Any]) -> dict[str, Any]:
    plain = options.fingerprint()
    return {
        "model": plain.pop("model"),
        "options": {**plain, "device": ready.device.type},
        **model_facts(ready.model),
        **recorded_names(ready.class_names),
        "versions": versions(),
        **extra,
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers depend on."""
    names = ("s2d-convert", "onnx", "onnxruntime", "torch", "numpy")
    return {name: importlib.metadata.version(name) for name in names}

"""The last step of a conversion: calibrate, write, verify and measure the exported folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from s2d_runtime import Dispatcher

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import whole_folder, write_json
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import (
    Chosen,
    Scores,
    budget_policies,
    careful_policies,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.thresholds import softmax
from s2d_convert.conversion.context import Job, Prepared, Tuned
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.prepare import promise_images, static_logits, timing_images
from s2d_convert.conversion.run_folder import TRACE
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.errors import VerifyError
from s2d_convert.exporting.folder import draft_manifest, write_manifest, write_stages
from s2d_convert.exporting.measure import (
    Measured,
    largest_difference,
    machine,
    measure,
    measured_elsewhere,
    path_costs,
    predicted_costs,
)
from s2d_convert.exporting.provenance import model_facts
from s2d_convert.exporting.report.gallery import gallery
from s2d_convert.exporting.report.page import REPORT, write_report
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.latency.device_table import Table
from s2d_convert.plans.plan import Conversion, is_untouched
from s2d_convert.slicing.chain import Chain, build_stages, stage_logits
from s2d_convert.slicing.split import StageModel
from s2d_convert.training.loop import exit_logits

VERIFY_IMAGES, EXACT_IMAGES = 64, 256
VERIFY_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Result:
    """The outcome of a conversion: where it is, what was measured on unseen images, whether the budget was reached, and
    whether an image that runs through every stage costs at most what was allowed."""

    out: Path
    manifest: Mapping[str, Any]
    measured: Measured
    reached: bool
    within_bound: bool


def finish(
    job: Job, tuned: Tuned, conversion: Conversion, *, provenance: Mapping[str, Any], out: Path | None = None
) -> Result:
    """Calibrate, write, verify and measure; everything that the manifest says is measured from the files themselves.

    `out` is the folder to write, without it the one that the options name.
    """
    ready, options, run, reporter = job.ready, job.options, job.run, job.reporter
    out = out or options.out
    reporter.step("export")
    parts = [tuned.chain, *(Chain(ready.model, c, ready.weights) for c in conversion.chains[1:])]
    logits = stage_logits(ready.graph, build_stages(parts), ready.dataset.calib)
    verify(ready, tuned, logits)
    if options.weights != "float32":
        logits = stage_logits(ready.graph, build_stages(parts, weights=options.weights), ready.dataset.calib)
    scores = Scores(logits, ready.calib_logits.argmax(axis=1), ready.dataset.calib.labels)
    temperatures = fit_temperatures(scores)
    calibrated = [replace(p, weights=replace(p.weights, temperatures=temperatures)) for p in parts]
    models = build_stages(calibrated, weights=options.weights)
    with whole_folder(out) as folder:
        manifest = draft_manifest(ready.graph, conversion, models, temperatures)
        manifest |= {
            "target": ready.target,
            "data": ready.dataset.kind,
            "preprocess": recorded(ready.preprocess, ready.dataset.train, options).to_json(),
            "provenance": _provenance(ready, options, provenance),
        }
        write_stages(folder, manifest["stages"], models)
        write_manifest(folder, manifest)
        timing_static = StaticModel(ready.graph, options.running)
        with options.running.dispatcher(folder) as runner:
            costs = path_costs(runner, timing_static, timing_images(ready, options.batch))
        if ready.table is not None:
            costs = predicted_costs(ready.table, models)
        chosen = choose_policies(job, models, scores, temperatures, cost=costs.per_stage)
        manifest |= chosen.to_json()
        for entry, cost in zip(manifest["stages"], costs.per_stage, strict=True):
            entry["latency_ratio"] = round(cost, 5)
        write_manifest(folder, manifest)
        reporter.step("measure")
        with options.running.dispatcher(folder) as runner:
            measured = measure(runner, timing_static, reported(job), running=options.running)
            if options.exact or keeps_the_original(ready, conversion):
                manifest["exactness"] = exactness(
                    runner, timing_static, ready.dataset.calib.take(slice(0, EXACT_IMAGES))
                )
        if ready.table is not None:
            measured = measured_elsewhere(measured, costs)
        manifest["measured"] = {**measured.to_json(), **stands_for(ready.table)}
        manifest["provenance"]["search"] = run.read_json("baselines.json") or {}
        write_manifest(folder, manifest)
        write_json(folder / "plan.json", conversion.to_json(ready.channels))
        if (run.path / TRACE).exists():
            run.rewrite_trace()  # a torn last line stays behind
            (folder / TRACE).write_bytes((run.path / TRACE).read_bytes())
        with options.running.dispatcher(folder) as runner:
            pictures = gallery(runner, reported(job))
        write_report(folder / REPORT, manifest, trace=folder / TRACE, gallery=pictures)
    for text in to_mind(chosen, measured, ready):
        reporter.warn(text)
    reached = chosen.default.reached or options.cheapest
    within = options.max_latency is None or measured.worst_latency <= options.max_latency
    return Result(out, manifest, measured, reached, within)


def to_mind(chosen: Chosen, measured: Measured, ready: Prepared) -> Iterator[str]:
    """What the numbers do not tell by themselves: how few images they rest on, and which classes a stage loses."""
    calib = ready.dataset.calib
    few = few_images(f"expected {ready.target}", chosen.default.expected_accuracy, len(calib))
    if few:
        yield f"{few}; `s2d calibrate` with some hundred images sets thresholds that can be relied on"
    yield from measured.lost_classes


def recorded(preprocess: Preprocess, images: Images, options: ConvertOptions) -> Preprocess:
    """What the manifest says of the way from pixels to model input: not known where the images were none and nobody said."""
    return preprocess if options.says_preprocessing or not images.is_model_input else replace(preprocess, known=False)


def stands_for(table: Table | None) -> dict[str, Any]:
    """Which machine the latencies stand for, and whether they were measured there or predicted for it."""
    if table is None:
        return {"machine": machine(), "latency": "measured"}
    return {"machine": str(table.board), "latency": "predicted", "prediction_error": asdict(table.held_out_error)}


def keeps_the_original(ready: Prepared, conversion: Conversion) -> bool:
    """Whether the last stage is the static model by its plan, whatever the mode."""
    return len(conversion.chains) > 1 and is_untouched(ready.graph, conversion.chains[-1])


def exactness(runner: Dispatcher, static: StaticModel, images: Images) -> dict[str, str | float]:
    """The manifest's `exactness`, measured in onnxruntime. Raises VerifyError when it is more than rounding."""
    difference, scale = largest_difference(runner, static, images)
    if not difference <= VERIFY_TOLERANCE * max(1.0, scale):
        raise VerifyError(
            f"without exits the folder differs from the static model by {difference:.1e} (at most "
            f"{VERIFY_TOLERANCE * max(1.0, scale):.0e} is allowed); please report this model"
        )
    return {"equal": "close" if difference else "identical", "max_difference": difference}


def choose_policies(
    job: Job, models: Sequence[StageModel], scores: Scores, temperatures: Sequence[float], *, cost: Sequence[float]
) -> Chosen:
    """The policies; where a promise is asked for it is tested on images that nothing else was chosen on, not even the plan."""
    ready, options = job.ready, job.options
    if job.careful:
        return careful_policies(scores, temperatures, cost=cost, budget=options.budget)
    if options.bound is None:
        return budget_policies(scores, temperatures, cost=cost, budget=options.budget)
    images = promise_images(ready.dataset)
    said = static_logits(ready.static, images).argmax(axis=1)
    test = Scores(stage_logits(ready.graph, models, images), said, images.labels)
    budget = None if options.cheapest else options.budget
    return promised_policies(scores, test, temperatures, cost=cost, bound=options.bound, budget=budget)


def reported(job: Job) -> Images:
    """The images on which nothing was chosen at all."""
    test = job.ready.dataset.test
    return test if job.options.bound is None else test.take(slice(len(promise_images(job.ready.dataset)), None))


def verify(ready: Prepared, tuned: Tuned, logits: Array) -> None:
    """Compare the exported stages with the torch module, and an untouched last stage with the static model, on real
    images. Raises VerifyError when they part."""
    images = ready.dataset.calib.take(slice(0, min(VERIFY_IMAGES, len(ready.dataset.calib))))
    expected = [*exit_logits(tuned.net, images, tuned.masks)]
    expected += [ready.calib_logits[: len(images)]] * (len(logits) - len(expected))
    pairs = [*zip(logits[:, : len(images)], expected, strict=True)]
    if ready.graph.logits_kind != "logits":  # the files tell logits up to a constant per row only
        pairs = [(softmax(got), softmax(own)) for got, own in pairs]
    for stage, (got, own) in enumerate(pairs, start=1):
        error = float(np.abs(got - own).max() / max(1.0, float(np.abs(own).max())))
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
        "versions": versions(),
        **extra,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    names = ("s2d-convert", "onnx", "onnxruntime", "torch", "numpy")
    return {name: importlib.metadata.version(name) for name in names}

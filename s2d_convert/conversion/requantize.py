"""Write an exported folder again in another arithmetic: convert every stage, calibrate and measure.

Letters: B images, S stages; N rows that reach a stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from s2d_runtime import Manifest, leaves

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import ONE_THREAD, Running, make_session, run_stages
from s2d_convert.calibration.policies import Scores, fit_temperatures
from s2d_convert.conversion.prepare import static_logits
from s2d_convert.data.images import Dataset, Images
from s2d_convert.errors import ModelError, OutputError
from s2d_convert.exporting.folder import PLAN, TRACE, FolderWriter, new_folder, read_stages, with_stages
from s2d_convert.exporting.measure import Measured, measure
from s2d_convert.exporting.quantize import check_runs, float16_stage, int8_stage, set_temperature
from s2d_convert.exporting.renewal import chosen_again
from s2d_convert.exporting.steady import Costs, steadily
from s2d_convert.exporting.timing import machine, path_costs
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.slicing.chain import stage_logits
from s2d_convert.slicing.split import StageModel
from s2d_convert.slicing.stage_graph import CONFIDENCE

DRAWN, USED, AT_LEAST = 2048, 512, 64  # images: drawn, used at a stage, and used even where fewer reach it
LEAST_AGREEMENT = 0.9  # of images on which a stage must answer as before (each of its labels); else it stays in float32
MOST_BYTES = 2**30  # of the images and links that are held at a time
RUN_BATCH = 16  # a batch of large images through a stage takes much memory
FLOAT = "float32"
KEPT = (PLAN, TRACE)  # files of the folder that stay as they are

Note = Callable[[str], None]
Quantizer = Callable[[onnx.ModelProto, Mapping[str, Array]], onnx.ModelProto]  # a stage, and inputs that it is shown
QUANTIZERS: Mapping[str, Quantizer] = {"int8": int8_stage, "fp16": lambda model, _feeds: float16_stage(model)}


@dataclass(frozen=True)
class Requantization:
    """How to convert the stages of a folder.

    kind: 'int8', 'int8:early' or 'fp16'. running: how stages are run when latency is measured. force: an export that lies
    where the folder is to be written is replaced. quantizers: the functions that convert one stage, by arithmetic.
    """

    kind: str
    running: Running = ONE_THREAD
    force: bool = False
    quantizers: Mapping[str, Quantizer] = field(default_factory=lambda: QUANTIZERS)


def requantize(
    folder: Path, out: Path, asked: Requantization, *, dataset: Dataset, static: StaticModel, note: Note
) -> tuple[Manifest, Measured]:
    """Write `folder` in another arithmetic to `out`; return the new manifest and the measured results.

    Training images give the ranges of activations, the images for calibration temperatures and thresholds, the test images
    the results. Raises ModelError for a stage that cannot be converted; nothing is written then.
    """
    with asked.running.dispatcher(folder) as runner:
        before = runner.manifest
    if (arithmetic := before.provenance.get("arithmetic")) is not None:
        raise OutputError(
            f"{folder}: its stages are in {arithmetic} already; give the float32 folder that it was made from"
        )
    if any(policy.promise for policy in before.policies):
        note("what was promised of the folder does not hold for other arithmetic: the new policies promise nothing")
    stages = read_stages(folder, before)
    made = converted_folder(before, stages, asked, dataset=dataset, static=static, note=note)
    models, logits, task = made.models, made.logits, static.graph.task
    told = static_logits(static, dataset.calib)
    scores = Scores(
        logits,
        task.answers(told),
        dataset.calib.labels,
        task=task,
        static_logits=told if dataset.kind == "labelled" else None,
    )
    temperatures = fit_temperatures(scores)
    for model, temperature in zip(models, temperatures, strict=True):
        set_temperature(model.model, temperature)
    draft = _draft(before, temperatures, asked.kind, made, dataset)
    with new_folder(out, draft, models, running=asked.running, force=asked.force) as writer:

        def deliver(cost: Costs) -> Measured:
            made_up = dataset.kind == "made-up"
            writer.calibrate(chosen_again(writer.manifest, scores, temperatures, cost=cost, made_up=made_up), cost)
            with writer.dispatcher() as runner:
                return measure(runner, static, dataset.test, running=asked.running)

        measured = steadily(partial(_costs, writer, static, dataset.calib), deliver, note=note, warn=note)
        writer.update(measured={**measured.to_json(), "machine": machine(), "latency": "measured"})
        for name in KEPT:
            if (folder / name).is_file():
                writer.add(name, (folder / name).read_bytes())
        writer.add_report(dataset.test, trace=writer.folder / TRACE)
    return writer.manifest, measured


@dataclass(frozen=True, eq=False)
class Converted:
    """Stages in another arithmetic, the arithmetic of each, and their logits [S, B, K] on the images for calibration."""

    models: tuple[StageModel, ...]
    kinds: tuple[str, ...]
    logits: Array


def converted_folder(
    before: Manifest, stages: Sequence[StageModel], asked: Requantization, *, dataset: Dataset, static: StaticModel,
    note: Note,
) -> Converted:  # fmt: skip
    """Return the stages in the requested arithmetic.

    A stage stays in float32 if its answers, or one of its labels, would differ from before on more than 1 - LEAST_AGREEMENT
    of the images. If they differ although it is in float32 already, the links that it reads are at fault, and the stage
    before it stays in float32 too. Raises ModelError where nothing is left to convert.
    """
    kinds = list(kinds_of(asked.kind, len(stages)))
    task = static.graph.task
    unchanged = "answers as before" if not task.several else "the label that differs most is as before"
    float_classes = task.answers(stage_logits(static.graph, stages, dataset.calib))
    while True:
        models = convert_stages(before, stages, dataset.train, kinds=kinds, quantizers=asked.quantizers)
        logits = stage_logits(static.graph, models, dataset.calib, provider=asked.running.provider)
        pairs = zip(task.answers(logits), float_classes, strict=True)
        agreement = np.array([task.agreement(now, before) for now, before in pairs])
        for number, (same, kind) in enumerate(zip(agreement, kinds, strict=True), start=1):
            note(f"stage {number} ({kind}): {unchanged} on {100 * same:.2f} % of {len(dataset.calib)} images")
        if (spoiled := spoiled_stage(agreement, kinds)) is None:
            return Converted(models, tuple(kinds), logits)
        note(f"less than {100 * LEAST_AGREEMENT:.0f} % is too little: stage {spoiled + 1} stays in float32")
        kinds[spoiled] = FLOAT
        if all(kind == FLOAT for kind in kinds):
            raise ModelError(
                f"no stage bears {asked.kind}: {100 * agreement.min():.2f} % is too little; leave --quantize out"
            )


def spoiled_stage(agreement: Array, kinds: Sequence[str]) -> int | None:
    """Return the index of the stage that must stay in float32: the first one that agrees too little, or the last converted one
    before it; None where all agree enough."""
    short = np.flatnonzero(agreement < LEAST_AGREEMENT)
    if not len(short):
        return None
    return max((k for k in range(short[0] + 1) if kinds[k] != FLOAT), default=None)


def convert_stages(
    manifest: Manifest,
    stages: Sequence[StageModel],
    images: Images,
    *,
    kinds: Sequence[str],
    quantizers: Mapping[str, Quantizer] = QUANTIZERS,
) -> tuple[StageModel, ...]:
    """Return the stages in another arithmetic.

    Each is shown the images that reach it under the default policy, with the links that the converted stages before it make.
    """
    thresholds = manifest.default_policy.thresholds
    values: dict[str, Array] = {manifest.input.name: _drawn(manifest, images)}
    made: list[StageModel] = []
    for number, (stage, kind) in enumerate(zip(stages, kinds, strict=True), start=1):
        feeds = {i.name: values[i.name] for i in stage.model.graph.input}
        try:
            shown = {name: rows[:USED] for name, rows in feeds.items()}
            made.append(stage if kind == FLOAT else _converted(stage, shown, quantizers[kind]))
        except ModelError as error:
            raise ModelError(f"stage {number}: {error}") from error
        if number == len(stages):
            break
        values |= _outputs(made[-1], feeds)
        staying = staying_rows(values[CONFIDENCE], thresholds[number - 1])
        values = {name: rows[staying] for name, rows in values.items()}
    return tuple(made)


def kinds_of(asked: str, stages: int) -> list[str]:
    """Return the arithmetic of every stage: int8, fp16 or float32."""
    kind, _, early = asked.partition(":")
    return [kind] * (stages - 1) + [FLOAT if early else kind]


def _converted(stage: StageModel, feeds: Mapping[str, Array], quantizer: Quantizer) -> StageModel:
    model = quantizer(stage.model, feeds)
    check_runs(model)
    return replace(stage, model=model)


def _drawn(manifest: Manifest, images: Images) -> Array:
    """Return model input [N, ...] to find the ranges on: as many images as memory allows, at most DRAWN."""
    links = [link.shape for stage in manifest.stages for link in stage.links_out]
    elements = sum(math.prod(n or 1 for n in shape) for shape in [manifest.input.shape, *links])
    count = min(len(images), max(AT_LEAST, min(DRAWN, MOST_BYTES // (4 * elements))))
    return np.ascontiguousarray(images.batch(np.linspace(0, len(images) - 1, count).astype(np.int64)))


def _outputs(stage: StageModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return all outputs of a stage on N rows, by name."""
    session = make_session(stage.model.SerializeToString())
    batches = []
    for rows in slices(len(next(iter(feeds.values()))), RUN_BATCH):
        batches += [made for _, made in run_stages([session], {name: values[rows] for name, values in feeds.items()})]
    return {name: np.concatenate([made[name] for made in batches]) for name in batches[0]}


def staying_rows(confidence: Array, threshold: float) -> Array:
    """Return the rows that stay, in order, int [N]. If they are too few for a range, the least confident others are added."""
    stays = ~leaves(confidence, np.float32(threshold))
    stays[np.argsort(confidence)[:AT_LEAST]] = True
    return np.flatnonzero(stays)


def _draft(before: Manifest, temperatures: Sequence[float], asked: str, made: Converted, dataset: Dataset) -> Manifest:
    """Return the manifest before anything is measured. Only a last stage that stays as it is, and takes no links, is still
    exact."""
    keeps_last = made.kinds[-1] == FLOAT and not before.stages[-1].links_in
    return replace(
        before,
        stages=with_stages(before, temperature=temperatures),
        exactness=before.exactness if keeps_last else None,
        target="agreement" if dataset.calib.labels is None else "accuracy",
        data=dataset.kind,
        measured={},
        provenance={**before.provenance, "arithmetic": asked, "arithmetic_of_stages": list(made.kinds)},
    )


def _costs(writer: FolderWriter, static: StaticModel, images: Images) -> Costs:
    """Return what every stage costs relative to the static model."""
    timed = np.ascontiguousarray(images.batch(np.arange(writer.running.batch) % len(images)))
    with writer.dispatcher() as runner:
        return path_costs(runner, static, timed).per_stage

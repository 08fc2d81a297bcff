"""`s2d calibrate`: temperatures and thresholds of an exported folder set anew, without training, and the way back.

A reader never sees half: stage files with a new temperature get new names, and the one step that counts is the
replacement of manifest.json. What was there before stays readable until the next calibration, and comes back by `undo`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from s2d_runtime import Dispatcher, DispatcherError, Manifest

from s2d_convert.base.files import write_bytes, write_json
from s2d_convert.base.sessions import Running
from s2d_convert.calibration.chance import few_images
from s2d_convert.calibration.policies import Chosen, Scores, budget_policies, fit_temperatures, promised_policies
from s2d_convert.calibration.risk_control import RiskBound
from s2d_convert.conversion.options import check_budget, risk_bound
from s2d_convert.conversion.prepare import static_logits
from s2d_convert.conversion.run_folder import TRACE
from s2d_convert.data.images import Images
from s2d_convert.data.loading import load_calibration
from s2d_convert.data.reading import Reading
from s2d_convert.errors import ModelError, OutputError, UsageError
from s2d_convert.exporting.folder import MANIFEST, read_stages
from s2d_convert.exporting.measure import machine, measure, path_costs
from s2d_convert.exporting.provenance import Origin, recorded_preprocess
from s2d_convert.exporting.quantize import set_temperature
from s2d_convert.exporting.report.gallery import gallery
from s2d_convert.exporting.report.page import REPORT, write_report
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.slicing.chain import session_logits
from s2d_convert.slicing.stage_graph import with_logits
from s2d_convert.workflows.split_model import open_export

FIT_SHARE = 0.2  # of the images, for temperatures and the order of the policies; a promise is tested on the others
UNDO = "undo"
OWN_FILE = re.compile(r"stage\d+\.[0-9a-f]{12}\.onnx")  # stage files that a calibration wrote


@dataclass(frozen=True)
class CalibrateOptions:
    """The options of `s2d calibrate`; `budget` None: the folder's default, or with `max_drop` the cheapest that keeps it."""

    folder: Path
    data: Path
    budget: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95
    static: Path | None = None
    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget("budget", self.budget)
        _ = self.running
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: 0 to {2**31 - 1} is allowed")
        _ = self.bound

    @property
    def running(self) -> Running:
        """How the stages are run when their latency is measured. Raises UsageError."""
        return Running(self.threads, self.batch, self.provider)

    @property
    def bound(self) -> RiskBound | None:
        """The bound on the risk that is to be kept, if one is asked for. Raises UsageError."""
        return risk_bound(self.max_drop, self.confidence)


@dataclass(frozen=True)
class Calibrated:
    """The new manifest, whether the budget that was asked for is reached, and what the user should mind."""

    manifest: Mapping[str, Any]
    reached: bool
    warnings: tuple[str, ...]


def calibrate_folder(options: CalibrateOptions) -> Calibrated:
    """Set temperatures and thresholds of a folder anew from real images. Raises S2DError or DispatcherError, and then the
    folder is as it was."""
    told: list[str] = []
    with _opened(options) as (runner, static):
        old = runner.manifest
        classes = int(np.prod([n or 1 for n in old.output.shape[1:]]))
        images = load_calibration(
            options.data,
            preprocess=recorded_preprocess(old),
            classes=classes,
            reading=Reading(options.strict, warn=told.append),
        )
        scores = read_scores(runner, static, images, options)
        fit, test = _divided(scores, options)
        temperatures = fit_temperatures(fit)
        cost = _costs(runner, static, images, batch=options.batch)
        chosen = _choose(fit, test, temperatures, cost=cost, options=options, budget=old.default_budget)
        with _beside(options.folder) as place:
            manifest = _write(place, options, old, temperatures=temperatures, cost=cost)
            manifest |= chosen.to_json() | {"data": images.kind, "measured": {}}
            manifest |= {"target": "agreement" if images.labels is None else "accuracy"}
            manifest["provenance"] = {**old.provenance, "calibration": _provenance(options, images)}
            write_json(place / MANIFEST, manifest)
            with options.running.dispatcher(place) as fresh:
                if static is not None:
                    measured = measure(fresh, static, images, running=options.running)
                    here = {"machine": machine(), "latency": "measured", "images_of": "calibration"}
                    manifest["measured"] = {**measured.to_json(), **here}
                    write_json(place / MANIFEST, manifest)
                write_report(place / REPORT, manifest, trace=options.folder / TRACE, gallery=gallery(fresh, images))
            _publish(place, options.folder)
    reached = chosen.default.reached or (options.budget is None and options.bound is not None)
    return Calibrated(manifest, reached, (*told, *_warnings(old, options, static), *_to_mind(manifest, images)))


def undo(folder: Path) -> None:
    """Bring back what the last calibration replaced. Raises OutputError when there is nothing to bring back."""
    saved = folder / UNDO
    if not (saved / MANIFEST).is_file():
        raise OutputError(
            f"{folder}: nothing to undo; the folder was not calibrated since it was made, or that is undone"
        )
    try:
        Manifest.load(saved)
        (saved / MANIFEST).replace(folder / MANIFEST)
        if (saved / REPORT).is_file():
            (saved / REPORT).replace(folder / REPORT)
        shutil.rmtree(saved)
        _remove_unused(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error
    except DispatcherError as error:
        raise OutputError(f"{saved}: cannot be brought back ({error}); remove it") from error


@contextmanager
def _opened(options: CalibrateOptions) -> Iterator[tuple[Dispatcher, StaticModel | None]]:
    """The folder's dispatcher, and the static model; None where it is absent and the last stage answers as it does."""
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(open_export(options.folder, static=options.static, running=options.running))
        except ModelError:
            if options.static is not None or Manifest.load(options.folder).exactness is None:
                raise
            alone = options.running.dispatcher(options.folder)
            yield stack.enter_context(alone), None
            return
        yield pair


def read_scores(runner: Dispatcher, static: StaticModel | None, images: Images, options: CalibrateOptions) -> Scores:
    """What every stage and the static model say on the images; without the latter the last stage speaks for it."""
    manifest = runner.manifest
    models = [with_logits(stage.model) for stage in read_stages(options.folder, manifest)]
    sessions = [
        runs
        if len(model.graph.output) == len(runs.get_outputs())
        else options.running.session(model.SerializeToString())
        for runs, model in zip(runner.sessions, models, strict=True)
    ]
    logits = session_logits(sessions, images, image=manifest.input.name, kind=manifest.output.kind)
    reference = logits[-1] if static is None else static_logits(static, images)
    return Scores(logits, reference.argmax(axis=1), images.labels)


def _divided(scores: Scores, options: CalibrateOptions) -> tuple[Scores, Scores]:
    """What is fitted on and what a promise is tested on; without a promise both are everything."""
    if options.bound is None:
        return scores, scores
    order = np.random.default_rng(options.seed).permutation(len(scores))
    count = round(FIT_SHARE * len(order))
    return scores.take(order[:count]), scores.take(order[count:])


def _choose(
    fit: Scores, test: Scores, temperatures: tuple[float, ...], *, cost: tuple[float, ...], options: CalibrateOptions,
    budget: float,
) -> Chosen:  # fmt: skip
    if options.bound is None:
        return budget_policies(fit, temperatures, cost=cost, budget=options.budget or budget)
    share = 1 - FIT_SHARE
    return promised_policies(
        fit, test, temperatures, cost=cost, bound=options.bound, budget=options.budget, share=share
    )


def _costs(runner: Dispatcher, static: StaticModel | None, images: Images, *, batch: int) -> tuple[float, ...]:
    """The latency of every stage relative to the static model: measured where that is there, else what the manifest says."""
    if static is None:
        return tuple(stage.latency_ratio for stage in runner.manifest.stages)
    return path_costs(runner, static, np.ascontiguousarray(images.batch(np.arange(batch) % len(images)))).per_stage


def _warnings(old: Manifest, options: CalibrateOptions, static: StaticModel | None) -> Iterator[str]:
    before = Origin.of(old).data
    if before is not None and Path(before) == options.data.resolve():
        yield (
            "these are the images that the folder was converted with: training and search have seen them, so that "
            "thresholds and promises are too optimistic; give others"
        )
    if static is None:
        yield "the static model is not there: its last stage spoke for it, and latencies were not measured anew"


def _to_mind(manifest: Mapping[str, Any], images: Images) -> Iterator[str]:
    """How few images the numbers rest on, and which classes a stage loses."""
    policy = next(p for p in manifest["policies"] if p["budget"] == manifest["default_budget"])
    few = few_images(f"expected {manifest['target']}", policy["expected_accuracy"], len(images))
    if few:
        yield f"{few}; give some hundred"
    yield from manifest["measured"].get("lost_classes", ())


def _provenance(options: CalibrateOptions, images: Images) -> dict[str, Any]:
    return {"data": str(options.data.resolve()), "images": len(images), "seed": options.seed,
            "max_drop": options.max_drop, "confidence": options.confidence if options.bound else None}  # fmt: skip


# Files


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder on the same disk to prepare everything in; OSError becomes OutputError."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".partial", dir=folder.resolve().parent
        ) as place:
            yield Path(place)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); the folder is as it was"
        ) from error


def _write(
    place: Path, options: CalibrateOptions, old: Manifest, *, temperatures: tuple[float, ...], cost: tuple[float, ...]
) -> dict[str, Any]:
    """Write the stage files with their new temperatures into `place`; returns the manifest with them."""
    manifest = old.to_json()
    for entry, temperature, ratio in zip(manifest["stages"], temperatures, cost, strict=True):
        before = (options.folder / entry["file"]).read_bytes()
        data = before if temperature == entry["temperature"] else tempered(before, temperature)
        if data != before:
            digest = hashlib.sha256(data).hexdigest()
            entry |= {"file": f"{entry['file'].split('.')[0]}.{digest[:12]}.onnx", "sha256": digest}
        entry |= {"temperature": temperature, "latency_ratio": round(ratio, 5)}
        (place / entry["file"]).write_bytes(data)
    return manifest


def tempered(stage: bytes, temperature: float) -> bytes:
    """The stage file with another temperature in it."""
    model = onnx.load_from_string(stage)
    set_temperature(model, temperature)
    return model.SerializeToString()


def _publish(place: Path, folder: Path) -> None:
    """Bring everything from `place` into the folder: the stage files under names that nobody reads yet, the old manifest
    to where `undo` finds it, and at last the new manifest."""
    (folder / UNDO).mkdir(exist_ok=True)
    for file in place.glob("*.onnx"):
        if not (folder / file.name).exists():
            file.replace(folder / file.name)
    for name in (MANIFEST, REPORT):
        if (folder / name).is_file():
            write_bytes(folder / UNDO / name, (folder / name).read_bytes())
    (place / MANIFEST).replace(folder / MANIFEST)
    (place / REPORT).replace(folder / REPORT)
    _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    """Remove stage files of earlier calibrations that neither the manifest nor the one to undo to names."""
    saved = [folder / UNDO] if (folder / UNDO / MANIFEST).is_file() else []
    used = {stage.file for place in (folder, *saved) for stage in Manifest.load(place).stages}
    for file in folder.glob("stage*.onnx"):
        if OWN_FILE.fullmatch(file.name) and file.name not in used:
            file.unlink()

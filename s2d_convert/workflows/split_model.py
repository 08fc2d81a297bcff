"""Split a model into a folder without training, and open a folder together with its static model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from s2d_runtime import Dispatcher, Manifest

from s2d_convert.base.sessions import ONE_THREAD, Running
from s2d_convert.calibration.task import task_of
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.conversion.options import FLOATS, check_choice
from s2d_convert.conversion.prepare import read_analysed
from s2d_convert.data.class_names import check_names
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.exporting.folder import PLAN, check_target, draft_manifest, new_folder
from s2d_convert.exporting.provenance import Origin, model_facts, model_sha256, recorded_names
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.plans.assignment import check_conversion
from s2d_convert.plans.heuristics import depth_plan, width_plan
from s2d_convert.plans.plan import MAX_STAGES, Conversion, identity_plan
from s2d_convert.plans.plan_option import read_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import build_stages, chains_of

PLAN_NAMES = ("identity", "depth", "width")


@dataclass(frozen=True)
class SplitOptions:
    """The options of `s2d split`. plan: a plan's name or its JSON file. force: an export that lies at `out` is replaced.

    Raises UsageError for values that are not allowed.
    """

    model: Path
    plan: str
    stages: int
    out: Path
    output: str | None = None
    labels: str | None = None
    size: tuple[int, int] | None = None
    weights: str = "float32"
    classes: tuple[str, ...] | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, FLOATS)
        if not 1 <= self.stages <= MAX_STAGES:
            raise UsageError(f"--stages {self.stages}: 1 to {MAX_STAGES} is allowed")


def split_model(options: SplitOptions) -> Manifest:
    """Split a model by a plan into a folder, without training, and return the manifest. Raises S2DError."""
    check_target(options.out, force=options.force)
    analysed = read_analysed(options.model, size=options.size, output=options.output, labels=options.labels)
    if options.classes is not None:
        check_names(options.classes, analysed.graph.classes)
    conversion = make_plan(analysed, options.plan, options.stages)
    check_conversion(analysed, conversion)
    static = static_weights(analysed.graph, analysed.channels)
    models = build_stages(chains_of(analysed, conversion.chains, static), weights=options.weights)
    draft = draft_manifest(analysed.graph, conversion, models)
    provenance = {
        "model": str(options.model.resolve()), "model_sha256": model_sha256(options.model), **model_facts(analysed),
        "input_size": options.size, "output_name": options.output,
        **recorded_names(options.classes or analysed.graph.class_names),
    }  # fmt: skip
    with new_folder(options.out, replace(draft, provenance=provenance), models, force=options.force) as writer:
        writer.add_json(PLAN, conversion.to_json(analysed.channels))
    return writer.manifest


def make_plan(model: AnalysedModel, plan: str, stages: int) -> Conversion:
    """Return the plan of a name or in a JSON file. Raises UsageError."""
    if plan == "identity":
        return Conversion((identity_plan(model),))
    if plan in ("depth", "width"):
        return depth_plan(model, stages) if plan == "depth" else width_plan(model, stages)
    return read_plan(plan, model.channels, names=PLAN_NAMES)


@contextmanager
def open_export(
    folder: Path, *, static: Path | None = None, running: Running = ONE_THREAD
) -> Iterator[tuple[Dispatcher, StaticModel]]:
    """Yield the dispatcher of a folder and the static model that it was made from, ready to be timed.

    Raises ModelError if the recorded static model does not exist or has changed.
    """
    with running.dispatcher(folder) as runner:
        manifest = runner.manifest
        origin = Origin.of(manifest)
        try:
            path = origin.find(static, folder)
            labels = "multi" if task_of(manifest.output.kind).several else "classes"
            graph = load_graph(path, size=origin.size, output=origin.output, labels=labels)
        except UsageError as error:  # the record asked, not the user
            raise ModelError(f"{folder}: what it records does not fit its static model ({error})") from error
        shapes = [(None, *shape) for shape in (graph.shapes[graph.image], graph.answer_shape)]
        for shape, expected in zip(shapes, (manifest.input.shape, manifest.output.shape), strict=True):
            if shape != expected:
                raise ModelError(
                    f"{folder}: made for {list(expected)}, but the static model has {list(shape)} there; convert again"
                )
        yield runner, StaticModel(graph, running)


def static_of(
    path: Path, *, size: tuple[int, int] | None, output: str | None
) -> tuple[Path, tuple[int, int] | None, str | None]:
    """Return path, image size and output of the static model. path: the model's file or an exported folder.

    For a folder, they are those recorded in its manifest, unless they are given. Raises ModelError if the recorded static model
    does not exist or has changed.
    """
    if not path.is_dir():
        return path, size, output
    origin = Origin.of(Manifest.load(path))
    return origin.find(None, path), size or origin.size, output or origin.output

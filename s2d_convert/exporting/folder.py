"""The exported folder: how it is drafted, written, tried out and published, and how its stage files are read back.

A folder is published only after its own dispatcher has opened and run it. `new_folder` makes a folder, `trial_folder` a
temporary one for measuring stages; `renewal` writes a new calibration into an existing folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from s2d_runtime import Dispatcher, DispatcherError, Link, Manifest, OutputSpec, Policy, Stage, TensorSpec, dispatcher
from s2d_runtime.names import class_names
from s2d_runtime.policies import rounded

from s2d_convert.base.files import check_out, naming, whole_folder, write_json
from s2d_convert.base.sessions import ONE_THREAD, Running
from s2d_convert.base.text import PROMISED_CLASSES
from s2d_convert.calibration.policies import Chosen
from s2d_convert.calibration.thresholds import NEVER_LEAVES
from s2d_convert.data.images import Images
from s2d_convert.errors import OutputError
from s2d_convert.exporting.report.card import card
from s2d_convert.exporting.report.gallery import gallery
from s2d_convert.exporting.report.page import page
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.plan import Conversion
from s2d_convert.slicing.split import StageModel

MANIFEST, PLAN, TRACE, REPORT, DISPATCHER = (
    "manifest.json", "plan.json", "search.jsonl", "report.html", "dispatcher.py",
)  # fmt: skip
CARD = "README.md"
# The files of an export; any other file in its folder belongs to the user.
OURS = re.compile(
    r"stage\d+(\.[0-9a-f]{12})?\.onnx|manifest\.json|plan\.json|search\.jsonl|report\.html|dispatcher\.py|README\.md|undo|__pycache__"
)
NOT_WRITTEN = "0" * 64  # the hash of a stage file that is not written yet
TRIED_BATCHES = (1, 3)


def draft_manifest(
    graph: Graph, conversion: Conversion, models: Sequence[StageModel], temperatures: Sequence[float] | None = None
) -> Manifest:
    """Return a manifest for stages that are neither written nor calibrated yet. Its one policy never exits early.

    Raises OutputError when the runtime's checks reject it.
    """
    chains = [number for number, stages in enumerate(conversion.stages_of_chains, start=1) for _ in range(stages)]
    rows = zip(chains, models, temperatures or [1.0] * len(models), strict=True)
    early = len(models) - 1
    policy = Policy(
        budget=1.0,
        thresholds=(NEVER_LEAVES,) * early,
        expected_latency=1.0,
        expected_accuracy=0.0,
        exit_share=(0.0,) * early + (1.0,),
        reached=False,
    )
    with _as_fault():
        return Manifest(
            input=TensorSpec(graph.image, (None, *graph.shapes[graph.image]), graph.image_type),
            output=OutputSpec((None, *graph.answer_shape), graph.output_kind),
            target="agreement",
            data="none",
            exactness=None,
            stages=tuple(_stage_entry(number, *row) for number, row in enumerate(rows, start=1)),
            policies=(policy,),
            default_budget=policy.budget,
            preprocess=None,
            measured={},
            provenance={},
        )


def _stage_entry(number: int, chain: int, model: StageModel, temperature: float) -> Stage:
    return Stage(
        file=f"stage{number}.onnx",
        sha256=NOT_WRITTEN,
        chain=chain,
        image=model.image,
        links_in=tuple(model.links_in),
        links_out=tuple(Link(name, (None, *shape)) for name, shape in model.links_out),
        temperature=temperature,
        latency_ratio=1.0,
        macs=model.macs,
        parameters=model.parameters,
    )


def with_stages(manifest: Manifest, **columns: Sequence[Any]) -> tuple[Stage, ...]:
    """Return the stages of a manifest with some fields replaced. columns: per field, one value for every stage."""
    rows = zip(*columns.values(), strict=True)
    return tuple(
        replace(stage, **dict(zip(columns, row, strict=True))) for stage, row in zip(manifest.stages, rows, strict=True)
    )


def check_target(out: Path, *, force: bool) -> None:
    """Raise OutputError unless a folder can be written to `out`. force: it may be an export, and nothing else."""
    if not os.path.lexists(out):
        check_out(out)
        return
    foreign = _foreign(out)
    if not force:
        replace_it = ", or replace it with --force" if foreign is None else ""
        raise OutputError(f"{out}: exists already; remove it or choose another name with --out{replace_it}")
    if foreign is not None:
        raise OutputError(
            f"{out}: {foreign}, and --force replaces nothing but exports; remove it yourself or choose another --out"
        )
    check_out(out, replaces=True)


def _foreign(out: Path) -> str | None:
    """Return why `out` is not a folder as this package wrote it, None if it is one."""
    if out.is_symlink() or not out.is_dir():
        return "is no folder"
    try:
        Manifest.load(out)
    except DispatcherError:
        return f"has no {MANIFEST} of an export"
    others = sorted(entry.name for entry in out.iterdir() if entry.is_symlink() or not OURS.fullmatch(entry.name))
    return f"holds '{others[0]}', which no export has" if others else None


class FolderWriter:
    """A folder that is being written and that no reader sees yet, with its manifest so far.

    running: how its stages are run when they are tried out and timed. name: what it will be called.
    """

    def __init__(self, folder: Path, manifest: Manifest, running: Running, *, name: str = "OUT") -> None:
        self.folder, self.manifest, self.running, self.name = folder, manifest, running, name

    def add(self, name: str, data: bytes) -> None:
        """Write a file."""
        with naming(self.folder / name):
            (self.folder / name).write_bytes(data)

    def add_json(self, name: str, data: object) -> None:
        """Write a JSON file."""
        write_json(self.folder / name, data)

    def add_stages(self, files: Sequence[bytes]) -> None:
        """Write the stage files under the names that the manifest gives, and put their hashes into the manifest."""
        for stage, data in zip(self.manifest.stages, files, strict=True):
            self.add(stage.file, data)
        hashes = [hashlib.sha256(data).hexdigest() for data in files]
        self.update(stages=with_stages(self.manifest, sha256=hashes))

    def update(self, **changes: Any) -> None:
        """Replace fields of the manifest and write it. Raises OutputError when the runtime's checks reject it."""
        with _as_fault():
            self.manifest = replace(self.manifest, **changes)
            write_json(self.folder / MANIFEST, self.manifest.to_json())
            self.manifest = Manifest.load(self.folder)

    def calibrate(self, chosen: Chosen, cost: Sequence[float], **changes: Any) -> None:
        """Put the policies and the cost of every stage, relative to the static model, into the manifest."""
        stages = with_stages(self.manifest, latency_ratio=[round(ratio, 5) for ratio in cost])
        provenance = dict(changes.pop("provenance", self.manifest.provenance))
        provenance.pop(PROMISED_CLASSES, None)
        if chosen.tested is not None:
            provenance[PROMISED_CLASSES] = dict(chosen.tested)
        self.update(
            policies=tuple(map(rounded, chosen.policies)),
            default_budget=chosen.default_budget,
            stages=stages,
            provenance=provenance,
            **changes,
        )

    def dispatcher(self) -> Dispatcher:
        """Open the folder as written so far."""
        return self.running.dispatcher(self.folder)

    def add_report(self, images: Images, *, trace: Path | None = None) -> None:
        """Write the report, with some of the images. trace: the search trace, which need not exist."""
        lines = trace.read_text(encoding="utf-8").splitlines() if trace is not None and trace.is_file() else []
        named = replace(images, class_names=class_names(self.manifest) or images.class_names)
        with self.dispatcher() as runner:
            pictures = gallery(runner, named, _mistakes(self.manifest))
        html = page(self.manifest, [json.loads(line) for line in lines], pictures, folder=self.name)
        self.add(REPORT, html.encode())

    def add_card(self) -> None:
        """Write the model card."""
        self.add(CARD, card(self.manifest).encode())

    def try_out(self) -> None:
        """Open the folder and run every stage. Raises OutputError when its dispatcher rejects it or fails."""
        with _as_fault(), self.dispatcher() as runner:
            for batch in TRIED_BATCHES:
                runner.warm_up(batch)


def _mistakes(manifest: Manifest) -> dict[int, tuple[int, ...]]:
    """Return the rows of the measured images that became wrong, with the static model's answers."""
    return {mistake["row"]: tuple(mistake["static"]) for mistake in manifest.measured.get("mistakes", ())}


@contextmanager
def new_folder(
    out: Path,
    manifest: Manifest,
    models: Sequence[StageModel],
    *,
    running: Running = ONE_THREAD,
    force: bool = False,
) -> Iterator[FolderWriter]:
    """Yield the writer of a folder with these stages, to be completed in the block.

    The folder becomes `out` when the block succeeds and its dispatcher has run it, and is removed otherwise. force: an export
    that lies at `out` is replaced. Raises OutputError.
    """
    check_target(out, force=force)
    with whole_folder(out, replaces=force and out.exists()) as folder:
        writer = _written(folder, manifest, models, running)
        writer.name = out.name
        yield writer
        writer.add_card()
        writer.try_out()


@contextmanager
def trial_folder(
    manifest: Manifest, models: Sequence[StageModel], *, running: Running = ONE_THREAD
) -> Iterator[Dispatcher]:
    """Yield the dispatcher of a temporary folder with these stages."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _written(Path(folder), manifest, models, running).dispatcher() as runner,
    ):
        yield runner


def _written(folder: Path, manifest: Manifest, models: Sequence[StageModel], running: Running) -> FolderWriter:
    writer = FolderWriter(folder, manifest, running)
    writer.add_stages([model.model.SerializeToString() for model in models])
    writer.add(DISPATCHER, Path(dispatcher.__file__).read_bytes())
    return writer


@contextmanager
def _as_fault() -> Iterator[None]:
    """Turn a DispatcherError within the block into OutputError: a folder that the runtime rejects is a fault of the export."""
    try:
        yield
    except DispatcherError as error:
        raise OutputError(f"the export does not pass the runtime's checks ({error}); please report this") from error


def read_stages(folder: Path, manifest: Manifest) -> tuple[StageModel, ...]:
    """Read the stages of a folder. Raises OutputError when a file does not have the hash in the manifest."""
    return tuple(
        StageModel(
            model=onnx.load_model_from_string(read_stage(folder, stage)),
            image=stage.image,
            links_in=stage.links_in,
            links_out=tuple((link.name, tuple(n or 0 for n in link.shape[1:])) for link in stage.links_out),
            macs=stage.macs,
            parameters=stage.parameters,
        )
        for stage in manifest.stages
    )


def read_stage(folder: Path, stage: Stage) -> bytes:
    """Read a stage file. Raises OutputError when it does not have the hash in the manifest."""
    data = (folder / stage.file).read_bytes()
    if hashlib.sha256(data).hexdigest() != stage.sha256:
        raise OutputError(f"{folder / stage.file}: changed while it was read; try again")
    return data

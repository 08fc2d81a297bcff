"""The exported folder: its files written and read, its manifest drafted and checked."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from s2d_runtime import Manifest, Policy, Stage, dispatcher

from s2d_convert.base.files import write_json
from s2d_convert.calibration.thresholds import NEVER
from s2d_convert.errors import OutputError
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.plan import Conversion
from s2d_convert.slicing.split import StageModel

MANIFEST = "manifest.json"


def stage_entries(graph: Graph, conversion: Conversion, models: Sequence[StageModel]) -> list[dict[str, Any]]:
    """The `stages` part of a manifest, without what is only known later (sha256, latency)."""
    chains = [number for number, chain in enumerate(conversion.chains, start=1) for _ in range(chain.stages)]
    return [
        {
            "file": f"stage{number}.onnx",
            "chain": chain,
            "image": model.image,
            "links_in": list(model.links_in),
            "links_out": [{"name": name, "shape": [None, *shape]} for name, shape in model.links_out],
            "macs": model.macs,
            "parameters": model.parameters,
        }
        for number, (chain, model) in enumerate(zip(chains, models, strict=True), start=1)
    ]


def manifest_base(graph: Graph) -> dict[str, Any]:
    """The parts of a manifest that depend on the static model only."""
    return {
        "format": "s2d-convert",
        "version": 1,
        "input": {"name": graph.image, "shape": [None, *graph.shapes[graph.image]], "dtype": graph.image_type},
        "output": {"shape": [None, *graph.answer_shape], "kind": graph.output_kind},
    }


def draft_manifest(
    graph: Graph, conversion: Conversion, models: Sequence[StageModel], temperatures: Sequence[float]
) -> dict[str, Any]:
    """A manifest with one policy that never leaves early, for folders that are not calibrated (yet)."""
    entries = stage_entries(graph, conversion, models)
    for entry, temperature in zip(entries, temperatures, strict=True):
        entry |= {"temperature": temperature, "latency_ratio": 1.0}
    stages = len(models)
    policy = Policy(
        budget=1.0,
        thresholds=(NEVER,) * (stages - 1),
        expected_latency=1.0,
        expected_accuracy=0.0,
        exit_share=(0.0,) * (stages - 1) + (1.0,),
        reached=False,
    )
    return {**manifest_base(graph), "target": "agreement", "data": "none", "exactness": None, "stages": entries,
            "policies": [asdict(policy)], "default_budget": 1.0,
            "preprocess": None, "measured": {}, "provenance": {}}  # fmt: skip


def write_stages(folder: Path, entries: Sequence[dict[str, Any]], models: Sequence[StageModel]) -> None:
    """Write the stage files and the dispatcher into `folder` and add each file's sha256 to its entry."""
    for entry, model in zip(entries, models, strict=True):
        data = model.model.SerializeToString()
        (folder / entry["file"]).write_bytes(data)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
    shutil.copyfile(dispatcher.__file__, folder / "dispatcher.py")


def read_stages(folder: Path, manifest: Manifest) -> tuple[StageModel, ...]:
    """The stages of a folder. Raises OutputError when a file is not the one that the manifest was checked with."""
    return tuple(_read_stage(folder / stage.file, stage) for stage in manifest.stages)


def _read_stage(path: Path, stage: Stage) -> StageModel:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != stage.sha256:
        raise OutputError(f"{path}: changed while it was read; try again")
    links = tuple((link.name, tuple(n or 0 for n in link.shape[1:])) for link in stage.links_out)
    return StageModel(
        model=onnx.load_model_from_string(data),
        image=stage.image,
        links_in=stage.links_in,
        links_out=links,
        macs=stage.macs,
        parameters=stage.parameters,
    )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json and read it back through the runtime's own checks. Raises OutputError if it is refused."""
    write_json(folder / MANIFEST, manifest)
    try:
        dispatcher.Manifest.load(folder)
    except dispatcher.DispatcherError as error:
        raise OutputError(
            f"{folder}: the export does not pass the runtime's checks ({error}); please report this"
        ) from error

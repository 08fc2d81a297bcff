"""From a conversion to a folder: build the stage models, run them, and write everything whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from s2d_runtime import Manifest, Policy, Stage, dispatcher

from s2d_convert.calibration.thresholds import NEVER
from s2d_convert.channels.analysis import Channels, analyse
from s2d_convert.data.images import Images
from s2d_convert.errors import OutputError
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.normalize import set_nodes
from s2d_convert.frontend.reference import slices, to_logits
from s2d_convert.latency.meter import Array, make_session
from s2d_convert.plans.plan import Conversion, Plan, identity_plan
from s2d_convert.plans.weights import Weights, static_weights
from s2d_convert.slicing.split import OUTPUT, StageModel, split

RUN_BATCH = 64
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One chain as it is trained and exported: a plan with weights, on the static graph or on a smaller one cut from it."""

    graph: Graph
    channels: Channels
    plan: Plan
    weights: Weights


def build_stages(parts: Sequence[Part], *, weights: str = "float32") -> tuple[StageModel, ...]:
    """The stage models of all chains, in order; `weights` is the type that their weights are stored in."""
    models: list[StageModel] = []
    for part in parts:
        models += split(part.graph, part.channels, part.plan, part.weights, first_stage=len(models) + 1)
    if weights == "float16":
        for stage in models:
            store_as_float16(stage.model)
    return tuple(models)


def store_as_float16(model: onnx.ModelProto) -> None:
    """Store the weights of a stage in half the bytes, in place. They are cast back when a session is made, so that
    inputs, outputs and speed stay what they were. Weights that float16 cannot hold stay as they are."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        with np.errstate(over="ignore"):
            small = numpy_helper.to_array(weight).astype(np.float16)
        if np.isfinite(small).all():
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(small, f"{name}.half"))
            casts.append(
                onnx.helper.make_node("Cast", [weight.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
            )
    set_nodes(model.graph, [*casts, *model.graph.node])
    onnx.checker.check_model(model)


def read_part(path: Path) -> Part:
    """A stage file as a chain of its own: without the channels that the stage lacks, it trains at the cost of what is left."""
    graph = load_graph(path, output=OUTPUT)
    channels = analyse(graph)
    return Part(graph, channels, identity_plan(graph, channels), static_weights(graph, channels))


def stage_logits(
    graph: Graph, models: Sequence[StageModel], images: Images, *, provider: str = "CPUExecutionProvider"
) -> Array:
    """Logits float32 [S, B, K] of every stage on all images, computed by onnxruntime from the stage models."""
    sessions = [
        make_session(m.model.SerializeToString(), threads=os.cpu_count() or 1, provider=provider) for m in models
    ]
    rows = []
    for part in slices(len(images), RUN_BATCH):
        values: dict[str, Array] = {graph.image: np.ascontiguousarray(images.batch(part))}
        answers = []
        for session in sessions:
            names = [o.name for o in session.get_outputs()]
            found = session.run(names, {i.name: values[i.name] for i in session.get_inputs()})
            values.update(zip(names, found, strict=True))
            answers.append(to_logits(values[OUTPUT], graph.output_kind))
        rows.append(np.stack(answers))
    return np.concatenate(rows, axis=1)


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
        "output": {"shape": [None, *graph.shapes[graph.output]], "kind": graph.output_kind},
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


def check_out(out: Path, *, option: str = "--out") -> None:
    """Raise OutputError unless `out` can be made: it must not exist, and its parent must be writable."""
    if os.path.lexists(out):
        raise OutputError(f"{out}: exists already; remove it or choose another name with {option}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"{out.parent}: cannot be written ({error.strerror}); choose another folder with {option}"
        ) from error


@contextmanager
def whole_folder(out: Path, *, option: str = "--out") -> Iterator[Path]:
    """A folder beside `out`, which `option` names, to write into; it becomes `out` when the block ends well, and vanishes
    otherwise."""
    check_out(out, option=option)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        if not _is_running(left):  # of a run that was killed here
            shutil.rmtree(left, ignore_errors=True)
    partial = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".partial", dir=out.parent))
        yield partial
        partial.chmod(0o755)
        partial.rename(out)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another {option}"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(partial: Path) -> bool:
    """Whether the process that writes this folder is still there."""
    try:
        os.kill(int(partial.name.split(".")[-3]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except OSError:  # somebody else's
        return True
    return True


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

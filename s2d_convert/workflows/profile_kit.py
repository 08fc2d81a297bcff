"""A kit: a folder of small stage files of one model, to be measured on another device that has neither torch nor onnx.

The files are stages of random plans in the model's search space, so every kind of kernel is measured among its usual
neighbours. They hold no weights: a fill operator replaces each of them, which onnxruntime folds into a constant before it
optimises the graph. So a file of 10 kB runs the same kernels as one of 10 MB.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from s2d_runtime import profile

from s2d_convert.base.files import whole_folder, write_json
from s2d_convert.channels.image_scale import offered_scales
from s2d_convert.conversion.prepare import read_analysed
from s2d_convert.errors import ModelError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.latency.board import LEAST_FILES
from s2d_convert.latency.kernels import work_of
from s2d_convert.latency.layout import probe_model
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.heuristics import random_plan
from s2d_convert.plans.space import PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import build_stages, chains_of

FILES = 120
MOST_PLANS = 400  # limit for spaces with few distinct stages
GROUPS, BLOCK = 8, 8  # finer steps than the search's, so that the table covers the widths between
SMALL = 64  # constants with fewer elements stay unchanged
STATIC, PROBE, SCRIPT = "static.onnx", "probe.onnx", "s2d_profile.py"


@dataclass(frozen=True)
class KitOptions:
    """The options of a kit: the stages of the conversion, the model's output and image size, and the seed of the plans."""

    stages: int = 2
    seed: int = 0
    output: str | None = None
    size: tuple[int, int] | None = None
    files: int = FILES


def write_kit(model: Path, kit: Path, options: KitOptions) -> dict[str, Any]:
    """Write the kit of a model into the new folder `kit` and return the content of its kit.json."""
    analysed = read_analysed(model, size=options.size, output=options.output)
    weights = static_weights(analysed.graph, analysed.channels)
    space = PlanSpace(
        analysed,
        divide(analysed, weights, groups=GROUPS, block=BLOCK),
        stages=options.stages,
        scales=offered_scales(analysed),
    )
    stages = list(stage_files(space, weights, options))
    if len(stages) < min(LEAST_FILES, options.files):
        raise ModelError(
            f"{model}: random plans have only {len(stages)} different stages, a table needs {LEAST_FILES}; "
            "convert it on the device itself"
        )
    work = {str(block): _work_table(stages, block) for block in profile.LAYOUTS}
    files = [f"stage{number:03d}.onnx" for number in range(len(stages))]
    about = {
        "format": profile.KIT_FORMAT,
        "version": profile.KIT_VERSION,
        "model": {"name": model.name, "sha256": model_sha256(model)},
        "stages": options.stages,
        "seed": options.seed,
        "static": STATIC,
        "probe": PROBE,
        "files": files,
        "work": work,
    }
    with whole_folder(kit, option="--kit") as folder:
        for name, stage in zip(files, stages, strict=True):
            _save(folder / name, stage)
        _save(folder / STATIC, weightless(analysed.graph.to_model()))
        _save(folder / PROBE, weightless(probe_model()))
        shutil.copyfile(profile.__file__, folder / SCRIPT)
        write_json(folder / profile.KIT_FILE, about)
    return about


def stage_files(space: PlanSpace, weights: Any, options: KitOptions) -> Iterator[onnx.ModelProto]:
    """Yield up to `options.files` distinct stages of random plans, without weights."""
    rng, seen = np.random.default_rng([options.seed, 5]), set()
    for _ in range(MOST_PLANS):
        conversion = random_plan(space, rng)
        for stage in build_stages(chains_of(space.model, conversion.chains, weights)):
            model = weightless(stage.model)
            digest = hashlib.sha256(model.SerializeToString()).digest()
            if digest not in seen:
                seen.add(digest)
                yield model
            if len(seen) == options.files:
                return


def weightless(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every larger float constant replaced by a fill operator, whose value keeps activations near 1."""
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = small.graph
    graph.name = model.graph.name
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < SMALL:
            graph.initializer.append(weight)
            continue
        shape = numpy_helper.from_array(np.array(weight.dims, dtype=np.int64), f"{weight.name}.shape")
        value = numpy_helper.from_array(np.array([1 / np.prod(weight.dims[1:])], dtype=np.float32))
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("ConstantOfShape", [shape.name], [weight.name], value=value))
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    return small


def _work_table(stages: list[onnx.ModelProto], block: int) -> dict[str, Any]:
    """Return the work of all stages as one table: keys [Q] and amounts [F, Q]."""
    works = [work_of(stage, block=block) for stage in stages]
    keys = sorted({key for work in works for key in work})
    return {"keys": keys, "amounts": [[float(f"{work.get(key, 0):.6g}") for key in keys] for work in works]}


def _save(path: Path, model: onnx.ModelProto) -> None:
    """Write a model without the shapes of its inner tensors, which the device does not need."""
    del model.graph.value_info[:]
    path.write_bytes(model.SerializeToString())

"""One ONNX file of an exported folder: per-row exits inside the graph, for any onnxruntime and without a dispatcher.

The stages are nested, one If inside the other:

    stage 1; staying = Not(GreaterOrEqual(confidence, thresholds[0]))
    If some row stays:  Gather the staying rows of the image and of the links -> stage 2, ... -> ScatterND into stage 1's
    Else:               stage 1's answer

Weights lie inside the branches: outside they are not repacked for the convolutions (10 % slower). The If stays even where
it could be left out: before 1.18 onnxruntime fails on zero rows. `s2d_runtime.leaves` is the exit rule; what is written
here is compared with the dispatcher, for every way out, before it becomes a file.

Letters: B images of a batch, S stages; N rows that are left at a stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from s2d_runtime import Dispatcher, Manifest, Policy

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import check_out, write_bytes
from s2d_convert.base.sessions import ONE_FILE, make_session
from s2d_convert.errors import OutputError, VerifyError
from s2d_convert.exporting.folder import read_stages
from s2d_convert.exporting.measure import thresholds_for_exit
from s2d_convert.frontend.equivalence import noise
from s2d_convert.slicing.stage_graph import CONFIDENCE, OUTPUT

THRESHOLDS, STAGE = "thresholds", "stage"
ANSWER = (OUTPUT, STAGE, CONFIDENCE)
POLICIES = "s2d.policies"  # the key of the file's metadata that has the thresholds of every budget
CHECKED_ROWS, TOLERANCE = 3, 1e-3


@dataclass(frozen=True)
class Single:
    """A file that was written, and the policy whose thresholds it has, or is to be given."""

    path: Path
    file_bytes: int
    stages: int
    policy: Policy
    baked: bool


def write_single(folder: Path, path: Path, *, bake: float | None = None) -> Single:
    """Write the single file of an exported folder; `bake` is the budget whose thresholds are fixed in it.

    Raises OutputError, also when `path` exists; DispatcherError for the folder; VerifyError when the file does not
    answer like the dispatcher, in which case there is no file.
    """
    check_out(path, option="--single")
    with Dispatcher(folder) as runner:
        manifest = runner.manifest
        policy = runner.policy if bake is None else manifest.policy_for(bake)
        stages = [stage.model for stage in read_stages(folder, manifest)]
        baked = None if bake is None else policy.thresholds
        data = single_model(manifest, stages, thresholds=baked).SerializeToString()
        _check_like(runner, data, baked)
    write_bytes(path, data)
    return Single(path, len(data), len(manifest.stages), policy, bake is not None)


def single_model(
    manifest: Manifest, stages: Sequence[onnx.ModelProto], *, thresholds: Sequence[float] | None = None
) -> onnx.ModelProto:
    """Return one model of the stages of a manifest. Inputs: the image, and `thresholds` float32 [S - 1] unless they are
    given here or S is 1. Outputs: `output` and `confidence` as the dispatcher answers them, and `stage`, int64 [B].

    Raises OutputError where the stages cannot become one model.
    """
    if manifest.input.name in (THRESHOLDS, STAGE):
        raise OutputError(
            f"the image is called '{manifest.input.name}', as one of the single file's own tensors; rename it and convert again"
        )
    if sum(model.ByteSize() for model in stages) > ONE_FILE:
        raise OutputError("the stages together are larger than 2 GiB, where an ONNX file ends; serve them one by one")
    builder = _Builder(manifest, [model.graph for model in stages], thresholds)
    root = _Scope()
    builder.add(root, 1, {manifest.input.name: manifest.input.name}, ANSWER)
    image = helper.np_dtype_to_tensor_dtype(np.dtype(manifest.input.dtype))
    inputs = [helper.make_tensor_value_info(manifest.input.name, image, ["N", *manifest.input.shape[1:]])]
    if builder.asks:
        inputs.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, [len(stages) - 1]))
    graph = root.graph("single", builder.answer_infos(1, ANSWER), inputs)
    model = helper.make_model(graph, opset_imports=_opsets(stages), ir_version=max(m.ir_version for m in stages))
    choices = [{"budget": p.budget, THRESHOLDS: p.thresholds} for p in manifest.policies]
    helper.set_model_props(model, {POLICIES: json.dumps(choices)})
    onnx.checker.check_model(model)
    return model


def _opsets(stages: Sequence[onnx.ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """Return the operator sets of all stages. Raises OutputError where two of them use different versions."""
    found: dict[str, int] = {}
    for model in stages:
        for opset in model.opset_import:
            if found.setdefault(opset.domain, opset.version) != opset.version or model.functions:
                raise OutputError(
                    "the stages use functions, or different versions of one operator set; they cannot be put into one file"
                )
    return [helper.make_opsetid(domain, version) for domain, version in found.items()]


@dataclass
class _Scope:
    """A graph in the making: the main one, or a branch."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)

    def op(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """Add a node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def constant(self, value: Array, name: str) -> str:
        """Add a constant; returns its name."""
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def graph(
        self, name: str, outputs: Sequence[onnx.ValueInfoProto], inputs: Sequence[onnx.ValueInfoProto] = ()
    ) -> onnx.GraphProto:
        """Return the graph as ONNX."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.weights, value_info=self.infos)


class _Builder:
    """Nests the stages. Names of stage k's own tensors begin with `stagek/`, those of what is around it with `exitk/`."""

    def __init__(
        self, manifest: Manifest, stages: Sequence[onnx.GraphProto], thresholds: Sequence[float] | None
    ) -> None:
        self._manifest, self._stages, self._baked = manifest, stages, thresholds
        self.asks = thresholds is None and len(stages) > 1

    def add(self, here: _Scope, number: int, values: Mapping[str, str], names: Sequence[str]) -> None:
        """Put stage `number`, and all that follows it, into a scope. values: image and links -> the tensors that have
        them, N rows each; names: what output, stage and confidence of these rows are to be called."""
        made, at = self._add_stage(here, number, values), f"exit{number}/"
        rows = here.op("Shape", [made[CONFIDENCE]], f"{at}rows")
        value = numpy_helper.from_array(np.array([number], np.int64))
        own = (made[OUTPUT], here.op("ConstantOfShape", [rows], f"{at}stage", value=value), made[CONFIDENCE])
        if number == len(self._stages):
            for mine, name in zip(own, names, strict=True):
                here.op("Identity", [mine], name)
            return
        leaving = here.op("GreaterOrEqual", [made[CONFIDENCE], self._threshold(here, number)], f"{at}leaving")
        staying = here.op("NonZero", [here.op("Not", [leaving], f"{at}staying")], f"{at}nonzero")
        some = here.op("Cast", [here.op("Size", [staying], f"{at}count")], f"{at}some", to=TensorProto.BOOL)
        branches = {
            "then_branch": self._go_on(number, {**values, **made}, own, staying),
            "else_branch": self._stop(number, own),
        }
        here.nodes.append(helper.make_node("If", [some], names, name=f"{at}if", **branches))

    def _add_stage(self, here: _Scope, number: int, values: Mapping[str, str]) -> dict[str, str]:
        """Put a stage's graph into a scope; returns what its outputs are called there."""
        graph, prefix = onnx.GraphProto(), f"stage{number}/"
        graph.CopyFrom(self._stages[number - 1])
        _name_axes(graph, _rows(number), prefix)
        inputs, outputs = {i.name for i in graph.input}, [o.name for o in graph.output]
        # The library looks into subgraphs before it has seen the initializers that they may read.
        names = {i.name: prefix + i.name for i in graph.initializer} | {name: values[name] for name in inputs}
        compose.add_prefix_graph(graph, prefix, rename_inputs=False, inplace=True, name_map=names)
        here.nodes += graph.node
        here.weights += graph.initializer
        here.infos += [*graph.value_info, *graph.output]
        return {name: prefix + name for name in outputs}

    def _threshold(self, here: _Scope, number: int) -> str:
        """Return the threshold of a stage, a scalar."""
        name = f"exit{number}/threshold"
        if self._baked is not None:
            return here.constant(np.array(self._baked[number - 1], np.float32), name)
        return here.op(
            "Gather", [THRESHOLDS, here.constant(np.array(number - 1, np.int64), f"exit{number}/index")], name
        )

    def _go_on(self, number: int, values: Mapping[str, str], own: Sequence[str], staying: str) -> onnx.GraphProto:
        """Return the branch in which rows stay: the next stages on them, and their answers put into those of this stage."""
        here, at = _Scope(), f"exit{number}/"
        places = here.op("Transpose", [staying], f"{at}places")
        rows = here.op("Reshape", [places, here.constant(np.array([-1], np.int64), f"{at}flat")], f"{at}kept")
        read_later = sorted({i.name for graph in self._stages[number:] for i in graph.input} & set(values))
        kept = {name: here.op("Gather", [values[name], rows], f"{at}rows/{name}") for name in read_later}
        names = [f"{at}later/{name}" for name in ANSWER]
        self.add(here, number + 1, kept, names)
        outputs = [
            here.op("ScatterND", [mine, places, later], f"{at}merged/{name}")
            for mine, later, name in zip(own, names, ANSWER, strict=True)
        ]
        return here.graph(f"exit{number}.stay", self.answer_infos(number, outputs))

    def _stop(self, number: int, own: Sequence[str]) -> onnx.GraphProto:
        """Return the branch in which nobody stays."""
        here = _Scope()
        outputs = [
            here.op("Identity", [mine], f"exit{number}/own/{name}") for mine, name in zip(own, ANSWER, strict=True)
        ]
        return here.graph(f"exit{number}.leave", self.answer_infos(number, outputs))

    def answer_infos(self, number: int, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """Return types and shapes of output, stage and confidence, for as many rows as stage `number` has."""
        one: list[str | int | None] = [_rows(number)]
        shapes = ([*one, *self._manifest.output.shape[1:]], one, one)
        kinds = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)
        infos = zip(names, kinds, shapes, strict=True)
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in infos]


def _rows(number: int) -> str:
    """Return the name of the batch axis at a stage: onnxruntime shares buffers by symbolic shape, so the stages' rows
    differ."""
    return "N" if number == 1 else f"N{number}"


def _name_axes(graph: onnx.GraphProto, batch: str, prefix: str) -> None:
    """Rename the symbolic axes of a stage's graph, in place: the batch, and any other apart from those of other stages."""
    before = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    for info in (*graph.input, *graph.output, *graph.value_info):
        for axis in info.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = batch if axis.dim_param == before else prefix + axis.dim_param


def _check_like(runner: Dispatcher, data: bytes, baked: Sequence[float] | None) -> None:
    """Raise VerifyError unless the file answers noise as the dispatcher does, for every way out, or for the baked one."""
    spec, stages = runner.manifest.input, len(runner.manifest.stages)
    images = noise((CHECKED_ROWS, *[n or 1 for n in spec.shape[1:]]), spec.dtype)
    session = make_session(data)
    for limits in [baked] if baked is not None else [thresholds_for_exit(stages, k + 1) for k in range(stages)]:
        feeds = {spec.name: images}
        if baked is None and stages > 1:
            feeds[THRESHOLDS] = np.asarray(limits, np.float32)
        found = dict(zip(ANSWER, session.run(ANSWER, feeds), strict=True))
        answer = runner(images, thresholds=limits)
        scale = float(np.abs(answer.output).max(initial=1.0, where=np.isfinite(answer.output)))
        close = np.allclose(found[OUTPUT], answer.output, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
        if not (close and np.array_equal(found[STAGE], answer.stage)):
            raise VerifyError(
                f"the single file answers otherwise than the stages (noise that the stages {answer.stage.tolist()} answer "
                f"leaves it at {found[STAGE].tolist()}, with outputs {'equal' if close else 'that differ'}); please report this"
            )

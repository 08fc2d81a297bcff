"""An exported folder as one ONNX file: every row exits inside the graph, in any onnxruntime and without a dispatcher.

The stages are nested, one If inside the other:

    stage 1; staying = Not(GreaterOrEqual(confidence, thresholds[0]))
    If some row stays:  Gather the staying rows of the image and of the links -> stage 2, ... -> ScatterND into stage 1's
    Else:               stage 1's answer

Weights are initializers of the branches: outside them onnxruntime does not repack them for its convolutions (10 % slower).
The If is kept even where it could be left out, because onnxruntime before 1.18 fails on zero rows. `s2d_runtime.leaves`
defines the exit rule. Before a file is written, its answers are compared with the dispatcher's, for exits at every stage.

Letters: B images of a batch, S stages, N rows that reach a stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, compose, helper, numpy_helper
from s2d_runtime import Dispatcher, Manifest, Policy
from s2d_runtime.names import class_names

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import check_out, write_bytes
from s2d_convert.base.sessions import ONE_FILE, make_session
from s2d_convert.errors import OutputError, VerifyError
from s2d_convert.exporting.folder import read_stages
from s2d_convert.exporting.providers import CPU, caution, recorded_provider
from s2d_convert.exporting.timing import thresholds_for_exit
from s2d_convert.frontend.equivalence import noise
from s2d_convert.slicing.stage_graph import CONFIDENCE, OUTPUT

THRESHOLDS, STAGE = "thresholds", "stage"
ANSWER = (OUTPUT, STAGE, CONFIDENCE)
POLICIES = "s2d.policies"  # the metadata key of the thresholds of every budget
NAMES = "names"  # that of the names of classes, written as ultralytics does
CHECKED_ROWS, TOLERANCE = 3, 1e-3


@dataclass(frozen=True)
class Single:
    """A single file, and the policy whose thresholds are fixed in it or are to be passed to it. `caution`: a warning about the
    provider that it is for, '' if there is none."""

    path: Path
    file_bytes: int
    stages: int
    policy: Policy
    baked: bool
    caution: str = ""


def write_single(folder: Path, path: Path, *, bake: float | None = None, provider: str = CPU) -> Single:
    """Write the single file of an exported folder. bake: the budget whose thresholds are fixed in the file. provider: the one
    that will run it, if it is not the CPU's, or the one that the folder was converted for.

    Raises DispatcherError for a faulty folder, OutputError when `path` exists or cannot be written, and VerifyError, without
    writing a file, when its answers would differ from the dispatcher's.
    """
    check_out(path, option="--single")
    with Dispatcher(folder) as runner:
        manifest = runner.manifest
        policy = runner.policy if bake is None else manifest.policy_for(bake)
        stages = [stage.model for stage in read_stages(folder, manifest)]
        baked = None if bake is None else policy.thresholds
        data = single_model(manifest, stages, thresholds=baked).SerializeToString()
        _check_like(runner, data, baked)
        provider = recorded_provider(manifest) if provider == CPU else provider
        warning = caution(provider, differs=_differs_on(provider, runner, data, baked))
    write_bytes(path, data)
    return Single(path, len(data), len(manifest.stages), policy, bake is not None, warning)


def _differs_on(provider: str, runner: Dispatcher, data: bytes, baked: Sequence[float] | None) -> bool:
    """Return whether the file answers otherwise than the dispatcher on a provider that is installed here."""
    if provider == CPU or provider not in ort.get_available_providers():
        return False
    try:
        _check_like(runner, data, baked, provider=provider)
    except VerifyError:
        return True
    return False


def single_model(
    manifest: Manifest, stages: Sequence[onnx.ModelProto], *, thresholds: Sequence[float] | None = None
) -> onnx.ModelProto:
    """Return one model that holds all stages of a manifest.

    Its inputs are the image and `thresholds`, float32 [S - 1], unless `thresholds` are given here or S is 1. Its outputs are
    `output` and `confidence` as the dispatcher returns them, and `stage`, int64 [B].

    Raises OutputError when the stages cannot be combined into one model.
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
    names = class_names(manifest)
    named = {} if names is None else {NAMES: str(dict(enumerate(names)))}
    helper.set_model_props(model, {POLICIES: json.dumps(choices), **named})
    onnx.checker.check_model(model)
    return model


def _opsets(stages: Sequence[onnx.ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """Return the operator sets of all stages. Raises OutputError when two of them use different versions."""
    versions: dict[str, int] = {}
    for model in stages:
        for opset in model.opset_import:
            if versions.setdefault(opset.domain, opset.version) != opset.version or model.functions:
                raise OutputError(
                    "the stages use functions, or different versions of one operator set; they cannot be put into one file"
                )
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


@dataclass
class _Scope:
    """A graph under construction: the main graph or a branch."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)

    def op(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """Add a node with one output and return the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def constant(self, value: Array, name: str) -> str:
        """Add a constant and return its name."""
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def graph(
        self, name: str, outputs: Sequence[onnx.ValueInfoProto], inputs: Sequence[onnx.ValueInfoProto] = ()
    ) -> onnx.GraphProto:
        """Return the graph as ONNX."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.weights, value_info=self.infos)


class _Builder:
    """A builder that nests the stages. Tensors of stage k have the prefix `stagek/`, those of its exit `exitk/`."""

    def __init__(
        self, manifest: Manifest, stages: Sequence[onnx.GraphProto], thresholds: Sequence[float] | None
    ) -> None:
        self._manifest, self._stages, self._baked = manifest, stages, thresholds
        self.asks = thresholds is None and len(stages) > 1

    def add(self, scope: _Scope, number: int, values: Mapping[str, str], names: Sequence[str]) -> None:
        """Add stage `number` and all later stages to a scope.

        values: the scope's tensors that hold the image and the links, N rows each. names: the names that output, stage and
        confidence of these rows are to get.
        """
        outputs, at = self._add_stage(scope, number, values), f"exit{number}/"
        rows = scope.op("Shape", [outputs[CONFIDENCE]], f"{at}rows")
        value = numpy_helper.from_array(np.array([number], np.int64))
        answer = (outputs[OUTPUT], scope.op("ConstantOfShape", [rows], f"{at}stage", value=value), outputs[CONFIDENCE])
        if number == len(self._stages):
            for tensor, name in zip(answer, names, strict=True):
                scope.op("Identity", [tensor], name)
            return
        leaving = scope.op("GreaterOrEqual", [outputs[CONFIDENCE], self._threshold(scope, number)], f"{at}leaving")
        staying = scope.op("NonZero", [scope.op("Not", [leaving], f"{at}staying")], f"{at}nonzero")
        some = scope.op("Cast", [scope.op("Size", [staying], f"{at}count")], f"{at}some", to=TensorProto.BOOL)
        branches = {
            "then_branch": self._go_on(number, {**values, **outputs}, answer, staying),
            "else_branch": self._stop(number, answer),
        }
        scope.nodes.append(helper.make_node("If", [some], names, name=f"{at}if", **branches))

    def _add_stage(self, scope: _Scope, number: int, values: Mapping[str, str]) -> dict[str, str]:
        """Add a stage's graph to a scope and return its outputs' names in the scope by their names in the stage."""
        graph, prefix = onnx.GraphProto(), f"stage{number}/"
        graph.CopyFrom(self._stages[number - 1])
        _name_axes(graph, _rows(number), prefix)
        inputs, outputs = {i.name for i in graph.input}, [o.name for o in graph.output]
        # Initializers are renamed by an explicit map, because the library visits subgraphs that read them first.
        names = {i.name: prefix + i.name for i in graph.initializer} | {name: values[name] for name in inputs}
        compose.add_prefix_graph(graph, prefix, rename_inputs=False, inplace=True, name_map=names)
        scope.nodes += graph.node
        scope.weights += graph.initializer
        scope.infos += [*graph.value_info, *graph.output]
        return {name: prefix + name for name in outputs}

    def _threshold(self, scope: _Scope, number: int) -> str:
        """Return the threshold of a stage, a scalar."""
        name = f"exit{number}/threshold"
        if self._baked is not None:
            return scope.constant(np.array(self._baked[number - 1], np.float32), name)
        return scope.op(
            "Gather", [THRESHOLDS, scope.constant(np.array(number - 1, np.int64), f"exit{number}/index")], name
        )

    def _go_on(self, number: int, values: Mapping[str, str], answer: Sequence[str], staying: str) -> onnx.GraphProto:
        """Return the branch for rows that stay: run the next stages on them and merge their answers with this stage's."""
        scope, at = _Scope(), f"exit{number}/"
        places = scope.op("Transpose", [staying], f"{at}places")
        rows = scope.op("Reshape", [places, scope.constant(np.array([-1], np.int64), f"{at}flat")], f"{at}kept")
        read_later = sorted({i.name for graph in self._stages[number:] for i in graph.input} & set(values))
        kept = {name: scope.op("Gather", [values[name], rows], f"{at}rows/{name}") for name in read_later}
        names = [f"{at}later/{name}" for name in ANSWER]
        self.add(scope, number + 1, kept, names)
        outputs = [
            scope.op("ScatterND", [tensor, places, later], f"{at}merged/{name}")
            for tensor, later, name in zip(answer, names, ANSWER, strict=True)
        ]
        return scope.graph(f"exit{number}.stay", self.answer_infos(number, outputs))

    def _stop(self, number: int, answer: Sequence[str]) -> onnx.GraphProto:
        """Return the branch in which no row stays."""
        scope = _Scope()
        outputs = [
            scope.op("Identity", [tensor], f"exit{number}/own/{name}")
            for tensor, name in zip(answer, ANSWER, strict=True)
        ]
        return scope.graph(f"exit{number}.leave", self.answer_infos(number, outputs))

    def answer_infos(self, number: int, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """Return types and shapes of output, stage and confidence at a stage. names: their names."""
        one: list[str | int | None] = [_rows(number)]
        shapes = ([*one, *self._manifest.output.shape[1:]], one, one)
        kinds = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)
        infos = zip(names, kinds, shapes, strict=True)
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in infos]


def _rows(number: int) -> str:
    """Return the name of the batch axis at a stage.

    Every stage has its own, because onnxruntime shares buffers between tensors of equal symbolic shape.
    """
    return "N" if number == 1 else f"N{number}"


def _name_axes(graph: onnx.GraphProto, batch: str, prefix: str) -> None:
    """Rename the symbolic axes of a stage's graph in place: the batch axis to `batch`, others by a prefix."""
    before = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    for info in (*graph.input, *graph.output, *graph.value_info):
        for axis in info.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = batch if axis.dim_param == before else prefix + axis.dim_param


def _check_like(runner: Dispatcher, data: bytes, baked: Sequence[float] | None, *, provider: str = CPU) -> None:
    """Raise VerifyError unless the file answers noise like the dispatcher, with the baked thresholds or for every exit."""
    spec, stages = runner.manifest.input, len(runner.manifest.stages)
    images = noise((CHECKED_ROWS, *[n or 1 for n in spec.shape[1:]]), spec.dtype)
    session = make_session(data, provider=provider)
    for limits in [baked] if baked is not None else [thresholds_for_exit(stages, k + 1) for k in range(stages)]:
        feeds = {spec.name: images}
        if baked is None and stages > 1:
            feeds[THRESHOLDS] = np.asarray(limits, np.float32)
        outputs = dict(zip(ANSWER, session.run(ANSWER, feeds), strict=True))
        answer = runner(images, thresholds=limits)
        scale = float(np.abs(answer.output).max(initial=1.0, where=np.isfinite(answer.output)))
        close = np.allclose(outputs[OUTPUT], answer.output, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
        if not (close and np.array_equal(outputs[STAGE], answer.stage)):
            raise VerifyError(
                f"the single file answers otherwise than the stages (noise that the stages {answer.stage.tolist()} answer "
                f"leaves it at {outputs[STAGE].tolist()}, with outputs {'equal' if close else 'that differ'}); please report this"
            )

"""Folders in another arithmetic: the content of the files, the quality of the answers, and that nothing is left half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from chain_law import analysed, random_plan
from command_line import call
from helpers import Array, assert_close, open_session, random_images, run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graphs
from s2d_runtime import Dispatcher
from text_nets import LABEL_NETS, chain, net, residual
from tiny import Listener, ask, make_model, quadrants, turn_answers, use_tiny_effort

from s2d_convert.calibration.thresholds import ALWAYS_LEAVES
from s2d_convert.calibration.verdict import Outcome
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.conversion.pipeline import convert
from s2d_convert.conversion.requantize import (
    AT_LEAST,
    LEAST_AGREEMENT,
    Quantizer,
    convert_stages,
    kinds_of,
    spoiled_stage,
    staying_rows,
)
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.errors import ModelError
from s2d_convert.exporting.folder import read_stages
from s2d_convert.exporting.quantize import answering_nodes, float16_stage, int8_model, int8_stage, set_temperature
from s2d_convert.frontend.load import load_graph
from s2d_convert.plans.heuristics import depth_plan
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.weights import ExitHead
from s2d_convert.slicing.chain import store_as_float16
from s2d_convert.slicing.split import split
from s2d_convert.workflows.quantize_folder import QuantizeOptions, judged, quantize_folder
from s2d_convert.workflows.split_model import SplitOptions, split_model

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
POOLED = ["Flatten", "GlobalAveragePool"]  # what a head on a map begins with


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model converted once, in float32 (`out`) and with --quantize int8 (`int8`); a written plan, because what a
    search of five evaluations finds hangs on the latencies of the machine."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "tiny.onnx")
    images, labels = quadrants(700, 1)
    np.savez(folder / "data.npz", images=images, labels=labels)
    graph = load_graph(folder / "tiny.onnx")
    channels = analyse(graph)
    plan = folder / "plan.json"
    plan.write_text(json.dumps(depth_plan(AnalysedModel(graph, channels), 2).to_json(channels)))
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_effort(patch)
        convert(ask(folder, plan=str(plan)), Listener())
        convert(ask(folder, out=folder / "int8", plan=str(plan), quantize="int8"), Listener())
    return folder


def stage_of(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One stage with all of a model, and images for it."""
    graph, channels, weights = analysed(model)
    (stage,) = split(graph, channels, random_plan(graph, channels, 0, prune=False), weights)[:1]
    return stage.model, random_images(model, 64, 0)


def kinds(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """What a stage takes and gives: names, types, shapes."""
    return {
        side: [(v.name, v.type.tensor_type.elem_type, str(v.type.tensor_type.shape)) for v in values]
        for side, values in (("in", model.graph.input), ("out", model.graph.output))
    }


def weights_of(model: onnx.ModelProto) -> Mapping[str, int]:
    """The type of every weight that is a matrix or more."""
    return {i.name: i.data_type for i in model.graph.initializer if len(i.dims) > 1}


# --- one stage ------------------------------------------------------------------------------------------------------


@given(random_graphs(), st.integers(0, 2**16))
@settings(max_examples=10)
def test_stages_of_random_graphs_keep_their_contract(model: onnx.ModelProto, seed: int) -> None:
    graph, channels, weights = analysed(model)
    stages = split(graph, channels, random_plan(graph, channels, seed), weights)
    values = dict(random_images(model, 16, seed))
    for stage in stages:
        feeds = {i.name: values[i.name] for i in stage.model.graph.input}
        expected = run(stage.model, feeds)
        values.update(expected)
        for made in (int8_stage(stage.model, feeds), float16_stage(stage.model)):
            assert kinds(made) == kinds(stage.model)
            onnx.checker.check_model(made)
            # onnxruntime's fusions for float16 can fail on a CPU, which `check_runs` finds out.
            got = run(open_session(made, optimise=False), feeds)
            assert {name: value.shape for name, value in got.items()} == {n: v.shape for n, v in expected.items()}


@pytest.mark.parametrize(("groups", "kind"), [(1, onnx.TensorProto.INT8), (2, FLOAT)])
def test_a_transposed_convolution_in_groups_stays_in_float(groups: int, kind: int) -> None:
    model = net(
        f"""g (float[N,8,6,6] image) => (float[N,10] y) {{
            t = ConvTranspose<kernel_shape=[3,3], group={groups}>(image, w, b)
            p = GlobalAveragePool(t)  f = Flatten(p)  y = Gemm(f, v)
        }}""",
        w=(8, 8 // groups, 3, 3), b=(8,), v=(8, 10),
    )  # fmt: skip
    for node in model.graph.node:
        node.name = node.output[0]  # the tool is told names
    feeds = random_images(model, 32, 0)
    made = int8_model(model, feeds)
    (node,) = [n for n in made.graph.node if n.op_type == "ConvTranspose"]
    stored = {i.name: i.data_type for i in made.graph.initializer}
    makers = {name: n for n in made.graph.node for name in n.output}
    weight = node.input[1] if node.input[1] in stored else makers[node.input[1]].input[0]
    assert stored[weight] == kind
    assert_close(run(made, feeds)["y"], run(model, feeds)["y"], rel=0.05)


def test_int8_computes_in_int8_and_leaves_the_classifier_in_float() -> None:
    model, feeds = stage_of(chain())
    made = int8_stage(model, feeds)
    types = weights_of(made)
    convolutions = [n for n in made.graph.node if n.op_type == "Conv"]
    makers = {name: node for node in made.graph.node for name in node.output}
    assert convolutions
    for node in convolutions:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        stored = makers[node.input[1]].input[0]
        assert types[stored] == onnx.TensorProto.INT8
        scale = next(i for i in made.graph.initializer if i.name == makers[node.input[1]].input[1])
        assert len(scale.dims) == 1  # one per output channel
    (linear,) = [n for n in made.graph.node if n.op_type == "Gemm"]
    assert types[linear.input[1]] == FLOAT
    assert_close(run(made, feeds)["output"], run(model, feeds)["output"], rel=0.05)


def test_float16_computes_in_float16_and_leaves_the_confidence_in_float() -> None:
    model, feeds = stage_of(chain())
    made = float16_stage(model)
    types = weights_of(made)
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert types[node.input[1]] == (FLOAT if node.name in answering_nodes(model) else FLOAT16)
    assert_close(run(made, feeds), run(model, feeds), rel=5e-3)
    assert not np.array_equal(run(made, feeds)["output"], run(model, feeds)["output"])


def test_a_stage_that_takes_bytes() -> None:
    model = net(
        """g (uint8[N,8,8,3] image) => (float[N,10] logits) {
            c = Cast<to=1>(image)  d = Mul(c, by)  t = Transpose<perm=[0,3,1,2]>(d)  s = Conv(t, ws)  x = Relu(s)
            e = Conv(x, we)  g = GlobalAveragePool(e)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl)
        }""",
        by=(1,), ws=(8, 3, 3, 3), we=(16, 8, 3, 3), wl=(10, 16),
    )  # fmt: skip
    stage, _ = stage_of(model)
    feeds = {"image": np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)}
    expected = run(stage, feeds)["output"]
    scale = float(np.abs(expected).max())
    for made, error in ((int8_stage(stage, feeds), 0.1), (float16_stage(stage), 0.01)):
        assert kinds(made) == kinds(stage)
        assert float(np.abs(run(made, feeds)["output"] - expected).max()) <= error * scale


def test_a_norm_of_its_own_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    """The tool takes the vector of its scales for a weight with two axes, says so, and quantises it all the same."""
    model = net(
        """g (float[N,8,6,6] image) => (float[N,10] y) {
            n = BatchNormalization(image, s, b, m, v)  r = Relu(n)  c = Conv(r, w)  p = GlobalAveragePool(c)
            f = Flatten(p)  y = Gemm(f, u)
        }""",
        s=(8,), b=(8,), m=(8,), v=(8,), w=(6, 8, 3, 3), u=(6, 10),
    )  # fmt: skip
    (variance,) = [i for i in model.graph.initializer if i.name == "v"]
    variance.CopyFrom(onnx.numpy_helper.from_array(np.ones(8, np.float32), "v"))
    feeds = random_images(model, 32, 0)
    made = int8_model(model, feeds)
    assert_close(run(made, feeds)["y"], run(model, feeds)["y"], rel=0.05)
    assert not caplog.records


def test_what_stays_in_float() -> None:
    model, _ = stage_of(chain())
    named = {n.name: n.op_type for n in model.graph.node}
    assert [named[name] for name in answering_nodes(model)] == [
        "Identity",
        "Mul",
        "Softmax",
        "ReduceMax",
        "Gemm",
        *POOLED,
    ]


@pytest.mark.parametrize("make", LABEL_NETS, ids=lambda net: net.__name__)
def test_the_layers_that_make_and_read_the_logits_stay_in_float_behind_any_end(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    onnx.save(make(), str(tmp_path / "model.onnx"))
    manifest = split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, out=tmp_path / "out"))
    for stage in manifest.stages:
        model = onnx.load(tmp_path / "out" / stage.file)
        kept = answering_nodes(model)
        converted = {n.op_type for n in model.graph.node if n.name not in kept}
        assert converted <= {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten"}
        assert len(set(kept)) == len(kept)


def unequal_head(cell: tuple[int, int] | None, *, last: bool) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A first stage whose head undoes the deviations of its features, which differ by a factor of about 15, and images for it:
    in two channels the mean varies from image to image, in the third there is noise alone. `last`: channels come last."""
    ending = (
        "x = Transpose<perm=[0,2,3,1]>(a)  b = MatMul(x, wb)  y = Relu(b)  p = ReduceMean<axes=[1,2], keepdims=0>(y)"
        if last
        else "x = Identity(a)  b = Conv(x, wb)  y = Relu(b)  q = GlobalAveragePool(y)  p = Flatten(q)"
    )
    text = f"a = Conv(image, wa)  {ending}  logits = Gemm<transB=1>(p, wl)"
    model = net(
        f"g (float[N,3,16,16] image) => (float[N,5] logits) {{ {text} }}",
        wa=(8, 3, 1, 1), wb=(8, 16) if last else (16, 8, 1, 1), wl=(5, 16),
    )  # fmt: skip
    (first,) = [i for i in model.graph.initializer if i.name == "wa"]
    mixed = onnx.numpy_helper.to_array(first).copy()
    mixed[:4, 2:], mixed[4:, :2] = 0, 0
    first.CopyFrom(onnx.numpy_helper.from_array(mixed, "wa"))
    graph, channels, weights = analysed(model)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (300, 3, 16, 16))
    images[:, :2] += rng.normal(0, 1, (300, 2, 1, 1))
    maps = np.einsum("nchw,oc->nohw", images, mixed[:, :, 0, 0])
    step = (16, 16) if cell is None else cell
    cells = maps.reshape(300, 8, 16 // step[0], step[0], 16 // step[1], step[1]).mean(axis=(3, 5)).reshape(300, -1)
    hidden = (rng.normal(0, 1, (32, cells.shape[1])) / cells.std(axis=0)).astype(np.float32)
    answering = rng.normal(0, 0.3, (5, 32)).astype(np.float32)
    head = ExitHead(((hidden, np.zeros(32, np.float32)), (answering, np.zeros(5, np.float32))), cell)
    (tap,) = [node.inputs[0] for node in graph.nodes if node.outputs == ("b",)]
    plan = Plan((tap, graph.output), (1,) * channels.units)
    stages = split(graph, channels, plan, weights.with_heads({tap: head}))
    return stages[0].model, {"image": images.astype(np.float32)}


@pytest.mark.parametrize(("cell", "last"), [(None, False), ((8, 8), False), (None, True), ((8, 8), True)])
def test_the_whole_of_an_exit_head_stays_in_float(cell: tuple[int, int] | None, last: bool) -> None:
    model, feeds = unequal_head(cell, last=last)
    made = int8_stage(model, feeds)
    before, after = run(model, feeds)["output"], run(made, feeds)["output"]
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() >= LEAST_AGREEMENT  # 0.8 and 0.6 before
    stored = weights_of(made)
    assert all(stored[node.input[1]] == FLOAT for node in made.graph.node if node.op_type == "Gemm")
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type in ("GlobalAveragePool", "AveragePool", "ReduceMean", "Gemm", "Relu"):
            assert all(
                reader.op_type != "QuantizeLinear" for reader in made.graph.node if node.output[0] in reader.input
            )
    assert any(
        makers[name].op_type == "DequantizeLinear" for n in made.graph.node if n.op_type == "Conv" for name in n.input
    )


def test_a_temperature_is_written_into_the_file() -> None:
    model, feeds = stage_of(chain())
    made = int8_stage(model, feeds)
    before = run(made, feeds)
    set_temperature(made, 3.0)
    after = run(made, feeds)
    powers = np.exp(before["output"] / 3)
    assert_close(after["confidence"], (powers / powers.sum(axis=1, keepdims=True)).max(axis=1))
    assert_close(after["output"], before["output"])
    del made.graph.initializer[:]
    with pytest.raises(ModelError, match="inverse_temperature"):
        set_temperature(made, 2.0)


def test_kinds() -> None:
    assert kinds_of("int8", 3) == ["int8"] * 3
    assert kinds_of("int8:early", 3) == ["int8", "int8", "float32"]
    assert kinds_of("int8:early", 1) == ["float32"]
    assert kinds_of("fp16", 2) == ["fp16"] * 2


# --- a folder -------------------------------------------------------------------------------------------------------


def check_whole(folder: Path, kind: str) -> dict[str, Any]:
    """The folder is one that the runtime takes, and its manifest says what it is; returns the manifest."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for stage in manifest["stages"]:
        assert hashlib.sha256((folder / stage["file"]).read_bytes()).hexdigest() == stage["sha256"]
    assert manifest["provenance"]["arithmetic"] == kind
    assert (folder / "plan.json").exists()
    assert "<svg" in (folder / "report.html").read_text()
    with Dispatcher(folder) as runner:
        images, labels = quadrants(200, 9)
        answer = runner(images)
        assert set(np.unique(answer.stage)) <= set(range(1, len(manifest["stages"]) + 1))
        last = runner(images, exits=False)  # an exit that was trained for seconds proves nothing
        assert (last.output.argmax(axis=1) == labels).mean() > 0.9
    return manifest


def test_converted_to_int8_in_one_go(place: Path) -> None:
    manifest = check_whole(place / "int8", "int8")
    assert manifest["provenance"]["options"]["out"] == str(place / "int8")
    assert manifest["measured"]["images"] == 116
    assert not (place / "int8.run").exists()
    for stage in manifest["stages"]:
        types = weights_of(onnx.load(place / "int8" / stage["file"]))
        assert onnx.TensorProto.INT8 in types.values()


@pytest.mark.parametrize("kind", ["int8", "int8:early", "fp16"])
def test_an_exported_folder_in_another_arithmetic(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "made"
    arguments = ("--quantize", kind, "--data", str(place / "data.npz"), "--out", str(out))
    code, printed, err = call(capsys, "export", str(place / "out"), *arguments)
    assert code == 0, err
    assert "answers as before on" in err
    assert "mean latency" in printed
    assert "of the static model's time on average" in printed
    manifest = check_whole(out, kind)
    with Dispatcher(place / "out") as before, Dispatcher(out) as after:
        old, new = read_stages(place / "out", before.manifest), read_stages(out, after.manifest)
        images, _ = quadrants(300, 11)
        was, now = before(images, exits=False), after(images, exits=False)
    assert (was.output.argmax(axis=1) == now.output.argmax(axis=1)).mean() > 0.9
    assert [s["macs"] for s in manifest["stages"]] == [stage.macs for stage in old]
    changed = [weights_of(a.model) != weights_of(b.model) for a, b in zip(old, new, strict=True)]
    assert changed == [k != "float32" for k in kinds_of(kind, len(old))]
    code, _, err = call(capsys, "export", str(out), *arguments[:-1], str(tmp_path / "again"))
    assert (code, f"its stages are in {kind} already; give the float32 folder" in err) == (6, True)


def test_weights_that_are_stored_in_float16_are_no_obstacle(place: Path, tmp_path: Path) -> None:
    model, feeds = stage_of(chain())
    expected = int8_stage(model, feeds)
    store_as_float16(model)
    assert weights_of(int8_stage(model, feeds)) == weights_of(expected)


def quantized(place: Path, out: Path, kind: str, quantizer: Quantizer) -> list[str]:
    """Write the folder of `place` in another arithmetic, by a quantizer of the test; returns the notes."""
    notes: list[str] = []
    options = QuantizeOptions(place / "out", kind, place / "data.npz", out)
    quantize_folder(options, note=notes.append, warn=notes.append, quantizers={kind: quantizer})
    return notes


@pytest.mark.parametrize(
    ("latency", "loss", "better_before"), [(0.9, 0.03, True), (0.9, 0.0, False), (0.4, 0.03, False), (1.1, 0.02, True)]
)
def test_the_end_says_where_the_float_folder_is_better(latency: float, loss: float, better_before: bool) -> None:
    def manifest(latency: float, loss: float) -> Any:
        outcome = Outcome(0.5, latency, 1.2, 0.9, loss, 0.001, (0.6, 0.4))
        return SimpleNamespace(
            measured={"outcomes": [asdict(outcome)]}, provenance={}, default_budget=0.5, target_name="accuracy"
        )

    measured: Any = None
    made = judged(manifest(0.7, 0.01), manifest(latency, loss), measured)
    assert ("keep that one" in made.sentences[-1]) is better_before
    assert made.worse is (latency > 1)
    assert "points of accuracy" in made.sentences[0]


def test_a_stage_that_cannot_be_converted_leaves_nothing(place: Path, tmp_path: Path) -> None:
    def broken(*_: object) -> onnx.ModelProto:
        return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 13]> g () => (float y) { y = Nonsense() }')

    with pytest.raises(ModelError, match=r"^stage 1: onnxruntime cannot change its arithmetic \("):
        quantized(place, tmp_path / "made", "fp16", broken)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_reach_a_stage_and_at_least_some() -> None:
    sure = np.linspace(0, 1, 200, dtype=np.float32)[::-1].copy()
    assert staying_rows(sure, 0.9).tolist() == np.flatnonzero(sure < np.float32(0.9)).tolist()
    assert staying_rows(sure, 0.0).tolist() == list(range(200 - AT_LEAST, 200))
    assert len(staying_rows(np.full(200, np.nan, np.float32), 0.5)) == 200


def test_ranges_come_from_the_rows_that_reach_a_stage(tmp_path: Path) -> None:
    shown: list[Mapping[str, Array]] = []

    def remember(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        shown.append(feeds)
        return model

    onnx.save(residual(), str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="width", stages=3, out=tmp_path / "out"))
    np.savez(tmp_path / "data.npz", images=random_images(residual(), 400, 0)["image"])
    preprocess = make_preprocess(None, size=(8, 8), channels=3)
    images = load_all(tmp_path / "data.npz", preprocess=preprocess, space=LabelSpace(3))
    with Dispatcher(tmp_path / "out") as runner:
        whole = images.batch(slice(None))
        first = float(np.median(runner(whole, thresholds=[ALWAYS_LEAVES, ALWAYS_LEAVES]).confidence))
        second = float(np.median(runner(whole, thresholds=[first, ALWAYS_LEAVES]).confidence))
        answer = runner(whole, thresholds=[first, second])
        policies = tuple(replace(policy, thresholds=(first, second)) for policy in runner.manifest.policies)
        manifest = replace(runner.manifest, policies=policies)
    stages = read_stages(tmp_path / "out", manifest)
    convert_stages(manifest, stages, images, kinds=["int8"] * len(stages), quantizers={"int8": remember})
    reached = [int((answer.stage > k).sum()) for k in range(3)]
    assert AT_LEAST < reached[2] < reached[1] < 400
    assert [len(next(iter(feeds.values()))) for feeds in shown] == reached
    assert [sorted(feeds) for feeds in shown] == [sorted(i.name for i in s.model.graph.input) for s in stages]


# --- stages that do not bear it -------------------------------------------------------------------------------------


def test_which_stage_stays_in_float32() -> None:
    def of(agreement: list[float], kinds: list[str]) -> int | None:
        return spoiled_stage(np.array(agreement), kinds)

    assert of([0.9, 1.0], ["int8", "int8"]) is None
    assert of([0.99, 0.89], ["int8", "int8"]) == 1
    assert of([0.87, 0.5], ["int8", "int8"]) == 0
    assert of([0.99, 0.5], ["int8", "float32"]) == 0  # the links are at fault
    assert of([1.0, 0.99, 0.5], ["int8", "int8", "float32"]) == 1


def spoiling(broken: set[int]) -> Quantizer:
    """A quantizer that spoils the answers of some stages, counted from 0: their logits come out in another order."""

    def spoil(stages: Any, feeds: Any) -> onnx.ModelProto:
        model = int8_stage(stages, feeds)
        if ("image" if "image" in feeds else "input") in feeds and len(feeds) == 1:
            number = 0
        else:
            number = 1
        if number in broken:
            turn_answers(model)
        return model

    return spoil


def test_a_stage_that_answers_otherwise_in_int8_stays_in_float32(place: Path, tmp_path: Path) -> None:
    notes = quantized(place, tmp_path / "made", "int8", spoiling({0}))
    assert "less than 90 % is too little: stage 1 stays in float32" in notes
    provenance = check_whole(tmp_path / "made", "int8")["provenance"]
    assert provenance["arithmetic_of_stages"] == ["float32", "int8"]


def test_where_no_stage_bears_int8_nothing_is_written(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no stage bears int8"):
        quantized(place, tmp_path / "made", "int8", spoiling({0, 1}))
    assert list(tmp_path.iterdir()) == []

"""The single file answers like the dispatcher: toys to the last bit, random graphs and plans, every way out, any batch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chain_law import analysed, random_plan
from example_exports import BUDGETS, make_example
from helpers import Array, assert_close, open_session, random_images, run
from hypothesis import given, settings
from hypothesis import strategies as st
from old_runtime import OLD, old_python
from random_graphs import random_graphs
from s2d_runtime import Answer, Dispatcher, Manifest
from test_dispatcher import assert_same, call_strategy
from text_nets import LABEL_NETS, net, residual
from toy_exports import CASCADE, MIXED, PAIR, SINGLE, Toy, images_of, policy, stage_text, write_export, write_manifest

from s2d_convert.base.sessions import ONE_THREAD
from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.class_names import names_in_metadata
from s2d_convert.errors import OutputError, VerifyError
from s2d_convert.exporting.folder import FolderWriter, draft_manifest
from s2d_convert.exporting.single import ANSWER, POLICIES, THRESHOLDS, write_single
from s2d_convert.plans.plan import Conversion, identity_plan
from s2d_convert.slicing.chain import build_stages, chains_of
from s2d_convert.workflows.split_model import SplitOptions, split_model

BATCHES = (0, 1, 16)


def single_of(folder: Path, **options: Any) -> onnx.ModelProto:
    """The single file of a folder, through a file."""
    write_single(folder, folder / "single.onnx", **options)
    return onnx.load(folder / "single.onnx")


def ask(session: Any, image: str, images: Array, thresholds: Sequence[float]) -> Answer:
    """What a single file answers."""
    feeds = {image: images}
    if thresholds:
        with np.errstate(over="ignore"):
            feeds[THRESHOLDS] = np.asarray(thresholds, np.float32)
    found = run(session, feeds)
    return Answer(*(found[name] for name in ANSWER))


def write_conversion(folder: Path, model: onnx.ModelProto, seed: int, *, cascade: bool) -> None:
    """A folder of a random plan; with `cascade` the untouched model follows as a chain of its own."""
    graph, channels, weights = analysed(model)
    chains = (random_plan(graph, channels, seed), *([identity_plan(AnalysedModel(graph, channels))] if cascade else []))
    models = build_stages(chains_of(AnalysedModel(graph, channels), chains, weights))
    writer = FolderWriter(folder, draft_manifest(graph, Conversion(chains), models), ONE_THREAD)
    writer.add_stages([stage.model.SerializeToString() for stage in models])


def between(confidence: Array) -> float:
    """A threshold in the widest gap between confidences, so that rounding moves nobody across it."""
    values = np.sort(confidence)
    widest = int(np.diff(values).argmax())
    return float(values[widest : widest + 2].mean())


def ways(runner: Dispatcher, images: Array) -> Iterator[list[float]]:
    """Thresholds with which, at every stage in turn, all rows leave, or some; and with which none ever does."""
    stages = len(runner.manifest.stages)
    yield [NEVER_LEAVES] * (stages - 1)
    for k in range(stages - 1):
        early = [NEVER_LEAVES] * k
        yield [*early, ALWAYS_LEAVES, *[NEVER_LEAVES] * (stages - 2 - k)]
        reached = runner(images, thresholds=[*early, ALWAYS_LEAVES, *[NEVER_LEAVES] * (stages - 2 - k)]).confidence
        yield [*early, between(reached), *[between(reached)] * (stages - 2 - k)]


def check_folder(folder: Path, images: Array) -> None:
    """The single file of a folder answers as its dispatcher does."""
    with Dispatcher(folder) as runner:
        name = runner.manifest.input.name
        session = open_session(single_of(folder))
        for thresholds in ways(runner, images):
            for batch in BATCHES:
                expected = runner(images[:batch], thresholds=thresholds)
                got = ask(session, name, images[:batch], thresholds)
                if np.min(np.abs(np.subtract.outer(expected.confidence, thresholds)), initial=1) < 1e-5:
                    continue  # of another batch than the thresholds were chosen on: rounding decides
                np.testing.assert_array_equal(got.stage, expected.stage)
                assert_close(got.output, expected.output)
                assert_close(got.confidence, expected.confidence)


@given(call_strategy())
def test_every_row_is_answered_to_the_last_bit(call: tuple[tuple[Toy, ...], Any, tuple[float, ...]]) -> None:
    toys, images, thresholds = call
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder), toys)
        session = open_session(single_of(Path(folder)))
        for some in (images, images[:0], images[:1]):
            assert_same(ask(session, "image", some, thresholds), toys, some, thresholds)


@given(random_graphs(), st.integers(0, 2**16), st.booleans())
@settings(max_examples=15)
def test_random_graphs_and_plans(model: onnx.ModelProto, seed: int, cascade: bool) -> None:
    (images,) = random_images(model, max(BATCHES), seed).values()
    with tempfile.TemporaryDirectory() as place:
        write_conversion(Path(place), model, seed, cascade=cascade)
        check_folder(Path(place), images)


@pytest.mark.parametrize("toys", [SINGLE, PAIR, CASCADE, MIXED], ids=["single", "pair", "cascade", "mixed"])
def test_thresholds_that_are_baked_in(tmp_path: Path, toys: Sequence[Toy]) -> None:
    own, asked = [0.5, 0.6, 0.7][: len(toys) - 1], [0.2, 0.3, 0.4][: len(toys) - 1]
    write_export(tmp_path, toys, policies=[policy(0.9, own), policy(0.4, asked)])
    model = single_of(tmp_path, bake=0.4)
    assert [i.name for i in model.graph.input] == ["image"]
    images = images_of(np.random.default_rng(0).uniform(0, 1, (16, 4)))
    assert_same(ask(open_session(model), "image", images, ()), toys, images, asked)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("make", LABEL_NETS, ids=lambda net: net.__name__)
def test_networks_that_give_labels(make: Callable[[], onnx.ModelProto], budget: float, tmp_path: Path) -> None:
    example = make_example(tmp_path, model=make())
    with Dispatcher(example.folder) as dispatcher:
        expected = dispatcher(example.images, budget=budget)
        limits = dispatcher.manifest.policy_for(budget).thresholds
    assert set(expected.stage.tolist()) == {1, 2}
    write_single(example.folder, tmp_path / "baked.onnx", bake=budget)
    baked, asked = open_session(onnx.load(tmp_path / "baked.onnx")), open_session(single_of(example.folder))
    for found in (ask(baked, "image", example.images, ()), ask(asked, "image", example.images, limits)):
        np.testing.assert_array_equal(found.stage, expected.stage)
        assert_close(found.output, expected.output)
        assert_close(found.confidence, expected.confidence)


def test_inputs_outputs_and_the_thresholds_of_every_budget(tmp_path: Path) -> None:
    write_export(tmp_path, MIXED, policies=[policy(0.5, [0.1, 0.2, 0.3]), policy(1.0, [1.01] * 3)])
    model = single_of(tmp_path)
    session = open_session(model)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", ["N", 2, 4]), (THRESHOLDS, [3])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("output", "tensor(float)", ["N", 4]), ("stage", "tensor(int64)", ["N"]), ("confidence", "tensor(float)", ["N"]),
    ]  # fmt: skip
    (stored,) = [p.value for p in model.metadata_props if p.key == POLICIES]
    assert json.loads(stored)[0] == {"budget": 0.5, THRESHOLDS: [0.1, 0.2, 0.3]}
    assert [p.key for p in model.metadata_props] == [POLICIES]


def test_names_of_classes_are_in_the_metadata(tmp_path: Path) -> None:
    manifest = write_export(tmp_path, PAIR)
    names = ["cat", "dog", "it's", "fox"]
    write_manifest(tmp_path, manifest | {"provenance": {"class_names": names}})
    metadata = {p.key: p.value for p in single_of(tmp_path).metadata_props}
    assert names_in_metadata(metadata, 4) == tuple(names)


def test_weights_lie_in_the_branch_of_their_stage(tmp_path: Path) -> None:
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="width", stages=3, out=tmp_path / "out"))
    graph = single_of(tmp_path / "out").graph
    for number in (1, 2, 3):
        heavy = [i.name for i in graph.initializer if len(i.dims) > 1]
        assert heavy
        assert all(name.startswith(f"stage{number}/") for name in heavy)
        branches = {a.name: a.g for n in graph.node if n.op_type == "If" for a in n.attribute}
        graph = branches.get("then_branch", onnx.GraphProto())
    assert not graph.node


def test_a_subgraph_inside_a_stage_finds_its_weights(tmp_path: Path) -> None:
    branches = """<ir_version: 8, opset_import: ["" : 13]> stage1 (float[N,2,4] image)
        => (float[N,4] output, float[N] confidence)
        <int64 zero = {0}, int64 one = {1}, float three = {3}> {
            pay = Gather<axis = 1>(image, one)
            rows = Size(image)
            many = Less(one, rows)
            output = If(many) <then_branch = then () => (float[N,4] a) { a = Mul(pay, three) },
                else_branch = other () => (float[N,4] b) { b = Identity(pay) }>
            sure = Gather<axis = 1>(image, zero)
            confidence = Gather<axis = 1>(sure, zero)
        }"""
    write_export(tmp_path, SINGLE, texts=[branches])
    images = images_of(np.random.default_rng(0).uniform(0, 1, (3, 4)))
    answer = ask(open_session(single_of(tmp_path)), "image", images, ())
    assert_close(answer.output, 3 * images[:, 1])


# --- what cannot be made --------------------------------------------------------------------------------------------


def refused(folder: Path, kind: type[Exception], words: str) -> None:
    """Writing the single file fails with these words, and nothing is left behind."""
    before = sorted(folder.iterdir())
    with pytest.raises(kind, match=words):
        write_single(folder, folder / "single.onnx")
    assert sorted(folder.iterdir()) == before


def test_what_exists_is_not_written_over(tmp_path: Path) -> None:
    write_export(tmp_path, PAIR)
    (tmp_path / "single.onnx").write_bytes(b"mine")
    refused(tmp_path, OutputError, "exists already.*--single")
    assert (tmp_path / "single.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["thresholds", "stage"])
def test_an_image_of_the_same_name_as_another_tensor(tmp_path: Path, name: str) -> None:
    text = (
        f"g (float[N,3,4,4] {name}) => (float[N,2] y) {{ a = Conv({name}, w) p = GlobalAveragePool(a) y = Flatten(p) }}"
    )
    model = net(text, w=(2, 3, 1, 1))
    onnx.save(model, str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="identity", stages=1, out=tmp_path / "out"))
    write_single(tmp_path / "out", tmp_path / "single.onnx")
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    image = Manifest.load(tmp_path / "out").input.name
    assert image != name  # loading gives it another name
    answer = ask(open_session(tmp_path / "single.onnx"), image, images, ())
    assert_close(answer.output, run(model, {name: images})["y"])


def test_stages_of_different_operator_sets(tmp_path: Path) -> None:
    texts = [stage_text(1, CASCADE[0]), stage_text(2, CASCADE[1]).replace(": 13", ": 14")]
    write_export(tmp_path, CASCADE, texts=texts)
    refused(tmp_path, OutputError, "different versions of one operator set")


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(tmp_path, PAIR)
    monkeypatch.setattr("s2d_convert.exporting.single._Builder._threshold", lambda _self, here, _number: here.constant(
        np.array(-100, np.float32), "all leave"))  # fmt: skip
    refused(tmp_path, VerifyError, "answers otherwise than the stages")


# --- an old onnxruntime ---------------------------------------------------------------------------------------------

RUN_ALL = """
import sys
import numpy as np, onnxruntime as ort
folder = sys.argv[1]
for name in sys.argv[2:]:
    session = ort.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])
    with np.load(f"{folder}/{name}.npz") as cases:
        count = int(cases["count"])
        inputs = [i.name for i in session.get_inputs()]
        found = [session.run(["output", "stage", "confidence"], {n: cases[f"{i}/{n}"] for n in inputs})
                 for i in range(count)]
    np.savez(f"{folder}/{name}.found.npz", **{f"{i}/{k}": a for i, row in enumerate(found) for k, a in enumerate(row)})
print(ort.__version__)
"""


def save_cases(place: Path, name: str, folder: Path, images: Array) -> list[Answer]:
    """Write the single file of a folder, and calls of it, into `place`; returns the dispatcher's answers to them."""
    write_single(folder, place / f"{name}.onnx")
    cases: dict[str, Any] = {}
    with Dispatcher(folder) as runner:
        calls = [(images[:batch], way) for way in ways(runner, images) for batch in BATCHES]
        for i, (some, way) in enumerate(calls):
            cases[f"{i}/{runner.manifest.input.name}"] = some
            cases[f"{i}/{THRESHOLDS}"] = np.asarray(way, np.float32)
        np.savez(place / f"{name}.npz", count=np.array(len(calls)), **cases)
        return [runner(some, thresholds=way) for some, way in calls]


@pytest.mark.slow
def test_an_old_onnxruntime_answers_the_same(tmp_path: Path) -> None:
    python = old_python()
    expected: dict[str, list[Answer]] = {}
    toys = {"single": SINGLE, "pair": PAIR, "cascade": CASCADE, "mixed": MIXED}
    for name, kinds in toys.items():
        (tmp_path / name).mkdir()
        write_export(tmp_path / name, kinds)
        images = images_of(np.random.default_rng(0).uniform(0, 1, (16, 4)))
        expected[name] = save_cases(tmp_path, name, tmp_path / name, images)
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    for plan, stages in (("width", 2), ("width", 4), ("depth", 3)):
        name = f"{plan}{stages}"
        split_model(SplitOptions(tmp_path / "model.onnx", plan=plan, stages=stages, out=tmp_path / name))
        (images,) = random_images(residual(), 16, 0).values()
        expected[name] = save_cases(tmp_path, name, tmp_path / name, images)
    assert python("-c", RUN_ALL, tmp_path, *expected).strip() == OLD
    for name, answers in expected.items():
        with np.load(tmp_path / f"{name}.found.npz") as found:
            for i, answer in enumerate(answers):
                np.testing.assert_array_equal(found[f"{i}/1"], answer.stage)
                assert_close(found[f"{i}/0"], answer.output, what=name)
                assert_close(found[f"{i}/2"], answer.confidence, what=name)

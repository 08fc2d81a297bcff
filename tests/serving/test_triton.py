"""The Triton repository: its files, its configurations, and the front model's logic on a stand-in for Triton."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from example_exports import make_example
from fake_triton import ClientRequest, FakeTriton, Tensor, TritonError
from s2d_runtime import Dispatcher, DispatcherError, dispatcher
from s2d_runtime.serving import __file__ as serving_package
from text_nets import LABEL_NETS
from toy_exports import (
    CASCADE,
    MIXED,
    PAIR,
    SINGLE,
    Toy,
    answer_of_row,
    images_of,
    manifest_of,
    policy,
    stage_text,
    write_export,
)

from s2d_convert.cli.main import main
from s2d_convert.errors import OutputError, UsageError
from s2d_convert.exporting.triton import Tensor as ConfigTensor
from s2d_convert.exporting.triton import (
    TritonOptions,
    front_config,
    quoted,
    stage_config,
    write_repository,
    write_single_repository,
)

ORT_MODULES = ("onnxruntime", "onnxruntime.capi", "onnxruntime.capi.onnxruntime_pybind11_state")


def two_policies(stages: int) -> list[dict[str, Any]]:
    """A policy whose thresholds fire for some rows, and one that never does."""
    return [policy(0.5, [0.3, 0.5, 0.7][: stages - 1]), policy(1.0, [1.01] * (stages - 1))]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An export of four stages in three chains."""
    folder = tmp_path / "out"
    folder.mkdir()
    write_export(folder, MIXED, policies=two_policies(4))
    return folder


def front_model(repository: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "toy", broken: str = "") -> Any:
    """The front model of a repository, loaded as Triton does, and the stand-in behind it."""
    triton = FakeTriton(repository, broken=broken)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton.module())
    monkeypatch.setitem(sys.modules, "s2d_dispatcher", None)  # so that the one that is loaded now is forgotten again
    spec = importlib.util.spec_from_file_location("front_model", repository / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = {"parameters": {"budget": {"string_value": "0.5"}}}
    model.initialize(
        {
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_name": name,
            "model_config": json.dumps(config),
        }
    )
    return model, triton


def execute(model: Any, *requests: ClientRequest) -> Any:
    """The responses of one batch of requests."""
    return asyncio.run(model.execute(requests))


def arrays(response: Any) -> dict[str, Any]:
    """The tensors of a response that did not fail."""
    assert not response.has_error(), response.error()
    return {tensor.name: tensor.array for tensor in response.output_tensors}


@pytest.mark.parametrize("toys", [PAIR, CASCADE, SINGLE, MIXED], ids=["pair", "cascade", "single", "mixed"])
@pytest.mark.parametrize("budget", [None, 1.0, "0.5"])
def test_every_row_gets_the_answer_of_the_stage_where_it_leaves(
    toys: Sequence[Toy], budget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    policies = two_policies(len(toys))
    write_export(folder, toys, policies=policies)
    write_repository(folder, tmp_path / "repo", TritonOptions("toy"))
    model, triton = front_model(tmp_path / "repo", monkeypatch)
    rng = np.random.default_rng(len(toys))
    batches = [images_of(rng.choice([0.2, 0.4, 0.6, 0.9, np.nan], (n, 4)), seed=n) for n in (1, 7, 20)]
    parameters = "" if budget is None else json.dumps({"budget": budget})
    responses = execute(model, *(ClientRequest(Tensor("image", images), parameters) for images in batches))
    thresholds = policies[budget == 1.0]["thresholds"]
    reached = np.zeros(len(toys) + 1, int)
    for images, response in zip(batches, responses, strict=True):
        found = arrays(response)
        assert {name: (a.dtype, a.shape[1:]) for name, a in found.items()} == {
            "output": (np.float32, (4,)),
            "stage": (np.int64, (1,)),
            "confidence": (np.float32, (1,)),
        }
        for row, image in enumerate(images):
            output, stage, confidence = answer_of_row(toys, image, thresholds)
            np.testing.assert_array_equal(found["output"][row], output)
            assert found["stage"][row, 0] == stage
            np.testing.assert_array_equal(found["confidence"][row, 0], confidence)
            reached[1 : stage + 1] += 1
    counted = [triton.exported[f"s2d_images_total {k}"] for k in range(1, len(toys) + 1)]
    assert counted == (reached[1:] - np.append(reached[2:], 0)).tolist()
    assert triton.exported[f"s2d_expected_exit_share {len(toys)}"] == 1
    # Only the rows that stay go on.
    assert [triton.rows[f"toy_stage{k}"] for k in range(1, len(toys) + 1)] == reached[1:].tolist()


@pytest.mark.parametrize("make", LABEL_NETS, ids=lambda net: net.__name__)
def test_networks_that_give_labels(
    make: Callable[[], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = make_example(tmp_path, model=make())
    write_repository(example.folder, tmp_path / "repo", TritonOptions("toy"))
    model, _ = front_model(tmp_path / "repo", monkeypatch)
    with Dispatcher(example.folder) as dispatcher:
        expected = dispatcher(example.images, budget=0.5)
    assert set(expected.stage.tolist()) == {1, 2}
    (response,) = execute(model, ClientRequest(Tensor("image", example.images)))
    found = arrays(response)
    np.testing.assert_array_equal(found["stage"][:, 0], expected.stage)
    assert found["output"].shape == expected.output.shape
    np.testing.assert_allclose(found["output"], expected.output, rtol=1e-5)
    np.testing.assert_allclose(found["confidence"][:, 0], expected.confidence, rtol=1e-5)


def test_a_bad_budget_fails_its_own_request_only(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(out, tmp_path / "repo", TritonOptions("toy"))
    model, _ = front_model(tmp_path / "repo", monkeypatch)
    image = Tensor("image", images_of([0.9] * 4))
    texts = ('{"budget": 2}', '{"budget": "much"}', '{"budget": [1]}', '{"other": 1}')
    *bad, good = execute(model, *(ClientRequest(image, text) for text in texts))
    for response, got in zip(bad, ("got 2", "got 'much'", r"got [1]"), strict=True):
        assert response.error().code() == TritonError.INVALID_ARG
        assert got in response.error().message()
    assert arrays(good)["stage"].tolist() == [[1]]


def test_a_stage_that_fails_is_named(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(out, tmp_path / "repo", TritonOptions("toy"))
    model, _ = front_model(tmp_path / "repo", monkeypatch, broken="toy_stage2")
    sure, unsure = (ClientRequest(Tensor("image", images_of([c] * 4)), wanted=["stage"]) for c in (0.9, 0.1))
    good, failed = execute(model, sure, unsure)
    assert {name: a.tolist() for name, a in arrays(good).items()} == {"stage": [[1]]}
    assert failed.error() == TritonError("stage 2: no memory", TritonError.UNAVAILABLE)


def test_the_front_model_loads_where_python_has_no_onnxruntime(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(out, tmp_path / "repo", TritonOptions("toy"))
    find_spec = importlib.util.find_spec
    for name in ORT_MODULES:  # so that they come back
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    model, _ = front_model(tmp_path / "repo", monkeypatch)
    assert not hasattr(sys.modules["onnxruntime"], "InferenceSession")
    assert model._manifest.default_budget == 0.5


def test_the_repository_has_the_stage_files_as_they_are(out: Path, tmp_path: Path) -> None:
    names = write_repository(out, tmp_path / "repo", TritonOptions("toy"))
    assert names == ("toy", "toy_stage1", "toy_stage2", "toy_stage3", "toy_stage4")
    files = {str(p.relative_to(tmp_path / "repo")): p for p in (tmp_path / "repo").rglob("*") if p.is_file()}
    front = {"toy/1/model.py", "toy/1/dispatcher.py", "toy/1/manifest.json"}
    stages = {f"toy_stage{k}/1/model.onnx": out / f"stage{k}.onnx" for k in range(1, 5)}
    assert set(files) == front | set(stages) | {f"{name}/config.pbtxt" for name in names}
    originals = {
        **stages,
        "toy/1/manifest.json": out / "manifest.json",
        "toy/1/dispatcher.py": Path(dispatcher.__file__),
        "toy/1/model.py": Path(serving_package).parent / "triton_model.py",
    }
    for name, original in originals.items():
        assert files[name].read_bytes() == original.read_bytes()


def test_a_repository_is_written_whole_or_not_at_all(out: Path, tmp_path: Path) -> None:
    (out / "stage3.onnx").write_bytes(b"damaged")
    with pytest.raises(DispatcherError, match="stage3"):
        write_repository(out, tmp_path / "repo", TritonOptions("toy"))
    write_export(out, MIXED)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_repository(out, tmp_path / "there", TritonOptions("toy"))
    shutil.rmtree(tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_single_file_has_a_repository_too(out: Path, tmp_path: Path) -> None:
    assert write_single_repository(out, tmp_path / "repo", TritonOptions("toy"), budget=0.6) == ("toy",)
    version = tmp_path / "repo" / "toy" / "1"
    assert [path.name for path in version.iterdir()] == ["model.onnx"]
    session = ort.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["image"]  # the thresholds are in it
    images = images_of(np.random.default_rng(0).choice([0.2, 0.4, 0.6, 0.9], (20, 4)))
    found = dict(
        zip(
            ("output", "stage", "confidence"),
            session.run(["output", "stage", "confidence"], {"image": images}),
            strict=True,
        )
    )
    with Dispatcher(out) as runner:
        expected = runner(images, budget=0.6)
    for name, array in found.items():
        np.testing.assert_array_equal(array, getattr(expected, name))
    config = (tmp_path / "repo" / "toy" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'output { name: "stage" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } }' in config
    assert "max_queue_size: 1024" in config


@pytest.mark.parametrize("bad", [["--triton", "there"], ["--triton", "repo", "--name", "a/b"], ["--triton-single", "repo",
    "--bake", "2"], ["--triton", "repo", "--bake", "0.5"], ["--triton", "repo", "--single", "s.onnx"]])  # fmt: skip
def test_the_command_refuses_in_one_sentence(
    bad: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(out), *bad])
    assert stop.value.code == (6 if "there" in bad else 2)
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there"]


@pytest.mark.parametrize(("option", "models"), [("--triton", 5), ("--triton-single", 1)])
def test_the_command_names_the_model_after_the_folder(
    option: str, models: int, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out.rename(tmp_path / "net.s2d")
    main(["export", str(folder), option, str(tmp_path / "repo"), "--max-batch", "5"])
    assert "net" in capsys.readouterr().out
    configs = list((tmp_path / "repo").glob("net*/config.pbtxt"))
    assert len(configs) == models
    assert all("max_batch_size: 5\n" in path.read_text(encoding="utf-8") for path in configs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "--name a/b"),
        ({"name": ""}, "--name"),
        ({"name": "m", "max_batch": 0}, "--max-batch 0: 1 to 65536"),
        ({"name": "m", "delay_us": -1}, "--delay-us -1"),
        ({"name": "m", "queue": 0}, "--queue 0"),
        ({"name": "m", "threads": 0}, "--threads 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str, out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        write_repository(out, tmp_path / "repo", TritonOptions(**options))
    assert not (tmp_path / "repo").exists()


def test_the_configurations_line_by_line() -> None:
    texts = [stage_text(number, toy) for number, toy in enumerate(PAIR, start=1)]
    manifest = dispatcher.Manifest.from_json(manifest_of(PAIR, texts, policies=two_policies(2)))
    options = TritonOptions("toy", max_batch=8, delay_us=50, queue=99, threads=2)
    assert stage_config(manifest, 2, options).splitlines() == [
        'name: "toy_stage2"',
        'backend: "onnxruntime"',
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 8",
        'input { name: "link1" data_type: TYPE_FP32 dims: [ 2, 4 ] }',
        'output { name: "output" data_type: TYPE_FP32 dims: [ 4 ] }',
        'output { name: "confidence" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }',
        "dynamic_batching { max_queue_delay_microseconds: 50 }",
        'parameters { key: "intra_op_thread_count" value { string_value: "2" } }',
    ]
    assert front_config(manifest, options).splitlines()[1:] == [
        'name: "toy"',
        'backend: "python"',
        "max_batch_size: 8",
        'input { name: "image" data_type: TYPE_FP32 dims: [ 2, 4 ] }',
        'output { name: "output" data_type: TYPE_FP32 dims: [ 4 ] }',
        'output { name: "stage" data_type: TYPE_INT64 dims: [ 1 ] }',
        'output { name: "confidence" data_type: TYPE_FP32 dims: [ 1 ] }',
        "dynamic_batching { max_queue_delay_microseconds: 50"
        " default_queue_policy { max_queue_size: 99 allow_timeout_override: true } }",
        "instance_group { kind: KIND_CPU count: 2 }",
        'parameters { key: "budget" value { string_value: "0.5" } }',
    ]


def test_names_are_quoted_and_a_row_without_axes_gets_one() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    text = ConfigTensor("x", "uint8", ()).text("input")
    assert text == 'input { name: "x" data_type: TYPE_UINT8 dims: [ 1 ] reshape { shape: [ ] } }'

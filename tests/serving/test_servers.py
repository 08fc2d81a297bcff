"""Triton, MLServer and KServe for real, on loopback, with one V2 client: the answers are the dispatcher's (`make slow`)."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import environment
from s2d_runtime import Dispatcher
from stacks import CLIENT, MOST, STACKS, Ports, free_ports
from toy_exports import MIXED, images_of, policy, write_export

from s2d_convert.exporting.triton import TritonOptions, write_repository, write_single_repository

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# The stacks that keep to the first gRPC definition have no floating-point parameters.
WITHOUT_FLOATS = ("mlserver", "kserve")


@dataclass(frozen=True)
class Running:
    """A server that serves the toy export in `folder` as the model `toy`."""

    stack: str
    folder: Path
    ports: Ports

    def metrics(self) -> dict[str, float]:
        """The metrics of this project, by name and labels."""
        port = self.ports.http if self.stack == "kserve" else self.ports.metrics
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("s2d_"))
        }


@pytest.fixture(scope="module", params=list(STACKS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Every stack in turn."""
    folder, place = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("place")
    write_export(folder, MIXED, policies=[policy(0.5, [0.3, 0.5, 0.7]), policy(1.0, [1.01] * 3)])
    ports = Ports(*free_ports(3))
    with STACKS[request.param](folder, place, ports):
        yield Running(request.param, folder, ports)


@contextmanager
def asked(running: Running, way: str, requests: list[tuple[Any, dict[str, Any]]], place: Path) -> Iterator[Any]:
    """What the V2 client gets for these (images, parameters): answers by `0.output` ..., and the list of refusals."""
    python = environment("client", CLIENT)
    np.savez(place / "requests.npz", **{str(i): images for i, (images, _) in enumerate(requests)})
    (place / "parameters.json").write_text(json.dumps([parameters for _, parameters in requests]), encoding="utf-8")
    protocol, *rest = way.split()
    port = running.ports.grpc if protocol == "grpc" else running.ports.http
    command = [python, HERE / "v2_client.py", protocol, str(port), "toy", place, *rest]
    subprocess.run(list(map(str, command)), check=True, timeout=300, env={"PATH": os.environ["PATH"]})
    with np.load(place / "answers.npz") as answers:
        yield answers, json.loads((place / "errors.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["grpc", "http", "http json"])
def way(request: pytest.FixtureRequest, running: Running) -> str:
    """A protocol, and how tensors travel in it."""
    if request.param == "http" and running.stack == "mlserver":
        pytest.skip("MLServer's REST takes no binary tensors")
    return str(request.param)


def test_every_stack_answers_like_the_dispatcher(running: Running, way: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats = way != "grpc" or running.stack not in WITHOUT_FLOATS
    choices: list[dict[str, Any]] = [{}, {"budget": "1.0"}, {"budget": 1.0 if floats else "1.0"}, {"budget": "0.5"}]
    if running.stack == "triton-single":  # its thresholds are fixed
        choices = [{}] * 4
    requests = [
        (images_of(rng.choice([0.2, 0.4, 0.6, 0.9], (int(n), 4)), seed=i), choices[i % 4])
        for i, n in enumerate(rng.integers(1, 9, 60))
    ]
    with Dispatcher(running.folder) as runner, asked(running, way, requests, tmp_path) as (answers, errors):
        assert errors == []
        for i, (images, parameters) in enumerate(requests):
            expected = runner(images, budget=float(parameters["budget"]) if parameters else None)
            for name in ("output", "stage", "confidence"):
                found, wanted = answers[f"{i}.{name}"], getattr(expected, name)
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)  # Triton's stage is [B, 1]


def test_a_bad_request_gets_a_sentence_and_hurts_no_other(running: Running, way: str, tmp_path: Path) -> None:
    good = images_of([[0.9] * 4] * 3)
    triton = running.stack.startswith("triton")
    bad: list[tuple[Any, dict[str, Any], str]] = [
        (good[:, :, :3], {}, "shape"),
        (good.astype(np.float64), {}, "FP64"),
        (np.concatenate([good] * MOST), {}, "batch-size" if triton else "96"),
    ]
    if running.stack != "triton-single":
        bad += [(good, {"budget": text}, "budget") for text in ("much", "2")]
    if way == "grpc" and running.stack in WITHOUT_FLOATS:
        bad.append((good, {"budget": 1.0}, "or a text"))  # lost on the way: better refused than taken for none
    requests: list[tuple[Any, dict[str, Any]]] = []
    for images, parameters, _ in bad:
        requests += [(images, parameters), (good, {})]
    with asked(running, way, requests, tmp_path) as (answers, errors):
        assert [error["request"] for error in errors] == list(range(0, len(requests), 2))
        for error, (_, _, word) in zip(errors, bad, strict=True):
            assert error["status"] in ("StatusCode.INVALID_ARGUMENT", "400"), error
            assert word in error["message"]
            assert "Traceback" not in error["message"]
        assert {answers[f"{i}.stage"].ravel().tolist() == [1, 1, 1] for i in range(1, len(requests), 2)} == {True}


def test_metrics_tell_the_share_of_exits(running: Running, tmp_path: Path) -> None:
    if running.stack == "triton-single":
        pytest.skip("Triton runs the file by itself")
    name = "s2d_images_total" if running.stack == "triton" else "s2d_drift_images_total"
    labels = 'model="toy"' if running.stack == "triton" else 'budget="0.5",model="toy"'
    series = [f'{name}{{{labels},stage="{k}"}}' for k in range(1, 5)]
    before = running.metrics()
    images = images_of([[0.9] * 4] * 3 + [[0.1, 0.9, 0.9, 0.9]] * 2 + [[0.1] * 4])
    with asked(running, "grpc", [(images, {})], tmp_path) as (_, errors):
        assert errors == []
    after = running.metrics()
    assert [after[one] - before.get(one, 0) for one in series] == [3, 2, 0, 1]
    expected = "s2d_expected_exit_share" if running.stack == "triton" else "s2d_drift_expected_exit_share"
    assert [after[f'{expected}{{{labels},stage="{k}"}}'] for k in range(1, 5)] == [0, 0, 0, 1]


def test_tritons_configurations_follow_the_official_schema(tmp_path: Path) -> None:
    python = environment("client", CLIENT)
    (tmp_path / "out").mkdir()
    write_export(tmp_path / "out", MIXED)
    for write in (write_repository, write_single_repository):
        repository = tmp_path / write.__name__
        names = write(tmp_path / "out", repository, TritonOptions("odd.name-1"))
        command = [str(python), str(HERE / "check_configs.py"), str(repository)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
        assert (done.stderr, done.stdout.split()) == ("", sorted(names))

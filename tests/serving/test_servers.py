"""Triton, MLServer and KServe for real, on loopback, with one V2 client: the answers are the dispatcher's (`make slow`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s2d_runtime import Dispatcher
from stacks import RUNTIME, environment, free_ports, server
from toy_exports import MIXED, images_of, policy, write_export

from s2d_convert.triton import TritonOptions, write_repository, write_single_repository

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MOST = 32  # images in a request
CLIENT = ("tritonclient[grpc,http]>=2.50", "numpy>=1.26")
TRITON = ("nvidia-pytriton>=0.7", "onnxruntime>=1.17", "numpy<2")
# The stacks that keep to the first gRPC definition have no floating-point parameters.
WITHOUT_FLOATS = ("mlserver", "kserve")


@dataclass(frozen=True)
class Running:
    """A server that serves the toy export in `folder` as the model `toy`."""

    stack: str
    folder: Path
    http: int
    grpc: int


def triton(folder: Path, place: Path, http: int, grpc: int) -> contextlib.AbstractContextManager[int]:
    """Triton with a model per stage and one in front of them."""
    write_repository(folder, place / "repo", TritonOptions("toy", max_batch=MOST))
    return tritonserver(place, http, grpc)


def triton_single(folder: Path, place: Path, http: int, grpc: int) -> contextlib.AbstractContextManager[int]:
    """Triton with the single file."""
    write_single_repository(folder, place / "repo", TritonOptions("toy", max_batch=MOST))
    return tritonserver(place, http, grpc)


def tritonserver(place: Path, http: int, grpc: int) -> contextlib.AbstractContextManager[int]:
    """The server out of pytriton's wheel, on the exported repository as it is."""
    python = environment("triton", TRITON)
    command = [python, "-c", "import pytriton, sys; print(pytriton.__path__[0], '%d.%d' % sys.version_info[:2])"]
    home, version = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.split()
    package = Path(home) / "tritonserver"
    backends = place / "backends"
    shutil.copytree(package / "backends", backends)
    shutil.copy(package / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copyfile(HERE / "onnxruntime_backend.py", backends / "onnxruntime" / "model.py")
    libraries = Path(home).parent / "nvidia_pytriton.libs"
    return server(
        [
            package / "bin" / "tritonserver",
            f"--model-repository={place / 'repo'}",
            f"--backend-directory={backends}",
            *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
            "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name=s2d{os.getpid()}",
        ],
        ready=f"http://127.0.0.1:{http}/v2/health/ready",
        log=place / "triton.log",
        env={"PATH": f"{python.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(libraries)},
    )


def mlserver(folder: Path, place: Path, http: int, grpc: int) -> contextlib.AbstractContextManager[int]:
    """MLServer with its settings in two files, as its users write them."""
    python = environment("mlserver", ("-e", f"{RUNTIME}[mlserver]"))
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "parallel_workers": 0, "debug": False,
                "metrics_endpoint": None}  # fmt: skip
    model = {"name": "toy", "implementation": "s2d_runtime.serving.mlserver.StagedModel",
             "parameters": {"uri": str(folder), "extra": {"rows": MOST}}}  # fmt: skip
    (place / "toy").mkdir()
    (place / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (place / "toy" / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return server(
        [python.parent / "mlserver", "start", place],
        ready=f"http://127.0.0.1:{http}/v2/models/toy/ready",
        log=place / "mlserver.log",
        env={"PATH": f"{python.parent}:{os.environ['PATH']}"},
    )


def kserve(folder: Path, place: Path, http: int, grpc: int) -> contextlib.AbstractContextManager[int]:
    """KServe's own server."""
    python = environment("kserve", ("-e", f"{RUNTIME}[kserve]"))
    options = {"model_dir": folder, "model_name": "toy", "http_port": http, "grpc_port": grpc, "rows": MOST}
    return server(
        [python, "-m", "s2d_runtime.serving.kserve", *(f"--{name}={value}" for name, value in options.items())],
        ready=f"http://127.0.0.1:{http}/v2/models/toy/ready",
        log=place / "kserve.log",
    )


STACKS: dict[str, Callable[[Path, Path, int, int], contextlib.AbstractContextManager[int]]] = {
    "triton": triton,
    "triton-single": triton_single,
    "mlserver": mlserver,
    "kserve": kserve,
}


@pytest.fixture(scope="module", params=list(STACKS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Every stack in turn."""
    folder, place = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("place")
    write_export(folder, MIXED, policies=[policy(0.5, [0.3, 0.5, 0.7]), policy(1.0, [1.01] * 3)])
    http, grpc = free_ports(2)
    with STACKS[request.param](folder, place, http, grpc):
        yield Running(request.param, folder, http, grpc)


@contextmanager
def asked(running: Running, way: str, requests: list[tuple[Any, dict[str, Any]]], place: Path) -> Iterator[Any]:
    """What the V2 client gets for these (images, parameters): answers by `0.output` ..., and the list of refusals."""
    python = environment("client", CLIENT)
    np.savez(place / "requests.npz", **{str(i): images for i, (images, _) in enumerate(requests)})
    (place / "parameters.json").write_text(json.dumps([parameters for _, parameters in requests]), encoding="utf-8")
    protocol, *rest = way.split()
    port = running.grpc if protocol == "grpc" else running.http
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

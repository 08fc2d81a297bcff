"""Serving stacks for tests: an environment of its own for each, made under build/serving, and servers on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from environments import environment

from s2d_convert.exporting.triton import TritonOptions, write_repository, write_single_repository

HERE = Path(__file__).parent
ROOT = Path(__file__).parent.parent.parent
RUNTIME = ROOT / "runtime"
READY_S = 120.0
MOST = 32  # images in a request
CLIENT = ("tritonclient[grpc,http]>=2.50", "numpy>=1.26")
TRITON = ("nvidia-pytriton>=0.7", "onnxruntime>=1.17", "numpy<2")


class Ports(NamedTuple):
    """Where a server listens; KServe has its metrics beside HTTP."""

    http: int
    grpc: int
    metrics: int


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def server(
    command: Sequence[str | Path], *, ready: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A server process that answers 200 at the URL `ready`; yields its process id and stops it at the end."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env={**clean, **(env or {})}
        )
    try:
        _wait(process, ready, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(ready, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not listening yet, or not ready
            time.sleep(0.2)
    pytest.fail(f"the server did not get ready:\n{log.read_text(errors='replace')[-6000:]}")


def triton(folder: Path, place: Path, ports: Ports) -> AbstractContextManager[int]:
    """Triton with a model per stage and one in front of them."""
    write_repository(folder, place / "repo", TritonOptions("toy", max_batch=MOST))
    return tritonserver(place, ports)


def triton_single(folder: Path, place: Path, ports: Ports) -> AbstractContextManager[int]:
    """Triton with the single file."""
    write_single_repository(folder, place / "repo", TritonOptions("toy", max_batch=MOST))
    return tritonserver(place, ports)


def tritonserver(place: Path, ports: Ports) -> AbstractContextManager[int]:
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
            *("--http-address=127.0.0.1", f"--http-port={ports.http}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={ports.grpc}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={ports.metrics}"),
            f"--backend-config=python,shm-region-prefix-name=s2d{os.getpid()}",
        ],
        ready=f"http://127.0.0.1:{ports.http}/v2/health/ready",
        log=place / "triton.log",
        env={"PATH": f"{python.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(libraries)},
    )


def mlserver(folder: Path, place: Path, ports: Ports) -> AbstractContextManager[int]:
    """MLServer with its settings in two files, as its users write them."""
    python = environment("mlserver", ("-e", f"{RUNTIME}[mlserver]"))
    settings = {"host": "127.0.0.1", "http_port": ports.http, "grpc_port": ports.grpc, "metrics_port": ports.metrics,
                "parallel_workers": 0, "debug": False}  # fmt: skip
    model = {"name": "toy", "implementation": "s2d_runtime.serving.mlserver.StagedModel",
             "parameters": {"uri": str(folder), "extra": {"rows": MOST}}}  # fmt: skip
    (place / "toy").mkdir()
    (place / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (place / "toy" / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return server(
        [python.parent / "mlserver", "start", place],
        ready=f"http://127.0.0.1:{ports.http}/v2/models/toy/ready",
        log=place / "mlserver.log",
        env={"PATH": f"{python.parent}:{os.environ['PATH']}"},
    )


def kserve(folder: Path, place: Path, ports: Ports) -> AbstractContextManager[int]:
    """KServe's own server."""
    python = environment("kserve", ("-e", f"{RUNTIME}[kserve]"))
    options = {"model_dir": folder, "model_name": "toy", "http_port": ports.http, "grpc_port": ports.grpc, "rows": MOST}
    return server(
        [python, "-m", "s2d_runtime.serving.kserve", *(f"--{name}={value}" for name, value in options.items())],
        ready=f"http://127.0.0.1:{ports.http}/v2/models/toy/ready",
        log=place / "kserve.log",
    )


STACKS: dict[str, Callable[[Path, Path, Ports], AbstractContextManager[int]]] = {
    "triton": triton,
    "triton-single": triton_single,
    "mlserver": mlserver,
    "kserve": kserve,
}

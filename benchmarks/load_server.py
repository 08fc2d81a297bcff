"""Load of the small HTTP server on loopback: good, bad, oversized and hanging requests at once, more than it has places for.

    python benchmarks/load_server.py OUT [--seconds 60] [--clients 24]

Every request must get the answer that belongs to it, or 503; nothing may be lost, no answer may differ from the
dispatcher's, and the server's memory must stay where it was once it is warm. Prints what came of every kind of request; ends
with code 1 if something was lost or wrong. Client and server share the machine, so rates say little about either alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from s2d_runtime import Answer, Dispatcher

ROWS, BODY_MIB, TIMEOUT_S = 16, 1.0, 2.0
SERVER = {
    "port": 0,
    "workers": 1,
    "queue": 8,
    "rows": ROWS,
    "body-mib": BODY_MIB,
    "timeout-s": TIMEOUT_S,
    "name": "load",
}
INFER = "/v2/models/load/infer"
HEADER = "Inference-Header-Content-Length"
JSON_TYPE = {"Content-Type": "application/json"}
HANGING = 2  # clients that never end their body
WARM = 0.25  # the share of the time after which memory must be flat
PAUSE_S = 0.005  # after a 503


@dataclass(frozen=True)
class Kind:
    """One request, how often it is sent, the status that belongs to it, and the answer where it is a good one."""

    name: str
    weight: int
    status: int
    body: bytes
    headers: dict[str, str]
    path: str = INFER
    expected: Answer | None = None


@dataclass
class Tally:
    """What one client has seen."""

    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)  # of good requests that were served
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kinds_for(dispatcher: Dispatcher) -> list[Kind]:
    """Return the mixture of requests, about two thirds of them good."""
    spec = dispatcher.manifest.input
    lengths = [n or 0 for n in spec.shape[1:]]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(ROWS, *lengths)).astype(np.float32)

    def tensor(rows: int, **changes: Any) -> dict[str, Any]:
        whole = {
            "name": spec.name,
            "datatype": "FP32",
            "shape": [rows, *lengths],
            "data": images[:rows].ravel().tolist(),
        }
        return {key: value for key, value in (whole | changes).items() if value is not None}

    def asked(**changes: Any) -> bytes:
        return json.dumps({"inputs": [tensor(1, **changes)]}).encode()

    def binary(values: Any) -> tuple[bytes, dict[str, str]]:
        size = {"binary_data_size": values.nbytes}
        head = json.dumps({"inputs": [tensor(len(values), data=None, parameters=size)]}).encode()
        return head + values.tobytes(), {HEADER: str(len(head))}

    one, many = dispatcher(images[:1]), dispatcher(images[:4])
    nan = binary(np.full_like(images[:1], np.nan))
    return [
        Kind("good, JSON", 45, 200, asked(), JSON_TYPE, expected=one),
        Kind("good, binary", 15, 200, *binary(images[:1]), expected=one),
        Kind("good, 4 rows", 6, 200, *binary(images[:4]), expected=many),
        Kind("bad JSON", 4, 400, asked()[:-9], JSON_TYPE),
        Kind("bad shape", 4, 400, asked(shape=[1, 7]), JSON_TYPE),
        Kind("bad type", 4, 400, asked(datatype="INT8"), JSON_TYPE),
        Kind("bad number", 4, 400, *nan),
        Kind("huge shape", 4, 400, asked(shape=[2**40, *lengths]), JSON_TYPE),
        Kind("oversized", 4, 413, b" " * int(2 * BODY_MIB * 2**20), JSON_TYPE),
        Kind("content type", 4, 415, asked(), {"Content-Type": "text/csv"}),
        Kind("no such model", 4, 404, asked(), JSON_TYPE, path="/v2/models/other/infer"),
        Kind("hangs up", 2, 0, asked(), JSON_TYPE),
    ]


def client(port: int, kinds: Sequence[Kind], *, seed: int, end: float, tally: Tally) -> None:
    """Send one request after the other on a connection that is kept, until `end`."""
    choose = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while time.monotonic() < end:
        (kind,) = choose.choices(kinds, [kind.weight for kind in kinds])
        if not kind.status:
            hang_up(port, kind)
            tally.answered[kind.name, 0] += 1
            continue
        before = time.perf_counter()
        try:
            connection.request("POST", kind.path, kind.body, kind.headers)
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            tally.lost.append(f"{kind.name}: {error!r}")
            connection.close()
            continue
        tally.answered[kind.name, reply.status] += 1
        if reply.status not in (kind.status, 503):
            tally.wrong.append(f"{kind.name}: {reply.status} {body[:200]!r}")
        elif reply.status == 503:
            time.sleep(PAUSE_S)
        elif kind.expected is not None:
            tally.latencies_ms.append(1e3 * (time.perf_counter() - before))
            if not same(json.loads(body), kind.expected):
                tally.wrong.append(f"{kind.name}: another answer than the dispatcher's")
    connection.close()


def same(reply: dict[str, Any], expected: Answer) -> bool:
    """Return whether a reply equals the dispatcher's answer: exactly for single rows, otherwise up to rounding."""
    output, _, stage = reply["outputs"]
    close = np.allclose(output["data"], expected.output.ravel(), rtol=1e-4, atol=1e-4)
    return bool(close and stage["data"] == expected.stage.tolist())


def hang_up(port: int, kind: Kind) -> None:
    """Begin a request and close the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(f"POST {kind.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(kind.body)}\r\n\r\n".encode())
        sock.sendall(kind.body[: len(kind.body) // 2])


def hanging(port: int, *, end: float, tally: Tally) -> None:
    """Begin a body, never end it, and wait for the time-out's answer. A 503 comes at once."""
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
                status = int(sock.recv(1024)[9:12] or 0)
        except (OSError, ValueError) as error:
            tally.lost.append(f"hanging: {error!r}")
            continue
        tally.answered["never ends its body", status] += 1
        if status not in (408, 503):
            tally.wrong.append(f"hanging: {status}")
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the server's process and port."""
    options = [word for name, value in SERVER.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "s2d_runtime.serving.http", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process.pid, int(line.split("/")[2].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                sys.exit(f"the server ended with code {process.returncode}")


def memory_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def open_files(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def load(folder: Path, *, seconds: float, clients: int) -> dict[str, Any]:
    """Put the load on a server of the folder and return the results."""
    with Dispatcher(folder) as dispatcher:
        kinds = kinds_for(dispatcher)
    tallies = [Tally() for _ in range(clients + HANGING)]
    with serving(folder) as (pid, port):
        began = time.monotonic()
        end = began + seconds
        threads = [
            threading.Thread(target=client, args=(port, kinds), kwargs={"seed": i, "end": end, "tally": tally})
            for i, tally in enumerate(tallies[HANGING:])
        ]
        threads += [
            threading.Thread(target=hanging, args=(port,), kwargs={"end": end, "tally": tally})
            for tally in tallies[:HANGING]
        ]
        memory: list[int] = []
        files = [open_files(pid)]  # before and after
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(min(1.0, seconds / 20))
            memory.append(memory_kib(pid))
        for thread in threads:
            thread.join()
        time.sleep(2 * TIMEOUT_S)  # what hung is cut off
        files.append(open_files(pid))
        memory.append(memory_kib(pid))
    return summary(tallies, memory, seconds=seconds) | {"open_files": files}


def summary(tallies: Sequence[Tally], memory: Sequence[int], *, seconds: float) -> dict[str, Any]:
    """Return a summary of all tallies. memory: KiB, about once a second."""
    answered: Counter[tuple[str, int]] = sum((tally.answered for tally in tallies), Counter())
    latencies = [ms for tally in tallies for ms in tally.latencies_ms] or [0.0]
    warm = memory[int(WARM * len(memory)) :]
    return {
        "seconds": seconds,
        "requests": sum(answered.values()),
        "per_second": round(sum(answered.values()) / seconds, 1),
        "answered": {f"{name}: {status or 'gone'}": count for (name, status), count in sorted(answered.items())},
        "good_ms": {f"p{q}": round(float(np.percentile(latencies, q)), 1) for q in (50, 95, 99)},
        "lost": [text for tally in tallies for text in tally.lost],
        "wrong": [text for tally in tallies for text in tally.wrong],
        "memory_mib": {"warm": warm[0] / 1024, "most": max(warm) / 1024, "end": warm[-1] / 1024},
    }


def main() -> None:
    """Put the load on, print the summary as JSON."""
    parser = argparse.ArgumentParser(description="Load of the small HTTP server on loopback.")
    parser.add_argument("folder", type=Path, help="an export; its images must be float32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=24)
    given = parser.parse_args()
    found = load(given.folder, seconds=min(given.seconds, 600.0), clients=given.clients)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["lost"] or found["wrong"] else 0)


if __name__ == "__main__":
    main()

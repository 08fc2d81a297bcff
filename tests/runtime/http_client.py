"""A server of a toy export on a free port of loopback, and a client that uses nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2d_runtime import Dispatcher
from s2d_runtime.serving.edge import listen, server_for
from s2d_runtime.serving.http import Service, application
from s2d_runtime.serving.options import HttpOptions

JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/toy/infer"


@dataclass(frozen=True)
class Reply:
    """What came back; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    port: int
    stop: threading.Event

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; a dict is sent as JSON. `_` in a header's name is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, named = json.dumps(body).encode(), JSON | named
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, headers, answer.read())
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def metric(self, name: str) -> float:
        """A line of /metrics."""
        lines = self("GET", "/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@contextmanager
def running(folder: Path, *, kind: type[Dispatcher] = Dispatcher, **changes: Any) -> Iterator[Running]:
    """Serve a folder as the model 'toy' with these options until the block ends; then it has stopped gracefully."""
    options = HttpOptions(port=0, name="toy", **{"timeout_s": 30.0, "workers": 2, **changes})
    options.check()
    service = Service(kind(folder), options, name="toy")
    listening, server = listen(options), server_for(application(service, options), options)
    port, stop = listening.getsockname()[1], threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()

    def wait() -> None:
        stop.wait()
        server.should_exit = True

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield Running(port, stop)
    finally:
        stop.set()
        waiting.join()
        thread.join()
        service.close()

"""`s2d serve` on a real folder: the options reach the server, and it answers like the dispatcher."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_exports import BUDGETS, make_example

from s2d_convert.cli.main import main

server_module = pytest.importorskip("s2d_runtime.serving.http", reason="the extra s2d-runtime[http] is not installed")


def request_for(images: Any) -> str:
    """A V2 request for images."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]})


def test_the_command_serves_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = make_example(tmp_path)
    replies: list[tuple[int, Any]] = []

    def serve_twice(server: Any, listening: socket.socket) -> None:
        """In place of serving until a signal: two requests, then an orderly end."""
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        connection = http.client.HTTPConnection(*listening.getsockname())
        thread.start()
        for rows in (11, 12):
            body = request_for(example.images[:rows])
            connection.request("POST", "/v2/models/net/infer", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            replies.append((reply.status, json.loads(reply.read())))
        connection.close()
        server.should_exit = True
        thread.join()

    monkeypatch.setattr(server_module, "run_until_signal", serve_twice)
    main(["serve", str(example.folder), "--port", "0", "--name", "net", "--rows", "11", "--budget", str(BUDGETS[1])])
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    (good, answer), (bad, refusal) = replies
    assert (good, bad) == (200, 400)
    assert "at most 11 rows" in refusal["error"]
    expected = example.answers(BUDGETS[1])
    output, _, stage = answer["outputs"]
    assert stage["data"] == expected.stage[:11].tolist()
    assert np.allclose(output["data"], expected.output[:11].ravel(), atol=1e-5)

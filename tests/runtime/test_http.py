"""The small HTTP server: the dispatcher's answers, a sentence for every bad request, and a bound on everything."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from s2d_runtime import Answer, Dispatcher
from toy_exports import CASCADE, PAIR, images_of, policy, write_export

pytest.importorskip("starlette", reason="the extra s2d-runtime[http] is not installed")
pytest.importorskip("prometheus_client", reason="the extra s2d-runtime[http] is not installed")

from http_client import INFER, JSON, Reply, Running, running
from s2d_runtime.serving import http as server_module
from s2d_runtime.serving.metrics import SECONDS
from s2d_runtime.serving.options import HttpOptions, OptionError, model_name

ROW = [0.6, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
GOOD: dict[str, Any] = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2, 4], "data": ROW}]}
SMALL: dict[str, Any] = {"body_mib": 1 / 64, "rows": 4}


def asking(images: Any, **rest: Any) -> dict[str, Any]:
    """A request for images."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.tolist()}
    return {"inputs": [tensor], **rest}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy export."""
    made = tmp_path_factory.mktemp("toy")
    write_export(made, PAIR, policies=[policy(0.5, [0.5]), policy(0.9, [0.8])])
    return made


@pytest.fixture(scope="module")
def toy(folder: Path) -> Iterator[Running]:
    """A server of it with small limits."""
    with running(folder, **SMALL) as server:
        yield server


@pytest.mark.parametrize("budget", [None, 0.5, 0.9, 0.95])
def test_answers_are_the_dispatchers(toy: Running, folder: Path, budget: float | None) -> None:
    images = images_of([[0.7, 0, 0, 0], [0.9, 0, 0, 0], [0.1, 0.2, 0, 0]])
    with Dispatcher(folder) as dispatcher:
        expected = dispatcher(images, budget=budget)
    asked = asking(images, parameters={} if budget is None else {"budget": budget})
    reply = toy("POST", INFER, asked)
    assert reply.status == 200
    assert reply.json["parameters"] == {"budget": 0.9 if budget and budget >= 0.9 else 0.5}
    for tensor in reply.json["outputs"]:
        wanted = getattr(expected, tensor["name"])
        assert np.array_equal(np.array(tensor["data"], wanted.dtype).reshape(tensor["shape"]), wanted)


def test_binary_tensors_go_in_and_out(toy: Running, folder: Path) -> None:
    images = images_of([[0.7, 0, 0, 0], [0.1, 0.2, 0, 0]])
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 2, 4], "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = toy("POST", INFER, head + images.tobytes(), Inference_Header_Content_Length=str(len(head)))
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    assert [t["name"] for t in json.loads(reply.body[:length])["outputs"]] == ["output", "confidence", "stage"]
    with Dispatcher(folder) as dispatcher:
        expected = dispatcher(images)
    raw = [expected.output, expected.confidence, expected.stage]
    assert reply.body[length:] == b"".join(tensor.tobytes() for tensor in raw)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "s2d-runtime", "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/toy", {"name": "toy", "versions": ["1"]}),
        ("/v2/models/toy/versions/1", {"name": "toy"}),
        ("/v2/models/toy/ready", {"ready": True}),
        ("/v2/models/toy/versions/1/ready", {"ready": True}),
    ],
)
def test_health_and_metadata(toy: Running, path: str, expected: dict[str, Any]) -> None:
    reply = toy("GET", path)
    assert reply.status == 200
    assert {key: reply.json[key] for key in expected} == expected


def test_a_version_may_be_named(toy: Running) -> None:
    assert toy("POST", "/v2/models/toy/versions/1/infer", GOOD).status == 200


BIG = b" " * 20_000
KEEP = b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", INFER, b"{", JSON, 400, "not valid JSON"),
        ("POST", INFER, b"", JSON, 400, "not valid JSON"),
        ("POST", INFER, b"\xff" * 9, JSON, 400, "not valid JSON"),
        ("POST", INFER, b'{"inputs": [{"data": [NaN]}]}', JSON, 400, "NaN is not a number"),
        ("POST", INFER, b"[" * 9000, JSON, 400, "nested too deeply"),
        ("POST", INFER, {}, {}, 400, "inputs"),
        ("POST", INFER, asking(np.zeros((1, 2, 5))), {}, 400, "shape: got [1, 2, 5]"),
        ("POST", INFER, asking(np.zeros((5, 2, 4))), {}, 400, "at most 4 rows"),
        ("POST", INFER, {"inputs": [GOOD["inputs"][0] | {"shape": [2**40, 2, 4]}]}, {}, 400, "at most 4 rows"),
        ("POST", INFER, {"inputs": [GOOD["inputs"][0] | {"datatype": "INT64"}]}, {}, 400, "datatype: got 'INT64'"),
        ("POST", INFER, {"inputs": [GOOD["inputs"][0] | {"name": "x"}]}, {}, 400, "name: got 'x'"),
        ("POST", INFER, GOOD | {"parameters": {"budget": 7}}, {}, 400, "parameters.budget: got 7"),
        ("POST", INFER, BIG, JSON, 413, "longer than 16384 bytes"),
        ("POST", INFER, b"x" * 2_000_000, JSON, 413, "longer than 16384 bytes"),
        ("POST", INFER, GOOD, {"Content-Type": "text/html"}, 415, "got 'text/html'; expected application/json"),
        ("POST", INFER, b"\x1f\x8b\x08", {**JSON, "Content-Encoding": "gzip"}, 415, "Content-Encoding: got 'gzip'"),
        ("POST", INFER, GOOD, {"Content-Encoding": "br"}, 415, "got 'br'; expected none, send the body uncompressed"),
        ("POST", INFER, GOOD, {"Inference-Header-Content-Length": "many"}, 400, "expected a number of bytes"),
        ("POST", INFER, GOOD, {"Inference-Header-Content-Length": "100000"}, 400, "JSON part's length"),
        ("POST", "/v2/models/other/infer", GOOD, {}, 404, "no model 'other' here; the one that is served is 'toy'"),
        ("POST", "/v2/models/toy/versions/2/infer", GOOD, {}, 404, "no version '2'"),
        ("GET", "/v2/models/other", None, {}, 404, "no model 'other'"),
        ("GET", "/", None, {}, 404, "unknown path"),
        ("GET", "/v2/", None, {}, 404, "unknown path"),
        ("GET", "/etc/passwd?" + "x" * 500, None, {}, 404, "unknown path"),
        ("GET", INFER, None, {}, 405, "method not allowed"),
        ("DELETE", "/v2", None, {}, 405, "method not allowed"),
    ],
)
def test_a_bad_request_is_one_sentence(
    toy: Running, method: str, path: str, body: Any, headers: dict[str, str], status: int, words: str
) -> None:
    before = toy.metric("s2d_requests_occupied")
    reply = toy(method, path, body, **headers)
    assert (reply.status, list(reply.json)) == (status, ["error"])
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert len(reply.json["error"]) < 250
    assert before == toy.metric("s2d_requests_occupied") == 0
    assert toy("POST", INFER, GOOD).status == 200


def test_a_body_without_a_length_is_counted(toy: Running) -> None:
    chunk = b"%x\r\n%s\r\n" % (len(BIG), BIG)
    assert toy.raw(KEEP.replace(b"Host", b"Connection: close\r\nHost") + chunk + b"0\r\n\r\n").startswith(
        b"HTTP/1.1 413"
    )


def test_a_body_without_an_end_is_answered_and_cut_off(folder: Path) -> None:
    chunk = b"%x\r\n%s\r\n" % (len(BIG), BIG)
    with running(folder, timeout_s=1.0, **SMALL) as server:
        assert server.raw(KEEP + 10 * chunk).startswith(b"HTTP/1.1 413")


def test_who_asks_for_leave_to_send_too_much_gets_none(toy: Running) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999\r\n\r\n" % INFER.encode()
    assert toy.raw(head).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"GET /v2 HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 20_000, b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_no_http_is_refused(toy: Running, data: bytes) -> None:
    assert toy.raw(data).startswith(b"HTTP/1.1 400")


def test_a_connection_serves_one_request_after_the_other(toy: Running) -> None:
    body = json.dumps(GOOD).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (
        INFER.encode(),
        len(body),
    )
    oversized = head.replace(b"%d" % len(body), b"20000") + b"\r\n" + BIG
    found = toy.raw(head + b"\r\n" + body + oversized + head + b"Connection: close\r\n\r\n" + body)
    assert [found.count(b"HTTP/1.1 %d" % status) for status in (200, 413)] == [2, 1]


@pytest.mark.parametrize(
    "data",
    [b"", b"POST /v2 HT", b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{" % INFER.encode()],
    ids=["silent", "head", "body"],
)
def test_a_client_that_hangs_is_told_so(folder: Path, data: bytes) -> None:
    with running(folder, timeout_s=0.5) as server:
        assert server.raw(data).startswith(b"HTTP/1.1 408")
        assert server.metric("s2d_requests_occupied") == 0


def test_a_client_that_does_not_read_is_cut_off(folder: Path) -> None:
    rows = 65536
    tensor = {"name": "image", "datatype": "FP32", "shape": [rows, 2, 4], "parameters": {"binary_data_size": 32 * rows}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    named = {"Host": "x", "Inference-Header-Content-Length": len(head), "Content-Length": len(head) + 32 * rows}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    asked = f"POST {INFER} HTTP/1.1\r\n{lines}\r\n".encode() + head + bytes(32 * rows)

    def send_and_never_read(sock: socket.socket) -> None:
        while True:
            sock.sendall(asked)

    with running(folder, timeout_s=3.0, rows=rows, body_mib=4) as server:
        with socket.create_connection(("127.0.0.1", server.port), 60) as sock, pytest.raises(ConnectionError):
            send_and_never_read(sock)
        assert server("GET", "/v2").status == 200
        assert server.metric('s2d_requests_total{code="200",endpoint="infer"}') > 0


def test_too_many_connections_are_refused(folder: Path) -> None:
    with running(folder, connections=1, timeout_s=2.0) as server:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(server.raw, [b"", b""]))
        assert sorted(answer[:12] for answer in answers) == [b"HTTP/1.1 408", b"HTTP/1.1 503"]
        assert [answer.count(b"Retry-After: 1\r\n") for answer in sorted(answers)] == [0, 1]
        assert server.metric('s2d_requests_total{code="503",endpoint="none"}') == 1


class Blocked(Dispatcher):
    """A dispatcher that holds every call until it is let go."""

    entered: ClassVar[threading.Semaphore]
    leave: ClassVar[threading.Event]

    def __call__(self, images: Any, **given: Any) -> Answer:
        self.entered.release()
        self.leave.wait()
        return super().__call__(images, **given)


@pytest.fixture
def blocked() -> Iterator[type[Blocked]]:
    Blocked.entered, Blocked.leave = threading.Semaphore(0), threading.Event()
    yield Blocked
    Blocked.leave.set()


def until(true: Any) -> None:
    """Wait for something that is about to happen."""
    while not true():
        time.sleep(0.01)


def test_when_all_places_are_taken_it_says_when_to_come_again(folder: Path, blocked: type[Blocked]) -> None:
    with running(folder, kind=blocked, workers=1, queue=1) as server, ThreadPoolExecutor(2) as pool:
        served = [pool.submit(server, "POST", INFER, GOOD) for _ in range(2)]
        until(lambda: server.metric("s2d_requests_occupied") == 2)
        refused = server("POST", INFER, GOOD)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "all 2 places" in refused.json["error"]
        assert server("GET", "/v2/health/ready").status == 200
        blocked.leave.set()
        assert [reply.result().status for reply in served] == [200, 200]
        assert server("POST", INFER, GOOD).status == 200


def test_a_request_that_takes_too_long_is_told_so_and_keeps_its_place(folder: Path, blocked: type[Blocked]) -> None:
    with running(folder, kind=blocked, workers=1, queue=1, timeout_s=1.5) as server:
        assert server("POST", INFER, GOOD).status == 504
        assert server("POST", INFER, GOOD).status == 504  # never ran: its place is free again
        assert server.metric("s2d_requests_occupied") == 1
        blocked.leave.set()
        until(lambda: server.metric("s2d_requests_occupied") == 0)
        assert server("POST", INFER, GOOD).status == 200
        assert server.metric('s2d_requests_total{code="504",endpoint="infer"}') == 2


def test_stopping_finishes_what_is_under_way(folder: Path, blocked: type[Blocked]) -> None:
    with ThreadPoolExecutor(2) as pool:
        with running(folder, kind=blocked, workers=1, queue=1) as server:
            served = [pool.submit(server, "POST", INFER, GOOD) for _ in range(2)]
            until(lambda: server.metric("s2d_requests_occupied") == 2)
            server.stop.set()
            until(lambda: not listens(server))
            blocked.leave.set()
        assert [reply.result().status for reply in served] == [200, 200]


def listens(server: Running) -> bool:
    """Whether a connection can be made."""
    try:
        server("GET", "/v2")
    except OSError:
        return False
    return True


class Broken(Dispatcher):
    """A dispatcher with a bug."""

    def __call__(self, images: Any, **given: Any) -> Answer:
        raise KeyError("secret")


def test_a_bug_is_a_500_that_tells_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(folder, kind=Broken) as server:
        reply = server("POST", INFER, GOOD)
        assert (reply.status, reply.json) == (500, {"error": "the server failed; its log says why"})
        assert server.metric("s2d_requests_occupied") == 0


def test_metrics_count_images_by_exit(folder: Path) -> None:
    with running(folder, rows=8) as server:
        for _ in range(2):
            assert server("POST", INFER, asking(images_of([[0.9, 0, 0, 0]] * 3 + [[0.1, 0, 0, 0]]))).status == 200
        assert server("POST", INFER, b"{", **JSON).status == 400
        assert server("POST", INFER, asking(np.zeros((0, 2, 4)))).status == 200
        found = {
            'images_total{stage="1"}': 6,
            'images_total{stage="2"}': 2,
            'expected_exit_share{stage="2"}': 1,
            'run_seconds_count{stage="1"}': 0,
            'run_seconds_count{stage="2"}': 2,
            "request_seconds_count": 4,
            'requests_total{code="200",endpoint="infer"}': 3,
            'requests_total{code="400",endpoint="infer"}': 1,
        }
        assert {name: server.metric(f"s2d_{name}") for name in found} == found


def test_metrics_have_what_the_monitor_finds(tmp_path: Path) -> None:
    at_half = policy(0.5, [0.5]) | {"exit_share": [0.75, 0.25], "disagreement": 0.125}
    write_export(tmp_path, PAIR, policies=[at_half, policy(0.9, [0.8])])
    early, late = images_of([[0.9, 0, 0, 0]] * 3 + [[0.1, 0, 0, 0]]), images_of([[0.7, 0, 0, 0]])
    with running(tmp_path, rows=8, audit=1.0) as server:
        for _ in range(10):
            assert server("POST", INFER, asking(early)).status == 200
        assert server("POST", INFER, asking(late, parameters={"budget": 0.9})).status == 200
        until(lambda: server.metric('s2d_drift_audited_images_total{budget="0.5",model="toy"}') == 40)
        found = {
            'images_total{budget="0.5",model="toy",stage="1"}': 30,
            'images_total{budget="0.5",model="toy",stage="2"}': 10,
            'images_total{budget="0.9",model="toy",stage="2"}': 1,
            'expected_exit_share{budget="0.5",model="toy",stage="1"}': 0.75,
            'expected_disagreement{budget="0.5",model="toy"}': 0.125,
            'warnings{budget="0.5",model="toy"}': 0,
        }
        assert {name: server.metric(f"s2d_drift_{name}") for name in found} == found


def test_metrics_tell_of_drift(tmp_path: Path) -> None:
    sure = policy(0.5, [0.5]) | {"exit_share": [1.0, 0.0],
                                 "confidence_histogram": [[0] * 18 + [1000, 0], [0] * 20]}  # fmt: skip
    write_export(tmp_path, PAIR, policies=[sure])
    with running(tmp_path, rows=1000, audit=0.0) as server:
        for _ in range(2):
            assert server("POST", INFER, asking(images_of([[0.1, 0, 0, 0]] * 600))).status == 200
        assert server.metric('s2d_drift_warnings{budget="0.5",model="toy"}') >= 1


def test_fast_calls_have_buckets() -> None:
    assert SECONDS[0] == 50e-6
    assert list(SECONDS) == sorted(set(SECONDS))
    assert max(SECONDS) >= HttpOptions().timeout_s


def test_many_clients_at_once_get_their_own_answers(tmp_path: Path) -> None:
    write_export(tmp_path, CASCADE, policies=[policy(0.5, [0.5])])
    rng = np.random.default_rng(0)
    batches = [images_of(rng.random((rng.integers(1, 5), 4)), seed=i) for i in range(40)]
    with Dispatcher(tmp_path) as dispatcher:
        expected = [dispatcher(images) for images in batches]
    with running(tmp_path, workers=4) as server, ThreadPoolExecutor(8) as pool:
        replies: list[Reply] = list(pool.map(lambda images: server("POST", INFER, asking(images)), batches))
    for reply, answer in zip(replies, expected, strict=True):
        output, _, stage = reply.json["outputs"]
        assert output["data"] == answer.output.ravel().tolist()
        assert stage["data"] == answer.stage.tolist()


def test_the_command_serves_until_it_is_told_to_stop(folder: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "s2d_runtime.serving.http",
        str(folder),
        "--port",
        "0",
        "--name",
        "toy",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        port = int(line.split("/")[2].rpartition(":")[2])
        assert Running(port, threading.Event())("POST", INFER, GOOD).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.communicate() == ("", "")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--rows", "0"], 2, "--rows 0: at least 1"),
        (["--timeout-s", "nan"], 2, "--timeout-s nan"),
        (["--budget", "2"], 2, "--budget 2"),
        (["--name", "a/b"], 2, "--name 'a/b'"),
        (["--host", "256.1.1.1"], 2, "cannot listen there"),
        (["--port", "99999"], 2, "--port 99999"),
    ],
)
def test_a_bad_option_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        server_module.main([str(folder), *args])
    assert stop.value.code == code
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"manifest\.json: No such file"):
        server_module.main([str(tmp_path)])


def test_a_port_that_is_taken_is_one_sentence(folder: Path, toy: Running) -> None:
    with pytest.raises(OptionError, match=f"--port {toy.port}: cannot listen there"):
        server_module.serve(folder, HttpOptions(port=toy.port), say=lambda line: None)


def test_an_open_address_is_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(folder, host="0.0.0.0") as server:
        assert server("GET", "/v2").status == 200
    assert ["0.0.0.0 is open to the network" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(("path", "name"), [("a/resnet20.s2d", "resnet20"), ("a/my out", "my_out"), ("/", "model")])
def test_a_folder_has_a_name_for_urls(path: str, name: str) -> None:
    assert model_name(Path(path)) == name

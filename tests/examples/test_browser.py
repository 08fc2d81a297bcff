"""The browser example in headless Chromium: the dispatcher's answers, and stage 2 is fetched when it is first needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from example_exports import BUDGETS, Example, make_example
from helpers import assert_close
from PIL import Image
from s2d_runtime import Manifest
from text_nets import LABEL_NETS, residual

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
# Without the last four, Chromium calls its maker's servers, which a closed network answers late or never.
CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
pytestmark = pytest.mark.slow


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; what is asked for is written down, and a POST is the page's report."""

    server: Site

    def log_message(self, *args: object) -> None:
        """Nothing: pytest shows what matters."""

    def do_GET(self) -> None:
        """A file."""
        self.server.asked.append(self.path.partition("?")[0])
        super().do_GET()

    def do_POST(self) -> None:
        """The report."""
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.reported.set()


class Site(ThreadingHTTPServer):
    """A server of a folder on a free port of loopback."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.report: dict[str, Any] = {}
        self.reported = threading.Event()


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """The site, until the block ends."""
    with Site(folder) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with onnxruntime-web installed."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("browser")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm could not install onnxruntime-web: {done.stderr.strip()[-200:]}")
    return folder


def browse(site: Site, path: str, profile: Path) -> dict[str, Any]:
    """What the page at `path` reports."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    url = f"http://127.0.0.1:{site.server_port}/{path}"
    command, nowhere = [browser, *CHROMIUM, f"--user-data-dir={profile}", url], subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, stdout=nowhere, stderr=nowhere)
    try:
        assert site.reported.wait(120), f"the page reported nothing; it asked for {site.asked}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Chromium's own children too
        process.wait()
    return site.report


def lay_out(page: Path, example: Example, folder: Path) -> list[str]:
    """Put page, export and images into a new folder; returns the names of the images."""
    folder.mkdir()
    for file in page.iterdir():
        (folder / file.name).symlink_to(file)
    shutil.copytree(example.folder, folder / "OUT")
    (folder / "images").mkdir()
    names = [f"{i}.png" for i in range(len(example.pixels))]
    for name, pixels in zip(names, example.pixels, strict=True):
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "images" / "list.json").write_text(json.dumps({"files": names}))
    return names


@pytest.mark.parametrize(
    ("model", "budget"),
    [*((residual, budget) for budget in BUDGETS), *((net, BUDGETS[0]) for net in LABEL_NETS)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_page_answers_like_the_dispatcher(
    page: Path, tmp_path: Path, model: Callable[[], onnx.ModelProto], budget: float
) -> None:
    example = make_example(tmp_path, model=model())
    names = lay_out(page, example, tmp_path / "site")
    with serving(tmp_path / "site") as site:
        asked = f"index.html?images=images/list.json&budget={budget}&report=report"
        report = browse(site, asked, tmp_path / "profile")
    expected = example.answers(budget)
    assert report["problem"] is None
    answers = report["answers"]
    assert [one["file"] for one in answers] == names
    assert [one["stage"] for one in answers] == expected.stage.tolist()
    assert set(expected.stage.tolist()) == {1, 2}
    outputs = expected.output.reshape(len(names), -1)
    assert_close(np.array([one["output"] for one in answers], np.float32), outputs)
    spec = Manifest.load(example.folder).output
    said = [", ".join(f"class {k}" for k in spec.said(row)) or "no label" for row in expected.output]
    assert [one["said"] for one in answers] == said
    assert_close(np.array([one["confidence"] for one in answers], np.float32), expected.confidence)
    first = int(np.argmax(expected.stage > 1))  # the image that needs stage 2 first
    wanted = ["/OUT/manifest.json", "/OUT/stage1.onnx", "/images/list.json", "/images/0.png"]
    wanted += [f"/images/{name}" for name in names[1 : first + 1]]
    wanted += ["/OUT/stage2.onnx", *(f"/images/{name}" for name in names[first + 1 :])]
    assert [path for path in site.asked if path.startswith(("/OUT/", "/images/"))] == wanted
    assert [one["image"] for one in report["fetched"]] == [1, first + 1]


def test_a_changed_stage_is_refused(page: Path, tmp_path: Path) -> None:
    example = make_example(tmp_path, images=4)
    lay_out(page, example, tmp_path / "site")
    with (tmp_path / "site" / "OUT" / "stage1.onnx").open("ab") as file:
        file.write(b"\0")
    with serving(tmp_path / "site") as site:
        report = browse(site, "index.html?images=images/list.json&report=report", tmp_path / "profile")
    assert report["problem"] == "stage1.onnx: its sha256 is not the one in the manifest; copy the folder again"

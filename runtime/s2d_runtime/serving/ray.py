"""A Ray Serve application with one deployment per stage. Needs the extra `s2d-runtime[ray]`.

    s2d serve OUT --ray                      # on this machine, or on the cluster that RAY_ADDRESS names
    serve deploy config.yaml                 # what `s2d serve OUT --ray --config config.yaml` has written

Stage 1 is the entrance: it serves the V2 protocol over HTTP (JSON and binary tensors) and calls through a handle
(`classify`). It hands the rows that stay to stage 2, which batches them with those of other requests. The stages scale
separately. Budget and batching can be changed without restarting replicas: `user_config` reaches `reconfigure`.

If a replica of a later stage dies, the request is sent again, because stages keep no state. Only requests inside a replica
of stage 1 fail when that dies; clients may repeat them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray import serve
from ray.exceptions import RayActorError
from ray.util.metrics import Counter, Gauge
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from s2d_runtime.dispatcher import Answer, DispatcherError, Manifest
from s2d_runtime.serving import v2
from s2d_runtime.serving.options import OptionError, RayOptions, model_name, runtime_version
from s2d_runtime.serving.pictures import DECODERS, PictureRequests, media_type
from s2d_runtime.serving.ray_stage import (
    Limits,
    Rows,
    StageWorker,
    deployment_options,
    http_options,
    limits_for,
    serve_config,
)

LOG = logging.getLogger("ray.serve")
PAUSE_S = 0.05  # before a request to a stage that died is repeated
MODEL, STAGE = "model", "stage"  # tags of metrics; Ray exports them with its own prefix, as ray_s2d_images_total
HEADER_BYTES = "Inference-Header-Content-Length"


class Stage:
    """The deployment of a stage. `following`: the handle of the next stage, None for the last."""

    def __init__(self, folder: Path, number: int, options: RayOptions, following: Any = None) -> None:
        self._options, self._following = options, following
        self._worker = StageWorker(folder, number, threads=options.threads)
        self._pool = ThreadPoolExecutor(1)
        self._run = serve.batch(
            self._run_batch
        )  # on the instance, because stages in one process would share the class's queue

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take a changed `user_config`: max_batch and wait_ms.

        This is async, because Ray may run a plain function in another thread, and batches would wait for its event loop.
        """
        self._run.set_max_batch_size(int(config["max_batch"]))
        self._run.set_batch_wait_timeout_s(float(config["wait_ms"]) / 1000)

    async def go_on(self, values: Rows, limits: Limits) -> Answer:
        """Return the answers for rows that have reached this stage."""
        return await self._worker.answer(values, limits, run=self._run, go_on=self._ask)

    async def _run_batch(self, batch: list[Rows]) -> list[Rows]:
        """Run several requests in one call of onnxruntime, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._worker.run, batch)

    async def _ask(self, values: Rows, limits: Limits) -> Answer:
        """Return the next stage's answers. If a replica dies, try again until the time is up."""
        end = time.monotonic() + self._options.timeout_s
        while True:
            try:
                left_s = end - time.monotonic()
                answer: Answer = await asyncio.wait_for(self._following.go_on.remote(values, limits), left_s)
                return answer
            except RayActorError:
                if time.monotonic() + PAUSE_S >= end:
                    raise
                LOG.warning("a replica of stage %d died; the request is sent again", self._worker.number + 1)
                await asyncio.sleep(PAUSE_S)


class FirstStage(Stage):
    """Stage 1, which is also the entrance of the application."""

    def __init__(self, folder: Path, number: int, options: RayOptions, following: Any = None) -> None:
        super().__init__(folder, number, options, following)
        self._budget, self._name = options.budget, options.name or model_name(folder)
        self._pictures = PictureRequests(self._worker.manifest, most_pixels=options.most_pixels)
        self._images = Counter("s2d_images", "Images by the stage that answered.", tag_keys=(MODEL, STAGE))
        self._expected = Gauge("s2d_expected_exit_share", "Share of images per stage at calibration.", (MODEL, STAGE))
        self._tell_expected(options.budget)

    def _tell_expected(self, budget: float | None) -> None:
        """Export the shares of exits at calibration, for the policy of requests without a budget of their own."""
        manifest = self._worker.manifest
        shares = manifest.policy_for(manifest.default_budget if budget is None else budget).exit_share
        for number, share in enumerate(shares, start=1):
            self._expected.set(share, {MODEL: self._name, STAGE: str(number)})

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take a changed `user_config`, including the budget. Running requests keep their thresholds."""
        await super().reconfigure(config)
        limits_for(self._worker.manifest, config["budget"])  # raises for a faulty budget before anything changes
        self._budget = config["budget"]
        self._tell_expected(self._budget)

    async def classify(self, images: Any, budget: float | None = None) -> Answer:
        """Return the dispatcher's answer for images [B, ...], for calls through a handle. Raises DispatcherError."""
        manifest = self._worker.manifest
        limits = limits_for(manifest, self._budget if budget is None else budget)
        answer = await self.go_on({manifest.input.name: images}, limits)
        for number, count in zip(*np.unique(answer.stage, return_counts=True), strict=True):
            self._images.inc(int(count), {MODEL: self._name, STAGE: str(number)})
        return answer

    async def __call__(self, request: Request) -> Response:
        """Serve the V2 protocol over HTTP."""
        name, manifest = self._name, self._worker.manifest
        model = f"/v2/models/{name}"
        if request.method == "POST" and request.url.path == f"{model}/infer":
            return await self._infer(request)
        about = {
            "/v2": v2.server_metadata(runtime_version()),
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            model: v2.model_metadata(manifest, name=name),
            f"{model}/ready": {"name": name, "ready": True},
        }.get(request.url.path)
        if about is None or request.method != "GET":
            return JSONResponse({"error": f"{request.method} {request.url.path}: expected POST {model}/infer"}, 404)
        return JSONResponse(about)

    async def _infer(self, request: Request) -> Response:
        """Answer one inference request. Every error becomes a status and a sentence."""
        try:
            v2.check_encoding(request.headers.get("content-encoding"))
            kind = media_type(request.headers.get("content-type"))
            body = await _body(request, self._options.body_bytes)
            if kind in DECODERS:
                budget = request.query_params.get("budget")
                call = await asyncio.to_thread(self._pictures.call, kind, body, budget)
            else:
                header = request.headers.get(HEADER_BYTES)
                asked, binary = v2.decode(body, None if header is None else _length(header))
                call = v2.parse(asked, self._worker.manifest, most_rows=self._options.rows, binary=binary)
            answer = await asyncio.wait_for(self.classify(call.images, call.budget), self._options.timeout_s)
            found = v2.response(call, answer, name=self._name)
            found = self._pictures.with_names(found, answer) if kind in DECODERS else found
            body, json_bytes = v2.encode(found, binary=call.binary)
        except v2.RequestError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            return JSONResponse({"error": f"no answer within {self._options.timeout_s:g} s; try again"}, 504)
        except (DispatcherError, RayActorError) as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 503, {"Retry-After": "1"})
        if json_bytes is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER_BYTES: str(json_bytes)})


async def _body(request: Request, most_bytes: int) -> bytes:
    """Return the body of a request. Raises RequestError as soon as it exceeds the limit."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise v2.RequestError(413, f"the body is larger than {most_bytes} bytes; send fewer images at once")
    return bytes(body)


def _length(text: str) -> int:
    """Return the number in a header. Raises RequestError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise v2.RequestError(400, f"{HEADER_BYTES}: got {text[:40]!r}; expected the length of the JSON part")
    return int(text)


def application(folder: Path, options: RayOptions) -> Any:
    """Return the application, built from the last stage to the first. Raises DispatcherError and OptionError."""
    options.check()
    following = None
    for number in range(len(Manifest.load(folder).stages), 0, -1):
        kind = serve.deployment(FirstStage if number == 1 else Stage)
        following = kind.options(**deployment_options(options, number)).bind(folder, number, options, following)
    return following


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for `serve deploy` and `serve run`. args: `folder` and the fields of RayOptions."""
    given = dict(args)
    return application(Path(given.pop("folder")), RayOptions(**given))


def write_config(folder: Path, options: RayOptions, path: Path) -> None:
    """Write the configuration for `serve deploy`. Raises DispatcherError and OptionError; the file must not exist."""
    options.check()
    config = serve_config(folder, options, len(Manifest.load(folder).stages))
    text = yaml.safe_dump(config, sort_keys=False)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OptionError(f"--config {path}: cannot be written ({error.strerror}); choose another file") from error


def run(folder: Path, options: RayOptions, *, say: Callable[[str], None]) -> None:
    """Serve until stopped, on the cluster that RAY_ADDRESS names, or on this machine alone.

    say: called with the address. Raises DispatcherError and OptionError before it serves.
    """
    target, name = application(folder.resolve(), options), options.name or model_name(folder)
    serve.start(http_options=http_options(options))
    serve.run(target, name=name, route_prefix="/")
    say(f"http://{options.host}:{options.port}/v2/models/{name}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # otherwise a cluster would keep the application
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        serve.delete(name)

"""A small HTTP server for an exported folder: the V2 protocol, health, metadata and metrics, and a limit on everything.

    python -m s2d_runtime.serving.http OUT --port 8000        (`s2d serve OUT` is the same)

It needs the extra `s2d-runtime[http]`: Starlette, because requests are checked by `v2` and nothing of a larger framework
(FastAPI, Litestar) would be used; uvicorn, its usual server; prometheus_client. The event loop only moves bytes: parsing and
the dispatcher run on a pool of threads. Requests are not gathered into batches: on the CPU, with a thread each, a row of a
batch costs about as much as a request of its own (docs/results.md). The exit rule is the dispatcher's.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from s2d_runtime.dispatcher import Answer, Dispatcher, DispatcherError
from s2d_runtime.serving import v2
from s2d_runtime.serving.options import HttpOptions, OptionError, flag, model_name, needs_extra, runtime_version
from s2d_runtime.serving.pictures import DECODERS, PictureRequests, media_type

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from s2d_runtime.serving.edge import Edge, listen, run_until_signal, server_for, url_of
    from s2d_runtime.serving.metrics import CONTENT_TYPE, Metrics
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise  # `s2d serve` says it in its own words
    sys.exit(needs_extra(missing, "http"))

HEADER_LENGTH = "Inference-Header-Content-Length"
RETRY_AFTER_S = 1
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
Read = Callable[[bytes], v2.Call]
Finish = Callable[[Mapping[str, Any], Answer], Mapping[str, Any]]


class Service:
    """A dispatcher with limits on requests: a number of them run, a further number may wait, all others get 503."""

    def __init__(self, dispatcher: Dispatcher, options: HttpOptions, *, name: str) -> None:
        self._dispatcher, self._options, self._name = dispatcher, options, name
        self._places = options.running + options.queue
        self._free = threading.Semaphore(self._places)
        self._pictures = PictureRequests(dispatcher.manifest, most_pixels=options.most_pixels)
        self._pool = ThreadPoolExecutor(options.running, thread_name_prefix="s2d")
        self.metrics = Metrics(dispatcher, name=name, audit=options.audit)

    async def infer(self, request: Request) -> Response:
        """POST .../infer. Raises RequestError."""
        self._check_name(request)
        read, finish = self._ways(request)
        if not self._free.acquire(blocking=False):
            message = f"all {self._places} places for requests are taken; try again"
            raise v2.RequestError(503, message, retry_after_s=RETRY_AFTER_S)
        self.metrics.occupied.inc()
        began, future = time.monotonic(), None
        try:
            body = await self._within(_body(request, self._options.body_bytes), began, 408, "the body was not whole")
            future = self._pool.submit(self._answer, body, read, finish)
            # The slot is free when the thread is, which may be after the client has got its time-out.
            future.add_done_callback(self._release)
            del body
            answered = asyncio.wrap_future(future)
            content, length = await self._within(answered, began, 504, "there was no answer")
        finally:
            if future is None:
                self._release()
            self.metrics.observe_request(time.monotonic() - began)
        if length is None:
            return Response(content, media_type=JSON_TYPE)
        return Response(content, media_type=BINARY_TYPE, headers={HEADER_LENGTH: str(length)})

    def _release(self, _: Future[Any] | None = None) -> None:
        self.metrics.occupied.dec()
        self._free.release()

    async def _within(self, work: Awaitable[Any], began: float, status: int, what: str) -> Any:
        limit = self._options.timeout_s
        try:
            return await asyncio.wait_for(work, max(0.0, began + limit - time.monotonic()))
        except asyncio.TimeoutError as error:
            retry = RETRY_AFTER_S if status >= 500 else None
            raise v2.RequestError(status, f"{what} within {limit:g} s", retry_after_s=retry) from error

    def _ways(self, request: Request) -> tuple[Read, Finish | None]:
        """Return how the body of a request becomes a call, and what is added to its response. Raises RequestError."""
        kind = media_type(request.headers.get("content-type"))
        if kind not in DECODERS:
            return partial(self._read, header_bytes=_header_bytes(request)), None
        v2.check_encoding(request.headers.get("content-encoding"))
        budget = request.query_params.get("budget")
        return lambda body: self._pictures.call(kind, body, budget), self._pictures.with_names

    def _read(self, body: bytes, *, header_bytes: int | None) -> v2.Call:
        asked, binary = v2.decode(body, header_bytes)
        return v2.parse(asked, self._dispatcher.manifest, most_rows=self._options.rows, binary=binary)

    def _answer(self, body: bytes, read: Read, finish: Finish | None) -> tuple[bytes, int | None]:
        """Return the body of an answer and the length of its JSON part; runs on a thread of the pool. Raises
        RequestError."""
        call = read(body)
        policy = self._dispatcher.policy if call.budget is None else self._dispatcher.manifest.policy_for(call.budget)
        began = time.perf_counter()
        try:
            answer = self._dispatcher(call.images, budget=policy.budget)
        except DispatcherError as error:
            raise v2.RequestError(500, str(error)) from error
        self.metrics.count_answer(answer, run_s=time.perf_counter() - began)
        found = v2.response(call, answer, name=self._name, budget=policy.budget)
        return v2.encode(found if finish is None else finish(found, answer), binary=call.binary)

    def _check_name(self, request: Request) -> None:
        if (name := request.path_params["name"]) != self._name:
            raise v2.RequestError(404, f"no model {name[:80]!r} here; the one that is served is '{self._name}'")
        if (wanted := request.path_params.get("version", v2.VERSION)) != v2.VERSION:
            raise v2.RequestError(404, f"no version {wanted[:80]!r} of '{self._name}'; there is version {v2.VERSION}")

    async def model(self, request: Request) -> Response:
        """GET /v2/models/NAME."""
        self._check_name(request)
        return JSONResponse(v2.model_metadata(self._dispatcher.manifest, name=self._name))

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/NAME/ready."""
        self._check_name(request)
        return JSONResponse({"name": self._name, "ready": True})

    async def server(self, request: Request) -> Response:
        """GET /v2."""
        return JSONResponse(v2.server_metadata(runtime_version()))

    async def health(self, request: Request) -> Response:
        """GET /v2/health/live and /v2/health/ready, which are always true: the folder is loaded before any connection."""
        return JSONResponse({request.url.path.rpartition("/")[2]: True})

    async def measured(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def close(self) -> None:
        """Wait for the threads, then release the sessions."""
        self._pool.shutdown(cancel_futures=True)
        self._dispatcher.close()


def application(service: Service, options: HttpOptions) -> Edge:
    """Return the ASGI application of a service."""
    get = [
        ("/v2", service.server),
        ("/v2/health/live", service.health),
        ("/v2/health/ready", service.health),
        ("/metrics", service.measured),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        get += [(model, service.model), (f"{model}/ready", service.model_ready)]
    routes = [Route(path, handler) for path, handler in get]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes.append(Route(f"{model}/infer", service.infer, methods=["POST"]))
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        v2.RequestError: _refused,
        HTTPException: _not_found,
        Exception: _failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Edge(app, options, count=service.metrics.count_request)


def _header_bytes(request: Request) -> int | None:
    """Return the length in the header of binary tensors. Raises RequestError, also for a content type or encoding that is
    not supported."""
    found = request.headers.get(HEADER_LENGTH)
    if found is not None and not re.fullmatch(r"[0-9]{1,12}", found):
        raise v2.RequestError(400, f"{HEADER_LENGTH}: got {found[:40]!r}; expected a number of bytes")
    allowed = JSON_TYPE if found is None else BINARY_TYPE
    kind = request.headers.get("content-type", allowed).partition(";")[0].strip().lower()
    if kind != allowed and not (found is not None and kind == JSON_TYPE):
        raise v2.RequestError(415, f"Content-Type: got {kind[:80]!r}; expected {allowed}")
    v2.check_encoding(request.headers.get("content-encoding"))
    return None if found is None else int(found)


async def _body(request: Request, limit: int) -> bytes:
    """Return the whole body. Raises RequestError as soon as it, or its declared length, exceeds `limit` bytes."""
    too_long = v2.RequestError(
        413, f"the body is longer than {limit} bytes; send fewer images, or them as binary tensors"
    )
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_long
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_long
    except ClientDisconnect as error:
        raise v2.RequestError(400, "the client went away before its body was whole") from error
    return bytes(body)


async def _refused(request: Request, error: v2.RequestError) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _not_found(request: Request, error: HTTPException) -> Response:
    asked = f"{request.method} {request.url.path}"[:120]
    problem = "unknown path" if error.status_code == 404 else error.detail.lower()
    return JSONResponse({"error": f"{asked}: {problem}; GET /v2 tells what is here"}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


def serve(folder: Path, options: HttpOptions, *, say: Callable[[str], None]) -> None:
    """Serve a folder until SIGTERM or Ctrl-C, then finish running requests.

    say: called with the addresses of the server. Raises DispatcherError and OptionError before it listens.
    """
    options.check()
    name = options.name or model_name(folder)
    dispatcher = Dispatcher(folder, threads=options.threads, budget=options.budget)
    service = Service(dispatcher, options, name=name)
    try:
        listening = listen(options)
        url = url_of(listening)
        say(f"{url}/v2/models/{name} (metrics: {url}/metrics)")
        run_until_signal(server_for(application(service, options), options), listening)
    finally:
        service.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. For a faulty folder or option, exit with one sentence and code 1 or 2."""
    parser = argparse.ArgumentParser(description="Serve a folder that s2d-convert exported, with the V2 protocol.")
    parser.add_argument("folder", type=Path)
    for spec in fields(HttpOptions):
        shown = spec.metadata["help"] + ("" if spec.default is None else " [default: %(default)s]")
        parser.add_argument(flag(spec.name), type=spec.metadata["kind"], default=spec.default, help=shown)
    given = vars(parser.parse_args(arguments))
    try:
        serve(given.pop("folder"), HttpOptions(**given), say=lambda line: _write(f"{line}\n"))
    except OptionError as error:
        parser.error(str(error))
    except DispatcherError as error:
        sys.exit(str(error))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

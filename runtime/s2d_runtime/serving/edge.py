"""The network side of the small HTTP server: sockets, signals, hanging connections, unread request bodies."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from s2d_runtime.serving.options import HttpOptions, OptionError

LOG = logging.getLogger("s2d_runtime.serving")
HEAD_BYTES = 16 * 1024  # request line and headers
DRAIN_BODIES = 8  # an unread body is read and dropped up to so many times the largest allowed body
WATCH = 1.5  # time-outs between two checks of a connection, so that the application's own time-out comes first
BACKLOG = 1024
NOWHERE = "none"  # the endpoint of requests that did not reach one
STOP = (signal.SIGINT, signal.SIGTERM)


class Edge:
    """ASGI middleware that counts answers, and reads the rest of a body before an answer that does not need it.

    Otherwise a client that is still sending would lose the answer together with the connection.
    """

    def __init__(self, app: ASGIApp, options: HttpOptions, *, count: Callable[[str, int], None]) -> None:
        """Wrap an application. count: called with the endpoint's name and the status of every answer."""
        self._app, self._options, self.count = app, options, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        whole = False

        async def reading() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self.count(getattr(scope.get("endpoint"), "__name__", NOWHERE), status)
                if not (whole or await self._drained(scope, reading, status)):
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, reading, sending)

    async def _drained(self, scope: Scope, receive: Receive, status: int) -> bool:
        """Read and drop the rest of the body. Return whether it ended within reasonable limits."""
        waits = any(
            name == b"expect" for name, _ in scope["headers"]
        )  # the client waits for permission to send, and does not get it
        if waits or status == 408:
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._drain(receive), self._options.timeout_s)
        return False

    async def _drain(self, receive: Receive) -> bool:
        left = DRAIN_BODIES * self._options.body_bytes
        while left > 0:
            message = await receive()
            if not message.get("more_body", False):
                return True
            left -= len(message["body"])
        return False


def protocol_for(options: HttpOptions, *, count: Callable[[str, int], None]) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with limits on connections and on how long one may hang. count: as for `Edge`.

    uvicorn itself waits forever for the head of a request, and for a client that does not read its answer.
    """

    class Watched(H11Protocol):
        _seen: object = (None, h11.IDLE, h11.IDLE)
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > options.connections:
                self._give_up(503, "Service Unavailable\r\nRetry-After: 1", "too many connections; try again")
            else:
                self._timer = self.loop.call_later(WATCH * options.timeout_s, self._watch)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Check a connection regularly. One that is busy, but has made no progress since the last check, is ended."""
            now = (self.cycle, self.conn.our_state, self.conn.their_state)
            idle = now[1:] == (h11.IDLE, h11.IDLE) and not self.conn.trailing_data[0]
            at_rest = idle and self.cycle is not None and not self.transport.get_write_buffer_size()
            if now == self._seen and not at_rest:
                self._give_up(408, "Request Timeout", f"the request was not whole within {options.timeout_s:g} s")
                return
            self._seen = None if at_rest else now
            self._timer = self.loop.call_later(WATCH * options.timeout_s, self._watch)

        def _give_up(self, status: int, reason: str, message: str) -> None:
            """Send an answer unless another one has begun, and close. reason: may be followed by a header."""
            if self.conn.our_state is h11.IDLE and not self.transport.get_write_buffer_size():
                count(NOWHERE, status)
                body = f'{{"error":"{message}"}}'
                head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
                self.transport.write(f"HTTP/1.1 {status} {reason}\r\n{head}\r\n\r\n{body}".encode())
                self.transport.close()
            else:
                self.transport.abort()

    return Watched


@contextlib.contextmanager
def _stops(server: uvicorn.Server) -> Iterator[None]:
    """Let signals stop the server without an error, also before uvicorn handles them and when it raises them again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before: dict[signal.Signals, Any] = {number: signal.signal(number, stop) for number in STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(options: HttpOptions) -> socket.socket:
    """Return a listening socket. Warn if its address is open to the network. Raises OptionError."""
    try:
        kind = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.create_server(kind[4][:2], family=kind[0], backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        place = f"--host {options.host} --port {options.port}"
        raise OptionError(f"{place}: cannot listen there ({_reason(error)}); choose others") from error
    host = found.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        LOG.warning("%s is open to the network: whoever reaches it may use the model and read /metrics", host)
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # without the text that socket.create_server adds
    return getattr(error, "strerror", None) or str(error)


def server_for(app: Edge, options: HttpOptions) -> uvicorn.Server:
    """Return a server that is ready to run. Setting `should_exit` stops it after running requests have finished."""
    config = uvicorn.Config(
        app,
        http=protocol_for(options, count=app.count),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=int(WATCH * options.timeout_s) + 1,
    )
    return uvicorn.Server(config)


def run_until_signal(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running requests. Neither is an error."""
    with _stops(server):
        server.run(sockets=[listening])


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

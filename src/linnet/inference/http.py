"""HTTP/1.1 on asyncio, for large bodies: the kernel writes them where they stay.

Why not an ASGI server: a body reaches an ASGI application in pieces that have to be joined, and
slow senders, large heads and half-open connections are nobody's business there. Here a body of
known length is received into one buffer of that length, heads and bodies have deadlines, and a
request can be refused before its body is read. What a connection refuses by itself goes through the
same handler as what it answers, so logs and metrics see it.
Source: RFC 9112; parsed by llhttp (httptools).
"""

import asyncio
import ctypes
import logging
import math
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import httptools
import numpy as np
import orjson

from linnet.errors import RequestError
from linnet.inference.queueing import Bodies, out_of_memory

logger = logging.getLogger(__name__)

JSON: Final = "application/json"

_HEAD_BUFFER = 16 << 10
_SKIP_BUFFER = 256 << 10
_MAX_HEAD = 32 << 10
_MAX_HEADERS = 100
_MAX_URL = 8 << 10
# Complete requests that a connection may have sent ahead before we stop reading from it.
_AHEAD = 4
_LINGER_S = 2.0
_SWEEP_S = 0.5
# Time for connections that are being made when the port closes.
_SETTLE_S = 0.1
_ATTACH_FILTER = 26
# Of a TCP header, in the kernel's packet filter: load the flags; SYN: drop, else: keep.
_WITHOUT_SYN = struct.pack(
    "HBBI" * 4, *(0x30, 0, 0, 13), *(0x45, 0, 1, 0x02), *(0x06, 0, 0, 0), *(0x06, 0, 0, 0xFFFF)
)
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@dataclass(slots=True)
class Request:
    """One request: names of headers are in lower case, `body` is whole."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: memoryview
    keep_alive: bool
    received_s: float = 0.0
    # The request's id, for the log and the answer.
    id: str = ""


@dataclass(slots=True)
class Response:
    """An answer; `headers` beyond its type and length."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list)


Handler = Callable[[Request, Response | None], Awaitable[Response]]
Gate = Callable[[Request, int], Response | None]


@dataclass(frozen=True)
class HttpLimits:
    """What a connection may take of time (seconds) and memory (bytes)."""

    max_body_bytes: int
    max_connections: int
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float


class HttpServer:
    """Connections, and what they share.

    Args:
        handle: answers a whole request, or passes on the refusal of it.
        gate: looks at a request's head and its body's length (-1: unknown) before the body is read;
            returns the refusal, or None to let it pass.
        bodies: counts the bytes of all bodies.
    """

    def __init__(self, handle: Handler, gate: Gate, limits: HttpLimits, bodies: Bodies) -> None:
        self.handle = handle
        self.gate = gate
        self.limits = limits
        self.bodies = bodies
        self.connections: set[Connection] = set()
        self.draining = False
        self.head_buffer = memoryview(bytearray(_HEAD_BUFFER))
        self.skip_buffer = memoryview(bytearray(_SKIP_BUFFER))
        self.date = formatdate(usegmt=True)
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start to listen and return the port.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), host, port, backlog=1024
        )
        self._sweeper = asyncio.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self, timeout_s: float) -> int:
        """Stop listening, finish what was accepted, close; return how many had to be cut off."""
        self.draining = True
        until = time.monotonic() + timeout_s
        if self._server is not None:
            # Closing resets what the kernel has connected and we have not accepted yet.
            for listener in self._server.sockets:
                _connect_no_more(listener)
            await asyncio.sleep(min(_SETTLE_S, timeout_s))
            self._server.close()
        while time.monotonic() < until:
            for connection in list(self.connections):
                connection.close_if_idle()
            if not self.connections:
                break
            await asyncio.sleep(0.02)
        left = len(self.connections)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return left

    async def _sweep(self) -> None:
        """Close connections that are past their deadlines."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.date = formatdate(usegmt=True)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.expire(now)


@dataclass(slots=True)
class _Message:
    """What is known of the request that is being received.

    `answer`: it is refused, and its body skipped; `refusal`: it can't be read on. `missing`: bytes
    of its body that the kernel still has to write, from `filled` on. `fed`: bytes the parser saw.
    """

    begun: bool = False
    in_head: bool = True
    url: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    request: Request | None = None
    answer: Response | None = None
    refusal: Response | None = None
    body: memoryview | None = None
    chunks: bytearray | None = None
    length: int = 0
    filled: int = 0
    missing: int = 0
    fed: int = 0


class Connection(asyncio.BufferedProtocol):
    """One client's connection: reads requests, answers them in order."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[tuple[Request, Response | None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._deadline = time.monotonic() + server.limits.head_timeout_s
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._lingering = False
        self._held = 0
        self._now = _Message()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of a new connection, or turn it away when there are too many."""
        self._transport = transport  # type: ignore[assignment]
        server = self._server
        server.connections.add(self)
        if len(server.connections) > server.limits.max_connections:
            self._refuse(
                _error(503, f"{server.limits.max_connections} connections are open: try later", 1)
            )

    def connection_lost(self, error: Exception | None) -> None:
        """Give up whatever the client no longer waits for."""
        self._server.connections.discard(self)
        self._transport = None
        self._writable.set()
        self._release(self._held)
        self._requests.clear()
        self._now.body = None
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Start no further answer while the client doesn't read."""
        self._deadline = time.monotonic() + self._server.limits.body_timeout_s
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on answering."""
        self._writable.set()

    def eof_received(self) -> None:
        """Let the connection close: who stops sending has stopped waiting, too."""

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the kernel may write: the rest of the body, or the shared buffer."""
        if self._now.missing:
            if self._now.body is None:
                return self._server.skip_buffer[: self._now.missing]
            return self._now.body[self._now.filled : self._now.filled + self._now.missing]
        if self._lingering:
            return self._server.skip_buffer
        return self._server.head_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the kernel has written."""
        if self._lingering:
            return
        if self._now.missing:
            self._now.filled += nbytes
            self._now.missing -= nbytes
            if not self._now.missing:
                self._parser = httptools.HttpRequestParser(self)
                self.on_message_complete()
            return
        self._feed(self._server.head_buffer[:nbytes])

    def expire(self, now: float) -> None:
        """Close when the client has not done in time what it should."""
        if now < self._deadline or self._transport is None:
            return
        if self._lingering or not self._writable.is_set():
            self.abort()
        elif self._task is None:
            if self._now.begun:
                self._refuse(_error(408, "the request was not sent in time: send it faster"))
            else:
                self._transport.close()

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered."""
        if self._task is None and not self._now.begun and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def on_message_begin(self) -> None:
        """Start a request."""
        if self._now.refusal is not None:
            return
        self._now = _Message()
        self._now.begun = True
        if self._task is None:
            self._deadline = time.monotonic() + self._server.limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._now.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if self._now.refusal is not None:
            return
        if len(self._now.headers) >= _MAX_HEADERS:
            self._now.refusal = _error(431, f"more than {_MAX_HEADERS} headers: send fewer")
            return
        key = name.decode("latin-1").lower()
        if key in self._now.headers:
            self._now.headers[key] += ", " + value.decode("latin-1")
        else:
            self._now.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Decide on a request by its head, and make room for its body."""
        server, limits = self._server, self._server.limits
        self._now.in_head = False
        if self._now.refusal is not None:
            return
        length = int(self._now.headers.get("content-length") or 0)
        chunked = "transfer-encoding" in self._now.headers
        path, _, query = self._now.url.decode("latin-1").partition("?")
        request = self._now.request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=path,
            query=query,
            headers=self._now.headers,
            body=memoryview(b""),
            keep_alive=self._parser.should_keep_alive(),
        )
        if len(self._now.url) > _MAX_URL:
            self._now.refusal = _error(414, f"the address is longer than {_MAX_URL} bytes")
        elif length > limits.max_body_bytes:
            self._now.refusal = _error(
                413,
                f"the body has {length} bytes, allowed are {limits.max_body_bytes}: send less at "
                "once",
            )
        if self._now.refusal is not None:
            return
        self._now.answer = server.gate(request, -1 if chunked else length)
        self._now.length = length
        self._now.chunks = bytearray() if chunked else None
        if self._now.answer is None and length:
            self._make_room(length)
        if length or chunked:
            self._deadline = time.monotonic() + limits.body_timeout_s
            if self._now.headers.get("expect", "").lower() == "100-continue":
                if self._now.answer is not None:
                    self._now.refusal = self._now.answer
                elif self._transport is not None and self._task is None:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body that came with the head, or a chunk."""
        if self._now.chunks is None:
            end = self._now.filled + len(body)
            if self._now.body is not None:
                self._now.body[self._now.filled : end] = body
            self._now.filled = end
            return
        most = self._server.limits.max_body_bytes
        if self._now.answer is not None or self._now.refusal is not None:
            self._now.filled += len(body)
        elif len(self._now.chunks) + len(body) > most:
            self._now.refusal = _error(
                413, f"the body has more than {most} bytes: send less at once"
            )
        elif (refusal := self._server.bodies.refusal(len(body))) is not None:
            self._now.refusal = error_response(refusal)
        else:
            try:
                self._now.chunks += body
            except MemoryError:
                self._now.refusal = error_response(out_of_memory())
            else:
                self._hold(len(body))
        if self._now.filled > most:
            self._now.refusal = self._now.answer

    def on_message_complete(self) -> None:
        """Queue a whole request for its answer."""
        request = self._now.request
        self._now.begun = False
        if request is None or self._now.refusal is not None:
            return
        if self._now.chunks is not None:
            request.body = memoryview(self._now.chunks)
        elif self._now.filled < self._now.length:
            self._now.refusal = _error(400, "Upgrade is not known here: send plain HTTP/1.1")
            return
        elif self._now.body is not None:
            request.body = self._now.body
        request.received_s = time.perf_counter()
        self._requests.append((request, self._now.answer))
        self._now = _Message()
        if self._task is None:
            self._task = self._loop.create_task(self._respond())
        elif len(self._requests) >= _AHEAD and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _feed(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # HTTP/1.1 it stays: whoever asked for an upgrade can do without.
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError as error:
            self._refuse(_error(400, f"this is not HTTP/1.1 ({error}): correct the request"))
            return
        if self._now.refusal is not None:
            self._refuse(self._now.refusal)
            return
        if not self._now.begun:
            return
        self._now.fed += len(data)
        if self._now.in_head:
            if self._now.fed > _MAX_HEAD:
                self._refuse(_error(431, f"the head is longer than {_MAX_HEAD} bytes"))
        elif self._now.chunks is not None:
            # The framing of a chunked body is bounded, too.
            if self._now.fed > 8 * self._server.limits.max_body_bytes:
                self._refuse(_error(413, "the chunks are too small: send larger ones"))
        else:
            # From here on the kernel writes the body itself.
            self._now.missing = self._now.length - self._now.filled

    async def _respond(self) -> None:
        """Answer the queued requests in order."""
        server = self._server
        try:
            while self._requests:
                request, response = self._requests.popleft()
                held = len(request.body)
                response = await server.handle(request, response)
                request.body = memoryview(b"")
                self._release(held)
                await self._writable.wait()
                last = not request.keep_alive or server.draining
                self._write(response, last=last, head_only=request.method == "HEAD")
                if last:
                    self._linger()
                    return
                if not self._reading and self._transport is not None:
                    self._reading = True
                    self._transport.resume_reading()
        finally:
            self._task = None
            limits = server.limits
            if not self._lingering:
                self._deadline = time.monotonic() + (
                    limits.body_timeout_s if self._now.begun else limits.idle_timeout_s
                )

    def _write(self, response: Response, *, last: bool, head_only: bool = False) -> None:
        if self._transport is None:
            return
        extra = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
        head = (
            f"content-type: {response.content_type}\r\ncontent-length: {len(response.body)}\r\n"
            f"date: {self._server.date}\r\n{extra}{'connection: close' if last else ''}"
        )
        end = b"\r\n\r\n" if last else b"\r\n"
        body = b"" if head_only else response.body
        self._transport.write(
            b"".join((_STATUS_LINES[response.status], head.encode("latin-1"), end, body))
        )

    def _refuse(self, response: Response) -> None:
        """Answer a request that can't be read to its end, after those before it, and close."""
        request = self._now.request or Request("", "", "", {}, memoryview(b""), keep_alive=False)
        request.keep_alive = False
        request.received_s = time.perf_counter()
        self._now = _Message()
        self._requests.append((request, response))
        self._lingering = True
        self._deadline = math.inf
        if self._task is None:
            self._task = self._loop.create_task(self._respond())

    def _linger(self) -> None:
        """Send what there is and the end; read on for a moment, or a reset may overtake it."""
        self._lingering = True
        self._now.missing = 0
        self._release(self._held)
        self._now.body = None
        self._deadline = time.monotonic() + _LINGER_S
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.can_write_eof():
                self._transport.write_eof()
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()

    def _make_room(self, size: int) -> None:
        """Get the buffer that a body will be written to, or its refusal."""
        if (refusal := self._server.bodies.refusal(size)) is not None:
            self._now.answer = error_response(refusal)
            return
        try:
            # Not a bytearray: that would be filled with zeros first.
            self._now.body = np.empty(size, np.uint8).data
        except MemoryError:
            self._now.answer = error_response(out_of_memory())
            return
        self._hold(size)

    def _hold(self, size: int) -> None:
        self._held += size
        self._server.bodies.take(size)

    def _release(self, size: int) -> None:
        self._held -= size
        self._server.bodies.give_back(size)


def _connect_no_more(listener: socket.socket) -> None:
    """Let the kernel make no new connection, while those that are made can still be accepted.

    Who tries to connect is told nothing for a second, tries again, and finds the port closed.
    Source: the Linux kernel's Documentation/networking/filter.rst
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_WITHOUT_SYN)
    count = len(_WITHOUT_SYN) // struct.calcsize("HBBI")
    with suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(program))
        )


def error_response(error: RequestError) -> Response:
    """Return the answer that an error means."""
    return _error(error.status, str(error), error.retry_after_s)


def _error(status: int, message: str, retry_after_s: int | None = None) -> Response:
    headers = [] if retry_after_s is None else [("retry-after", str(retry_after_s))]
    return Response(status, orjson.dumps({"error": message}), headers=headers)

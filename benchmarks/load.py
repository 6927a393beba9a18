"""A cheap client for measurements: prebuilt requests over raw sockets, HTTP/1.1 or gRPC.

Client and server share the machine's cores here, so what the client costs is taken from the server.
One thread, one epoll, no HTTP library: about 0.05 ms of CPU a request. gRPC is spoken frame by
frame (RFC 9113), with a header block that names every field literally (RFC 7541, 6.2.2).
"""

import heapq
import select
import socket
import struct
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

PATIENCE_S = 10.0
READ = 1 << 20
MOST_BUFFERS = 64


@dataclass(frozen=True)
class Target:
    """Where to send which request."""

    kind: str
    port: int
    request: bytes = field(repr=False)
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Load:
    """What came of a load. Latencies in seconds, of the answered requests, ascending.

    `late` were answered after the time was over: not part of the rate, but of the CPU's work.
    """

    seconds: float
    answered: int
    refused: int
    lost: int
    late: int
    latencies: list[float] = field(repr=False)
    client_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    def percentile(self, percent: float) -> float:
        if not self.latencies:
            return float("nan")
        return self.latencies[
            min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))
        ]


class Out:
    """Buffers on their way to a socket, never copied."""

    def __init__(self) -> None:
        self._buffers: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def add(self, *buffers: bytes | memoryview) -> None:
        self._buffers.extend(memoryview(one) for one in buffers)

    def send(self, connection: socket.socket) -> None:
        while self._buffers:
            count = connection.sendmsg(list(islice(self._buffers, MOST_BUFFERS)))
            while count:
                first = self._buffers.popleft()
                if count < len(first):
                    self._buffers.appendleft(first[count:])
                count -= min(count, len(first))


class Wire(Protocol):
    """One connection's protocol: bytes to send for a request, and what came back."""

    def opening(self) -> bytes: ...
    def next_request(self) -> None: ...
    def to_send(self) -> "Out": ...
    def received(self, data: bytes) -> int | None:
        """Return 200 when the answer is complete, another status when it is a refusal."""


class Http:
    """HTTP/1.1, kept alive."""

    def __init__(self, target: Target) -> None:
        lines = [f"POST {target.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in target.headers]
        lines += [f"Content-Length: {len(target.request)}", "", ""]
        self._request = memoryview("\r\n".join(lines).encode() + target.request)
        self._out = Out()
        self._buffer = b""

    def opening(self) -> bytes:
        return b""

    def next_request(self) -> None:
        self._out.add(self._request)
        self._buffer = b""

    def to_send(self) -> Out:
        return self._out

    def received(self, data: bytes) -> int | None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + length:
                return None
        elif not self._buffer.endswith(b"0\r\n\r\n"):
            return None
        return int(head[9:12])


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: str, value: str) -> bytes:
    """A header field that no table holds; lengths in 7-bit prefixed integers."""
    out = b"\0"
    for text in (name.encode(), value.encode()):
        size = len(text)
        if size < 127:
            out += bytes([size])
        else:
            out += b"\x7f"
            size -= 127
            while size >= 128:
                out += bytes([size % 128 + 128])
                size //= 128
            out += bytes([size])
        out += text
    return out


_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8


class Grpc:
    """gRPC's unary calls over one HTTP/2 connection, one at a time."""

    def __init__(self, target: Target) -> None:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", target.path),
            (":authority", f"127.0.0.1:{target.port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *target.headers,
        ]
        self._head = b"".join(_field(*one) for one in fields)
        self._body = struct.pack(">BI", 0, len(target.request)) + target.request
        self._stream = -1
        self._out = Out()
        self._left = memoryview(self._body)[:0]
        self._window, self._stream_window, self._first_window = 65_535, 65_535, 65_535
        self._largest = 16_384
        self._in = b""
        self._data = 0

    def opening(self) -> bytes:
        window = struct.pack(">HI", 4, 1 << 24)
        return (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, window)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        )

    def next_request(self) -> None:
        self._stream += 2
        self._stream_window = self._first_window
        self._out.add(_frame(_HEADERS, 4, self._stream, self._head))
        self._left = memoryview(self._body)
        self._data = 0
        self._fill()

    def _fill(self) -> None:
        while self._left:
            size = min(len(self._left), self._largest, self._window, self._stream_window)
            if size <= 0:
                return
            last = size == len(self._left)
            head = struct.pack(">I", size)[1:] + struct.pack(">BBI", _DATA, last, self._stream)
            self._out.add(head, self._left[:size])
            self._left = self._left[size:]
            self._window -= size
            self._stream_window -= size

    def to_send(self) -> Out:
        return self._out

    def received(self, data: bytes) -> int | None:
        self._in = self._in + data if self._in else data
        at, done = 0, None
        buffer = self._in
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            payload = buffer[at + 9 : at + 9 + size]
            at += 9 + size
            done = self._one(kind, flags, stream, payload) or done
        self._in = buffer[at:]
        return done

    def _one(self, kind: int, flags: int, stream: int, payload: bytes) -> int | None:
        if kind == _WINDOW:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
            self._fill()
        elif kind == _SETTINGS and not flags & 1:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == 4:
                    self._stream_window += value - self._first_window
                    self._first_window = value
                elif key == 5:
                    self._largest = value
            self._out.add(_frame(_SETTINGS, 1, 0))
            self._fill()
        elif kind == _PING and not flags & 1:
            self._out.add(_frame(_PING, 1, 0, payload))
        elif kind == _DATA:
            self._data += len(payload)
        elif kind == _RESET and stream == self._stream:
            return 500
        elif kind == _GOAWAY:
            raise ConnectionError("the server goes away")
        if kind in (_DATA, _HEADERS) and flags & 1 and stream == self._stream:
            # An error has no message, only trailers.
            return 200 if self._data else 429
        return None


class _Connection:
    def __init__(self, target: Target) -> None:
        self.wire: Wire = Grpc(target) if target.kind == "grpc" else Http(target)
        self.socket = socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.sendall(self.wire.opening())
        self.socket.setblocking(False)
        self.began = 0.0
        self.busy = False
        self.wants_write = False


class _Loop:
    """Connections of one load and what became of their requests."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.outcome: Counter[str] = Counter()
        self.latencies: list[float] = []

    def connect(self) -> _Connection:
        connection = _Connection(self.target)
        self.connections[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket, select.EPOLLIN)
        return connection

    def begin(self, connection: _Connection, due: float) -> None:
        connection.began, connection.busy = due, True
        connection.wire.next_request()
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        out = connection.wire.to_send()
        with suppress(BlockingIOError):
            out.send(connection.socket)
        wants = bool(out)
        if wants != connection.wants_write:
            connection.wants_write = wants
            events = select.EPOLLIN | (select.EPOLLOUT if wants else 0)
            self.epoll.modify(connection.socket, events)

    def poll(self, timeout: float) -> list[_Connection]:
        """Return the connections whose request is over; lost ones are replaced."""
        over = []
        for handle, event in self.epoll.poll(max(0.0, timeout)):
            connection = self.connections[handle]
            try:
                if event & ~select.EPOLLOUT:
                    data = connection.socket.recv(READ)
                    if not data:
                        raise ConnectionError("closed")
                    status = connection.wire.received(data)
                    if status is not None:
                        self._finish(connection, status)
                        over.append(connection)
                self._flush(connection)
            except ConnectionError:
                self.close(connection)
                if connection.busy:
                    self.outcome["lost"] += 1
                over.append(self.connect())
        return over

    def _finish(self, connection: _Connection, status: int) -> None:
        connection.busy = False
        if status == 200:
            self.outcome["answered"] += 1
            self.latencies.append(time.perf_counter() - connection.began)
        else:
            self.outcome["refused"] += 1

    def close(self, connection: _Connection) -> None:
        self.epoll.unregister(connection.socket)
        del self.connections[connection.socket.fileno()]
        connection.socket.close()

    def end(self, began: float, finished: float, cpu: float) -> Load:
        for connection in list(self.connections.values()):
            self.close(connection)
        self.epoll.close()
        return Load(
            seconds=finished - began,
            answered=self.outcome["answered"],
            refused=self.outcome["refused"],
            lost=self.outcome["lost"],
            late=self.outcome["late"],
            latencies=sorted(self.latencies),
            client_cpu_s=time.process_time() - cpu,
        )


def closed(target: Target, *, clients: int, seconds: float) -> Load:
    """Keep `clients` requests under way; each client sends when its answer is there."""
    loop, cpu = _Loop(target), time.process_time()
    began = time.perf_counter()
    until = began + seconds
    for _ in range(clients):
        loop.begin(loop.connect(), time.perf_counter())
    while (now := time.perf_counter()) < until:
        for connection in loop.poll(min(1.0, until - now)):
            loop.begin(connection, time.perf_counter())
    finished = time.perf_counter()
    in_time = loop.outcome.copy()
    _drain(loop)
    loop.outcome["late"] = loop.outcome.total() - in_time.total()
    for kind in ("answered", "refused", "lost"):
        loop.outcome[kind] = in_time[kind]
    return loop.end(began, finished, cpu)


def open_loop(target: Target, *, rate: float, seconds: float, connections: int) -> Load:
    """Send at a set rate whatever the answers do; latencies count from when a request was due.

    A request that finds all connections busy is lost: that is what clients with a timeout do.
    """
    loop, cpu = _Loop(target), time.process_time()
    began = time.perf_counter()
    idle = [loop.connect() for _ in range(min(connections, 8))]
    due: list[float] = [began + at / rate for at in range(int(rate * seconds))]
    heapq.heapify(due)
    while due:
        now = time.perf_counter()
        while due and due[0] <= now:
            at = heapq.heappop(due)
            if not idle and len(loop.connections) < connections:
                idle.append(loop.connect())
            if idle:
                loop.begin(idle.pop(), at)
            else:
                loop.outcome["lost"] += 1
        wait = (due[0] - time.perf_counter()) if due else 0.0
        idle += [one for one in loop.poll(wait) if not one.busy]
    finished = time.perf_counter()
    _drain(loop)
    return loop.end(began, finished, cpu)


def _drain(loop: _Loop) -> None:
    until = time.perf_counter() + PATIENCE_S
    while any(one.busy for one in loop.connections.values()) and time.perf_counter() < until:
        loop.poll(0.1)

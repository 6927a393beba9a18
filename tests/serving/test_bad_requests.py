"""Whatever is sent: a 4xx that says what to change, and a good request works right after."""

import json
import re
import socket
import struct
import time
from collections.abc import Iterator

import grpc
import pytest
import urllib3
from tritonclient.grpc import service_pb2 as v2

from tests.serving import bad_messages, bad_requests
from tests.serving.bad_messages import BadMessage
from tests.serving.bad_requests import INFER, JSON, Bad, as_json, uint8_input
from tests.serving.conftest import Running

SEED = 20_26
# What Python says to Python: of no use to who sent the request.
INTERNAL = re.compile(
    r"Traceback|object has no attribute|NoneType|<class|<built-in|__\w+__|not subscriptable"
    r"|unexpected keyword|site-packages|\.py\b|Errno"
)
REST = [*bad_requests.hand_made(), *bad_requests.generated(SEED, 200)]
MESSAGES = [*bad_messages.hand_made(), *bad_messages.generated(SEED, 100)]


@pytest.fixture(scope="module")
def http() -> urllib3.PoolManager:
    return urllib3.PoolManager(retries=False, timeout=20)


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, body: bytes) -> bytes:
    """Send bytes as they are: nobody's classes check them first."""
    send = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    return bytes(send(body, timeout=20))


def assert_helps(message: str, says: str = "") -> None:
    assert len(message) >= 15, message
    assert not INTERNAL.search(message), message
    assert len(message) < 1_000, message[:1_000]
    assert says.lower() in message.lower(), message


def test_the_corpus_is_large_and_differs() -> None:
    names = [str(one) for one in (*REST, *MESSAGES)]
    assert len(REST) >= 300
    assert len(MESSAGES) >= 150
    assert len(set(names)) > 0.98 * len(names)


@pytest.mark.parametrize("bad", REST, ids=str)
def test_a_bad_request_is_refused_and_the_next_one_answered(
    bad: Bad, unharmed: Running, http: urllib3.PoolManager
) -> None:
    answer = http.request(bad.method, unharmed.url + bad.path, body=bad.body, headers=bad.headers)
    assert answer.status in bad.statuses, answer.data[:500]
    assert answer.headers["content-type"].startswith("application/json")
    assert_helps(json.loads(answer.data)["error"], bad.says)
    good = http.request(
        "POST", unharmed.url + INFER, body=as_json(uint8_input()), headers={"Content-Type": JSON}
    )
    assert good.status == 200


@pytest.mark.parametrize("bad", MESSAGES, ids=str)
def test_a_bad_message_is_refused_and_the_next_one_answered(
    bad: BadMessage, unharmed: Running, channel: grpc.Channel
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, bad.method, bad.body)
    assert refused.value.code().name in bad.codes, refused.value.details()
    assert_helps(refused.value.details())
    good = v2.ModelInferResponse.FromString(
        call(channel, "ModelInfer", bad_messages.infer().SerializeToString())
    )
    assert len(good.outputs) == 5


def test_a_message_that_is_too_large_is_refused_before_it_is_read(
    unharmed: Running, channel: grpc.Channel
) -> None:
    huge = bad_messages.infer(raw=(bytes(80 << 20),)).SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, "ModelInfer", huge)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unharmed.rss_mib() < 600


def raw(server: Running, data: bytes, *, patience_s: float = 5.0, close: bool = False) -> bytes:
    """Send bytes, and return all that comes until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=patience_s) as to:
        to.sendall(data)
        if close:
            to.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while part := to.recv(1 << 16):
                received += part
                if complete(received):
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def complete(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and found is not None and len(body) >= int(found[1])


def post(*headers: str, body: bytes = b"", path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {JSON}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


GOOD = as_json(uint8_input())
LENGTH = f"Content-Length: {len(GOOD)}"
BROKEN_HTTP = {
    "no HTTP at all": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/9.9": b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
    "a method of lower case": b"post /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method nobody knows": b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a zero byte in the target": b"GET /v2\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /v2 /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET /v2 HTTP/1.1\r\nHost x\r\n\r\n",
    "a zero byte in a header": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    "100 KB of headers": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    "20,000 headers": b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    "a target of 100 KB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a negative length": post("Content-Length: -1", body=GOOD),
    "a length in words": post("Content-Length: many", body=GOOD),
    "a length of 10³⁰": post("Content-Length: 1" + "0" * 30, body=GOOD),
    "two lengths": post(LENGTH, "Content-Length: 3", body=GOOD),
    "a length and chunks": post(LENGTH, "Transfer-Encoding: chunked", body=GOOD),
    "chunks of no number": post("Transfer-Encoding: chunked", body=b"zz\r\n" + GOOD),
    "chunks of a huge number": post("Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n"),
    "a coding nobody knows": post("Transfer-Encoding: magic", body=GOOD),
    "a body beyond the limit": post("Content-Length: 99999999999"),
}


@pytest.mark.parametrize("name", BROKEN_HTTP)
def test_broken_http_is_refused_and_the_connection_closed(name: str, unharmed: Running) -> None:
    received = raw(unharmed, BROKEN_HTTP[name])
    assert re.match(rb"HTTP/1\.1 (4\d\d|501|505) ", received), received[:300]
    assert unharmed.infer([uint8_input()])["outputs"]


@pytest.mark.parametrize("sent", [0, 1, 20, len(post(LENGTH)) - 1, len(post(LENGTH)) + 5])
def test_who_leaves_in_the_middle_leaves_nothing_behind(sent: int, unharmed: Running) -> None:
    for close in (True, False):
        whole = post(LENGTH, body=GOOD)
        with socket.create_connection(("127.0.0.1", unharmed.rest_port)) as to:
            to.sendall(whole[:sent])
            if close:
                to.shutdown(socket.SHUT_WR)
            else:
                # A reset instead of an end.
                to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert unharmed.infer([uint8_input()])["outputs"]


def test_requests_in_one_go_are_answered_in_order(unharmed: Running) -> None:
    bad = post("Content-Length: 2", body=b"[]")
    first = post(LENGTH, body=GOOD)
    with socket.create_connection(("127.0.0.1", unharmed.rest_port), timeout=10) as to:
        to.sendall(first + bad + first + bad.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = b""
        while part := to.recv(1 << 16):
            received += part
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"400", b"200", b"400"]


def test_a_body_in_chunks_is_answered(unharmed: Running) -> None:
    chunks = b"".join(
        f"{len(GOOD[at : at + 7]):x}\r\n".encode() + GOOD[at : at + 7] + b"\r\n"
        for at in range(0, len(GOOD), 7)
    )
    received = raw(unharmed, post("Transfer-Encoding: chunked", body=chunks + b"0\r\n\r\n"))
    assert received.startswith(b"HTTP/1.1 200")


def test_a_head_byte_by_byte_is_answered(unharmed: Running) -> None:
    with socket.create_connection(("127.0.0.1", unharmed.rest_port), timeout=10) as to:
        to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(LENGTH, body=GOOD):
            to.sendall(bytes([byte]))
        assert to.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_slow_sender_is_cut_off_and_hinders_nobody(start: object, release: object) -> None:
    """Slow-loris: 50 connections that send a byte now and then."""
    options = (
        "--set",
        "head_timeout_s=1",
        "--set",
        "body_timeout_s=1",
        "--set",
        "idle_timeout_s=1",
    )
    server = start(release, options=options)  # type: ignore[operator]
    address = ("127.0.0.1", server.rest_port)
    heads = [socket.create_connection(address) for _ in range(25)]
    bodies = [socket.create_connection(address) for _ in range(25)]
    silent = [socket.create_connection(address) for _ in range(25)]
    for to in heads:
        to.sendall(b"POST /v2 HTT")
    for to in bodies:
        to.sendall(post(LENGTH, body=GOOD[:5]))
    slow = [*heads, *bodies, *silent]
    until = time.monotonic() + 8
    while slow and time.monotonic() < until:
        assert server.infer([uint8_input()])["outputs"]
        slow = [to for to in slow if not ended(to)]
        time.sleep(0.2)
    assert not slow
    assert "Traceback" not in server.output()
    server.stop()


def ended(to: socket.socket) -> bool:
    """Send another byte; tell whether the server has hung up, then or before."""
    to.setblocking(False)
    try:
        to.send(b"a")
        while to.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    to.close()
    return True


def test_connections_beyond_the_limit_are_refused_and_room_comes_back(
    start: object, release: object
) -> None:
    server = start(release, options=("--set", "max_connections=10"))  # type: ignore[operator]
    address = ("127.0.0.1", server.rest_port)
    held = [socket.create_connection(address) for _ in range(40)]
    time.sleep(0.3)
    for to in held:
        to.close()
    time.sleep(0.3)
    assert server.infer([uint8_input()])["outputs"]
    assert "Traceback" not in server.output()
    server.stop()

"""HTTP/1.1 as clients and proxies really speak it, over a raw socket."""

import json
import socket
import time

import pytest

from tests.serving.conftest import Running, Start
from tests.serving.photographs import photographs

PICTURE = photographs()["flower.jpg"]
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def exchange(server: Running, *pieces: bytes, answers: int = 1) -> list[tuple[int, bytes, bytes]]:
    """Send pieces and return status, head and body of so many answers."""
    found = []
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        stream = connection.makefile("rb")
        while len(found) < answers:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                assert line, f"the connection ended after {len(found)} answers"
                head += line
            fields = dict(
                line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line
            )
            body = stream.read(int(fields.get(b"content-length", b"0")))
            found.append((int(head[9:12]), head.lower(), body))
    return found


def post(head: str = "", body: bytes = PICTURE, version: str = "1.1") -> bytes:
    return (
        f"POST /predict/flowers HTTP/{version}\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(body)}\r\n{head}\r\n"
    ).encode() + body


def test_requests_sent_ahead_are_answered_in_order(server: Running) -> None:
    found = exchange(server, LIVE * 20 + post() + LIVE, answers=22)
    assert [status for status, _, _ in found] == [200] * 22
    assert "label" in json.loads(found[20][2])
    assert found[21][2] == b'{"live":true}'


def test_large_requests_sent_ahead_are_answered_in_order(server: Running) -> None:
    wrong = post(body=b"no picture" * 30_000)
    found = exchange(server, post() + wrong + post() + LIVE, answers=4)
    assert [status for status, _, _ in found] == [200, 400, 200, 200]


def test_a_body_in_chunks_is_read(server: Running) -> None:
    chunks = b"".join(
        f"{len(part):x}\r\n".encode() + part + b"\r\n"
        for part in (PICTURE[:10], PICTURE[10:5000], PICTURE[5000:])
    )
    head = (
        b"POST /predict/flowers HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    ((status, _, body), _) = exchange(server, head, chunks, b"0\r\n\r\n", LIVE, answers=2)
    assert (status, "label" in json.loads(body)) == (200, True)


def test_a_request_in_single_bytes_is_read(server: Running) -> None:
    assert exchange(server, *(bytes([byte]) for byte in LIVE))[0][0] == 200


def test_who_asks_before_sending_is_told_to_go_on(server: Running) -> None:
    whole = post("Expect: 100-continue\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_who_asks_before_sending_too_much_is_told_not_to(server: Running) -> None:
    head = (
        b"POST /predict/flowers HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    ((status, answer, body),) = exchange(server, head)
    assert (status, b"connection: close" in answer) == (413, True)
    assert "allowed are" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (post(version="1.0"), False),
        (post("Connection: keep-alive\r\n", version="1.0"), True),
        (post("Connection: close\r\n"), False),
        (post(), True),
    ],
    ids=["1.0", "1.0 keep-alive", "1.1 close", "1.1"],
)
def test_connections_are_kept_as_the_client_says(
    request_: bytes, kept: bool, server: Running
) -> None:
    ((status, head, _),) = exchange(server, request_)
    assert status == 200
    assert (b"connection: close" not in head) is kept


def test_head_is_answered_without_a_body(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as connection:
        connection.sendall(
            LIVE.replace(b"GET", b"HEAD")
            + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        whole = b""
        while piece := connection.recv(4096):
            whole += piece
    first, second, body = whole.split(b"\r\n\r\n")
    assert b"content-length: 13" in first
    assert second.startswith(b"HTTP/1.1 200")
    assert body == b'{"live":true}'


def test_an_offer_to_upgrade_is_passed_over(server: Running) -> None:
    offer = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert exchange(server, offer)[0][0] == 200


def test_slow_senders_are_cut_off_and_idle_connections_closed(
    start: Start, release: object
) -> None:
    options = ("head_timeout_s=1", "body_timeout_s=1", "idle_timeout_s=1")
    flags = tuple(part for option in options for part in ("--set", option))
    server = start(release, options=flags)  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as half_a_head:
        half_a_head.sendall(LIVE[:20])
        with socket.create_connection(("127.0.0.1", server.rest_port), 10) as half_a_body:
            half_a_body.sendall(post()[:-100])
            with socket.create_connection(("127.0.0.1", server.rest_port), 10) as idle:
                idle.sendall(LIVE)
                assert idle.recv(1000).startswith(b"HTTP/1.1 200")
                assert idle.recv(1000) == b""
            assert half_a_head.recv(1000).startswith(b"HTTP/1.1 408")
            assert half_a_body.recv(1000).startswith(b"HTTP/1.1 408")


def test_too_many_connections_are_turned_away(start: Start, release: object) -> None:
    server = start(release, options=("--set", "max_connections=3"))  # type: ignore[arg-type]
    kept = [socket.create_connection(("127.0.0.1", server.rest_port), 10) for _ in range(3)]
    for connection in kept:
        connection.sendall(LIVE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as turned_away:
        assert turned_away.recv(1000).startswith(b"HTTP/1.1 503")
    for connection in kept:
        connection.close()


def test_bodies_of_all_connections_together_are_bounded(start: Start, release: object) -> None:
    size = len(PICTURE)
    server = start(release, options=("--set", f"bodies_bytes={size + 1000}"))  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as first:
        first.sendall(post()[:-1])
        until = time.monotonic() + 10
        while (answer := exchange(server, post())[0])[0] == 200 and time.monotonic() < until:
            pass
        assert answer[0] == 429
        assert b"retry-after: 1" in answer[1]
        first.sendall(post()[-1:])
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
        assert exchange(server, post())[0][0] == 200


def test_refusals_of_what_was_never_read_are_logged_and_counted(
    start: Start, release: object
) -> None:
    options = ("--set", "max_connections=2", "--set", "head_timeout_s=1")
    server = start(release, options=options)  # type: ignore[arg-type]
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(120))
    wrong = {
        400: b"HELO mail\r\n\r\n",
        408: LIVE[:20],
        413: b"POST /predict/flowers HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n",
        431: LIVE.replace(b"\r\n\r\n", b"\r\n" + many + b"\r\n"),
    }
    for status, sent in wrong.items():
        ((found, head, _),) = exchange(server, sent)
        assert found == status
        assert b"x-request-id: " in head
    with socket.create_connection(("127.0.0.1", server.rest_port), 10) as first:
        first.sendall(LIVE)
        first.recv(1000)
        with socket.create_connection(("127.0.0.1", server.rest_port), 10) as second:
            second.sendall(LIVE)
            second.recv(1000)
            assert exchange(server)[0][0] == 503
    until = time.monotonic() + 10
    while "linnet_refused" not in (shown := _metrics(server)) and time.monotonic() < until:
        pass
    for status, count in ((400, " 1.0"), (408, " 1.0"), (431, " 1.0"), (503, "")):
        assert f'linnet_refused_total{{code="{status}",protocol="rest"}}{count}' in shown
    # Its head was read, so the model is known.
    of = 'code="413",model="flowers",protocol="rest",release="flowers/v1"'
    assert f"linnet_requests_total{{{of}}} 1.0" in shown
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    logged = {line["code"]: line for line in lines if line.get("code") in (*wrong, 503)}
    assert {line["message"] for line in logged.values()} == {"unread", "POST /predict/flowers"}
    assert all(0 <= line["milliseconds"] < 5000 for line in logged.values())


def _metrics(server: Running) -> str:
    status, body = server.get("/metrics")
    return body.decode() if status == 200 else ""

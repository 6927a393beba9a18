"""Bytes that nobody meant to send: parsers refuse them in words, and the server stays up."""

import json
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.serving import bad_messages, fuzz_parsers
from tests.serving.bad_requests import (
    INFER,
    as_json,
    binary,
    bytes_input,
    framed,
    uint8_input,
)
from tests.serving.conftest import Running
from tests.serving.photographs import opened, saved

ROOT = Path(__file__).parents[2]
SMALL = saved(opened().resize((20, 20)), "JPEG")
GOOD_BODIES = [
    as_json(uint8_input()),
    as_json(bytes_input(SMALL), outputs=[{"name": "label", "parameters": {"binary_data": True}}]),
    binary("UINT8", [1, 4, 4, 3], bytes(48))[0],
    binary("BYTES", [2], framed(SMALL, SMALL))[0],
]
GOOD_MESSAGES = [
    bad_messages.infer().SerializeToString(),
    bad_messages.infer(datatype="BYTES", shape=(1,), raw=(framed(SMALL),)).SerializeToString(),
    bad_messages.infer(raw=(), contents={"uint_contents": [7] * 48}).SerializeToString(),
    bad_messages.infer(outputs=("label", "score"), id="x" * 200).SerializeToString(),
]
bounded = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(["pictures", "encoded", "UINT8", "BYTES", "label", "AAAA"]),
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "shape",
                    "datatype",
                    "data",
                    "parameters",
                    "inputs",
                    "outputs",
                    "id",
                    "b64",
                    "binary_data_size",
                    "binary_data",
                    "binary_data_output",
                    "timeout",
                    "instances",
                ]
            ),
            below,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """Good bytes with a few changes: flipped, cut out, doubled, put in."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "double", "put", "end"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 9))]
            case "double":
                data[at:at] = data[at : at + 9]
            case "put":
                data[at:at] = draw(st.binary(max_size=9))
            case _:
                del data[at:]
    return bytes(data)


@bounded
@given(body=damaged(GOOD_BODIES), length=st.integers(0, 700) | st.just(0xFFFF))
def test_damaged_bodies_are_parsed_or_refused(body: bytes, length: int) -> None:
    fuzz_parsers.infer_body(length.to_bytes(2, "little") + body)


@bounded
@given(tensor=VALUES, more=VALUES)
def test_any_json_is_parsed_or_refused(tensor: object, more: object) -> None:
    for value in (tensor, {"inputs": tensor}, {"inputs": [tensor], "outputs": more}):
        fuzz_parsers.infer_body(b"\xff\xff" + json.dumps(value).encode())
        fuzz_parsers.v1_body(json.dumps(value).encode())
    fuzz_parsers.v1_body(json.dumps({"instances": [tensor, more]}).encode())


@bounded
@given(data=damaged(GOOD_MESSAGES) | st.binary(max_size=60))
@example(b"\x3a\x80\x80\x80\x80\x80\x00")
@example(b"\x3a\x00\x0b\x0c")
@example(b"\x3a")
def test_damaged_messages_are_read_as_protobuf_reads_them(data: bytes) -> None:
    fuzz_parsers.message(data)


@bounded
@given(data=st.binary(max_size=80) | damaged([b"\x02" + framed(b"ab", b"c")]))
def test_any_elements_are_read_or_refused(data: bytes) -> None:
    fuzz_parsers.tensor(data)


def test_damaged_http_never_breaks_the_server(unharmed: Running) -> None:
    chance = random.Random(20_26)
    body, headers = binary("UINT8", [1, 4, 4, 3], bytes(48))
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines = [f"POST {INFER} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}", "", ""]
    whole = "\r\n".join(lines).encode() + body
    statuses = []
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at] = chance.randrange(256)
            else:
                data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        with socket.create_connection(("127.0.0.1", unharmed.rest_port), timeout=5) as to:
            to.sendall(data)
            to.shutdown(socket.SHUT_WR)
            try:
                received = to.recv(1 << 16)
            except ConnectionResetError:
                continue
        if found := re.match(rb"HTTP/1\.1 (\d+)", received):
            statuses.append(int(found[1]))
    assert len(statuses) > 100
    assert all(status < 500 or status in (501, 505) for status in statuses)
    assert unharmed.infer([uint8_input()])["outputs"]


def test_damaged_grpc_frames_never_break_the_server(unharmed: Running) -> None:
    chance = random.Random(20_26)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", unharmed.grpc_port), timeout=5) as to:
            to.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * (chance.random() < 0.8))
            to.sendall(chance.randbytes(chance.randrange(1, 300)))
    assert unharmed.infer([uint8_input()])["outputs"]


def test_atheris_finds_nothing_in_a_short_run() -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: make fuzz brings it")
    command = [sys.executable, "-m", "tests.serving.fuzz_parsers", "-max_total_time=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2_000:]

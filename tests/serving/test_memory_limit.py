"""With little memory: what is too much is refused, and the server lives on."""

import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from PIL import Image

from tests.serving.bad_requests import INFER, as_json, uint8_input
from tests.serving.conftest import Running, Start
from tests.serving.photographs import saved

SIDE = 2000
LIMIT = 640 << 20


def large_tensor(server: Running, pixels: bytes) -> int:
    tensor = {"name": "pictures", "datatype": "UINT8", "shape": [2, SIDE, SIDE, 3]}
    header = as_json({**tensor, "parameters": {"binary_data_size": len(pixels)}})
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }
    return server.send("POST", INFER, header + pixels, headers)[0]


def large_picture(server: Running, encoded: bytes) -> int:
    return server.send("POST", "/predict/flowers", encoded, {"Content-Type": "image/png"})[0]


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_a_flood_beyond_the_memory_is_refused_and_the_server_lives_on(
    start: Start, release: object
) -> None:
    server = start(release, within_bytes=LIMIT)
    assert "of memory are left for requests" in server.output()
    encoded = saved(Image.new("RGBA", (SIDE, SIDE)), "PNG", compress_level=1)
    pixels = bytes(2 * SIDE * SIDE * 3)
    calls: list[Callable[[], int]] = [
        lambda: large_picture(server, encoded),
        lambda: large_tensor(server, pixels),
        lambda: large_tensor(server, pixels),
    ]
    until = time.monotonic() + 3
    seen: Counter[str] = Counter()

    def flood(number: int) -> None:
        while time.monotonic() < until:
            try:
                seen[str(calls[number % 3]())] += 1
            except OSError:
                # Refused before it was sent whole.
                seen["refused while sending"] += 1

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(flood, range(24)))
    assert server.alive, server.output()[-2000:]
    assert seen["200"] > 0, seen
    assert set(seen) <= {"200", "413", "429", "503", "refused while sending"}, seen
    with ExitStack() as held:
        for _ in range(8):
            address = ("127.0.0.1", server.rest_port)
            half_sent = held.enter_context(socket.create_connection(address, 10))
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {LIMIT // 32}\r\n\r\n"
            half_sent.sendall(head.encode())
        time.sleep(0.5)
        assert large_tensor(server, pixels) == 429
    assert server.infer([uint8_input()])["outputs"]
    assert "Traceback" not in server.output()
    assert server.stop() == 0

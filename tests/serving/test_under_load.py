"""Under load: nothing accepted is lost when the server stops, reloads, is flooded or runs full."""

import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from linnet.client import Client
from tests.serving.bad_messages import infer
from tests.serving.bad_requests import INFER, JSON, as_json, framed, photo, uint8_input
from tests.serving.conftest import Running, Start
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release

GOOD = as_json(uint8_input())
# One worker thread that is slow on purpose: large photographs to decode.
SLOW = ("--set", "workers=1", "--set", "decode_threads=1")


class Callers:
    """Threads that call until they are told to stop; counts what came of every call."""

    def __init__(self, count: int, call: Callable[[], str]) -> None:
        self.outcome: Counter[str] = Counter()
        self._call = call
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while not self._stop.is_set():
            result = self._call()
            with self._lock:
                self.outcome[result] += 1
            if result.startswith("not accepted"):
                time.sleep(0.02)


def rest_call(server: Running, body: bytes = GOOD, kind: str = JSON, path: str = INFER) -> str:
    """Call once on a new connection, and tell a refused connection from a lost answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        connection.connect()
    except OSError:
        return "not accepted: no connection"
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"lost: {error!r}"
    finally:
        connection.close()
    return "answered" if answer.status == 200 else f"not accepted: {answer.status}"


def grpc_call(stub: GRPCInferenceServiceStub, request: Any) -> str:
    try:
        stub.ModelInfer(request, timeout=20)
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return f"not accepted: {code.name}"
        return f"lost: {code.name} {error.details()}"
    return "answered"


def lost(outcome: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in outcome.items() if name.startswith("lost")}


def test_sigterm_under_load_loses_nothing_that_was_accepted(start: Start, release: Path) -> None:
    server = start(release)
    body, kind = photo(), "image/jpeg"
    request = infer(datatype="BYTES", shape=(1,), raw=(framed(photo()),))
    with (
        grpc.insecure_channel(server.grpc) as channel,
        Callers(6, lambda: rest_call(server, body, kind, "/predict/flowers")) as over_rest,
        Callers(4, lambda: grpc_call(GRPCInferenceServiceStub(channel), request)) as over_grpc,
    ):
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    assert over_rest.outcome["answered"] > 20
    assert over_grpc.outcome["answered"] > 20
    assert not lost(over_rest.outcome)
    assert not lost(over_grpc.outcome)
    said = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    for protocol, code, callers in (("rest", 200, over_rest), ("grpc", "OK", over_grpc)):
        codes = Counter(
            one["code"] for one in said if one.get("protocol") == protocol and one.get("model")
        )
        # Whatever the server took on, it finished, and whatever it finished arrived.
        assert codes[code] == callers.outcome["answered"]
        assert set(codes) <= {code, 429, 503, "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert "Traceback" not in server.output()


def test_readiness_ends_before_the_server_does(start: Start, release: Path) -> None:
    server = start(release, options=("--set", "drain_wait_s=1.5"))
    with (
        grpc.insecure_channel(server.grpc) as channel,
        Callers(2, lambda: rest_call(server)) as callers,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(v2.ServerReadyRequest()).ready
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        assert server.get("/v2/health/ready")[0] == 503
        assert server.get("/v2/models/flowers/ready")[0] == 503
        assert not stub.ServerReady(v2.ServerReadyRequest()).ready
        assert server.get("/v2/health/live")[0] == 200
        before = callers.outcome["answered"]
        time.sleep(0.4)
        assert callers.outcome["answered"] > before
        assert server.process.wait(20) == 0
    assert not lost(callers.outcome)


def test_two_models_answer_side_by_side_and_one_goes(start: Start, tmp_path: Path) -> None:
    first = write_release(tmp_path, photographs(), version="v1")
    second = write_release(tmp_path, photographs(), model="trees", version="v7")
    server = start(first, second, options=("--repository-api",))
    with Client(server.url, model="trees") as trees, Client(server.url, model="flowers") as flowers:
        assert trees.predict([photo()])[0].release == "trees/v7"
        with Callers(3, lambda: rest_call(server)) as callers:
            server.send("POST", "/v2/repository/models/trees/unload", b"{}")
            assert not trees.ready()
            assert flowers.predict([photo()])[0].release == "flowers/v1"
        assert callers.outcome.keys() == {"answered"}
    server.stop()


def test_a_flood_is_refused_with_the_time_to_come_back_and_then_it_is_well_again(
    start: Start, release: Path
) -> None:
    server = start(release, options=(*SLOW, "--set", "queue_pictures=4"))
    body = photo()

    def call() -> str:
        return rest_call(server, body, "image/jpeg", "/predict/flowers")

    with Callers(40, call) as flood:
        time.sleep(2.0)
        status, said = server.get("/v2/health/live")
        assert status == 200, said
    assert set(flood.outcome) <= {"answered", "not accepted: 429"}, flood.outcome
    assert flood.outcome["answered"] > 20
    assert flood.outcome["not accepted: 429"] > 20
    assert call() == "answered"
    server.stop()


def test_a_full_queue_says_when_to_come_back_over_both_protocols(
    start: Start, release: Path
) -> None:
    server = start(release, options=(*SLOW, "--set", "queue_pictures=1"))
    large = photo()
    request = infer(datatype="BYTES", shape=(1,), raw=(framed(large),))
    seen: Counter[str] = Counter()

    def over_rest() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request("POST", "/predict/flowers", large, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert "try again" in said["error"] or "later" in said["error"], said
        return str(answer.status)

    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)

        def over_grpc() -> str:
            try:
                stub.ModelInfer(request, timeout=20)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    metadata = dict(error.trailing_metadata())
                    assert int(metadata["retry-after"]) >= 1
                return str(error.code().name)
            return "OK"

        with ThreadPoolExecutor(16) as pool:
            for _ in range(5):
                calls = [pool.submit(over_rest) for _ in range(8)]
                calls += [pool.submit(over_grpc) for _ in range(8)]
                seen.update(call.result() for call in calls)
    assert set(seen) <= {"200", "429", "OK", "RESOURCE_EXHAUSTED"}, seen
    assert seen["429"] > 0
    assert seen["RESOURCE_EXHAUSTED"] > 0
    server.stop()


def test_whoever_gives_up_leaves_the_queue(start: Start, release: Path) -> None:
    """Deadlines and cancelled calls: the next request doesn't wait for what nobody wants."""
    server = start(release, options=SLOW)
    many = [photographs()["china.jpg"]] * 60
    request = infer(datatype="BYTES", shape=(60,), raw=(framed(*many),))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(8):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(request, timeout=0.03)
            assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        futures = [stub.ModelInfer.future(request) for _ in range(2)]
        time.sleep(0.02)
        for future in futures:
            future.cancel()
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", server.rest_port)) as to:
                head = (
                    f"POST /predict/flowers HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo())}"
                )
                to.sendall(head.encode() + b"\r\nContent-Type: image/jpeg\r\n\r\n" + photo())
        began = time.monotonic()
        stub.ModelInfer(infer(), timeout=20)
        assert time.monotonic() - began < 2.0
    server.stop()


def test_memory_stays_bounded_whatever_is_sent(start: Start, release: Path) -> None:
    limits = ("--set", "bodies_bytes=33554432", "--set", "max_body_bytes=16777216")
    server = start(release, options=limits)
    for _ in range(20):
        server.infer([uint8_input()])
    before = server.rss_mib()
    most = [before]
    large = np.zeros((1, 2_000, 2_000, 3), np.uint8).tobytes()
    header = as_json(
        {
            "name": "pictures",
            "datatype": "UINT8",
            "shape": [1, 2_000, 2_000, 3],
            "parameters": {"binary_data_size": len(large)},
        }
    )
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }

    def call() -> str:
        try:
            status, _ = server.send("POST", INFER, header + large, headers)
        except OSError:
            return "refused while sending"
        return str(status)

    with Callers(12, call) as callers:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            most.append(server.rss_mib())
            time.sleep(0.05)
    assert callers.outcome["200"] > 5, callers.outcome
    assert set(callers.outcome) <= {"200", "429", "refused while sending"}, callers.outcome
    assert max(most) - before < 250, (before, max(most))
    held = [socket.create_connection(("127.0.0.1", server.rest_port)) for _ in range(200)]
    for to in held:
        to.sendall(b"POST /predict/flowers HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n")
    time.sleep(0.3)
    assert server.rss_mib() - before < 250
    for to in held:
        to.close()
    time.sleep(0.2)
    assert server.infer([uint8_input()])["outputs"]
    server.stop()

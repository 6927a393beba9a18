"""Starting, reloading, stopping, limits: with a real process and real sockets."""

import concurrent.futures
import json
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest

from linnet.inference.protocol import open_inference_pb2 as pb
from tests.serving.conftest import LINNET, Running, Start, wait_until_ready
from tests.serving.photographs import photographs
from tests.serving.tiny_release import SIZE, graph, write_release

PICTURE = photographs()["flower.jpg"]
JPEG = {"Content-Type": "image/jpeg"}
PIXELS = np.zeros((1, SIZE, SIZE, 3), np.uint8).tobytes()


def refused(*arguments: str | Path) -> str:
    """Run `linnet serve`, which must fail with 1, and return what it says."""
    command = [str(LINNET), "serve", *map(str, arguments), "--rest-port", "0", "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A release of this test's own, to damage."""
    return write_release(tmp_path, photographs())


def test_an_altered_release_is_refused(own: Path) -> None:
    with (own / "model.onnx").open("ab") as file:
        file.write(b"!")
    assert "model.onnx of" in (said := refused(own))
    assert "is not what was released" in said


def test_a_half_release_is_refused(own: Path) -> None:
    (own / "samples.json").unlink()
    assert "incomplete, samples.json is gone" in refused(own)


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    assert "is not a finished release" in refused(tmp_path)


def test_a_release_that_answers_otherwise_than_recorded_is_refused(own: Path) -> None:
    import hashlib

    encoded = graph(seed=8)
    (own / "model.onnx").write_bytes(encoded)
    manifest = json.loads((own / "release.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = hashlib.sha256(encoded).hexdigest()
    (own / "release.json").write_text(json.dumps(manifest))
    assert "does not answer here as it was released" in refused(own)


def test_two_releases_of_one_name_are_refused(own: Path, release: Path) -> None:
    assert "two releases are called flowers" in refused(own, release)


def test_a_port_that_is_taken_is_named(own: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [str(LINNET), "serve", str(own), "--rest-port", str(port), "--grpc-port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in " ".join(done.stderr.split())


def test_several_models_answer_under_their_names(start: Start, release: Path, own: Path) -> None:
    command = (f"roses={own}",)
    server = start(release, options=command)
    assert json.loads(server.get("/v2/models")[1]) == {"models": ["flowers", "roses"]}
    for name in ("flowers", "roses"):
        status, body = server.send("POST", f"/predict/{name}", PICTURE, JPEG)
        assert (status, json.loads(body)["model"]) == (200, name)
    assert server.stop() == 0


class Callers:
    """Threads that predict without a pause over REST and gRPC until told to stop."""

    def __init__(self, server: Running, threads: int = 4) -> None:
        self.codes: Counter[str] = Counter()
        self._server = server
        self._stop = threading.Event()
        calls = [self._rest, self._grpc] * (threads // 2)
        self._threads = [threading.Thread(target=call) for call in calls]
        for thread in self._threads:
            thread.start()

    def end(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.codes

    def _rest(self) -> None:
        head = (
            f"POST /predict/flowers HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(PICTURE)}\r\n\r\n"
        ).encode()
        while not self._stop.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self._server.rest_port), 10)
            except ConnectionRefusedError:
                self.codes["not accepted"] += 1
                return
            with connection:
                while not self._stop.is_set():
                    try:
                        connection.sendall(head + PICTURE)
                        answer = connection.recv(65536)
                    except (ConnectionResetError, BrokenPipeError):
                        answer = b""
                    if not answer:
                        self.codes["rest lost"] += 1
                        return
                    self.codes[f"rest {answer[9:12].decode()}"] += 1
                    if b"connection: close" in answer:
                        break

    def _grpc(self) -> None:
        with grpc.insecure_channel(self._server.grpc) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            request = pb.ModelInferRequest(model_name="flowers", raw_input_contents=[PIXELS])
            request.inputs.add(name="pictures", datatype="UINT8", shape=[1, SIZE, SIZE, 3])
            while not self._stop.is_set():
                try:
                    infer(request, timeout=10)
                    self.codes["grpc OK"] += 1
                except grpc.RpcError as error:
                    self.codes[f"grpc {error.code().name}"] += 1
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        return


def test_sigterm_turns_readiness_off_and_loses_nothing_that_was_accepted(
    start: Start, release: Path
) -> None:
    server = start(release, options=("--set", "drain_wait_s=0.8"))
    callers = Callers(server)
    time.sleep(0.5)
    server.process.terminate()
    time.sleep(0.3)
    assert server.get("/v2/health/ready")[0] == 503
    assert server.get("/v2/models/flowers/ready")[0] == 503
    assert server.get("/v2/health/live")[0] == 200
    assert server.process.wait(20) == 0
    codes = callers.end()
    assert codes["rest 200"] > 20
    assert codes["grpc OK"] > 20
    assert set(codes) <= {"rest 200", "grpc OK", "grpc UNAVAILABLE", "not accepted"}, codes
    assert "Traceback" not in server.output()


def test_a_reload_under_load_loses_nothing_and_takes_the_new_release(
    start: Start, tmp_path: Path
) -> None:
    folder = write_release(tmp_path / "one", photographs())
    other = write_release(tmp_path / "two", photographs(), version="v2")
    server = start(folder, options=("--repository-api",))
    callers = Callers(server)
    time.sleep(0.2)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    for _ in range(3):
        assert server.send("POST", "/v2/repository/models/flowers/load", b"{}")[0] == 200
        time.sleep(0.1)
    assert server.get("/v2/models/flowers/versions/v2/ready")[0] == 200
    codes = callers.end()
    assert set(codes) == {"rest 200", "grpc OK"}, codes
    assert server.stop() == 0


def test_a_reload_that_fails_leaves_the_old_release_answering(start: Start, tmp_path: Path) -> None:
    folder = write_release(tmp_path, photographs())
    server = start(folder, options=("--repository-api",))
    (folder / "model.onnx").write_bytes(b"damaged")
    status, body = server.send("POST", "/v2/repository/models/flowers/load", b"{}")
    assert status == 400
    assert "is not what was released" in json.loads(body)["error"]
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200


def test_an_unloaded_model_is_gone_and_can_be_loaded_again(start: Start, release: Path) -> None:
    server = start(release, options=("--repository-api",))
    assert server.send("POST", "/v2/repository/models/flowers/unload", b"{}")[0] == 200
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 404
    (entry,) = json.loads(server.send("POST", "/v2/repository/index", b"{}")[1])
    assert entry["state"] == "UNAVAILABLE"
    assert server.send("POST", "/v2/repository/models/flowers/load", b"{}")[0] == 200
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200


def test_without_its_flag_the_repository_cannot_be_changed(server: Running) -> None:
    for what in ("load", "unload"):
        status, _ = server.send("POST", f"/v2/repository/models/flowers/{what}", b"{}")
        assert status == 403


def test_a_token_is_asked_for_but_not_by_health_and_metrics(start: Start, release: Path) -> None:
    server = start(release, options=("--token", "s3cret"))
    wrong = {**JPEG, "Authorization": "Bearer wrong"}
    for headers in (JPEG, wrong):
        status, body = server.send("POST", "/predict/flowers", PICTURE, headers)
        assert status == 401
        assert "token" in json.loads(body)["error"]
    for given in ({"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}):
        assert server.send("POST", "/predict/flowers", PICTURE, {**JPEG, **given})[0] == 200
    assert server.get("/v2/health/ready")[0] == 200
    assert server.get("/metrics")[0] == 200
    assert server.get("/v2/models")[0] == 401
    assert "s3cret" not in server.output()


def test_beyond_the_queue_requests_are_refused_with_a_hint_and_the_rest_answered(
    start: Start, release: Path
) -> None:
    options = ("--set", "queue_pictures=2", "--set", "workers=1", "--set", "decode_threads=1")
    server = start(release, options=options)

    def one(_: int) -> int:
        return server.send("POST", "/predict/flowers", PICTURE, JPEG)[0]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        codes = Counter(pool.map(one, range(200)))
    assert set(codes) == {200, 429}, codes
    assert codes[200] > 10
    assert one(0) == 200
    metrics = server.get("/metrics")[1].decode()
    assert (
        f'code="429",model="flowers",protocol="rest",release="flowers/v1"}} {codes[429]}' in metrics
    )


def _requests(code: int, count: int) -> str:
    labels = f'code="{code}",model="flowers",protocol="rest",release="flowers/v1"'
    return f"linnet_requests_total{{{labels}}} {count}.0"


def test_metrics_count_by_model_and_release(start: Start, release: Path) -> None:
    server = start(release)
    label = json.loads(server.send("POST", "/predict/flowers", PICTURE, JPEG)[1])["label"]
    server.send("POST", "/predict/flowers", b"no picture", JPEG)
    metrics = server.get("/metrics")[1].decode()
    of = 'model="flowers",release="flowers/v1"'
    for line in (
        f'linnet_predictions_total{{label="{label}",{of}}} 1.0',
        f"linnet_confidence_count{{{of}}} 1.0",
        f"linnet_queue_pictures{{{of}}} 0.0",
        f"linnet_model_ready{{{of}}} 1.0",
        f'linnet_stage_seconds_count{{{of},stage="decode"}} 1.0',
        f'linnet_stage_seconds_count{{{of},stage="infer"}} ',
        _requests(200, 1),
        _requests(400, 1),
    ):
        assert line in metrics, line


def test_the_log_has_the_requests_id_as_json(server: Running) -> None:
    given = {**JPEG, "X-Request-ID": "abc-123"}
    server.send("POST", "/predict/flowers", PICTURE, given)
    lines = [json.loads(line) for line in server.output().splitlines() if "abc-123" in line]
    assert lines[0]["code"] == 200
    assert lines[0]["release"] == "flowers/v1"


def test_a_deadline_that_passes_is_answered_and_leaves_the_queue(server: Running) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        request = pb.ModelInferRequest(model_name="flowers")
        request.inputs.add(name="pictures", datatype="BYTES", shape=[64])
        request.inputs[0].contents.bytes_contents.extend([PICTURE] * 64)
        request.parameters["timeout"].int64_param = 1
        with pytest.raises(grpc.RpcError) as caught:
            infer(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (
        'linnet_queue_pictures{model="flowers",release="flowers/v1"} 0.0'
        in server.get("/metrics")[1].decode()
    )


def test_a_client_that_goes_away_leaves_the_queue(server: Running) -> None:
    body = json.dumps({"instances": [[[[0] * 3] * 300] * 300] * 8}).encode()
    head = f"POST /v1/models/flowers:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.rest_port), 10) as connection:
            connection.sendall(head.encode() + body)
    until = time.monotonic() + 10
    gone = 'linnet_queue_pictures{model="flowers",release="flowers/v1"} 0.0'
    while time.monotonic() < until and gone not in server.get("/metrics")[1].decode():
        time.sleep(0.05)
    assert gone in server.get("/metrics")[1].decode()
    assert "Traceback" not in server.output()


def test_live_is_answered_while_a_release_still_loads(start: Start, release: Path) -> None:
    server = start(release, wait=False)
    wait_until_ready(server)
    assert server.get("/v2/health/live") == (200, b'{"live":true}')


def test_urls_are_refused_unless_turned_on(server: Running) -> None:
    body = json.dumps({"url": "https://example.org/a.jpg"}).encode()
    status, said = server.send(
        "POST", "/predict/flowers", body, {"Content-Type": "application/json"}
    )
    assert status == 403
    assert "--fetch-host" in json.loads(said)["error"]

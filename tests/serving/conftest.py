"""A real server process on real sockets, serving tiny releases."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.serving.photographs import forms, photographs
from tests.serving.tiny_release import write_release

LINNET = Path(sys.executable).with_name("linnet")
READY_WITHIN_S = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Running:
    """A server process: its addresses, its output so far."""

    process: subprocess.Popen[bytes]
    rest_port: int
    grpc_port: int
    log: Path
    releases: tuple[Path, ...]
    checked: int = field(default=0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> tuple[int, bytes]:
        return self.send("GET", path)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.url + path, data=body, headers=headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def infer(self, inputs: list[dict[str, object]], model: str = "flowers") -> dict[str, object]:
        status, body = self.send(
            "POST",
            f"/v2/models/{model}/infer",
            json.dumps({"inputs": inputs}).encode(),
            {"Content-Type": "application/json"},
        )
        assert status == 200, body
        return dict(json.loads(body))

    def rss_mib(self) -> float:
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        )
        return int(fields["VmRSS"].split()[0]) / 1024

    def stop(self, within_s: float = 30.0) -> int:
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


Start = Callable[..., Running]


def launch(
    folder: Path,
    *releases: Path | str,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    within_bytes: int | None = None,
) -> Running:
    """Start a server in a folder; `within_bytes` limits its memory. Who calls stops it."""
    rest, grpc = free_port(), free_port()
    log = folder / "log"
    command = [str(LINNET), "serve", *map(str, releases), "--host", "127.0.0.1"]
    command += ["--rest-port", str(rest), "--grpc-port", str(grpc), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        )
    if within_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (within_bytes, within_bytes))
    return Running(process, rest, grpc, log, tuple(map(Path, releases)))


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = {**photographs(), "china.png": forms()["png"]}
    return write_release(tmp_path_factory.mktemp("releases"), samples)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers; all are stopped at the end, whatever happened."""
    started: list[Running] = []

    def start_one(
        *releases: Path,
        options: tuple[str, ...] = (),
        wait: bool = True,
        within_bytes: int | None = None,
    ) -> Running:
        folder = tmp_path_factory.mktemp("server")
        running = launch(folder, *releases, options=options, within_bytes=within_bytes)
        started.append(running)
        if wait:
            wait_until_ready(running)
        return running

    yield start_one
    for running in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.stop()


def wait_until_ready(running: Running) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        assert running.alive, running.output()
        with contextlib.suppress(OSError):
            if running.get("/v2/health/ready")[0] == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"not ready within {READY_WITHIN_S} s: {running.output()}")


@pytest.fixture(scope="session")
def server(start: Start, release: Path) -> Running:
    """The one that most tests share: small limits, so that they can be reached."""
    return start(release)


@pytest.fixture
def unharmed(server: Running) -> Iterator[Running]:
    """The shared server, which must have no traceback in its log and still run afterwards."""
    before = len(server.output())
    yield server
    assert server.alive, server.output()[-3000:]
    assert "Traceback" not in server.output()[before:]


@pytest.fixture(scope="session")
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed here")
    return found

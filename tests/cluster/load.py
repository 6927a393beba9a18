"""Clients that send requests through the gateway in a loop and count every failure."""

import json
import threading
import time
import urllib.parse
from collections import Counter
from types import TracebackType
from typing import Any, Self

import grpc
import urllib3

from linnet.inference.protocol import open_inference_pb2 as pb

FAULT = "went wrong here"


class Load:
    """Requests from several clients, each on its own kept connection, never sent twice.

    `answered` counts by release; `lost` are those without an answer of a model server; `failed`
    are a server's own errors.
    """

    def __init__(self, url: str, host: str, model: str, body: bytes, *, clients: int = 4) -> None:
        self._url = f"{url}/v2/models/{model}/infer"
        self._headers = {"Host": host, "Content-Type": "application/json"}
        self._body = body
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]
        self.answered: Counter[str] = Counter()
        self.failed: Counter[int] = Counter()
        self.lost: list[str] = []

    @property
    def sent(self) -> int:
        return self.answered.total() + self.failed.total() + len(self.lost)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until(self, requests: int, *, timeout_s: float = 600.0) -> None:
        """Wait until this many more requests have been answered."""
        goal, deadline = self.sent + requests, time.monotonic() + timeout_s
        while self.sent < goal:
            assert time.monotonic() < deadline, f"{self.sent} of {goal} requests in {timeout_s} s"
            time.sleep(0.1)

    def words(self) -> str:
        return (
            f"{self.sent} requests: {dict(self.answered)}, {len(self.lost)} lost"
            f"{' ' + str(self.lost[:3]) if self.lost else ''}, own errors {dict(self.failed)}"
        )

    def _send(self) -> None:
        with urllib3.PoolManager(maxsize=1, retries=False, timeout=30.0) as pool:
            while not self._stop.is_set():
                try:
                    body = self._next_body()
                    answer = pool.request("POST", self._url, body=body, headers=self._headers)
                    self._note(answer.status, answer.data)
                    self._then(pool, answer)
                except urllib3.exceptions.HTTPError as error:
                    with self._lock:
                        self.lost.append(f"{time.strftime('%X')} {error!r}")

    def _next_body(self) -> bytes:
        return self._body

    def _then(self, pool: urllib3.PoolManager, answer: urllib3.BaseHTTPResponse) -> None:
        """Do what a client does with an answer: nothing here."""

    def _note(self, status: int, data: bytes) -> None:
        with self._lock:
            if status == 200:
                outputs: list[dict[str, Any]] = json.loads(data)["outputs"]
                release = next(one["data"][0] for one in outputs if one["name"] == "release")
                self.answered[str(release)] += 1
            elif status == 500 and FAULT in data.decode(errors="replace"):
                self.failed[status] += 1
            else:
                self.lost.append(f"{time.strftime('%X')} {status} {data[:120]!r}")


class LabellingLoad(Load):
    """The same by people who send the true label of each answer, once, to whichever pod gets it.

    `told` counts what became of the labels, by status: 404 is a pod that did not answer before.
    """

    def __init__(
        self, url: str, host: str, model: str, body: bytes, *, label: str, clients: int = 4
    ) -> None:
        super().__init__(url, host, model, body, clients=clients)
        self._feedback_url = f"{url}/feedback/{model}"
        self._label = label
        self.told: Counter[int] = Counter()

    def _then(self, pool: urllib3.PoolManager, answer: urllib3.BaseHTTPResponse) -> None:
        told = {"request_id": answer.headers.get("X-Request-ID"), "label": self._label}
        said = pool.request("POST", self._feedback_url, json=told, headers=self._headers)
        with self._lock:
            self.told[said.status] += 1


class GrpcLoad(Load):
    """The same by V2 over gRPC: several clients, each on its own channel, that never try again."""

    def __init__(
        self, url: str, host: str, model: str, picture: bytes, *, clients: int = 2
    ) -> None:
        super().__init__(url, host, model, picture, clients=clients)
        self._target = urllib.parse.urlsplit(url).netloc
        self._options = [
            ("grpc.default_authority", host),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._request = pb.ModelInferRequest(model_name=model)
        self._request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
        self._request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)

    def _send(self) -> None:
        with grpc.insecure_channel(self._target, options=self._options) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            while not self._stop.is_set():
                try:
                    answer = infer(self._request, timeout=30)
                    with self._lock:
                        self.answered[f"{answer.model_name}/{answer.model_version}"] += 1
                except grpc.RpcError as error:
                    with self._lock:
                        self.lost.append(f"{time.strftime('%X')} {error.code()} {error.details()}")

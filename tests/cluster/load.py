"""Clients that send requests through the gateway in a loop and count every failure."""

import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import urllib3

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
                    answer = pool.request("POST", self._url, body=self._body, headers=self._headers)
                    self._note(answer.status, answer.data)
                except urllib3.exceptions.HTTPError as error:
                    with self._lock:
                        self.lost.append(f"{time.strftime('%X')} {error!r}")

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

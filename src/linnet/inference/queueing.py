"""How much a server takes on: pictures that wait for a model, and bytes of requests under way."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from linnet.errors import RequestError

# Of the sums that the rate is made of, for each request: some fifty requests are remembered.
_KEPT = 0.98
_LONGEST_RETRY_S = 60


class Waiting:
    """Pictures that one model has taken on: no more than it answers in the time it promises.

    The rate comes from what requests have seen: so many pictures were there with them, and it took
    so long until all of these were answered. All of it is called on the event loop's thread.

    Args:
        name: of the model, for refusals.
        wait_s: what is answered in this time is taken on, at least `least` pictures, which keep the
            threads busy, and at most `most`.
    """

    def __init__(self, name: str, *, wait_s: float, least: int, most: int) -> None:
        self.pictures = 0
        self._name = name
        self._wait_s = wait_s
        self._least = least
        self._most = most
        self._seen = 0.0
        self._seen_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def rate(self) -> float:
        """Return the pictures that are answered in a second, 0 while that is not known."""
        return self._seen / self._seen_s if self._seen_s else 0.0

    @property
    def limit(self) -> int:
        """Return how many pictures are taken on now."""
        return min(self._most, max(self._least, int(self.rate * self._wait_s)))

    def refusal(self, count: int) -> RequestError | None:
        """Return the refusal of so many more pictures, or None where there is room.

        A request that is larger than the limit has room when nothing else waits.
        """
        if not self.pictures or self.pictures + count <= self.limit:
            return None
        wait_s = math.ceil(self.pictures / self.rate) if self.rate else 1
        return RequestError(
            f"{self._name} is busy with {self.pictures} pictures of at most {self.limit}: try "
            f"again in {max(1, wait_s)} s",
            status=429,
            retry_after_s=min(max(1, wait_s), _LONGEST_RETRY_S),
        )

    @contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """Count pictures in, and out again when they are answered or given up.

        Raises:
            RequestError: there is no room for them.
        """
        if (refusal := self.refusal(count)) is not None:
            raise refusal
        self.pictures += count
        self._idle.clear()
        together, began = self.pictures, time.perf_counter()
        try:
            yield
            self._seen = _KEPT * self._seen + together
            self._seen_s = _KEPT * self._seen_s + time.perf_counter() - began
        finally:
            self.pictures -= count
            if not self.pictures:
                self._idle.set()

    async def empty(self) -> None:
        """Wait until nothing is left to answer."""
        await self._idle.wait()


def out_of_memory() -> RequestError:
    """Return the refusal of a request for which there is no memory."""
    return RequestError(
        "this server has no memory left for it: send less at once, or try again in a moment",
        status=503,
        retry_after_s=1,
    )


class Bodies:
    """Bytes of requests that are being received or answered, over both protocols together."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self.most = most

    def refusal(self, size: int) -> RequestError | None:
        """Return the refusal of so many more bytes, or None where there is room."""
        if self.held + size <= self.most:
            return None
        if size > self.most:
            return RequestError(
                f"the request has {size} bytes, and there is memory for {self.most}: send less at "
                "once",
                status=413,
            )
        return RequestError(
            "too much is being sent at once: try again in a moment", status=429, retry_after_s=1
        )

    def take(self, size: int) -> None:
        """Count bytes in."""
        self.held += size

    def give_back(self, size: int) -> None:
        """Count bytes out."""
        self.held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count bytes in, and out again at the end."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

"""Waiting for one's turn, so that memory and the model stay within bounds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from linnet.errors import RequestError

_COME_BACK_S = 5


class Turns:
    """Lets some go at once and some more wait; whoever comes then is sent away."""

    def __init__(self, at_once: int, *, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._room = at_once + waiting

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs.

        Raises:
            RequestError: too many wait already.
        """
        if self._room == 0:
            raise RequestError(
                "many people ask at the moment: try again in a few seconds",
                status=429,
                retry_after_s=_COME_BACK_S,
            )
        self._room -= 1
        try:
            async with self._free:
                yield
        finally:
            self._room += 1

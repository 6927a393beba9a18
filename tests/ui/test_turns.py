"""Who may go, who waits, who is sent away."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from linnet.errors import RequestError
from linnet.ui.shares import Share, Shares
from linnet.ui.turns import Turns


def test_some_go_some_wait_and_the_rest_is_sent_away() -> None:
    async def check() -> None:
        turns, end = Turns(1, waiting=1), asyncio.Event()

        async def hold() -> None:
            async with turns.take():
                await end.wait()

        first, second = (asyncio.create_task(hold()) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="many people ask") as refused:
            async with turns.take():
                pass
        assert (refused.value.status, refused.value.retry_after_s) == (429, 5)
        end.set()
        await asyncio.gather(first, second)
        async with turns.take():
            pass

    # Beside the browser's event loop, which keeps this thread for the whole folder's tests.
    with ThreadPoolExecutor(1) as beside:
        beside.submit(lambda: asyncio.run(check())).result()


def test_shares_are_of_the_last_answers_alone() -> None:
    shares = Shares(4)
    for release in ("m/v1", "m/v1", "m/v1", "m/v2"):
        told = shares.count(release)
    assert told == [Share("m/v1", 3), Share("m/v2", 1)]
    shares.count("m/v2")
    assert shares.count("m/v2") == [Share("m/v2", 3), Share("m/v1", 1)]

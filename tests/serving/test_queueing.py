"""What is taken on: pictures by the time that they will take, bytes by their sum."""

import asyncio
import time

import pytest

from linnet.errors import RequestError
from linnet.inference.memory import Memory
from linnet.inference.queueing import Bodies, Waiting
from linnet.inference.settings import ServeSettings


def waiting(*, wait_s: float = 0.1, least: int = 4, most: int = 100) -> Waiting:
    return Waiting("flowers", wait_s=wait_s, least=least, most=most)


def answer(queue: Waiting, pictures: int, seconds: float) -> None:
    with queue.taking(pictures):
        time.sleep(seconds)


def test_at_first_as_much_is_taken_on_as_keeps_the_threads_busy() -> None:
    assert waiting().limit == 4


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [(0.02, 100, range(20, 52)), (0.02, 7, range(7, 8)), (0.5, 100, range(4, 5))],
    ids=["what is answered in the wait", "never more than the most", "never less than the least"],
)
def test_the_limit_is_what_is_answered_in_the_longest_wait(
    seconds: float, most: int, expected: range
) -> None:
    queue = waiting(most=most)
    answer(queue, 10, seconds)
    assert queue.limit in expected


def test_what_is_full_refuses_with_the_time_that_it_will_take() -> None:
    queue = waiting(least=1)
    answer(queue, 1, 0.2)
    with queue.taking(4), pytest.raises(RequestError) as refused, queue.taking(1):
        raise AssertionError("there was room")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    assert "4 pictures of at most 1" in str(refused.value)
    assert queue.refusal(1) is None


def test_a_request_beyond_the_limit_is_taken_on_when_nothing_else_waits() -> None:
    queue = waiting()
    assert queue.refusal(50) is None
    with queue.taking(1):
        assert queue.refusal(50) is not None


def test_what_fails_says_nothing_about_the_rate() -> None:
    queue = waiting()
    with pytest.raises(ValueError, match="broken"), queue.taking(3):
        raise ValueError("broken")
    assert (queue.rate, queue.pictures) == (0.0, 0)


def test_it_is_empty_when_the_last_one_is_answered() -> None:
    async def main() -> None:
        queue = waiting()
        await queue.empty()
        with queue.taking(1):
            emptied = asyncio.create_task(queue.empty())
            await asyncio.sleep(0)
            assert not emptied.done()
        await emptied

    asyncio.run(main())


def test_bytes_are_counted_in_and_out() -> None:
    bodies = Bodies(100)
    with bodies.holding(60):
        assert bodies.refusal(40) is None
        refusal = bodies.refusal(41)
        assert refusal is not None
        assert refusal.status == 429
    assert bodies.held == 0


def test_what_could_never_be_held_is_refused_for_good() -> None:
    refusal = Bodies(100).refusal(101)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_s) == (413, None)


JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"


def test_limits_fit_into_the_memory_that_is_left() -> None:
    memory = Memory(ServeSettings(decode_threads=2))
    assert (memory.max_pixels(PNG), memory.bodies.most) == (25_000_000, 256 << 20)
    memory.share(512 << 20)
    assert memory.max_pixels(PNG) == (256 << 20) // 32
    assert memory.max_pixels(JPEG) == (256 << 20) // 12
    assert memory.bodies.most == 128 << 20
    memory.share(64 << 30)
    assert (memory.max_pixels(PNG), memory.bodies.most) == (25_000_000, 256 << 20)

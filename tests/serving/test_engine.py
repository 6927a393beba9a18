"""Batching, with models that say what they were given."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from linnet.errors import PictureError, RequestError
from linnet.inference.engine import Decoders, Engine, EngineError, Pixels, Probabilities

SHAPE = (2, 2, 3)


class Recorder:
    """Answers a picture with its first pixel, and remembers its batches."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[int] = []
        self.addresses: list[int] = []
        self.gate = gate

    def predict(self, pictures: Pixels) -> Probabilities:
        if self.gate is not None:
            self.gate.wait(10)
        self.batches.append(len(pictures))
        self.addresses.append(pictures.__array_interface__["data"][0])
        if (pictures == 255).all(axis=(1, 2, 3)).any():
            raise ValueError("a white picture")
        return pictures[:, 0, 0, :1].astype(np.float32)


class Watch:
    def __init__(self) -> None:
        self.runs: list[int] = []

    def decoded(self, seconds: float) -> None: ...

    def ran(self, pictures: int, seconds: float, queued: list[float]) -> None:
        self.runs.append(pictures)


Test = Callable[[Engine, Watch], Awaitable[None]]


def run(
    test: Test,
    narrow: Recorder,
    *,
    wide: Recorder | None = None,
    workers: int = 1,
    max_batch: int = 4,
    max_wait_s: float = 0.0,
    decode_threads: int = 2,
) -> None:
    async def main() -> None:
        watch, decoders = Watch(), Decoders(decode_threads)
        engine = Engine(
            narrow,
            wide,
            shape=SHAPE,
            workers=workers,
            max_batch=max_batch,
            max_wait_s=max_wait_s,
            decoders=decoders,
            watch=watch,
            loop=asyncio.get_running_loop(),
        )
        try:
            async with asyncio.timeout(20):
                await test(engine, watch)
        finally:
            if narrow.gate is not None:
                narrow.gate.set()
            await asyncio.to_thread(engine.close)
            await asyncio.to_thread(decoders.close)

    asyncio.run(main())


def picture(value: int) -> Pixels:
    return np.full((1, *SHAPE), value, np.uint8)


def test_answers_go_to_the_requests_they_belong_to() -> None:
    async def test(engine: Engine, watch: Watch) -> None:
        found = await asyncio.gather(*(engine.classify(picture(value)) for value in range(50)))
        assert [int(each[0, 0]) for each in found] == list(range(50))

    run(test, Recorder(), workers=3)


def test_what_has_queued_meanwhile_becomes_a_batch_of_at_most_the_set_size() -> None:
    gate = threading.Event()
    model = Recorder(gate)

    async def test(engine: Engine, watch: Watch) -> None:
        first = asyncio.create_task(engine.classify(picture(0)))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(engine.classify(picture(value))) for value in range(1, 8)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [1, 4, 3]
        assert watch.runs == [1, 4, 3]

    run(test, model)


def test_a_picture_that_is_alone_goes_to_the_wide_model_at_once() -> None:
    narrow, wide = Recorder(), Recorder()

    async def test(engine: Engine, watch: Watch) -> None:
        started = time.perf_counter()
        await engine.classify(picture(1))
        assert time.perf_counter() - started < 1.0
        assert (narrow.batches, wide.batches) == ([], [1])

    run(test, narrow, wide=wide, max_wait_s=5.0)


def test_a_picture_in_company_leaves_cpus_to_the_others() -> None:
    gate = threading.Event()
    narrow, wide = Recorder(), Recorder(gate)

    async def test(engine: Engine, watch: Watch) -> None:
        first = asyncio.create_task(engine.classify(picture(1)))
        await asyncio.sleep(0.05)
        await engine.classify(picture(2))
        gate.set()
        await first
        assert (narrow.batches, wide.batches) == ([1], [1])

    run(test, narrow, wide=wide, workers=2)


def test_a_large_request_is_shared_among_the_workers() -> None:
    model = Recorder()

    async def test(engine: Engine, watch: Watch) -> None:
        found = await engine.classify(np.concatenate([picture(value) for value in range(10)]))
        assert found[:, 0].tolist() == list(range(10))
        assert max(model.batches) <= 5
        assert sum(model.batches) == 10

    run(test, model, workers=2, max_batch=8)


def test_a_lone_request_reaches_the_model_without_a_copy() -> None:
    model = Recorder()
    pixels = picture(3)

    async def test(engine: Engine, watch: Watch) -> None:
        await engine.classify(pixels)
        assert model.addresses == [pixels.__array_interface__["data"][0]]

    run(test, model)


def test_it_waits_for_pictures_that_are_being_decoded_but_not_longer_than_told() -> None:
    model = Recorder()

    def slowly(value: int, seconds: float) -> Callable[[], Pixels]:
        def prepare() -> Pixels:
            time.sleep(seconds)
            return picture(value)

        return prepare

    async def test(engine: Engine, watch: Watch) -> None:
        await engine.prepare_and_classify([slowly(1, 0.0), slowly(2, 0.1)])
        assert model.batches == [2]
        await engine.prepare_and_classify([slowly(1, 0.0), slowly(2, 0.8)])
        assert model.batches == [2, 1, 1]

    run(test, model, max_wait_s=0.4)


def test_a_slow_decode_does_not_hold_up_the_others() -> None:
    release = threading.Event()

    def blocked() -> Pixels:
        release.wait(10)
        return picture(1)

    async def test(engine: Engine, watch: Watch) -> None:
        slow = asyncio.create_task(engine.prepare_and_classify([blocked]))
        await asyncio.sleep(0.02)
        for value in range(5):
            found = await engine.prepare_and_classify([lambda value=value: picture(value)])
            assert found[0, 0] == value
        assert not slow.done()
        release.set()
        await slow

    run(test, Recorder())


def test_the_error_of_one_picture_stays_with_its_request() -> None:
    def broken() -> Pixels:
        raise RequestError("the picture is broken")

    async def test(engine: Engine, watch: Watch) -> None:
        bad, good = await asyncio.gather(
            engine.prepare_and_classify([lambda: picture(1), broken]),
            engine.prepare_and_classify([lambda: picture(2)]),
            return_exceptions=True,
        )
        assert isinstance(bad, RequestError)
        assert not isinstance(good, BaseException)
        assert good[0, 0] == 2

    run(test, Recorder())


def test_a_batch_that_fails_is_run_again_one_by_one() -> None:
    gate = threading.Event()

    async def test(engine: Engine, watch: Watch) -> None:
        first = asyncio.create_task(engine.classify(picture(0)))
        await asyncio.sleep(0.05)
        tasks = [asyncio.create_task(engine.classify(picture(value))) for value in (1, 255, 2)]
        await asyncio.sleep(0.05)
        gate.set()
        await first
        one, white, two = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(white, EngineError)
        assert not isinstance(one, BaseException)
        assert not isinstance(two, BaseException)
        assert (one[0, 0], two[0, 0]) == (1, 2)

    run(test, Recorder(gate))


def test_a_request_that_was_given_up_leaves_the_queue() -> None:
    gate = threading.Event()
    model = Recorder(gate)

    async def test(engine: Engine, watch: Watch) -> None:
        first = asyncio.create_task(engine.classify(picture(0)))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(engine.classify(picture(1)))
        kept = asyncio.create_task(engine.classify(picture(2)))
        await asyncio.sleep(0.02)
        given_up.cancel()
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(first, kept)
        assert model.batches == [1, 1]
        with pytest.raises(asyncio.CancelledError):
            await given_up

    run(test, model)


def test_many_threads_and_cancellations_lose_no_answer() -> None:
    async def test(engine: Engine, watch: Watch) -> None:
        async def one(value: int) -> None:
            found = await engine.prepare_and_classify([lambda: picture(value % 250)])
            assert found[0, 0] == value % 250

        tasks = [asyncio.create_task(one(value)) for value in range(400)]
        await asyncio.sleep(0.005)
        for task in tasks[::3]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [found for at, found in enumerate(done) if at % 3]
        assert all(found is None for found in kept)

    run(test, Recorder(), workers=3, decode_threads=3, max_wait_s=0.001)


def test_a_picture_that_was_refused_is_not_kept_alive_by_its_error() -> None:
    class Opened:
        """Stands for a picture that was opened before it was found to be too large."""

    kept: list[weakref.ref[Opened]] = []

    def refused() -> Pixels:
        opened = Opened()
        kept.append(weakref.ref(opened))
        try:
            raise PictureError("too_large", "too many pixels")
        except PictureError as error:
            raise RequestError("send a smaller picture", status=413) from error

    async def test(engine: Engine, watch: Watch) -> None:
        gc.disable()
        try:
            with pytest.raises(RequestError, match="smaller"):
                await engine.prepare_and_classify([refused])
            assert kept[0]() is None
        finally:
            gc.enable()

    run(test, Recorder())

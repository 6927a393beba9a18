"""Micro-batching: requests of many connections, few threads that decode and run the model.

Decoded pictures go straight from a decoding thread to the queue of the model, and the event loop is
woken once per run of the model, not once per picture. Nothing waits for company unless told to:
a batch is what has queued while the threads were busy, shared out evenly among the idle ones.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from linnet.errors import LinnetError

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Prepare = Callable[[], Pixels]


class Model(Protocol):
    """What answers prepared pictures, uint8 [N, S, S, 3], with probabilities [N, C]."""

    def predict(self, pictures: Pixels) -> Probabilities:
        """Return the probabilities; called from several threads at once."""


class Watch(Protocol):
    """What is told how long things took, on the event loop's thread; all times in seconds."""

    def decoded(self, seconds: float) -> None:
        """Note the preparation of one job."""

    def ran(self, pictures: int, seconds: float, queued: list[float]) -> None:
        """Note one run of the model, and how long each of its jobs had been in the queue."""


@dataclass(slots=True, eq=False)
class Job:
    """Pictures that go through the model together; `future` carries their probabilities."""

    future: asyncio.Future[Probabilities]
    count: int
    pictures: Pixels | None = None
    prepare: Prepare | None = None
    decode_s: float = 0.0
    ready_s: float = 0.0

    def prepared(self) -> Pixels:
        """Return the pictures of a job that has left the decoders."""
        if self.pictures is None:
            raise AssertionError("a job was queued for the model before it was prepared")
        return self.pictures


class Decoders:
    """Threads that decode and resize, shared by all models: a slow picture holds up one of them."""

    def __init__(self, threads: int) -> None:
        self._jobs: SimpleQueue[tuple[Job, Engine] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"decode-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, engine: "Engine") -> None:
        """Prepare a job and hand it to the engine's queue, or its error to its future."""
        self._jobs.put((job, engine))

    def close(self) -> None:
        """Finish what was submitted and stop."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, engine = item
            if job.future.done():
                engine.left(job)
                continue
            started = time.perf_counter()
            try:
                job.pictures = job.prepare() if job.prepare else job.pictures
            except Exception as error:
                engine.left(job)
                engine.fail([job], without_frames(error))
            else:
                job.prepare = None
                job.decode_s = time.perf_counter() - started
                engine.put(job)
            # Hold on to no picture while waiting for the next one.
            del item, job, engine


@dataclass(slots=True)
class _Plan:
    jobs: list[Job]
    alone: bool
    queued: list[float] = field(default_factory=list)


class Engine:
    """One model's queue and the threads that run it.

    Args:
        narrow: the model on one thread per call; each worker calls it.
        wide: the model on all threads, for a picture that is alone; null: use `narrow`.
        shape: of one prepared picture, [S, S, 3].
        workers: threads that run the model.
    """

    def __init__(
        self,
        narrow: Model,
        wide: Model | None,
        *,
        shape: tuple[int, int, int],
        workers: int,
        max_batch: int,
        max_wait_s: float,
        decoders: Decoders,
        watch: Watch,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._narrow = narrow
        self._wide = wide or narrow
        self._shape = shape
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._decoders = decoders
        self._watch = watch
        self._loop = loop
        self._ready = threading.Condition(threading.Lock())
        self._queue: deque[Job] = deque()
        self._coming = 0
        self._idle = 0
        self._running = 0
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"infer-{n}", daemon=True)
            for n in range(workers)
        ]
        for thread in self._workers:
            thread.start()

    async def classify(self, pictures: Pixels) -> Probabilities:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, S, S, 3]."""
        count = len(pictures)
        share = min(self._max_batch, math.ceil(count / len(self._workers)))
        jobs = [
            Job(self._loop.create_future(), len(piece), pictures=piece)
            for piece in (pictures[at : at + share] for at in range(0, count, share))
        ]
        for job in jobs:
            self.put(job, coming=False)
        return await self._all(jobs)

    async def prepare_and_classify(self, prepares: list[Prepare]) -> Probabilities:
        """Return probabilities [N, C] of N pictures that are prepared first, [1, S, S, 3] each.

        Raises:
            Exception: the first one that a preparation raises; the others are given up.
        """
        jobs = [Job(self._loop.create_future(), 1, prepare=prepare) for prepare in prepares]
        with self._ready:
            self._coming += len(jobs)
        for job in jobs:
            self._decoders.submit(job, self)
        return await self._all(jobs)

    def put(self, job: Job, *, coming: bool = True) -> None:
        """Queue a prepared job for the model; from any thread."""
        with self._ready:
            job.ready_s = time.perf_counter()
            if coming:
                self._coming -= 1
            self._queue.append(job)
            self._ready.notify()

    def left(self, job: Job) -> None:
        """Take note that a job will not come out of the decoders."""
        with self._ready:
            self._coming -= 1
            self._ready.notify()

    def fail(self, jobs: list[Job], error: BaseException) -> None:
        """Hand an error to the futures of jobs; from any thread."""
        self._loop.call_soon_threadsafe(_set_errors, jobs, error)

    def close(self) -> None:
        """Stop the workers once the queue is empty."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._workers:
            thread.join()

    async def _all(self, jobs: list[Job]) -> Probabilities:
        try:
            if len(jobs) == 1:
                return await jobs[0].future
            return np.concatenate(await asyncio.gather(*(job.future for job in jobs)))
        finally:
            for job in jobs:
                # Cancelled jobs are passed over by whichever thread finds them next.
                job.future.cancel()

    def _work(self) -> None:
        buffer = np.empty((self._max_batch, *self._shape), np.uint8)
        while (plan := self._next()) is not None:
            try:
                self._run(plan, buffer)
            finally:
                with self._ready:
                    self._running -= 1
            del plan

    def _next(self) -> _Plan | None:
        """Wait for work and return a share of it; None once closed and empty."""
        with self._ready:
            while True:
                if self._queue and self._worth_starting():
                    plan = self._take()
                    if plan.jobs:
                        self._running += 1
                        return plan
                elif self._closed and not self._queue:
                    return None
                elif not self._queue:
                    self._idle += 1
                    self._ready.wait()
                    self._idle -= 1

    def _worth_starting(self) -> bool:
        """Wait for more while pictures are being decoded, at most the set time."""
        if not self._max_wait_s or not self._coming:
            return True
        until = self._queue[0].ready_s + self._max_wait_s
        self._ready.wait_for(
            lambda: not self._coming or not self._queue or len(self._queue) >= self._max_batch,
            timeout=max(0.0, until - time.perf_counter()),
        )
        return bool(self._queue)

    def _take(self) -> _Plan:
        """Take this worker's share of the queue, at most a batch, without what was given up."""
        waiting = sum(job.count for job in self._queue)
        share = min(self._max_batch, math.ceil(waiting / (self._idle + 1)))
        jobs: list[Job] = []
        count = 0
        while self._queue and (not jobs or count + self._queue[0].count <= share):
            job = self._queue.popleft()
            if not job.future.done():
                jobs.append(job)
                count += job.count
        if self._queue and self._idle:
            self._ready.notify()
        return _Plan(jobs, alone=self._alone(count))

    def _alone(self, count: int) -> bool:
        """Return whether a run may have all CPUs: nothing else is there."""
        return count == 1 and not self._running and not self._queue and not self._coming

    def _run(self, plan: _Plan, buffer: Pixels) -> None:
        started = time.perf_counter()
        try:
            model = self._wide if plan.alone else self._narrow
            probabilities = model.predict(_together(plan.jobs, buffer))
        except Exception as error:
            if len(plan.jobs) == 1:
                self.fail(plan.jobs, error)
                return
            for job in plan.jobs:
                self._run(_Plan([job], alone=False), buffer)
            return
        took = time.perf_counter() - started
        plan.queued = [started - job.ready_s for job in plan.jobs]
        self._loop.call_soon_threadsafe(self._deliver, plan, probabilities, took)

    def _deliver(self, plan: _Plan, probabilities: Probabilities, seconds: float) -> None:
        row = 0
        for job in plan.jobs:
            if not job.future.done():
                job.future.set_result(probabilities[row : row + job.count])
            row += job.count
            if job.decode_s:
                self._watch.decoded(job.decode_s)
        self._watch.ran(len(probabilities), seconds, plan.queued)


def _together(jobs: list[Job], buffer: Pixels) -> Pixels:
    """Return the jobs' pictures as one array: a lone job's own, else copied into the buffer."""
    if len(jobs) == 1:
        return jobs[0].prepared()
    row = 0
    for job in jobs:
        buffer[row : row + job.count] = job.prepared()
        row += job.count
    return buffer[:row]


def without_frames(error: Exception) -> Exception:
    """Return an error that keeps no picture alive, if it is one that requests may cause."""
    if isinstance(error, LinnetError | MemoryError):
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
    return error


def _set_errors(jobs: list[Job], error: BaseException) -> None:
    for job in jobs:
        if not job.future.done():
            known = isinstance(error, LinnetError | MemoryError)
            job.future.set_exception(error if known else EngineError(error))


class EngineError(Exception):
    """Something that should not happen did, while a picture was prepared or answered."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.__cause__ = cause

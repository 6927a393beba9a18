"""Work on many pictures on all cores, with flat memory and no process left behind."""

import ctypes
import gc
import multiprocessing
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TypeVar

from linnet.errors import SourceError

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_AHEAD_PER_WORKER = 3
_PR_SET_PDEATHSIG = 1


class Workers:
    """Processes or threads that do tasks. Made by `workers` or `threads`."""

    def __init__(self, pool: Executor, count: int) -> None:
        self._pool = pool
        self._ahead = count * _TASKS_AHEAD_PER_WORKER

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield each task's result in the order of the tasks, taking few tasks ahead.

        Raises:
            SourceError: a process was killed from outside.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                with _quiet_fork():
                    waiting.append(self._pool.submit(function, task))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise SourceError(
                "a worker process was killed, most likely for want of memory: "
                "set ingest.workers lower, or ingest.max_pixels if some pictures are huge"
            ) from error


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Yield `count` processes; they end with the block, on Ctrl-C, or when this process dies."""
    context = multiprocessing.get_context(_start_method())
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
    try:
        yield Workers(pool, count)
    except BaseException:
        # What they are doing is of no use any more, and may take long.
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def threads(count: int, name: str) -> Iterator[Workers]:
    """Yield `count` threads, for what frees the GIL; the block waits for what they are doing."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield Workers(pool, count)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_method() -> str:
    """Return how processes start.

    Forking starts at once and does not import the main program again, but is only safe while no
    other thread of ours may hold a lock.
    """
    if threading.active_count() == 1:
        return "fork"
    multiprocessing.set_forkserver_preload([__name__])
    return "forkserver"


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Python 3.12 warns of any native thread, such as those of a BLAS, which handles forks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        yield


def _start() -> None:
    # Ctrl-C reaches every process of the terminal: the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # And nobody is left behind when the parent is killed (Linux's prctl).
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Garbage collection would otherwise copy what was inherited.
    gc.freeze()
    sys.meta_path.insert(0, _WithoutPandas())


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas, close to a second, only to ask whether a list belongs to it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("workers do without pandas", name=name)

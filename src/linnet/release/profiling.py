"""What a graph costs here: its latency by batch, and its time beside another's."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnet.inference.session import Session

LATENCY_BATCHES = (1, 8, 32)
COMPARED_BATCHES = (1, 8)

# For each batch size, so that neither holds up a run.
_LATENCY_S = 0.3
_COMPARED_S = 0.6
_FEWEST_ROUNDS = 3
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Latency:
    """How long one call takes by the clock, milliseconds."""

    median_ms: float
    fastest_ms: float
    calls: int


@dataclass(frozen=True)
class Profile:
    """The graph that serves: its size, its work per picture, its latency on this machine.

    `flops` counts a multiply-add of convolutions and matrix products as two; `latency` is by batch
    size, without those that would take too long to measure.
    """

    parameters: int
    flops: int
    size_bytes: int
    threads: int
    latency: dict[str, Latency]


def latency(session: Session, shape: tuple[int, int, int]) -> dict[str, Latency]:
    """Return the latency by batch size, for pictures [H, W, 3]."""
    found: dict[str, Latency] = {}
    a_picture = 0.0
    for size in LATENCY_BATCHES:
        if a_picture * size > _LATENCY_S:
            break
        pictures = _noise((size, *shape))
        # The first call makes room in memory.
        session.predict(pictures)
        seconds = [_seconds(session, pictures, time.perf_counter)]
        while sum(seconds) < _LATENCY_S and len(seconds) < _MOST_ROUNDS:
            seconds.append(_seconds(session, pictures, time.perf_counter))
        a_picture = min(seconds) / size
        found[str(size)] = Latency(
            median_ms=round(1000 * statistics.median(seconds), 3),
            fastest_ms=round(1000 * min(seconds), 3),
            calls=len(seconds),
        )
    return found


def picture_ms(
    sessions: dict[str, Session], shape: tuple[int, int, int], clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Return the least time of a picture in milliseconds, by session and batch size.

    The sessions take turns. By `time.thread_time` it is the calling thread's CPU time that counts,
    so that it hardly matters who else computes here; the sessions must have one thread each.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in sessions}
    for size in COMPARED_BATCHES:
        pictures = _noise((size, *shape))
        for session in sessions.values():
            session.predict(pictures)
        least = dict.fromkeys(sessions, float("inf"))
        until = clock() + _COMPARED_S
        for done in range(_MOST_ROUNDS):
            if done >= _FEWEST_ROUNDS and clock() > until:
                break
            for name, session in sessions.items():
                least[name] = min(least[name], _seconds(session, pictures, clock))
        for name, seconds in least.items():
            found[name][str(size)] = round(1000 * seconds / size, 4)
    return found


def _seconds(session: Session, pictures: NDArray[np.uint8], clock: Callable[[], float]) -> float:
    before = clock()
    session.predict(pictures)
    return clock() - before


def _noise(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

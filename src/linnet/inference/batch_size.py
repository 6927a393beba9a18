"""How many pictures one run of a model should have: measured where it serves."""

import time
from dataclasses import dataclass

import numpy as np

from linnet.inference.engine import Model

SIZES = (2, 4, 8)
# Where there was no time to try all of them.
_UNKNOWN = 4
# A larger batch is worth this much more CPU a picture: it saves work around the model.
_WORTH = 1.05
_CPU_S = 0.4
_WALL_S = 0.8


@dataclass(frozen=True)
class BatchSize:
    """The choice, and the CPU of a picture in milliseconds by size, as far as it was measured."""

    pictures: int
    cpu_ms: dict[int, float]


def measure(model: Model, shape: tuple[int, int, int]) -> BatchSize:
    """Return the largest batch that costs hardly more CPU a picture than the cheapest.

    `model` computes on the thread that calls it; that thread's CPU time is what counts, so that
    it doesn't matter who else computes here. It takes some 0.4 s of CPU at most.
    """
    pictures = np.zeros((max(SIZES), *shape), np.uint8)
    began, until = time.thread_time(), time.perf_counter() + _WALL_S
    # The first run makes room in memory, and tells whether there is time for the others.
    model.predict(pictures[: SIZES[0]])
    a_picture = (time.thread_time() - began) / SIZES[0]
    if a_picture * (max(SIZES) + sum(SIZES)) > _CPU_S:
        return BatchSize(_UNKNOWN, {})
    model.predict(pictures)
    cheapest = dict.fromkeys(SIZES, float("inf"))
    while True:
        round_began = time.thread_time()
        for size in SIZES:
            before = time.thread_time()
            model.predict(pictures[:size])
            cheapest[size] = min(cheapest[size], (time.thread_time() - before) / size)
        now = time.thread_time()
        if now + (now - round_began) - began > _CPU_S or time.perf_counter() > until:
            break
    return choose({size: round(1000 * cost, 3) for size, cost in cheapest.items()})


def choose(cpu_ms: dict[int, float]) -> BatchSize:
    """Return the largest of some sizes that costs hardly more CPU a picture than the cheapest."""
    enough = _WORTH * min(cpu_ms.values())
    return BatchSize(max(size for size, cost in cpu_ms.items() if cost <= enough), cpu_ms)

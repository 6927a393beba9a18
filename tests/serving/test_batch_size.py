"""How many pictures a run should have, measured."""

import time

import numpy as np
import pytest

from linnet.inference.batch_size import SIZES, choose, measure
from linnet.inference.engine import Pixels, Probabilities

SHAPE = (2, 2, 3)


class Working:
    """A model that computes for so many seconds a picture, by the size of the batch."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self._seconds = seconds

    def predict(self, pictures: Pixels) -> Probabilities:
        until = time.thread_time() + len(pictures) * self._seconds[len(pictures)]
        while time.thread_time() < until:
            pass
        return np.ones((len(pictures), 1), np.float32)


@pytest.mark.parametrize(
    ("cpu_ms", "expected"),
    [
        ({2: 4.0, 4: 4.0, 8: 4.7}, 4),
        ({2: 16.0, 4: 15.7, 8: 15.2}, 8),
        ({2: 4.0, 4: 5.0, 8: 6.0}, 2),
        ({2: 4.0, 4: 4.1, 8: 4.1}, 8),
    ],
    ids=["costly from 8 on", "ever cheaper", "small is best", "all alike"],
)
def test_the_largest_batch_that_costs_hardly_more_is_chosen(
    cpu_ms: dict[int, float], expected: int
) -> None:
    assert choose(cpu_ms).pictures == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({2: 0.001, 4: 0.001, 8: 0.002}, 4), ({2: 0.002, 4: 0.0015, 8: 0.001}, 8)],
    ids=["until it costs more", "up to the largest"],
)
def test_what_costs_least_is_measured(seconds: dict[int, float], expected: int) -> None:
    found = measure(Working(seconds), SHAPE)
    assert found.pictures == expected
    assert set(found.cpu_ms) == set(SIZES)


@pytest.mark.parametrize("seconds", [0.0005, 0.01, 0.05])
def test_measuring_takes_half_a_second_of_cpu_at_most(seconds: float) -> None:
    before = time.thread_time()
    found = measure(Working(dict.fromkeys(SIZES, seconds)), SHAPE)
    assert time.thread_time() - before < 0.5
    assert found.pictures in SIZES

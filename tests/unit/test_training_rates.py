import logging

import numpy as np
import pytest

from linnet.training.rates import RangeTest

RATES = np.geomspace(1e-6, 10, 100)


def falling(start: float, floor: float) -> list[float]:
    """Return losses that fall from `start` to `floor` around a rate of 0.01, then grow."""
    place = np.log10(RATES)
    fall = start - (start - floor) / (1 + np.exp(-4 * (place + 2)))
    return [float(loss) for loss in fall + np.where(RATES > 1, RATES, 0)]


def test_the_rate_is_where_the_loss_falls_fastest() -> None:
    assert 0.005 < RangeTest.of(RATES, falling(2.0, 0.5)).chosen < 0.1


def test_an_unlucky_first_batch_decides_nothing() -> None:
    losses = falling(0.7, 0.5)
    usual = RangeTest.of(RATES, losses).chosen
    assert RangeTest.of(RATES, [0.8, *losses[1:]]).chosen == pytest.approx(usual, rel=0.5)


def test_where_the_loss_hardly_falls_a_tenth_of_the_best_rate_is_taken_and_said_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = [1.0 - 0.001 * step for step in range(15)] + [1.0 + 0.1 * n for n in range(85)]
    with caplog.at_level(logging.WARNING):
        found = RangeTest.of(RATES, losses)
    least = int(np.argmin(found.smoothed))
    assert found.chosen == pytest.approx(RATES[least] / 10, rel=0.05)
    assert "set lr to a number" in caplog.text

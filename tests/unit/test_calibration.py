"""The temperature and the reliability diagram."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from linnet.evaluation.calibration import TEMPERATURES, fit_temperature, reliability


def overconfident(
    factor: float, pictures: int = 2000
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits that are `factor` times as large as the labels, drawn from them, warrant."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(pictures, 4)) * 2
    noise = rng.gumbel(size=logits.shape)
    return logits * factor, (logits + noise).argmax(axis=1)


@pytest.mark.parametrize("factor", [0.7, 1.5, 4.0])
def test_the_fitted_temperature_minimises_the_log_loss(factor: float) -> None:
    logits, labels = overconfident(factor)

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[range(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=TEMPERATURES, method="bounded")
    found = fit_temperature(logits, labels)
    assert found.value == pytest.approx(best.x, rel=1e-3)
    assert found.value == pytest.approx(factor, rel=0.1)
    assert found.log_loss_after == pytest.approx(loss(found.value))
    assert found.log_loss_before == pytest.approx(loss(1.0))


def test_the_temperature_stays_one_when_another_does_not_help() -> None:
    found = fit_temperature(*overconfident(1.0))
    assert found.value == 1.0
    assert found.log_loss_after == found.log_loss_before


def test_a_handful_of_pictures_cannot_move_the_temperature() -> None:
    logits, labels = overconfident(1.2, pictures=8)
    assert fit_temperature(logits, labels).value == 1.0


def test_the_temperature_of_a_faultless_validation_split_is_bounded() -> None:
    logits = np.eye(3)[np.arange(300) % 3] * 2 + np.random.default_rng(0).normal(size=(300, 3)) / 9
    assert fit_temperature(logits, np.arange(300) % 3).value == pytest.approx(TEMPERATURES[0])


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [1e4, 0.0], [0.0, 1e4]])
    assert np.isfinite(fit_temperature(logits, np.array([0, 1, 1, 1])).log_loss_after)


def test_reliability_counts_every_picture_once_and_leaves_empty_bins_null() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.55, 0.45], [0.95, 0.05]])
    bins = reliability(np.array([0, 0, 1, 1]), probabilities, bins=10)
    assert [each.pictures for each in bins] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 2]
    assert bins[9].accuracy == 0.5
    assert bins[9].confidence == pytest.approx(0.975)
    assert bins[0].accuracy is None
    assert (bins[0].low, bins[9].high) == (0.0, 1.0)

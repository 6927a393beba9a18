"""McNemar's test and the paired interval."""

import numpy as np
import pytest
from scipy.stats import binomtest

from linnet.errors import EvaluationError
from linnet.evaluation.comparison import compare, flips, mcnemar_worse


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 1), (3, 9), (9, 3), (0, 5), (5, 0), (40, 61), (700, 800)]
)
def test_mcnemars_p_is_the_exact_binomial_tail(gained: int, lost: int) -> None:
    expected = binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue
    assert mcnemar_worse(gained, lost) == pytest.approx(expected)


def test_two_models_that_never_differ_are_not_worse() -> None:
    assert mcnemar_worse(0, 0) == 1.0


def test_many_discordant_pictures_are_still_exact_and_quick() -> None:
    assert 0 < mcnemar_worse(20_000, 20_400) < 0.05


def test_gains_and_losses_are_told_per_class_and_over_all() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    now, before = np.eye(2)[[0, 1, 1, 1, 0]], np.eye(2)[[1, 0, 1, 0, 0]]
    found = compare(labels, now, before, classes=("a", "b"), name="v1")
    assert (found.gained, found.lost, found.discordant) == (2, 1, 3)
    assert (found.accuracy, found.champion_accuracy) == (0.6, 0.4)
    assert found.difference == pytest.approx(0.2)
    assert [(row.name, row.support, row.gained, row.lost) for row in found.per_class] == [
        ("a", 2, 1, 1),
        ("b", 3, 1, 0),
    ]


def test_the_interval_of_the_difference_covers_it_and_shrinks_with_pictures() -> None:
    def width(pictures: int) -> float:
        labels = np.zeros(pictures, np.int64)
        now = np.eye(2)[(np.arange(pictures) % 10 == 0).astype(int)]
        before = np.eye(2)[(np.arange(pictures) % 4 == 0).astype(int)]
        found = compare(labels, now, before, classes=("a", "b"), name="v1")
        assert found.low <= found.difference <= found.high
        return found.high - found.low

    assert width(10_000) < width(100) / 5


def test_predictions_of_other_pictures_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="same pictures"):
        compare(np.array([0, 1]), np.eye(2), np.eye(3), classes=("a", "b"), name="v1")
    empty = np.empty((0, 2))
    with pytest.raises(EvaluationError, match="at least one"):
        compare(np.empty(0, np.int64), empty, empty, classes=("a", "b"), name="v1")


def test_flips_are_half_lost_and_half_gained_where_there_are_enough() -> None:
    labels = np.zeros(10, np.int64)
    candidate = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    champion = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 1])
    keys = [str(number) for number in range(10)]

    def shown(most: int) -> list[tuple[str, str]]:
        found = flips(labels, candidate, champion, keys=keys, classes=("a", "b"), most=most)
        return [(flip.key, flip.candidate) for flip in found]

    assert shown(2) == [("0", "b"), ("4", "a")]
    assert [answer for _, answer in shown(5)] == ["b", "b", "b", "a", "a"]
    assert len(shown(24)) == 6
    assert shown(0) == []

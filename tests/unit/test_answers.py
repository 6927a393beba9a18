"""One rule from probabilities to answers, and how a release carries it."""

import numpy as np
import pytest

from linnet.errors import ReleaseError
from linnet.inference.answers import Rule

CLASSES = ("blue", "green", "red")


def rows(*probabilities: tuple[float, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(probabilities, np.float32)


def test_without_thresholds_the_most_probable_class_is_answered_of_equals_the_first() -> None:
    answers = Rule().answer(rows((0.2, 0.5, 0.3), (0.4, 0.4, 0.2)))
    assert answers.best.tolist() == [1, 0]
    assert answers.scores.tolist() == [0.5, np.float32(0.4)]
    assert not answers.abstain.any()


def test_of_two_classes_the_second_is_answered_above_its_threshold() -> None:
    rule = Rule(thresholds=(0.7, 0.3))
    assert rule.labels(rows((0.71, 0.29), (0.69, 0.31))).tolist() == [0, 1]


def test_the_score_of_an_answer_is_its_own_probability() -> None:
    answers = Rule(thresholds=(0.7, 0.3)).answer(rows((0.6, 0.4)))
    assert (answers.best.tolist(), answers.scores.tolist()) == ([1], [np.float32(0.4)])


def test_a_score_below_the_least_is_abstained_from() -> None:
    answers = Rule(abstain_below=0.5).answer(rows((0.5, 0.3, 0.2), (0.49, 0.31, 0.2)))
    assert answers.abstain.tolist() == [False, True]


def test_a_releases_thresholds_are_put_in_the_order_of_its_classes() -> None:
    thresholds = {"red": 0.5, "blue": 0.2, "green": 0.3}
    rule = Rule.of({"classes": CLASSES, "thresholds": thresholds, "abstain_below": 0.4})
    assert rule == Rule((0.2, 0.3, 0.5), 0.4)


def test_a_release_from_before_thresholds_answers_the_most_probable_class() -> None:
    assert Rule.of({"classes": CLASSES}) == Rule()
    assert Rule.of({"classes": CLASSES, "thresholds": None}) == Rule()


@pytest.mark.parametrize(
    "thresholds", [{"blue": 0.5}, [0.2, 0.3, 0.5], {"blue": 0.0, "green": 0.5, "red": 0.5}]
)
def test_thresholds_that_are_not_one_for_each_class_are_refused(thresholds: object) -> None:
    with pytest.raises(ReleaseError, match="release the graph again"):
        Rule.of({"classes": CLASSES, "thresholds": thresholds})

"""Metrics against scikit-learn, and what is undefined."""

import json
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from linnet.errors import EvaluationError
from linnet.evaluation import metrics
from linnet.settings import EvaluateSettings, Metric

SETTINGS = EvaluateSettings(bootstrap_samples=200)


def answers(
    classes: int, pictures: int, *, seed: int = 0, ties: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, pictures)
    scores = rng.normal(size=(pictures, classes))
    scores[np.arange(pictures), labels] += 1.5
    if ties:
        scores = scores.round()
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("classes", "pictures"), [(2, 150), (5, 400)])
def test_every_metric_equals_scikit_learns(classes: int, pictures: int, ties: bool) -> None:
    labels, probabilities = answers(classes, pictures, ties=ties)
    found = metrics.Scorer(labels, probabilities, bins=15).measure()
    predicted, truth = probabilities.argmax(axis=1), np.eye(classes)[labels]
    macro = {"average": "macro", "zero_division": 0.0}
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_precision": reference.precision_score(labels, predicted, **macro),
        "macro_recall": reference.recall_score(labels, predicted, **macro),
        "macro_f1": reference.f1_score(labels, predicted, **macro),
        "roc_auc": reference.roc_auc_score(truth, probabilities, average="macro"),
        "pr_auc": reference.average_precision_score(truth, probabilities, average="macro"),
        "log_loss": -np.log(probabilities[np.arange(pictures), labels]).mean(),
    }
    assert {name: found[name][0] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("positive", [0, 1])
def test_what_training_follows_of_one_class_equals_scikit_learns(positive: int) -> None:
    labels, probabilities = answers(2, 150)
    found = metrics.validation_metrics(labels, probabilities, positive=positive)
    truth = labels, probabilities.argmax(axis=1)
    assert found["positive_precision"] == reference.precision_score(*truth, pos_label=positive)
    assert found["positive_recall"] == reference.recall_score(*truth, pos_label=positive)
    assert found["positive_f1"] == pytest.approx(reference.f1_score(*truth, pos_label=positive))
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, probabilities[:, 1]))


def test_what_training_follows_leaves_out_an_area_that_one_class_alone_does_not_have() -> None:
    _, probabilities = answers(2, 20)
    found = metrics.validation_metrics(np.zeros(20, np.int64), probabilities, positive=1)
    assert "roc_auc" not in found
    assert found["positive_f1"] == 0.0


def test_the_weights_of_a_resample_count_pictures_that_often() -> None:
    labels, probabilities = answers(3, 60)
    chosen = np.random.default_rng(1).integers(0, 60, 60)
    weights = np.bincount(chosen, minlength=60)[None].astype(np.float32)
    scorer = metrics.Scorer(labels, probabilities, bins=10)
    weighted = scorer.decisions(weights) | scorer.areas(weights)
    repeated = metrics.Scorer(labels[chosen], probabilities[chosen], bins=10).measure()
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(
        {name: value[0] for name, value in repeated.items()}, abs=1e-5
    )


def test_the_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    found = metrics.Scorer(labels, probabilities, bins=10).measure()["calibration_error"][0]
    assert found == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0))


def test_the_naive_baseline_answers_with_the_training_splits_class_frequencies() -> None:
    labels, probabilities = answers(3, 300)
    prior = np.array([0.2, 0.5, 0.3])
    found = metrics.headlines(labels, probabilities, prior=prior, settings=SETTINGS)
    assert found["accuracy"].baseline == pytest.approx((labels == 1).mean())
    assert found["balanced_accuracy"].baseline == pytest.approx(1 / 3)
    assert found["roc_auc"].baseline == 0.5
    assert found["log_loss"].baseline == pytest.approx(-np.log(prior[labels]).mean(), abs=1e-6)


def test_every_metric_of_the_settings_is_measured_with_its_value_inside_its_interval() -> None:
    labels, probabilities = answers(4, 200)
    prior = np.full(4, 0.25)
    found = metrics.headlines(labels, probabilities, prior=prior, settings=SETTINGS)
    assert set(found) == set(get_args(Metric))
    for headline in found.values():
        assert headline.value is not None
        assert headline.low is not None
        assert headline.high is not None
        assert headline.low <= headline.value <= headline.high
        assert headline.low < headline.high


def test_the_interval_of_the_accuracy_is_about_the_binomials() -> None:
    labels, probabilities = answers(2, 1000)
    settings = EvaluateSettings(bootstrap_samples=2000)
    prior = np.full(2, 0.5)
    found = metrics.headlines(labels, probabilities, prior=prior, settings=settings)["accuracy"]
    assert found.value is not None
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 1000)
    assert found.low == pytest.approx(found.value - half, abs=0.005)
    assert found.high == pytest.approx(found.value + half, abs=0.005)


def test_the_same_seed_gives_the_same_intervals() -> None:
    labels, probabilities = answers(3, 100)
    prior = np.full(3, 1 / 3)
    once, again = (
        metrics.headlines(labels, probabilities, prior=prior, settings=SETTINGS) for _ in range(2)
    )
    assert once == again


def test_areas_are_null_with_a_reason_when_the_test_split_has_one_class() -> None:
    _, probabilities = answers(3, 50)
    labels = np.ones(50, np.int64)
    found = metrics.headlines(labels, probabilities, prior=np.full(3, 1 / 3), settings=SETTINGS)
    assert found["roc_auc"].value is None
    assert found["pr_auc"].value is None
    assert "one class" in str(found["roc_auc"].reason)
    assert found["accuracy"].value is not None
    json.dumps({name: vars(value) for name, value in found.items()}, allow_nan=False)


def test_a_class_that_the_test_split_lacks_is_left_out_of_the_macro_averages() -> None:
    labels, probabilities = answers(2, 100)
    wider = np.hstack([probabilities * 0.9, np.full((100, 1), 0.1, np.float32)])
    narrow = metrics.Scorer(labels, probabilities, bins=10).measure()
    wide = metrics.Scorer(labels, wider, bins=10).measure()
    for name in ("balanced_accuracy", "macro_precision", "macro_f1", "roc_auc", "pr_auc"):
        assert wide[name][0] == pytest.approx(narrow[name][0])  # type: ignore[index]
    row = metrics.per_class(labels, wider, ("a", "b", "absent"))[2]
    assert (row.support, row.recall, row.roc_auc, row.pr_auc) == (0, None, None, None)


def test_a_class_that_is_never_predicted_has_no_precision_and_no_f1_but_zero_recall() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    row = metrics.per_class(np.array([0, 0, 1]), probabilities, ("a", "b"))[1]
    assert (row.predicted, row.precision, row.recall, row.f1) == (0, None, 0.0, 0.0)


def test_the_confusion_matrix_has_a_row_per_true_class() -> None:
    probabilities = np.eye(3)[[0, 1, 1, 2]]
    table = metrics.confusion(np.array([0, 0, 1, 2]), probabilities)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_a_roc_curve_is_thinned_to_finite_points_from_corner_to_corner() -> None:
    labels, probabilities = answers(2, 5000)
    curve = metrics.roc_curve(probabilities[:, 1], labels == 1, "b", points=200)
    assert len(curve.fpr) == len(curve.tpr) == len(curve.threshold) <= 200
    assert (curve.fpr[0], curve.tpr[0]) == (0, 0)
    assert (curve.fpr[-1], curve.tpr[-1]) == (1, 1)
    assert np.isfinite(curve.threshold).all()
    assert (np.diff(curve.threshold) <= 0).all()
    area = np.trapezoid(curve.tpr, curve.fpr)
    assert area == pytest.approx(
        reference.roc_auc_score(labels == 1, probabilities[:, 1]), abs=2e-3
    )


def test_a_roc_curve_without_negatives_is_empty() -> None:
    curve = metrics.roc_curve(np.array([0.1, 0.2]), np.array([True, True]), "b", points=10)
    assert (curve.fpr, curve.tpr, curve.threshold) == ((), (), ())


def test_no_pictures_and_broken_probabilities_are_errors_that_say_what_to_do() -> None:
    with pytest.raises(EvaluationError, match="test split"):
        metrics.headlines(
            np.empty(0, np.int64), np.empty((0, 2)), prior=np.full(2, 0.5), settings=SETTINGS
        )
    broken = np.array([[np.nan, 0.5], [0.5, 0.5]])
    with pytest.raises(EvaluationError, match="1 of 2 pictures"):
        metrics.headlines(np.array([0, 1]), broken, prior=np.full(2, 0.5), settings=SETTINGS)

"""Thresholds fitted on validation: exact on pictures few enough to try every threshold."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from linnet.errors import EvaluationError, SettingsError
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.metrics import confusion
from linnet.evaluation.report import Report
from linnet.evaluation.thresholds import Aim, curves, fit, sweep
from linnet.inference.answers import Rule
from linnet.settings import DecisionSettings, EvaluateSettings
from tests.graphs import relabel
from tests.release_parts import write_dataset, write_graph

TWO = ("cat", "dog")
THREE = ("blue", "green", "red")


def made(classes: int, count: int, seed: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels of falling frequency and noisy probabilities that favour the frequent."""
    random = np.random.default_rng(seed)
    prior = np.array([0.7, 0.2, 0.1][:classes]) / sum([0.7, 0.2, 0.1][:classes])
    labels = random.choice(classes, size=count, p=prior)
    scores = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels] + np.log(prior)
    exponents = np.exp(scores)
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    return labels.astype(np.int64), probabilities.astype(np.float32)


def f1_of_dog(labels: NDArray[np.int64], probabilities: NDArray[np.float32], at: float) -> float:
    answered = probabilities[:, 1] > at
    hits = (answered & (labels == 1)).sum()
    return float(2 * hits / (answered.sum() + (labels == 1).sum()))


def test_no_other_threshold_has_a_better_f1_of_the_positive_class() -> None:
    labels, probabilities = made(2, 300)
    found = fit(labels, probabilities, TWO, DecisionSettings(aim="f1"))
    best = max(f1_of_dog(labels, probabilities, at) for at in np.linspace(0, 1, 5001))
    assert found.rule.thresholds is not None
    assert found.after == pytest.approx(best)
    assert found.after == pytest.approx(f1_of_dog(labels, probabilities, found.rule.thresholds[1]))
    assert found.before == pytest.approx(f1_of_dog(labels, probabilities, 0.5))
    assert sum(found.rule.thresholds) == pytest.approx(1)


def test_recall_at_a_precision_reaches_the_precision_with_the_most_recall() -> None:
    labels, probabilities = made(2, 300)
    settings = DecisionSettings(aim="recall_at_precision", precision=0.8)
    found = fit(labels, probabilities, TWO, settings)
    table = confusion(labels, probabilities, predicted=found.rule.labels(probabilities))
    assert table[1, 1] / table[:, 1].sum() >= 0.8
    assert found.after == pytest.approx(table[1, 1] / table[1].sum())


def test_the_positive_class_may_be_the_first() -> None:
    labels, probabilities = made(2, 300)
    swapped = fit(
        1 - labels,
        probabilities[:, ::-1],
        ("dog", "cat"),
        DecisionSettings(aim="f1", positive="dog"),
    )
    straight = fit(labels, probabilities, TWO, DecisionSettings(aim="f1"))
    assert swapped.rule.thresholds is not None
    assert straight.rule.thresholds is not None
    assert swapped.rule.thresholds[0] == pytest.approx(straight.rule.thresholds[1])


def test_a_costly_miss_lowers_the_threshold_of_what_is_missed() -> None:
    labels, probabilities = made(2, 600)
    settings = DecisionSettings(aim="cost", cost={"dog": {"cat": 10}})
    found = fit(labels, probabilities, TWO, settings)
    assert found.rule.thresholds is not None
    assert found.rule.thresholds[1] < 0.3
    assert found.after is not None
    assert found.before is not None
    assert found.after < found.before


@pytest.mark.parametrize("aim", ["f1", "balanced_accuracy", "cost"])
def test_of_many_classes_no_single_threshold_can_be_moved_to_gain(aim: str) -> None:
    labels, probabilities = made(3, 300)
    settings = DecisionSettings.parse({"aim": aim, "cross_fit": False})
    found = fit(labels, probabilities, THREE, settings)
    assert found.rule.thresholds is not None
    assert (found.after != found.before) or aim == "cost"
    goal = Aim.of(THREE, settings)
    support = np.bincount(labels, minlength=3)
    best = -1 if aim == "cost" else 1
    for index in range(3):
        swept = sweep(labels, probabilities, np.array(found.rule.thresholds), index, cost=goal.cost)
        assert goal.value(swept, support).max() <= best * (found.after or 0) + 1e-9


def test_thresholds_that_only_fit_chance_are_dropped() -> None:
    labels = np.arange(120) % 3
    scores = np.random.default_rng(0).normal(size=(120, 3)) + 2.0 * np.eye(3)[labels]
    probabilities = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).astype(np.float32)
    found = fit(labels, probabilities, THREE, DecisionSettings(aim="f1"))
    assert found.before is not None
    assert found.after is not None
    assert found.held_out is not None
    assert found.held_out <= found.before < found.after
    assert found.dropped
    assert found.rule.thresholds is None
    kept = fit(labels, probabilities, THREE, DecisionSettings(aim="f1", cross_fit=False))
    assert kept.rule.thresholds is not None
    assert kept.held_out is None


def test_thresholds_that_gain_on_pictures_held_out_are_kept() -> None:
    labels, probabilities = made(3, 600)
    found = fit(labels, probabilities, THREE, DecisionSettings(aim="balanced_accuracy"))
    assert found.before is not None
    assert found.after is not None
    assert found.held_out is not None
    assert found.before + 0.05 < found.held_out
    assert not found.dropped
    assert found.rule.thresholds is not None


def test_a_page_of_dropped_thresholds_says_so_and_still_shows_their_curves(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    graph = write_graph(tmp_path / "graph", temperature=2.0)
    relabel(dataset, "val", {0: 1, 5: 2})
    decision = DecisionSettings(aim="f1", fewest_pictures=1)
    settings = EvaluateSettings(bootstrap_samples=100, decision=decision)
    found = evaluate(graph, dataset, tmp_path / "report", settings, model="colours")
    assert found.thresholds is not None
    assert found.thresholds.dropped
    assert found.thresholds.before == found.thresholds.after
    assert len(found.thresholds.curves) == 3
    assert Report.load(tmp_path / "report") == found
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "were <b>dropped</b>" in page
    assert "by one class's threshold, validation" in page.replace("&#39;", "'")


def test_a_sweep_counts_what_the_rule_answers() -> None:
    labels, probabilities = made(3, 120)
    thresholds = np.array([0.5, 0.2, 0.3])
    swept = sweep(labels, probabilities, thresholds, 1, cost=1 - np.eye(3))
    for at, hits, answered, cost in zip(
        swept.threshold, swept.hits, swept.answered, swept.cost, strict=True
    ):
        moved = thresholds * (1 - at) / 0.8
        moved[1] = at
        predicted = Rule(tuple(moved)).labels(probabilities)
        table = confusion(labels, probabilities, predicted=predicted)
        assert table.diagonal().tolist() == hits.tolist()
        assert table.sum(axis=0).tolist() == answered.tolist()
        assert cost == (predicted != labels).sum()


def test_a_curve_has_every_threshold_from_0_to_1() -> None:
    labels, probabilities = made(2, 200)
    (curve,) = curves(labels, probabilities, TWO, None, DecisionSettings(aim="f1"))
    assert (curve.threshold[0], curve.threshold[-1]) == (0, 1)
    assert list(curve.threshold) == sorted(curve.threshold)
    assert (curve.recall[0], curve.recall[-1]) == (1, 0)
    assert curve.precision[0] == pytest.approx((labels == 1).mean(), abs=1e-6)
    assert curve.precision[-1] is None
    for at, value in zip(curve.threshold[1:-1], curve.value[1:-1], strict=True):
        assert value == pytest.approx(f1_of_dog(labels, probabilities, at), abs=0.01)


def test_coverage_is_the_share_of_validation_that_is_answered() -> None:
    labels, probabilities = made(3, 200)
    rule = fit(labels, probabilities, THREE, DecisionSettings(coverage=0.8)).rule
    assert rule.thresholds is None
    assert (~rule.answer(probabilities).abstain).mean() == pytest.approx(0.8)


def test_a_class_absent_from_validation_keeps_its_threshold() -> None:
    labels, probabilities = made(3, 300)
    present = labels != 1
    found = fit(labels[present], probabilities[present], THREE, DecisionSettings(aim="f1"))
    assert found.kept == ("green",)
    assert found.rule.thresholds is not None


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        ([0] * 40, {"aim": "f1"}, "0 of dog, at least 10 are needed"),
        ([0] * 40 + [1] * 3, {"aim": "f1"}, "3 of dog, at least 10"),
        ([], {"coverage": 0.9}, "there are none"),
        ([0, 1] * 20, {"aim": "f1", "positive": "fox"}, "names the class 'fox'"),
        ([0, 1] * 20, {"aim": "cost", "cost": {"cat": {"cow": 2}}}, "names the class 'cow'"),
        ([0, 1] * 20, {"aim": "recall_at_precision", "precision": 1}, "0.500 is the most"),
    ],
)
def test_validation_that_cant_say_is_an_error_with_the_next_move(
    labels: list[int], settings: dict[str, object], words: str
) -> None:
    truth = np.array(labels, np.int64)
    probabilities = np.full((len(truth), 2), 0.5, np.float32)
    with pytest.raises(EvaluationError, match=words):
        fit(truth, probabilities, TWO, DecisionSettings.parse(settings))


def test_one_classes_threshold_of_many_is_refused() -> None:
    labels, probabilities = made(3, 100)
    with pytest.raises(EvaluationError, match="which is for two classes, and there are 3"):
        fit(labels, probabilities, THREE, DecisionSettings(aim="recall_at_precision"))


@pytest.mark.parametrize(
    "settings",
    [{"coverage": 0.9, "abstain_below": 0.5}, {"cost": {"a": {"b": 1}}}, {"aim": "precision"}],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        DecisionSettings.parse(settings)


def test_the_report_is_of_the_answers_that_the_thresholds_give(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    graph = write_graph(tmp_path / "graph", temperature=2.0)
    # Half of the green validation pictures are called blue, as are all in the test split.
    relabel(dataset, "val", dict.fromkeys(range(4, 8), 0))
    relabel(dataset, "test", dict.fromkeys(range(4, 8), 0))
    decision = DecisionSettings(aim="f1", fewest_pictures=1, abstain_below=0.1, cross_fit=False)
    settings = EvaluateSettings(bootstrap_samples=100, decision=decision)
    found = evaluate(graph, dataset, tmp_path / "report", settings, model="colours")
    assert found.thresholds is not None
    assert found.thresholds.before["accuracy"] == pytest.approx(8 / 12)
    assert found.thresholds.after["accuracy"] == found.metrics["accuracy"].value
    assert found.thresholds.coverage == 1
    assert Report.load(tmp_path / "report") == found
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Thresholds are fitted for macro F1 on 12 validation pictures" in page


def test_a_report_from_before_thresholds_still_loads(tmp_path: Path) -> None:
    dataset, graph = write_dataset(tmp_path / "dataset"), write_graph(tmp_path / "graph")
    settings = EvaluateSettings(bootstrap_samples=100)
    evaluate(graph, dataset, tmp_path / "report", settings, model="colours")
    path = tmp_path / "report" / "report.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["thresholds"], values["settings"]["decision"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert Report.load(tmp_path / "report").rule == Rule()

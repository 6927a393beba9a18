"""Corrupted pictures, slices of the test split, and what the gate and the report make of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from linnet.errors import EvaluationError
from linnet.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import decide, rule_in_words
from linnet.evaluation.page import render
from linnet.evaluation.report import Report, load_predictions
from linnet.evaluation.slices import Slice, measure_slices, wilson, worst_slice
from linnet.settings import EvaluateSettings, GateSettings
from tests.release_parts import write_dataset, write_graph

SETTINGS = EvaluateSettings(bootstrap_samples=100, robustness_pictures=6, slices=("size", "folder"))
PICTURE = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `dataset`, `graph` and `report`."""
    root = tmp_path_factory.mktemp("parts")
    write_dataset(root / "dataset")
    write_graph(root / "graph")
    evaluate(root / "graph", root / "dataset", root / "report", SETTINGS, model="colours")
    return root


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_the_picture_the_more_the_severer(name: str) -> None:
    smooth = np.array(
        [[(4 * x + 60, 4 * y + 60, 120) for x in range(32)] for y in range(32)], np.uint8
    )
    smooth[10:20, 12:18] = (250, 20, 90)
    changed = [corrupt(smooth, name, severity, seed=1) for severity in SEVERITIES]
    assert all(each.shape == smooth.shape and each.dtype == np.uint8 for each in changed)
    distances = [np.abs(each.astype(int) - smooth).mean() for each in changed]
    assert 0 < distances[0] < distances[-1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_corrupts_the_same_way(name: str) -> None:
    before = PICTURE.copy()
    one, other = (corrupt(PICTURE, name, 3, seed=7) for _ in range(2))
    assert (one == other).all()
    assert (before == PICTURE).all()


def test_the_report_has_accuracy_by_corruption_and_severity(parts: Path) -> None:
    found = Report.load(parts / "report").robustness
    assert found is not None
    assert found.pictures == 6
    assert found.clean_accuracy == 1
    assert [row.name for row in found.corruptions] == list(CORRUPTIONS)
    assert all(len(row.accuracy) == len(SEVERITIES) for row in found.corruptions)
    every = [value for row in found.corruptions for value in row.accuracy]
    assert found.mean_accuracy == pytest.approx(np.mean(every))
    page = (parts / "report" / "report.html").read_text(encoding="utf-8")
    assert "Corrupted pictures" in page
    assert "Every slice is small" in page


def test_no_pictures_are_corrupted_unless_asked_for(parts: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(bootstrap_samples=100)
    found = evaluate(parts / "graph", parts / "dataset", tmp_path / "r", settings, model="colours")
    assert found.robustness is None
    assert found.slices == ()


def test_the_gate_asks_for_accuracy_under_corruption(parts: Path) -> None:
    report = Report.load(parts / "report")
    assert report.robustness is not None
    worse = dataclasses.replace(
        report, robustness=dataclasses.replace(report.robustness, mean_accuracy=0.59)
    )
    settings = GateSettings(minimum_corrupted_accuracy=0.6)
    decision = decide(worse, None, settings)
    assert decision.decision == "refuse"
    assert "mean accuracy under corruption is 0.5900" in decision.reasons()[0]
    unmeasured = decide(dataclasses.replace(report, robustness=None), None, settings)
    assert "set evaluate.robustness_pictures above 0" in unmeasured.reasons()[0]
    assert "under corruption is at least 0.6" in decision.rule


def test_the_gates_rule_is_a_sentence_of_what_is_asked() -> None:
    words = rule_in_words(GateSettings(minimum={"macro_f1": 0.9}, champion="ignore"))
    assert words == (
        "A model is released if macro F1 is at least 0.9, balanced accuracy beats the majority "
        "class's and the graph answers as torch does"
    )
    assert "0.01 below the champion's" in rule_in_words(GateSettings(champion_margin=0.01))


def test_a_slice_has_its_count_and_interval_and_the_worst_large_one_is_named() -> None:
    labels = np.zeros(100, np.int64)
    predicted = np.array([0] * 40 + [0] * 30 + [1] * 20 + [1] * 10, np.int64)
    values = ["good"] * 40 + ["bad"] * 50 + ["few"] * 10
    slices = measure_slices(labels, predicted, {"site": values}, confidence=0.95)
    by_name = {each.value: each for each in slices}
    assert by_name["bad"].pictures == 50
    assert by_name["bad"].accuracy == 0.6
    assert by_name["bad"].low < 0.6 < by_name["bad"].high
    assert by_name["few"].small
    assert worst_slice(slices) == by_name["bad"]


def test_a_column_with_one_value_makes_no_slices() -> None:
    labels = np.zeros(5, np.int64)
    assert measure_slices(labels, labels, {"size": ["8 px"] * 5}, confidence=0.95) == ()


def test_the_page_names_a_column_in_which_all_pictures_are_the_same(parts: Path) -> None:
    page = (parts / "report" / "report.html").read_text(encoding="utf-8")
    assert "All test pictures are of one size." in page


def test_a_slice_is_named_as_the_worst_only_if_it_is_worse_than_all(parts: Path) -> None:
    report, predictions = Report.load(parts / "report"), load_predictions(parts / "report")
    overall = report.metrics["accuracy"].value
    assert overall is not None
    for accuracy, words in (
        (overall - 0.1, f"The worst is site a: {overall - 0.1:.3f} accuracy"),
        (overall, f"No slice of 30 pictures or more is below the {overall:.3f} on all."),
    ):
        large = Slice("site", "a", 40, accuracy, 0.0, 1.0, 0.5, small=False)
        few = Slice("site", "b", 4, 0.0, 0.0, 1.0, 0.5, small=True)
        changed = dataclasses.replace(report, slices=(large, few))
        assert words in " ".join(render(changed, predictions, {}).split())


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_a_slice_by_a_column_that_is_not_there_is_an_error(parts: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(bootstrap_samples=100, slices=("hospital",))
    with pytest.raises(EvaluationError, match="names 'hospital', the test pictures have size"):
        evaluate(parts / "graph", parts / "dataset", tmp_path / "r", settings, model="colours")


def test_folders_are_slices(parts: Path) -> None:
    slices = Report.load(parts / "report").slices
    assert [(each.value, each.pictures) for each in slices] == [
        ("test/blue", 4),
        ("test/green", 4),
        ("test/red", 4),
    ]


def test_a_report_from_before_robustness_still_loads(parts: Path, tmp_path: Path) -> None:
    values = json.loads((parts / "report" / "report.json").read_text(encoding="utf-8"))
    del values["robustness"], values["slices"]
    (tmp_path / "report.json").write_text(json.dumps(values), encoding="utf-8")
    assert Report.load(tmp_path).slices == ()

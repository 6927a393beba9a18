"""The gate's pure decision as a table, and the gate on real graphs."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import EvaluationError, GraphError
from linnet.evaluation.comparison import Comparison, Incomparable
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import decide, gate
from linnet.evaluation.metrics import Headline
from linnet.evaluation.report import Report
from linnet.settings import EvaluateSettings, GateSettings, Metric
from tests.graphs import answer_with, relabel, write_champion
from tests.release_parts import write_dataset, write_graph

MEASURED = EvaluateSettings(bootstrap_samples=100, mistakes=4)
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `dataset`, `graph` and `report`; three of twelve test pictures are labelled wrong."""
    root = tmp_path_factory.mktemp("parts")
    write_dataset(root / "dataset")
    relabel(root / "dataset", "test", {0: 1, 4: 2, 8: 0})
    write_graph(root / "graph")
    evaluate(root / "graph", root / "dataset", root / "report", MEASURED, model="colours")
    return root


def report(parts: Path, *, parity: bool = True, **values: tuple[float | None, float]) -> Report:
    """Return the measured report with other values and baselines."""
    found = Report.load(parts / "report")
    changed: dict[Metric, Headline] = {
        name: Headline(value, value, value, baseline, 100, None if value else "one class only")
        for name, (value, baseline) in values.items()  # type: ignore[misc]
    }
    return dataclasses.replace(
        found,
        metrics=found.metrics | changed,
        parity=dataclasses.replace(found.parity, passed=parity),
    )


def against(gained: int, lost: int, p_worse: float) -> Comparison:
    change = (gained - lost) / 100
    return Comparison(
        champion="v3",
        pictures=100,
        accuracy=0.8 + change,
        champion_accuracy=0.8,
        difference=change,
        low=change,
        high=change,
        confidence=0.95,
        gained=gained,
        lost=lost,
        p_worse=p_worse,
        per_class=(),
        metrics={},
    )


ABOVE = {"balanced_accuracy": (0.8, 0.33)}
TABLE: list[tuple[str, dict[str, Any], Any, dict[str, Any], list[str]]] = [
    ("nothing asked, first release", ABOVE, None, {}, []),
    ("minimum reached exactly", {"accuracy": (0.9, 0.3)}, None, {"minimum": {"accuracy": 0.9}}, []),
    (
        "minimum missed",
        {"accuracy": (0.89, 0.3)},
        None,
        {"minimum": {"accuracy": 0.9}},
        ["minimum accuracy"],
    ),
    (
        "maximum passed by",
        {"log_loss": (0.5, 1.1)},
        None,
        {"maximum": {"log_loss": 0.4}},
        ["maximum log loss"],
    ),
    ("maximum kept", {"log_loss": (0.4, 1.1)}, None, {"maximum": {"log_loss": 0.4}}, []),
    (
        "undefined metric",
        {"roc_auc": (None, 0.5)},
        None,
        {"minimum": {"roc_auc": 0.1}},
        ["minimum ROC AUC"],
    ),
    (
        "no better than naive",
        {"balanced_accuracy": (0.33, 0.33)},
        None,
        {},
        ["better than the naive baseline"],
    ),
    (
        "worse than naive where lower is better",
        {"log_loss": (1.2, 1.1)},
        None,
        {"better_than_baseline": "log_loss"},
        ["better than the naive baseline"],
    ),
    (
        "better than naive where lower is better",
        {"log_loss": (1.0, 1.1)},
        None,
        {"better_than_baseline": "log_loss"},
        [],
    ),
    ("parity failed", {"parity": False}, None, {}, ["parity with torch"]),
    ("as good as the champion", ABOVE, against(5, 5, 0.62), {}, []),
    ("worse, not significantly", ABOVE, against(3, 5, 0.36), {}, []),
    ("significantly worse", ABOVE, against(1, 9, 0.01), {}, ["no worse than the champion"]),
    ("a stricter level", ABOVE, against(1, 9, 0.01), {"champion_alpha": 0.001}, []),
    ("within the margin", ABOVE, against(3, 5, 0.36), {"champion_margin": 0.02}, []),
    (
        "beyond the margin",
        ABOVE,
        against(3, 6, 0.25),
        {"champion_margin": 0.02},
        ["champion's margin"],
    ),
    (
        "champion of other classes",
        ABOVE,
        Incomparable("v3", "its classes differ"),
        {},
        ["no worse than the champion"],
    ),
    ("champion ignored", ABOVE, None, {"champion": "ignore"}, []),
    (
        "everything at once",
        {"accuracy": (0.2, 0.3), "balanced_accuracy": (0.2, 0.3), "parity": False},
        against(0, 9, 0.002),
        {"minimum": {"accuracy": 0.9}, "champion_margin": 0.01},
        [
            "minimum accuracy",
            "better than the naive baseline",
            "parity with torch",
            "no worse than the champion",
            "champion's margin",
        ],
    ),
]


@pytest.mark.parametrize(
    ("values", "comparison", "settings", "failed"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_the_gate_decides(
    parts: Path,
    values: dict[str, Any],
    comparison: Comparison | Incomparable | None,
    settings: dict[str, Any],
    failed: list[str],
) -> None:
    decision = decide(report(parts, **values), comparison, GateSettings(**settings))
    assert [check.name for check in decision.checks if not check.passed] == failed
    assert decision.decision == ("refuse" if failed else "release")
    assert len(decision.reasons()) == len(failed)
    assert all(check.words for check in decision.checks)


def test_a_check_says_what_was_seen_and_what_was_needed(parts: Path) -> None:
    settings = GateSettings(minimum={"macro_f1": 0.9})
    check = decide(report(parts, macro_f1=(0.75, 0.17)), None, settings).checks[0]
    assert (check.observed, check.needed) == (0.75, 0.9)
    assert check.words == "macro F1 is 0.7500, at least 0.9 is needed"


@dataclass(frozen=True)
class Champion:
    graph_path: Path
    manifest: Mapping[str, Any]


def judged(
    parts: Path, destination: Path, release: Champion | None, **settings: Any
) -> tuple[str, Report]:
    decision = gate(
        parts / "graph",
        parts / "dataset",
        parts / "report",
        destination,
        GateSettings(**settings),
        champion=release,
    )
    return decision.decision, Report.load(destination)


def test_the_first_model_passes_and_its_report_carries_the_decision(
    parts: Path, tmp_path: Path
) -> None:
    decision, found = judged(parts, tmp_path / "gated", None, minimum={"accuracy": 0.7})
    assert decision == "release"
    assert found.comparison is None
    assert found.gate is not None
    assert found.gate.decision == "release"
    assert "passed the gate" in (tmp_path / "gated" / "report.html").read_text()
    assert (tmp_path / "gated" / "predictions.parquet").exists()


def test_a_champion_answers_the_same_pictures_in_its_own_order_of_classes(
    parts: Path, tmp_path: Path
) -> None:
    champion = Champion(*write_champion(tmp_path, classes=("red", "blue", "green")))
    decision, found = judged(parts, tmp_path / "gated", champion)
    assert decision == "release"
    assert isinstance(found.comparison, Comparison)
    assert (found.comparison.gained, found.comparison.lost) == (0, 0)
    assert found.comparison.metrics["accuracy"] == found.metrics["accuracy"].value


def test_a_model_that_is_significantly_worse_than_the_champion_is_refused(
    parts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "parts"
    shutil.copytree(parts / "dataset", root / "dataset")
    answer_with(write_graph(root / "graph"), [1, 0, 2])
    evaluate(root / "graph", root / "dataset", root / "report", MEASURED, model="colours")
    champion = Champion(*write_champion(tmp_path, classes=CLASSES))
    decision, found = judged(root, tmp_path / "gated", champion)
    assert decision == "refuse"
    assert isinstance(found.comparison, Comparison)
    assert found.comparison.lost > found.comparison.gained
    assert found.comparison.p_worse < 0.05
    page = (tmp_path / "gated" / "report.html").read_text()
    assert "refused by the gate" in page
    assert "Beside the champion v1" in page


def test_a_champion_of_other_classes_refuses_and_says_how_to_go_on(
    parts: Path, tmp_path: Path
) -> None:
    champion = Champion(*write_champion(tmp_path, classes=("blue", "green", "violet")))
    decision, found = judged(parts, tmp_path / "gated", champion)
    assert decision == "refuse"
    assert found.gate is not None
    words = found.gate.reasons()[0]
    assert "violet" in words
    assert "gate.champion: ignore" in words
    decision, _ = judged(parts, tmp_path / "again", champion, champion="ignore")
    assert decision == "release"


def test_a_report_of_another_graph_is_an_error(parts: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "other", temperature=2.0)
    with pytest.raises(EvaluationError, match="evaluate this graph first"):
        gate(
            other,
            parts / "dataset",
            parts / "report",
            tmp_path / "gated",
            GateSettings(),
            champion=None,
        )
    assert not (tmp_path / "gated").exists()


def test_a_damaged_champion_is_an_error_and_writes_nothing(parts: Path, tmp_path: Path) -> None:
    path, manifest = write_champion(tmp_path, classes=CLASSES)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(GraphError, match="can't load"):
        judged(parts, tmp_path / "gated", Champion(path, manifest))
    assert not (tmp_path / "gated").exists()


def test_the_champion_answers_by_its_own_thresholds(parts: Path, tmp_path: Path) -> None:
    path, manifest = write_champion(tmp_path, classes=("red", "green", "blue"))
    always_red = manifest | {"thresholds": {"red": 1e-6, "green": 0.5, "blue": 0.499999}}
    decision = gate(
        parts / "graph",
        parts / "dataset",
        parts / "report",
        tmp_path / "gated",
        GateSettings(),
        champion=Champion(path, always_red),
    )
    found = Report.load(tmp_path / "gated").comparison
    assert decision.decision == "release"
    assert isinstance(found, Comparison)
    assert found.champion_accuracy == pytest.approx(1 / 3)
    assert found.metrics["balanced_accuracy"] == pytest.approx(1 / 3)

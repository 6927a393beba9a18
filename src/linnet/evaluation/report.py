"""The report of a graph on the test split: `report.json`, `predictions.parquet`, `report.html`."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow.parquet as pq

from linnet.errors import EvaluationError
from linnet.evaluation.baselines import Probe
from linnet.evaluation.calibration import Bin
from linnet.evaluation.comparison import ClassChange, Comparison, Flip, Incomparable
from linnet.evaluation.metrics import ClassRow, Headline, RocCurve
from linnet.evaluation.panels import Panel
from linnet.evaluation.robustness import CorruptionRow, Robustness
from linnet.evaluation.slices import Slice
from linnet.evaluation.thresholds import ThresholdCurve, Thresholds
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions
from linnet.inference.session import Parity
from linnet.manifest import read_manifest
from linnet.settings import Metric

KIND = "linnet/report/v1"
MANIFEST = "report.json"
PAGE = "report.html"
PREDICTIONS = "predictions.parquet"

_AGAIN = "run evaluate again, or copy the folder whole"


@dataclass(frozen=True)
class Mistake:
    """A picture with another predicted class than its label's."""

    key: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at: what was seen, what was needed, in words."""

    name: str
    passed: bool
    observed: float | str | None
    needed: float | str
    words: str


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and every check behind it."""

    decision: Literal["release", "refuse"]
    checks: tuple[Check, ...]
    rule: str = ""

    def reasons(self) -> list[str]:
        """Return the words of every failed check."""
        return [check.words for check in self.checks if not check.passed]


@dataclass(frozen=True)
class Report:
    """What a graph does on the test split, and later what the gate made of it.

    `confusion` has a row per true class and a column per predicted one, in the order of `classes`.
    `prior` is the share of each class in the training split: the naive baseline's answer. `graph`
    has the manifest's `flip`, `precision`, `profile` and `training`, null in older ones.
    """

    model: str
    classes: tuple[str, ...]
    dataset_version: str
    split: str
    pictures: int
    prior: tuple[float, ...]
    confidence: float
    metrics: dict[Metric, Headline]
    per_class: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[Bin, ...]
    roc: RocCurve
    parity: Parity
    temperature: float
    mistakes: tuple[Mistake, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)
    probe: Probe | None = None
    thresholds: Thresholds | None = None
    robustness: Robustness | None = None
    slices: tuple[Slice, ...] = ()
    panels: tuple[Panel, ...] = ()
    comparison: Comparison | Incomparable | None = None
    gate: Decision | None = None
    kind: str = field(default=KIND)

    @property
    def rule(self) -> Rule:
        """Return how this model's probabilities become answers."""
        return Rule() if self.thresholds is None else self.thresholds.rule(self.classes)

    @property
    def majority(self) -> str:
        """Return the class that the naive baseline always predicts."""
        return self.classes[int(np.argmax(self.prior))]

    @property
    def shown(self) -> set[str]:
        """Return the keys of the pictures that the page shows, but for the gate's."""
        return {row.key for row in self.mistakes} | {panel.key for panel in self.panels}

    def headline(self) -> str:
        """Return the result in one sentence."""
        accuracy = self.metrics["accuracy"]
        return (
            f"{self.model}: {accuracy.value:.3f} accuracy on {self.pictures:,} {self.split} "
            f"pictures, {self.confidence:.0%} interval {accuracy.low:.3f}–{accuracy.high:.3f}; "
            f"always answering {self.majority} would give {accuracy.baseline:.3f}"
        )

    def values(self) -> dict[str, float]:
        """Return the metrics that are defined, by name."""
        return {
            name: metric.value for name, metric in self.metrics.items() if metric.value is not None
        }

    def confusion_matrix(self) -> tuple[list[str], list[list[int]]]:
        """Return the categories and the matrix as KFP's `log_confusion_matrix` takes them."""
        return list(self.classes), [list(row) for row in self.confusion]

    def roc_curve(self) -> tuple[list[float], list[float], list[float]]:
        """Return fpr, tpr and threshold as KFP's `log_roc_curve` takes them."""
        return list(self.roc.fpr), list(self.roc.tpr), list(self.roc.threshold)

    def judged(self, comparison: Comparison | Incomparable | None, decision: Decision) -> Self:
        """Return the report with the gate's evidence and decision."""
        return replace(self, comparison=comparison, gate=decision)

    def to_json(self) -> dict[str, Any]:
        """Return the form that `report.json` carries."""
        return asdict(self)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the report in a folder.

        Raises:
            EvaluationError: the folder holds no finished report, or one of another kind.
        """
        path = folder / MANIFEST
        values = read_manifest(path, KIND, step="evaluate", error=EvaluationError)
        try:
            return cls(**_parsed(values))
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path} is damaged ({error!r}): {_AGAIN}") from error


def load_predictions(folder: Path) -> Predictions:
    """Read the predictions behind a report.

    Raises:
        EvaluationError: they are absent or damaged.
    """
    path = folder / PREDICTIONS
    try:
        table = pq.read_table(path)
        probabilities = np.asarray(table["probabilities"].combine_chunks().flatten(), np.float32)
        return Predictions(
            keys=table["key"].to_pylist(),
            labels=np.asarray(table["label"], np.int64),
            probabilities=probabilities.reshape(table.num_rows, -1),
        )
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{path} can't be read ({error}): {_AGAIN}") from error


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    comparison, gate = values["comparison"], values["gate"]
    return {
        **values,
        "classes": tuple(values["classes"]),
        "prior": tuple(values["prior"]),
        "metrics": {name: Headline(**metric) for name, metric in values["metrics"].items()},
        "per_class": tuple(ClassRow(**row) for row in values["per_class"]),
        "confusion": tuple(tuple(row) for row in values["confusion"]),
        "calibration": tuple(Bin(**row) for row in values["calibration"]),
        "roc": _parsed_roc(values["roc"]),
        "parity": Parity(**values["parity"]),
        "mistakes": tuple(Mistake(**mistake) for mistake in values["mistakes"]),
        "probe": Probe(**values["probe"]) if values.get("probe") else None,
        "thresholds": _parsed_thresholds(values.get("thresholds")),
        "robustness": _parsed_robustness(values.get("robustness")),
        "slices": tuple(Slice(**row) for row in values.get("slices", ())),
        "panels": tuple(Panel(**panel) for panel in values.get("panels", ())),
        "comparison": None if comparison is None else _parsed_comparison(comparison),
        "gate": None
        if gate is None
        else Decision(
            gate["decision"],
            tuple(Check(**check) for check in gate["checks"]),
            gate.get("rule", ""),
        ),
    }


def _parsed_roc(values: dict[str, Any]) -> RocCurve:
    fpr, tpr, threshold = (tuple(values[axis]) for axis in ("fpr", "tpr", "threshold"))
    return RocCurve(values["of"], fpr, tpr, threshold)


def _parsed_thresholds(values: dict[str, Any] | None) -> Thresholds | None:
    if values is None:
        return None
    curves = tuple(
        ThresholdCurve(
            row["name"],
            *(tuple(row[axis]) for axis in ("threshold", "value", "precision", "recall")),
        )
        for row in values["curves"]
    )
    return Thresholds(**{**values, "kept": tuple(values["kept"]), "curves": curves})


def _parsed_robustness(values: dict[str, Any] | None) -> Robustness | None:
    if values is None:
        return None
    rows = tuple(
        CorruptionRow(row["name"], tuple(row["accuracy"])) for row in values["corruptions"]
    )
    return Robustness(**{**values, "corruptions": rows})


def _parsed_comparison(values: dict[str, Any]) -> Comparison | Incomparable:
    if "reason" in values:
        return Incomparable(**values)
    changes = tuple(ClassChange(**change) for change in values["per_class"])
    flips = tuple(Flip(**flip) for flip in values.get("flips", ()))
    return Comparison(**{**values, "per_class": changes, "flips": flips})

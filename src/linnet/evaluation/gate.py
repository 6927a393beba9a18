"""Whether a graph may be released: a pure decision, and the comparison that feeds it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import EvaluationError
from linnet.evaluation.comparison import Comparison, Incomparable, compare, flips
from linnet.evaluation.evaluate import SPLIT, check_same_dataset, pictures_of
from linnet.evaluation.metrics import Scorer, label
from linnet.evaluation.report import Check, Decision, Report, load_predictions
from linnet.evaluation.writing import write
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions, predict_split
from linnet.inference.session import Graph, Portions
from linnet.settings import LOWER_IS_BETTER, EvaluateSettings, GateSettings, Metric

log = logging.getLogger(__name__)


class ReleaseHandle(Protocol):
    """The champion's release, as `linnet.release.bundle` opens it."""

    @property
    def graph_path(self) -> Path:
        """Return the release's `model.onnx`."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Return `release.json`."""


def gate(
    graph: Path,
    dataset: Path,
    report: Path,
    destination: Path,
    settings: GateSettings,
    *,
    champion: ReleaseHandle | None,
) -> Decision:
    """Decide on a graph's report and write the report again, with the evidence, to `destination`.

    The champion answers the same test pictures with its own graph and preprocessing.

    Raises:
        EvaluationError: the report is damaged, or of another graph or dataset.
        GraphError: a graph is incomplete or damaged.
        StoreError: `destination` is taken or can't be written.
    """
    found, predictions, data = Report.load(report), load_predictions(report), Dataset.open(dataset)
    manifest = Graph(graph).manifest
    check_same_dataset(manifest, data)
    _check_of_graph(found, manifest.sha256, report)
    comparison = None
    if champion is not None and settings.champion == "compare":
        comparison = _compared(champion, predictions, data, found)
    decision = decide(found, comparison, settings)
    judged = found.judged(comparison, decision)
    flipped = comparison.flips if isinstance(comparison, Comparison) else ()
    pictures = pictures_of(data, found.shown | {flip.key for flip in flipped})
    write(destination, judged, predictions, pictures)
    for check in decision.checks:
        log.log(
            logging.INFO if check.passed else logging.WARNING,
            "%s: %s",
            "passed" if check.passed else "failed",
            check.words,
        )
    return decision


def decide(
    report: Report, comparison: Comparison | Incomparable | None, settings: GateSettings
) -> Decision:
    """Return `release` when every check passes, else `refuse`, with each check in words."""
    checks = (
        *(_at_least(report, name, value) for name, value in settings.minimum.items()),
        *(_at_most(report, name, value) for name, value in settings.maximum.items()),
        *_corrupted(report, settings.minimum_corrupted_accuracy),
        _better_than_naive(report, settings.better_than_baseline),
        _parity(report),
        *_against_champion(comparison, settings),
    )
    passed = all(check.passed for check in checks)
    return Decision("release" if passed else "refuse", checks, rule_in_words(settings))


def rule_in_words(settings: GateSettings) -> str:
    """Return what these settings ask of a model, as one sentence."""
    asked = [f"{label(name)} is at least {value:g}" for name, value in settings.minimum.items()]
    asked += [f"{label(name)} is at most {value:g}" for name, value in settings.maximum.items()]
    if settings.minimum_corrupted_accuracy is not None:
        least = settings.minimum_corrupted_accuracy
        asked.append(f"mean accuracy under corruption is at least {least:g}")
    asked.append(f"{label(settings.better_than_baseline)} beats the majority class's")
    asked.append("the graph answers as torch does")
    if settings.champion == "compare":
        asked.append(
            "it is not significantly worse than the champion on the same test pictures "
            f"(McNemar's one-sided p is not below {settings.champion_alpha:g})"
        )
        if settings.champion_margin > 0:
            asked.append(
                f"its accuracy is at most {settings.champion_margin:g} below the champion's"
            )
    return f"A model is released if {', '.join(asked[:-1])} and {asked[-1]}"


def _at_least(report: Report, name: Metric, needed: float) -> Check:
    value = report.metrics[name].value
    words = f"{label(name)} is {_shown(report, name)}, at least {needed:g} is needed"
    passed = value is not None and value >= needed
    return Check(f"minimum {label(name)}", passed, value, needed, words)


def _at_most(report: Report, name: Metric, needed: float) -> Check:
    value = report.metrics[name].value
    words = f"{label(name)} is {_shown(report, name)}, at most {needed:g} is allowed"
    passed = value is not None and value <= needed
    return Check(f"maximum {label(name)}", passed, value, needed, words)


def _corrupted(report: Report, needed: float | None) -> list[Check]:
    if needed is None:
        return []
    found, name = report.robustness, "minimum accuracy under corruption"
    if found is None:
        words = (
            "accuracy under corruption was not measured: set evaluate.robustness_pictures above 0"
        )
        return [Check(name, False, None, needed, words)]
    value = found.mean_accuracy
    words = (
        f"mean accuracy under corruption is {value:.4f} ({found.clean_accuracy:.4f} on the same "
        f"{found.pictures:,} pictures as they are; the worst is {found.worst.name}), at least "
        f"{needed:g} is needed"
    )
    return [Check(name, value >= needed, value, needed, words)]


def _better_than_naive(report: Report, name: Metric) -> Check:
    value, baseline = report.metrics[name].value, report.metrics[name].baseline
    if value is None or baseline is None:
        passed, against = False, "it can't be compared with the majority class's"
    else:
        passed = value < baseline if name in LOWER_IS_BETTER else value > baseline
        side = "below" if name in LOWER_IS_BETTER else "above"
        against = f"it must be {side} the {baseline:.4f} of always answering {report.majority}"
    needed = "none" if baseline is None else baseline
    words = f"{label(name)} is {_shown(report, name)}, {against}"
    return Check("better than the naive baseline", passed, value, needed, words)


def _parity(report: Report) -> Check:
    parity = report.parity
    words = (
        f"on {parity.pictures} validation pictures the graph's probabilities differ from torch's "
        f"by at most {parity.largest_difference:.2g}, and {parity.label_agreement:.2%} of the "
        f"labels agree: {'within' if parity.passed else 'beyond'} what the export settings allow"
    )
    needed = "within export.max_probability_difference and export.min_label_agreement"
    return Check("parity with torch", parity.passed, parity.largest_difference, needed, words)


def _against_champion(
    comparison: Comparison | Incomparable | None, settings: GateSettings
) -> list[Check]:
    name = "no worse than the champion"
    if settings.champion == "ignore":
        words = "not compared with a champion, because gate.champion is ignore"
        return [Check(name, True, None, "nothing", words)]
    if comparison is None:
        words = "there is no champion yet, so there is nothing to be worse than"
        return [Check(name, True, None, "nothing", words)]
    if isinstance(comparison, Incomparable):
        words = (
            f"the champion {comparison.champion} can't be compared with: {comparison.reason}. "
            "Set gate.champion: ignore to release without the comparison"
        )
        return [Check(name, False, None, "a comparable champion", words)]
    checks = [_mcnemar(comparison, settings.champion_alpha, name)]
    if settings.champion_margin > 0:
        checks.append(_margin(comparison, settings.champion_margin))
    return checks


def _mcnemar(comparison: Comparison, alpha: float, name: str) -> Check:
    passed = comparison.p_worse >= alpha
    words = (
        f"of {comparison.pictures:,} test pictures {comparison.gained} are right only now and "
        f"{comparison.lost} only with the champion {comparison.champion}: "
        f"{'not ' if passed else ''}significantly worse "
        f"(McNemar's one-sided p is {comparison.p_worse:.3g}, refused below {alpha:g})"
    )
    return Check(name, passed, comparison.p_worse, alpha, words)


def _margin(comparison: Comparison, margin: float) -> Check:
    change = round(comparison.difference, 12)
    words = (
        f"accuracy is {comparison.accuracy:.4f}, the champion's {comparison.champion_accuracy:.4f}"
        f": a change of {change:+.4f}, and a fall of at most {margin:g} is allowed"
    )
    return Check("champion's margin", change >= -margin, change, -margin, words)


def _shown(report: Report, name: Metric) -> str:
    metric = report.metrics[name]
    return f"undefined ({metric.reason})" if metric.value is None else f"{metric.value:.4f}"


def _check_of_graph(report: Report, sha256: str, folder: Path) -> None:
    of = report.provenance.get("graph_sha256")
    if of != sha256:
        raise EvaluationError(
            f"the report {folder} is of another graph (digest {str(of)[:12]}…, this one has "
            f"{sha256[:12]}…): evaluate this graph first"
        )


@dataclass(frozen=True)
class _Champion:
    """The champion's graph, answering in the candidate's order of classes."""

    graph: Portions
    preprocessing: Preprocessing
    order: NDArray[np.intp]

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.graph.predict(pictures)[:, self.order]


def _compared(
    champion: ReleaseHandle, predictions: Predictions, dataset: Dataset, report: Report
) -> Comparison | Incomparable:
    manifest = champion.manifest
    name, classes = str(manifest["version"]), tuple(manifest["classes"])
    if set(classes) != set(report.classes):
        return Incomparable(name, _differing(classes, report.classes))
    settings = EvaluateSettings(**report.settings)
    opened = _Champion(
        graph=Portions(champion.graph_path),
        preprocessing=Preprocessing.from_json(manifest["preprocessing"]),
        order=np.array([classes.index(known) for known in report.classes]),
    )
    answers = predict_split(opened, dataset, SPLIT, batch_size=settings.batch_size)
    if answers.keys != predictions.keys:
        raise EvaluationError(
            f"the report's predictions are not of the test pictures of {dataset.path}: "
            "evaluate the graph on this dataset first"
        )
    rule = Rule.of({**manifest, "classes": report.classes})
    scores = Scorer(
        answers.labels,
        answers.probabilities,
        bins=settings.calibration_bins,
        predicted=rule.labels(answers.probabilities),
    )
    measured = {metric: float(value[0]) for metric, value in scores.measure().items()}
    compared = compare(
        predictions.labels,
        report.rule.weighed(predictions.probabilities),
        rule.weighed(answers.probabilities),
        classes=report.classes,
        name=name,
        metrics={
            metric: value if np.isfinite(value) else None for metric, value in measured.items()
        },
        samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    flipped = flips(
        predictions.labels,
        report.rule.labels(predictions.probabilities),
        rule.labels(answers.probabilities),
        keys=predictions.keys,
        classes=report.classes,
        most=settings.mistakes,
    )
    return replace(compared, flips=flipped)


def _differing(champion: tuple[str, ...], candidate: tuple[str, ...]) -> str:
    gone, new = sorted(set(champion) - set(candidate)), sorted(set(candidate) - set(champion))
    parts = [
        f"{words} {', '.join(names[:6])}{' …' if len(names) > 6 else ''}"
        for words, names in (("only it knows", gone), ("only the new model knows", new))
        if names
    ]
    return f"its classes differ: {', and '.join(parts)}"

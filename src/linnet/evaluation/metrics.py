"""How good predictions are: every metric with a bootstrap interval, beside the naive baseline.

A metric is one function of weighted pictures. With every weight 1 it is the measured value, and
with a bootstrap resample's counts as weights it is that resample's, so the two can't disagree.
Macro averages run over the classes that the test split has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from linnet.errors import EvaluationError
from linnet.evaluation.calibration import Floats, Labels, bin_of
from linnet.settings import EvaluateSettings, Metric

METRICS: tuple[Metric, ...] = get_args(Metric)
FOLLOWED: tuple[Metric, ...] = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "roc_auc",
)
_ACRONYMS = {"f1": "F1", "roc": "ROC", "pr": "PR", "auc": "AUC"}

# Bounds on memory and time: elements of a block of weights, and of all blocks of the areas.
_BLOCK = 2_000_000
_AREAS_BUDGET = 60_000_000
_FEWEST_RESAMPLES = 100
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Headline:
    """A metric on the test split, its interval, and what the naive baseline gets.

    `value` is null where the metric is undefined, and `reason` says why.
    """

    value: float | None
    low: float | None
    high: float | None
    baseline: float | None
    resamples: int
    reason: str | None = None


@dataclass(frozen=True)
class ClassRow:
    """One class against the rest; null where the test split can't say."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    pr_auc: float | None


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1), with finite falling thresholds."""

    of: str
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    threshold: tuple[float, ...]


def headlines(
    labels: Labels,
    probabilities: Floats,
    *,
    prior: Floats,
    settings: EvaluateSettings,
    predicted: Labels | None = None,
) -> dict[Metric, Headline]:
    """Measure the predictions, with a plain bootstrap over pictures behind each interval.

    The naive baseline answers every picture with `prior`, the class frequencies of the training
    split, so it always predicts the majority class.

    Args:
        labels: index of the true class, int64 [N].
        probabilities: [N, C], rows summing to 1.
        prior: [C], summing to 1.
        settings: resamples, level, bins and seed.
        predicted: index of each answer, int64 [N]; null: the most probable class.

    Raises:
        EvaluationError: no pictures, or probabilities that are not finite.
    """
    _check(labels, probabilities)
    scorer = Scorer(labels, probabilities, bins=settings.calibration_bins, predicted=predicted)
    naive = Scorer(
        labels, np.tile(prior, (len(labels), 1)), bins=settings.calibration_bins
    ).measure()
    measured = scorer.measure()
    samples = _bootstrap(scorer, settings)
    return {
        name: _headline(measured[name][0], samples[name], naive[name][0], settings.confidence)
        for name in METRICS
    }


def validation_metrics(
    labels: Labels, probabilities: Floats, *, positive: int | None = None
) -> dict[str, float]:
    """Return what training follows by name, without the ROC-AUC where it is undefined.

    `positive` is the index of the class whose own metrics are wanted too.
    """
    measured = Scorer(labels, probabilities, bins=2).measure()
    values = {str(name): float(measured[name][0]) for name in FOLLOWED}
    found = {name: value for name, value in values.items() if np.isfinite(value)}
    if positive is not None:
        table = confusion(labels, probabilities)
        hits = table[positive, positive]
        support, answered = table[positive].sum(), table[:, positive].sum()
        found["positive_precision"] = float(hits / max(1, answered))
        found["positive_recall"] = float(hits / max(1, support))
        found["positive_f1"] = float(2 * hits / max(1, support + answered))
    return found


def per_class(
    labels: Labels,
    probabilities: Floats,
    classes: tuple[str, ...],
    *,
    predicted: Labels | None = None,
) -> list[ClassRow]:
    """Return precision, recall, F1 and areas of each class against the rest."""
    table = confusion(labels, probabilities, predicted=predicted)
    support, answers, right = table.sum(axis=1), table.sum(axis=0), table.diagonal()
    ones = np.ones((1, len(labels)))
    rows = []
    for index, name in enumerate(classes):
        roc, pr = _Ranking(probabilities[:, index], labels == index).areas(ones)
        rows.append(
            ClassRow(
                name=name,
                support=int(support[index]),
                predicted=int(answers[index]),
                precision=_ratio(right[index], answers[index]),
                recall=_ratio(right[index], support[index]),
                f1=_ratio(2 * right[index], support[index] + answers[index]),
                roc_auc=_or_none(roc[0]),
                pr_auc=_or_none(pr[0]),
            )
        )
    return rows


def label(name: Metric) -> str:
    """Return a metric's name as a sentence has it, such as macro F1."""
    words = (_ACRONYMS.get(word, word) for word in name.split("_"))
    return " ".join(words)


def confusion(
    labels: Labels, probabilities: Floats, *, predicted: Labels | None = None
) -> NDArray[np.int64]:
    """Return counts [C, C]: row the true class, column the predicted one."""
    classes = probabilities.shape[1]
    cells = labels * classes + (probabilities.argmax(axis=1) if predicted is None else predicted)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def roc_curve(scores: Floats, positive: NDArray[np.bool_], of: str, *, points: int) -> RocCurve:
    """Return at most `points` points of a ROC curve; empty when one side has no pictures."""
    hits, false_alarms, thresholds = _cumulative(scores, positive)
    if not hits[-1] or not false_alarms[-1]:
        return RocCurve(of, (), (), ())
    tpr = np.concatenate([[0.0], hits / hits[-1]])
    fpr = np.concatenate([[0.0], false_alarms / false_alarms[-1]])
    threshold = np.concatenate([[1.0], thresholds])
    keep = _thinned(tpr + fpr, points)
    return RocCurve(
        of, *(tuple(np.round(axis[keep], 6).tolist()) for axis in (fpr, tpr, threshold))
    )


def precision_recall_curve(
    scores: Floats, positive: NDArray[np.bool_], *, points: int
) -> tuple[Floats, Floats]:
    """Return at most `points` of (recall, precision), recall rising; empty without positives."""
    hits, false_alarms, _ = _cumulative(scores, positive)
    if not hits[-1]:
        return np.empty(0), np.empty(0)
    recall, precision = hits / hits[-1], hits / (hits + false_alarms)
    keep = _thinned(recall + np.abs(np.diff(precision, prepend=1.0)).cumsum(), points)
    return recall[keep], precision[keep]


class Scorer:
    """Every metric of one set of predictions, under any weighting of its pictures."""

    def __init__(
        self, labels: Labels, probabilities: Floats, *, bins: int, predicted: Labels | None = None
    ) -> None:
        count, classes = probabilities.shape
        if predicted is None:
            predicted = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(count), predicted]
        right = predicted == labels
        self.pictures = count
        self.classes = classes
        self._true = _one_hot(labels, classes)
        self._predicted = _one_hot(predicted, classes)
        self._hits = self._true * right[:, None]
        of_truth = probabilities[np.arange(count), labels].astype(np.float64)
        self._loss = -np.log(np.clip(of_truth, _SMALLEST_PROBABILITY, 1.0))
        self._gaps = _one_hot(bin_of(confidence, bins), bins) * (confidence - right)[:, None]
        present = np.unique(labels)
        self._rankings = (
            [_Ranking(probabilities[:, index], labels == index) for index in present]
            if len(present) > 1
            else []
        )

    def measure(self) -> dict[Metric, Floats]:
        """Return every metric with all pictures counting once, each [1], nan where undefined."""
        ones = np.ones((1, self.pictures))
        return self.decisions(ones) | self.areas(ones)

    def decisions(self, weights: Floats) -> dict[Metric, Floats]:
        """Return all but the areas for each row of `weights` [R, N], each [R]."""
        total = weights.sum(axis=1)
        support, predicted = weights @ self._true, weights @ self._predicted
        hits = weights @ self._hits
        present = support > 0
        recall = _mean_over(present, _divide(hits, support))
        return {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall,
            "macro_precision": _mean_over(present, _divide(hits, predicted)),
            "macro_recall": recall,
            "macro_f1": _mean_over(present, _divide(2 * hits, support + predicted)),
            "log_loss": weights @ self._loss / total,
            "calibration_error": np.abs(weights @ self._gaps).sum(axis=1) / total,
        }

    def areas(self, weights: Floats) -> dict[Metric, Floats]:
        """Return the areas under the ROC and PR curves, macro over one-against-rest, each [R]."""
        if not self._rankings:
            nothing = np.full(len(weights), np.nan)
            return {"roc_auc": nothing, "pr_auc": nothing}
        areas = np.array([ranking.areas(weights) for ranking in self._rankings])
        defined = np.isfinite(areas)
        counted = defined.sum(axis=0)
        total = np.where(defined, areas, 0.0).sum(axis=0)
        roc, pr = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
        return {"roc_auc": roc, "pr_auc": pr}


class _Ranking:
    """Pictures by falling score of one class, ties in one group."""

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order]
        ranked = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return ROC-AUC (ties count half) and average precision for each row of `weights`."""
        every = weights[:, self._order]
        positive = every * self._positive
        if len(self._starts) < every.shape[1]:
            every = np.add.reduceat(every, self._starts, axis=1)
            positive = np.add.reduceat(positive, self._starts, axis=1)
        hits, seen = positive.cumsum(axis=1), every.cumsum(axis=1)
        positives, total = hits[:, -1].astype(np.float64), seen[:, -1].astype(np.float64)
        negatives = total - positives
        precision = np.einsum("rg,rg->r", positive, hits / np.maximum(seen, 1)).astype(np.float64)
        # A positive beats the negatives ranked below it, and half of those tied with it.
        above = (seen - hits) - (every - positive) / 2
        beaten = negatives * positives - np.einsum("rg,rg->r", positive, above, dtype=np.float64)
        return (
            np.where(
                (positives > 0) & (negatives > 0),
                beaten / np.maximum(positives * negatives, 1),
                np.nan,
            ),
            np.where(
                (positives > 0) & (negatives > 0), precision / np.maximum(positives, 1), np.nan
            ),
        )


def _bootstrap(scorer: Scorer, settings: EvaluateSettings) -> dict[Metric, Floats]:
    rng = np.random.default_rng(settings.seed)
    wanted = settings.bootstrap_samples
    per_resample = scorer.pictures * scorer.classes
    with_areas = min(wanted, max(_FEWEST_RESAMPLES, _AREAS_BUDGET // per_resample))
    found: dict[Metric, list[Floats]] = {name: [] for name in METRICS}
    done = 0
    for weights in _resamples(rng, scorer.pictures, wanted):
        for name, values in scorer.decisions(weights).items():
            found[name].append(values)
        if done < with_areas:
            for name, values in scorer.areas(weights[: with_areas - done]).items():
                found[name].append(values)
        done += len(weights)
    return {name: np.concatenate(values) for name, values in found.items()}


def _resamples(rng: np.random.Generator, pictures: int, samples: int) -> Iterator[Floats]:
    """Yield blocks [r, N] of how often each picture was drawn, `samples` rows in all."""
    rows = max(1, _BLOCK // pictures)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        draws = rng.integers(0, pictures, size=(count, pictures))
        draws += np.arange(count)[:, None] * pictures
        counts = np.bincount(draws.ravel(), minlength=count * pictures)
        yield counts.reshape(count, pictures).astype(np.float32)


def _headline(value: float, samples: Floats, baseline: float, confidence: float) -> Headline:
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(value):
        return Headline(
            None, None, None, None, len(samples), "the test split has pictures of one class only"
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    # Resampling inflates the calibration error: keep the measured value inside its interval.
    return Headline(
        value=float(value),
        low=float(min(low, value)),
        high=float(max(high, value)),
        baseline=_or_none(baseline),
        resamples=len(samples),
    )


def _check(labels: Labels, probabilities: Floats) -> None:
    if len(labels) == 0:
        raise EvaluationError(
            "there are no pictures to evaluate on: give the dataset a test split "
            "(ingest.test_fraction above 0, or a split folder named test)"
        )
    if not np.isfinite(probabilities).all():
        broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise EvaluationError(
            f"the graph's probabilities are not finite for {broken} of {len(labels)} pictures: "
            "train again with a lower learning rate or gradient_clip, then export"
        )


def _cumulative(
    scores: Floats, positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = positive[order].cumsum()[ends]
    return hits, ends + 1 - hits, ranked[ends]


def _thinned(along: Floats, points: int) -> NDArray[np.int64]:
    """Return at most `points` indices evenly spread over the rising values `along`."""
    if len(along) <= points:
        return np.arange(len(along))
    targets = np.linspace(along[0], along[-1], points)
    keep = np.unique(np.searchsorted(along, targets).clip(max=len(along) - 1))
    keep[-1] = len(along) - 1
    return keep


def _one_hot(indices: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    table = np.zeros((len(indices), width), dtype=np.float32)
    table[np.arange(len(indices)), indices] = 1.0
    return table


def _divide(part: Floats, whole: Floats) -> Floats:
    return part / np.maximum(whole, 1)


def _mean_over(chosen: NDArray[np.bool_], values: Floats) -> Floats:
    """Return the mean of each row over its chosen entries; a row has at least one."""
    return np.asarray((values * chosen).sum(axis=1) / chosen.sum(axis=1))


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

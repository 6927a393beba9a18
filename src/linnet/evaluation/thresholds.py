"""Thresholds that make the answers best at a named aim, fitted on the validation split. Pure."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from linnet.errors import EvaluationError
from linnet.evaluation.calibration import Floats, Labels
from linnet.evaluation.metrics import Scorer, label, per_class
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions
from linnet.settings import DecisionSettings

CURVE_POINTS = 120

# Thresholds that one sweep tries: all there are of a small split, fewer with many classes.
_MOST_POINTS, _FEWEST_POINTS, _CELLS = 1000, 50, 20_000
_ROUNDS = 5
FOLDS = 5
_EDGE = 1e-6


@dataclass(frozen=True)
class ThresholdCurve:
    """What one class's threshold does while the others keep their proportions, on validation.

    Each tuple has a value per threshold, from 0 to 1; `value` is the aim's, precision is null where
    the class is never answered.
    """

    name: str
    threshold: tuple[float, ...]
    value: tuple[float, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Thresholds:
    """The rule that was fitted on validation, and what it does to the test split.

    `before` and `after` are metrics of the test split, all pictures answered; `coverage` is the
    share of it that is not abstained from, and `answered_accuracy` the accuracy there.
    `kept` are classes with too few validation pictures to move their threshold.
    `validation_held_out` is the aim's value on validation pictures by thresholds that were fitted
    without them; where it is no better than before, the thresholds were `dropped`.
    """

    aim: str
    words: str
    thresholds: dict[str, float] | None
    abstain_below: float | None
    pictures: int
    kept: tuple[str, ...]
    validation_before: float | None
    validation_after: float | None
    before: dict[str, float | None]
    after: dict[str, float | None]
    coverage: float
    answered_accuracy: float | None
    curves: tuple[ThresholdCurve, ...]
    validation_held_out: float | None = None
    dropped: bool = False

    def rule(self, classes: tuple[str, ...]) -> Rule:
        """Return the rule, with thresholds in the order of the classes."""
        if self.thresholds is None:
            return Rule(None, self.abstain_below)
        return Rule(tuple(self.thresholds[name] for name in classes), self.abstain_below)


def thresholds(
    validation: Predictions,
    test: Predictions,
    classes: tuple[str, ...],
    settings: DecisionSettings,
) -> Thresholds:
    """Fit the rule on one split and measure it on the other.

    Raises:
        EvaluationError: as `fit`.
    """
    fitted = fit(validation.labels, validation.probabilities, classes, settings)
    answers = fitted.rule.answer(test.probabilities)
    answered = ~answers.abstain
    right = answers.best == test.labels
    values = fitted.rule.thresholds
    return Thresholds(
        aim=settings.aim,
        words="" if settings.aim == "none" else Aim.of(classes, settings).words,
        thresholds=None if values is None else dict(zip(classes, values, strict=True)),
        abstain_below=fitted.rule.abstain_below,
        pictures=len(validation.labels),
        kept=fitted.kept,
        validation_before=fitted.before,
        validation_after=fitted.after,
        before=_effects(test, Rule(), classes, settings),
        after=_effects(test, fitted.rule, classes, settings),
        coverage=float(answered.mean()),
        answered_accuracy=float(right[answered].mean()) if answered.any() else None,
        curves=curves(validation.labels, validation.probabilities, classes, values, settings),
        validation_held_out=fitted.held_out,
        dropped=fitted.dropped,
    )


def _effects(
    test: Predictions, rule: Rule, classes: tuple[str, ...], settings: DecisionSettings
) -> dict[str, float | None]:
    """Return what a rule does to the test split, by words."""
    predicted = rule.labels(test.probabilities)
    scorer = Scorer(test.labels, test.probabilities, bins=2, predicted=predicted)
    measured = scorer.decisions(np.ones((1, scorer.pictures)))
    found: dict[str, float | None] = {
        label(name): float(measured[name][0])
        for name in ("accuracy", "balanced_accuracy", "macro_f1")
    }
    if len(classes) == 2:
        positive = classes.index(settings.positive) if settings.positive else 1
        row = per_class(test.labels, test.probabilities, classes, predicted=predicted)[positive]
        values = {"precision": row.precision, "recall": row.recall, "F1": row.f1}
        found |= {f"{name} of {row.name}": value for name, value in values.items()}
    if settings.aim == "cost":
        paid = Aim.of(classes, settings).cost[test.labels, predicted]
        found["mean cost"] = float(paid.mean())
    return found


@dataclass(frozen=True)
class Fit:
    """Thresholds in the order of the classes, the aim's value without and with them.

    `held_out` is the value with thresholds that were fitted without the pictures they answer.
    """

    rule: Rule
    kept: tuple[str, ...]
    before: float | None
    after: float | None
    held_out: float | None = None
    dropped: bool = False


def fit(
    labels: Labels, probabilities: Floats, classes: tuple[str, ...], settings: DecisionSettings
) -> Fit:
    """Return the rule that is best at the aim on these validation pictures.

    One class's threshold is moved at a time, over all the values at which an answer changes, until
    none gains any more; of equally good ones the nearest to the present one is taken. With
    `cross_fit`, those of more than two classes are dropped if such thresholds gain nothing on
    pictures held out from them.

    Raises:
        EvaluationError: no pictures; of two classes one is absent or too small; a class that the
            settings name is unknown; no threshold reaches the precision.
    """
    _check(labels, classes, settings)
    neutral = np.full(len(classes), 1 / len(classes))
    counts = np.bincount(labels, minlength=len(classes))
    kept = np.flatnonzero(counts < settings.fewest_pictures)
    before = after = held_out = values = None
    dropped = False
    if settings.aim != "none":
        aim, still = Aim.of(classes, settings), set(kept.tolist())
        before = aim.measured(labels, probabilities, neutral)
        found = _fitted(aim, labels, probabilities, still)
        after = aim.measured(labels, probabilities, found)
        # One number, of two classes, hardly fits chance.
        if settings.cross_fit and len(classes) > 2:
            held_out = _held_out(aim, labels, probabilities, still)
            dropped = not _better(aim, held_out, before)
        values = None if dropped else tuple(found.tolist())
    rule = Rule(values, settings.abstain_below)
    if settings.coverage is not None:
        scores = np.sort(rule.answer(probabilities.astype(np.float32)).scores)[::-1]
        rule = Rule(values, float(scores[int(np.ceil(settings.coverage * len(scores))) - 1]))
    names = tuple(classes[index] for index in kept) if values and len(classes) > 2 else ()
    return Fit(rule, names, before, after, held_out, dropped)


def _fitted(aim: "Aim", labels: Labels, probabilities: Floats, kept: set[int]) -> Floats:
    """Return the thresholds [C] that are best at the aim."""
    neutral = np.full(len(aim.classes), 1 / len(aim.classes))
    if len(aim.classes) == 2:
        return _best(aim, labels, probabilities, neutral, aim.positive)
    return _coordinates(aim, labels, probabilities, neutral, kept)


def _held_out(aim: "Aim", labels: Labels, probabilities: Floats, kept: set[int]) -> float | None:
    """Return the aim's value where each fold is answered by thresholds fitted on the others."""
    order = np.random.default_rng(0).permutation(len(labels))
    fold = np.empty(len(labels), np.int64)
    # The classes in turn, so that every fold has its share of each.
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % FOLDS
    predicted = np.empty(len(labels), np.int64)
    for number in range(FOLDS):
        out = fold == number
        found = _fitted(aim, labels[~out], probabilities[~out], kept)
        predicted[out] = Rule(tuple(found.tolist())).labels(probabilities[out])
    return aim.of_answers(labels, predicted)


@dataclass(frozen=True)
class Aim:
    """What thresholds are to be best at; `cost` is [C, C], row the true class."""

    kind: Literal["f1", "balanced_accuracy", "recall_at_precision", "cost"]
    classes: tuple[str, ...]
    positive: int
    precision: float
    cost: NDArray[np.float64]

    @classmethod
    def of(cls, classes: tuple[str, ...], settings: DecisionSettings) -> "Aim":
        """Return the aim of settings that were checked against the classes."""
        if settings.aim == "none":
            raise ValueError("there is no aim")
        cost = 1.0 - np.eye(len(classes))
        for true, answers in settings.cost.items():
            for answer, value in answers.items():
                cost[classes.index(true), classes.index(answer)] = value
        positive = classes.index(settings.positive) if settings.positive else len(classes) - 1
        return cls(settings.aim, classes, positive, settings.precision, cost)

    @property
    def words(self) -> str:
        """Return the aim as a sentence has it."""
        name = self.classes[self.positive]
        if self.kind == "recall_at_precision":
            return f"recall of {name} at a precision of at least {self.precision:g}"
        if self.kind == "f1":
            return f"F1 of {name}" if len(self.classes) == 2 else "macro F1"
        return "balanced accuracy" if self.kind == "balanced_accuracy" else "mean cost"

    def value(self, swept: "Sweep", support: NDArray[np.int64]) -> Floats:
        """Return how good each threshold of a sweep is, more is better."""
        hits, answered = swept.hits, swept.answered
        present = support > 0
        if self.kind == "cost":
            return np.asarray(-swept.cost / support.sum())
        if self.kind == "balanced_accuracy":
            return np.asarray((hits[:, present] / support[present]).mean(axis=1))
        if self.kind == "f1":
            f1 = 2 * hits / np.maximum(support + answered, 1)
            averaged = [self.positive] if len(self.classes) == 2 else present
            return np.asarray(f1[:, averaged].mean(axis=1))
        found = hits[:, self.positive] / max(1, support[self.positive])
        precision = hits[:, self.positive] / np.maximum(answered[:, self.positive], 1)
        return np.where(precision >= self.precision, found, -1.0)

    def measured(self, labels: Labels, probabilities: Floats, thresholds: Floats) -> float | None:
        """Return the aim's value with thresholds; null where the precision is not reached."""
        return self.of_answers(labels, Rule(tuple(thresholds.tolist())).labels(probabilities))

    def of_answers(self, labels: Labels, predicted: Labels) -> float | None:
        """Return the aim's value of answers; null where the precision is not reached."""
        classes = len(self.classes)
        cells = np.bincount(labels * classes + predicted, minlength=classes**2)
        table = cells.reshape(classes, classes)
        swept = Sweep(
            np.zeros(1),
            table.diagonal()[None, :],
            table.sum(axis=0)[None, :],
            np.array([(table * self.cost).sum()]),
        )
        value = float(self.value(swept, table.sum(axis=1))[0])
        if self.kind == "cost":
            return -value
        return None if value < 0 else value


@dataclass(frozen=True)
class Sweep:
    """What each of K thresholds of one class gives: rightly and all answered [K, C], cost [K]."""

    threshold: Floats
    hits: NDArray[np.int64]
    answered: NDArray[np.int64]
    cost: Floats


def sweep(
    labels: Labels,
    probabilities: Floats,
    thresholds: Floats,
    index: int,
    *,
    cost: Floats,
) -> Sweep:
    """Move one class's threshold over (0, 1), the others keeping their proportions.

    A picture is answered with the class where the threshold is below p / (p + m), m the best of
    the others; so a histogram over these turning points gives every count at once.
    """
    classes = probabilities.shape[1]
    others = probabilities / (thresholds / (1 - thresholds[index]))
    others[:, index] = -1.0
    instead = others.argmax(axis=1)
    rival = others[np.arange(len(labels)), instead]
    own = probabilities[:, index].astype(np.float64)
    turning = own / np.maximum(own + rival, _EDGE)
    points = max(_FEWEST_POINTS, min(_MOST_POINTS, _CELLS // classes))
    at = _candidates(turning, float(thresholds[index]), points)
    # The picture is answered with the class at the first `wins` thresholds, then with its rival.
    wins = np.searchsorted(at, turning, side="left")

    def while_won(weights: Floats, columns: NDArray[np.int64]) -> Floats:
        table = np.zeros((len(at) + 1, classes))
        np.add.at(table, (wins, columns), weights)
        return table[::-1].cumsum(axis=0)[::-1][1:]

    def after(weights: Floats, columns: NDArray[np.int64]) -> Floats:
        table = np.zeros((len(at) + 1, classes))
        np.add.at(table, (wins, columns), weights)
        return table.cumsum(axis=0)[:-1]

    ones, mine = np.ones(len(labels)), np.full(len(labels), index)
    hits = while_won((labels == index) * ones, mine) + after((labels == instead) * ones, instead)
    answered = while_won(ones, mine) + after(ones, instead)
    paid = while_won(cost[labels, index], mine) + after(cost[labels, instead], instead)
    return Sweep(at, hits.astype(np.int64), answered.astype(np.int64), paid.sum(axis=1))


def curves(
    labels: Labels,
    probabilities: Floats,
    classes: tuple[str, ...],
    thresholds: tuple[float, ...] | None,
    settings: DecisionSettings,
) -> tuple[ThresholdCurve, ...]:
    """Return the curve of the class looked for, or with more than two of every class."""
    if settings.aim == "none":
        return ()
    aim = Aim.of(classes, settings)
    at_present = np.array(thresholds or np.full(len(classes), 1 / len(classes)))
    support = np.bincount(labels, minlength=len(classes))
    found = []
    for index in [aim.positive] if len(classes) == 2 else range(len(classes)):
        swept = sweep(labels, probabilities, at_present, index, cost=aim.cost)
        keep = np.unique(np.linspace(0, len(swept.threshold) - 1, CURVE_POINTS).round().astype(int))
        # Below the first threshold and above the last, no answer changes any more.
        keep = np.r_[keep[0], keep, keep[-1]]
        value = aim.value(swept, support)
        hits, answered = swept.hits[:, index], swept.answered[:, index]
        found.append(
            ThresholdCurve(
                name=classes[index],
                threshold=(0.0, *_rounded(swept.threshold[keep[1:-1]]), 1.0),
                value=_rounded(-value[keep] if aim.kind == "cost" else value[keep].clip(min=0)),
                precision=tuple(
                    round(float(hits[at] / answered[at]), 6) if answered[at] else None
                    for at in keep
                ),
                recall=_rounded(hits[keep] / max(1, support[index])),
            )
        )
    return tuple(found)


def _coordinates(
    aim: Aim, labels: Labels, probabilities: Floats, thresholds: Floats, kept: set[int]
) -> Floats:
    """Return thresholds that moving any single one makes no better."""
    best = aim.measured(labels, probabilities, thresholds)
    for _ in range(_ROUNDS):
        before = best
        for index in range(len(thresholds)):
            if index in kept:
                continue
            moved = _best(aim, labels, probabilities, thresholds, index)
            value = aim.measured(labels, probabilities, moved)
            if _better(aim, value, best):
                thresholds, best = moved, value
        if best == before:
            break
    return thresholds


def _better(aim: Aim, value: float | None, than: float | None) -> bool:
    if value is None or than is None:
        return than is None and value is not None
    return value < than if aim.kind == "cost" else value > than


def _best(
    aim: Aim, labels: Labels, probabilities: Floats, thresholds: Floats, index: int
) -> Floats:
    """Return the thresholds with one class's moved to where the aim is largest."""
    swept = sweep(labels, probabilities, thresholds, index, cost=aim.cost)
    values = aim.value(swept, np.bincount(labels, minlength=len(thresholds)))
    if values.max() < 0 and aim.kind == "recall_at_precision":
        hits, answered = swept.hits[:, index], swept.answered[:, index]
        reached = (hits / np.maximum(answered, 1)).max()
        raise EvaluationError(
            f"no threshold gives {aim.classes[index]} a precision of {aim.precision:g} on the "
            f"{len(labels)} validation pictures, {reached:.3f} is the most: lower "
            "evaluate.decision.precision, or train a better model"
        )
    ties = np.flatnonzero(values >= values.max() - 1e-12)
    chosen = ties[np.abs(swept.threshold[ties] - thresholds[index]).argmin()]
    moved = thresholds * (1 - swept.threshold[chosen]) / (1 - thresholds[index])
    moved[index] = swept.threshold[chosen]
    return np.asarray(moved)


def _candidates(turning: Floats, present: float, points: int) -> Floats:
    """Return rising thresholds between the turning points, at most so many, and the present one."""
    ends = np.unique(np.r_[_EDGE, turning, 1 - _EDGE].clip(_EDGE, 1 - _EDGE))
    between = (ends[1:] + ends[:-1]) / 2
    if len(between) > points:
        between = between[np.linspace(0, len(between) - 1, points).round().astype(int)]
    return np.unique(np.r_[between, present])


def _check(labels: Labels, classes: tuple[str, ...], settings: DecisionSettings) -> None:
    named = [settings.positive] if settings.positive else []
    named += [name for true, row in settings.cost.items() for name in (true, *row)]
    for name in named:
        if name not in classes:
            raise EvaluationError(
                f"evaluate.decision names the class {name!r}, the dataset has "
                f"{', '.join(classes[:12])}: name one of them"
            )
    if not len(labels):
        raise EvaluationError(
            "thresholds are fitted on validation pictures, and there are none: ingest again with "
            "ingest.val_fraction above 0, or set evaluate.decision.aim: none"
        )
    if settings.aim == "none":
        return
    if len(classes) > 2 and (settings.aim == "recall_at_precision" or settings.positive):
        raise EvaluationError(
            f"evaluate.decision asks for one class's threshold (aim {settings.aim}, positive "
            f"{settings.positive}), which is for two classes, and there are {len(classes)}: set "
            "aim to f1, balanced_accuracy or cost, and no positive"
        )
    counts = np.bincount(labels, minlength=len(classes))
    few = [
        f"{count} of {name}"
        for name, count in zip(classes, counts, strict=True)
        if count < settings.fewest_pictures
    ]
    if few and (len(classes) == 2 or len(few) == len(classes)):
        raise EvaluationError(
            f"the validation split has {', '.join(few[:12])}, at least "
            f"{settings.fewest_pictures} are needed to fit a threshold: ingest with a larger "
            "ingest.val_fraction, lower evaluate.decision.fewest_pictures, or set "
            "evaluate.decision.aim: none"
        )


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(np.round(values, 6).tolist())

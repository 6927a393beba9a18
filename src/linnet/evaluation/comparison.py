"""Is one model worse than another on the same pictures: McNemar's test and a paired interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnet.errors import EvaluationError
from linnet.evaluation.calibration import Floats, Labels


@dataclass(frozen=True)
class ClassChange:
    """Pictures of one class that only one of the two models names rightly."""

    name: str
    support: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Flip:
    """A picture that exactly one of the two models names rightly."""

    key: str
    label: str
    candidate: str
    champion: str


@dataclass(frozen=True)
class Comparison:
    """A candidate beside the champion on the same test pictures, paired picture by picture."""

    champion: str
    pictures: int
    accuracy: float
    champion_accuracy: float
    difference: float
    low: float
    high: float
    confidence: float
    gained: int
    lost: int
    p_worse: float
    per_class: tuple[ClassChange, ...]
    metrics: dict[str, float | None]
    flips: tuple[Flip, ...] = ()

    @property
    def discordant(self) -> int:
        """Return how many pictures exactly one of the two models names rightly."""
        return self.gained + self.lost


@dataclass(frozen=True)
class Incomparable:
    """A champion that can't be compared with, and why."""

    champion: str
    reason: str


def compare(
    labels: Labels,
    candidate: Floats,
    champion: Floats,
    *,
    classes: tuple[str, ...],
    name: str,
    metrics: dict[str, float | None] | None = None,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
) -> Comparison:
    """Compare two models' scores [N, C], in one class order, on the same N pictures.

    Args:
        labels: index of the true class, int64 [N].
        candidate: the new model's probabilities, weighed by its thresholds: the largest answers.
        champion: the present one's.
        classes: names in the order of the columns.
        name: what the champion is called, such as its version.
        metrics: the champion's own metrics, to be shown beside the candidate's.
        samples: resamples behind the interval of the difference in accuracy.
        confidence: level of that interval.
        seed: seed of the resampling.

    Raises:
        EvaluationError: no pictures, or the shapes differ.
    """
    if not len(labels) or candidate.shape != champion.shape or len(candidate) != len(labels):
        raise EvaluationError(
            f"can't pair predictions of shapes {candidate.shape} and {champion.shape} over "
            f"{len(labels)} labels: both models must answer the same pictures, at least one"
        )
    right = candidate.argmax(axis=1) == labels
    champion_right = champion.argmax(axis=1) == labels
    gained, lost = right & ~champion_right, champion_right & ~right
    better, worse = int(gained.sum()), int(lost.sum())
    low, high = _interval(better, worse, len(labels), samples, confidence, seed)
    return Comparison(
        champion=name,
        pictures=len(labels),
        accuracy=float(right.mean()),
        champion_accuracy=float(champion_right.mean()),
        difference=float(right.mean() - champion_right.mean()),
        low=low,
        high=high,
        confidence=confidence,
        gained=better,
        lost=worse,
        p_worse=mcnemar_worse(better, worse),
        per_class=tuple(
            ClassChange(
                name=class_name,
                support=int((labels == index).sum()),
                gained=int(gained[labels == index].sum()),
                lost=int(lost[labels == index].sum()),
            )
            for index, class_name in enumerate(classes)
        ),
        metrics=metrics or {},
    )


def flips(
    labels: Labels,
    candidate: Labels,
    champion: Labels,
    *,
    keys: Sequence[str],
    classes: tuple[str, ...],
    most: int,
) -> tuple[Flip, ...]:
    """Return pictures that one model's answers [N] are right about: half lost first, half gained.

    With fewer of one kind there is room for more of the other; spread evenly over the pictures.
    """
    lost = np.flatnonzero((champion == labels) & (candidate != labels))
    gained = np.flatnonzero((candidate == labels) & (champion != labels))
    of_lost = min(len(lost), max(most - most // 2, most - len(gained)))
    chosen = (*_spread(lost, of_lost), *_spread(gained, most - of_lost))
    return tuple(
        Flip(keys[at], *(classes[answers[at]] for answers in (labels, candidate, champion)))
        for at in chosen
    )


def _spread(rows: NDArray[np.intp], most: int) -> list[int]:
    count = min(len(rows), most)
    return [int(rows[at]) for at in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def mcnemar_worse(gained: int, lost: int) -> float:
    """Return McNemar's exact one-sided p-value that the candidate is worse.

    Under the null a discordant picture is gained or lost with equal chance, so the p-value is the
    binomial chance of `lost` or more among them, in exact integers at any number of pictures.
    Source: McNemar 1947; the exact form needs no large-sample approximation.
    """
    discordant = gained + lost
    ways = term = 1  # of none lost, then none or one, … : by symmetry, the ways to gain as few
    for chosen in range(1, gained + 1):
        term = term * (discordant - chosen + 1) // chosen
        ways += term
    return ways / (1 << discordant)


def _interval(
    gained: int, lost: int, pictures: int, samples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the bootstrap interval of the difference in accuracy.

    Resampling the pictures is drawing how many are gained, lost and neither: one multinomial.
    """
    chances = np.array([gained, lost, pictures - gained - lost]) / pictures
    draws = np.random.default_rng(seed).multinomial(pictures, chances, size=samples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / pictures, [tail, 1 - tail])
    return float(low), float(high)

"""What a release says about pictures: labels, scores and whether it would rather not say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from linnet.errors import ReleaseError


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to N pictures: rows of `probabilities` [N, C], `best` [N] indexes the classes."""

    probabilities: NDArray[np.float32]
    best: NDArray[np.intp]
    scores: NDArray[np.float32]
    abstain: NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """How probabilities become an answer, in evaluation, the server and `linnet predict` alike.

    The label is the class with the largest p / t, of equals the first. Thresholds t add up to 1
    and are in the order of the classes; null: all equal, so the most probable class. Of two
    classes the second is answered when its probability is above its threshold. The score is the
    label's probability; one below `abstain_below` is abstained from.
    """

    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """Return the rule that a `release.json` carries.

        Raises:
            ReleaseError: its thresholds are not a positive number for each of its classes.
        """
        thresholds = manifest.get("thresholds")
        return cls(
            None if thresholds is None else _in_order(tuple(manifest["classes"]), thresholds),
            manifest.get("abstain_below"),
        )

    def weighed(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return p / t, [N, C]: the largest of a row is its answer."""
        if self.thresholds is None:
            return probabilities
        return probabilities / np.asarray(self.thresholds, np.float64)

    def labels(self, probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the index of each row's answer, whether or not it is abstained from."""
        return np.asarray(self.weighed(probabilities).argmax(axis=1), np.int64)

    def answer(self, probabilities: NDArray[np.float32]) -> Answers:
        """Return the answers that probabilities [N, C] mean."""
        best = self.labels(probabilities)
        scores = probabilities[np.arange(len(best)), best]
        if self.abstain_below is None:
            abstain = np.zeros(len(best), np.bool_)
        else:
            abstain = scores < np.float32(self.abstain_below)
        return Answers(probabilities, best, scores, abstain)


def _in_order(classes: tuple[str, ...], thresholds: Mapping[str, float]) -> tuple[float, ...]:
    try:
        found = tuple(float(thresholds[name]) for name in classes)
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(
            f"the release's thresholds {thresholds!r:.200} are not a number for each of its "
            f"{len(classes)} classes: release the graph again"
        ) from error
    if not all(threshold > 0 for threshold in found):
        raise ReleaseError(
            f"the release's thresholds {thresholds!r:.200} are not all above 0: release the graph "
            "again"
        )
    return found

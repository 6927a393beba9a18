"""What a release says about pictures: labels, scores and whether it would rather not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


class Judge:
    """Makes answers of probabilities by a release's thresholds.

    A label is the most probable class, of equals the first; a picture whose score is below its
    label's threshold is abstained from.
    """

    def __init__(self, classes: Sequence[str], thresholds: Any = None) -> None:
        self.classes = tuple(classes)
        self._thresholds = None if thresholds is None else _in_order(self.classes, thresholds)

    def answer(self, probabilities: NDArray[np.float32]) -> Answers:
        """Return the answers that probabilities [N, C] mean."""
        best = probabilities.argmax(axis=1)
        scores = probabilities[np.arange(len(best)), best]
        if self._thresholds is None:
            abstain = np.zeros(len(best), np.bool_)
        else:
            abstain = scores < self._thresholds[best]
        return Answers(probabilities, best, scores, abstain)


def _in_order(classes: tuple[str, ...], thresholds: Any) -> NDArray[np.float32]:
    """Return one threshold per class from a release's list or mapping of them."""
    if isinstance(thresholds, Mapping):
        thresholds = [thresholds.get(name, 0.0) for name in classes]
    found = np.asarray(thresholds, np.float32)
    if found.shape != (len(classes),):
        raise ReleaseError(
            f"the release has thresholds of shape {list(found.shape)}, expected one for each of "
            f"its {len(classes)} classes: release the graph again"
        )
    return found

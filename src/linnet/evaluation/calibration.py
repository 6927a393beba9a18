"""Whether a confidence of 0.8 is right 8 times in 10, and the temperature that makes it so."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]

TEMPERATURES = (0.5, 10.0)


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, and the validation log loss without and with it."""

    value: float
    log_loss_before: float
    log_loss_after: float
    pictures: int


@dataclass(frozen=True)
class Bin:
    """Pictures whose confidence lies in (low, high]; means are null in an empty bin."""

    low: float
    high: float
    pictures: int
    confidence: float | None
    accuracy: float | None


def fit_temperature(logits: Floats, labels: Labels) -> Temperature:
    """Return the temperature that minimises the log loss of softmax(logits / temperature).

    The loss is convex in 1 / temperature, so its slope is bisected between the bounds
    `TEMPERATURES`. The temperature stays 1 unless it lowers the loss by more than one standard
    error of that gain: a handful of validation pictures can't say anything about confidence.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    scores = np.asarray(logits, dtype=np.float64)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(scores, labels, middle) > 0 else (middle, high)
    fitted = 2 / (low + high)
    before, after = _losses(scores, labels, 1.0), _losses(scores, labels, fitted)
    gain = before - after
    error = gain.std() / np.sqrt(len(gain))
    if gain.mean() <= error:
        fitted, after = 1.0, before
    return Temperature(float(fitted), float(before.mean()), float(after.mean()), len(labels))


def bin_of(confidences: Floats, bins: int) -> NDArray[np.int64]:
    """Return each confidence's bin among `bins` of equal width over (0, 1]."""
    return np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)


def reliability(
    labels: Labels, probabilities: Floats, *, bins: int, predicted: Labels | None = None
) -> tuple[Bin, ...]:
    """Return how often the answer is right, by its probability; null: the most probable class."""
    if predicted is None:
        predicted = probabilities.argmax(axis=1)
    confidences = probabilities[np.arange(len(labels)), predicted].astype(np.float64)
    right = predicted == labels
    at = bin_of(confidences, bins)
    counts = np.bincount(at, minlength=bins)
    confidence = np.bincount(at, weights=confidences, minlength=bins)
    accuracy = np.bincount(at, weights=right, minlength=bins)
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            pictures=int(count),
            confidence=float(confidence[index] / count) if count else None,
            accuracy=float(accuracy[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )


def _log_softmax(scores: Floats, sharpness: float) -> Floats:
    scaled = scores * sharpness
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def _losses(scores: Floats, labels: Labels, temperature: float) -> Floats:
    chosen = _log_softmax(scores, 1 / temperature)[np.arange(len(labels)), labels]
    return np.asarray(-chosen)


def _slope(scores: Floats, labels: Labels, sharpness: float) -> float:
    expected = (np.exp(_log_softmax(scores, sharpness)) * scores).sum(axis=1)
    return float((expected - scores[np.arange(len(labels)), labels]).mean())

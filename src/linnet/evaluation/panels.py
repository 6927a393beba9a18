"""Test pictures with what speaks for their answers: the most confident rights and wrongs."""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from linnet.data.pictures import inspect
from linnet.data.preprocessing import on_picture, prepare
from linnet.evaluation.calibration import Labels
from linnet.evaluation.explanation import Attribution, explain
from linnet.evaluation.overlay import to_one
from linnet.inference.predict import Classifier, Predictions
from linnet.progress import track

log = logging.getLogger(__name__)

CELLS = 16

# A large network on a small machine shall not wait for pictures.
_MOST_S = 30.0


@dataclass(frozen=True)
class Panel:
    """A test picture and what speaks for the answer that it got.

    `attribution` covers the picture with 16 × 16 cells, row by row, two hexadecimal digits each:
    0 is nothing (or against), ff the strongest.
    """

    key: str
    label: str
    predicted: str
    confidence: float
    attribution: str

    @property
    def right(self) -> bool:
        """Return whether the answer is the label."""
        return self.predicted == self.label

    def cells(self) -> Attribution:
        """Return the attribution, float32 [16, 16]."""
        levels = np.frombuffer(bytes.fromhex(self.attribution), np.uint8)
        return levels.reshape(CELLS, CELLS).astype(np.float32)


def choose(predictions: Predictions, predicted: Labels, most: int) -> list[int]:
    """Return rows, half of them right, wrong and right in turn.

    The wrong ones are the most confident. So are the right ones, of each class before a second of
    any. Where there are fewer of one kind, there are more of the other.
    """
    confidence = predictions.probabilities[np.arange(len(predicted)), predicted]
    right = predicted == predictions.labels
    ranked = np.argsort(-confidence, kind="stable")
    wrongs = [int(row) for row in ranked if not right[row]]
    rights = _each_class_first([int(row) for row in ranked if right[row]], predicted)
    few = min(len(rights), most - most // 2)
    wrongs = wrongs[: most - few]
    pairs = itertools.zip_longest(wrongs, rights[: most - len(wrongs)])
    return [row for pair in pairs for row in pair if row is not None]


def _each_class_first(ranked: list[int], predicted: Labels) -> list[int]:
    seen: dict[int, int] = {}
    turns = []
    for row in ranked:
        label = int(predicted[row])
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return [row for _, row in sorted(zip(turns, ranked, strict=True), key=lambda pair: pair[0])]


def explain_panels(
    graph: Classifier,
    pictures: Mapping[str, bytes],
    predictions: Predictions,
    predicted: Labels,
    rows: Sequence[int],
    *,
    classes: tuple[str, ...],
    batch_size: int,
) -> tuple[Panel, ...]:
    """Explain the answers [N] of some rows, whose encoded pictures are given by key.

    After 30 seconds the rest is left out, and the log says so.
    """
    started = time.monotonic()
    panels: list[Panel] = []
    for row in track(rows, "explain", len(rows)):
        took = time.monotonic() - started
        if took > _MOST_S:
            log.warning("explained %d of %d pictures in %.0f s", len(panels), len(rows), took)
            break
        label, key = int(predicted[row]), predictions.keys[row]
        panels.append(
            Panel(
                key=key,
                label=classes[predictions.labels[row]],
                predicted=classes[label],
                confidence=float(predictions.probabilities[row, label]),
                attribution=_attribution(graph, pictures[key], label, batch_size),
            )
        )
    return tuple(panels)


def _attribution(graph: Classifier, encoded: bytes, label: int, batch_size: int) -> str:
    spec = graph.preprocessing
    found = explain(graph.predict, prepare(encoded, spec), label, batch_size=batch_size)
    picture = inspect(encoded)
    scale = spec.size_px / max(picture.width, picture.height)
    size = (max(1, round(side * scale)) for side in (picture.width, picture.height))
    return _in_cells(on_picture(found.attribution, spec, *size))


def _in_cells(attribution: Attribution) -> str:
    small = Image.fromarray(attribution.clip(0)).resize((CELLS, CELLS), Image.Resampling.BOX)
    return (255 * to_one(np.asarray(small))).round().astype(np.uint8).tobytes().hex()

"""What a linear probe answers to the test pictures: written by training, measured by evaluate."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from linnet.errors import EvaluationError
from linnet.evaluation.metrics import METRICS, Scorer
from linnet.inference.predict import Predictions
from linnet.settings import Metric

FILE = "probe.npz"


@dataclass(frozen=True)
class Probe:
    """A linear probe beside the model: what it is, in words, and its metrics of the test split."""

    words: str
    metrics: dict[Metric, float | None]


def write_probe(path: Path, answers: Predictions, words: str) -> None:
    """Write a probe's answers to the test split."""
    keys = np.array(answers.keys, dtype=str)
    np.savez(path, keys=keys, probabilities=answers.probabilities, words=np.array(words))


def measure_probe(graph: Path, test: Predictions, *, bins: int) -> Probe | None:
    """Measure the probe that lies beside a graph, None without one.

    Raises:
        EvaluationError: the file is damaged, or of other pictures.
    """
    path = graph / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as found:
            keys, probabilities = found["keys"].tolist(), found["probabilities"]
            words = str(found["words"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise EvaluationError(
            f"{path} can't be read ({error}): export the checkpoint again, or delete the file"
        ) from error
    if keys != test.keys or probabilities.shape != test.probabilities.shape:
        raise EvaluationError(
            f"{path} answers {len(keys)} pictures that are not the {len(test.keys)} test pictures: "
            "train on this dataset again, or delete the file"
        )
    measured = Scorer(test.labels, probabilities, bins=bins).measure()
    values = {name: float(measured[name][0]) for name in METRICS}
    return Probe(
        words, {name: value if np.isfinite(value) else None for name, value in values.items()}
    )

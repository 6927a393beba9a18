"""What a release was measured on, in numbers: a small file that goes with it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from linnet.data.dataset import Dataset
from linnet.errors import DriftError
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions
from linnet.machine import available_cpus
from linnet.monitoring.features import FEATURES, Sample, describe_encoded, rounded
from linnet.release.opening import Release
from linnet.release.rows import spread

KIND = "linnet/drift-reference/v1"
REFERENCE = "drift.json"
MOST_PICTURES = 2000


def write_reference(path: Path, dataset: Dataset, predictions: Predictions, rule: Rule) -> None:
    """Write the numbers of evenly spread test pictures, and the graph's answers to them.

    The test split, because the graph was not fitted to it: on what it was trained on, it is surer
    than it will ever be.
    """
    chosen = spread(len(predictions.keys), MOST_PICTURES)
    wanted = set(chosen.tolist())
    encoded = (row.encoded for index, row in enumerate(dataset.pictures("test")) if index in wanted)
    with ThreadPoolExecutor(available_cpus()) as pool:
        described = list(pool.map(describe_encoded, encoded))
    answers = rule.answer(predictions.probabilities[chosen])
    rows = [
        [*numbers, rounded(score)] for numbers, score in zip(described, answers.scores, strict=True)
    ]
    contents = {
        "kind": KIND,
        "split": "test",
        "classes": list(dataset.classes),
        "features": list(FEATURES),
        "values": rows,
        "answers": answers.best.tolist(),
    }
    path.write_text(json.dumps(contents, separators=(",", ":")) + "\n", encoding="utf-8")


def read_reference(release: Release) -> Sample:
    """Return the sample that a release carries.

    Raises:
        DriftError: it carries none, or one that this Linnet can't compare with.
    """
    if REFERENCE not in release.manifest["files"]:
        raise DriftError(
            f"{release.uri} was released by a Linnet that kept nothing to compare with "
            f"({REFERENCE}): release again, or give what to compare with, `--reference` with the "
            "dataset's folder that it was measured on, a folder of pictures or an older log"
        )
    path = release.path / REFERENCE
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["kind"] != KIND or contents["features"] != list(FEATURES):
            raise DriftError(
                f"{path} is of kind {contents['kind']!r} with {', '.join(contents['features'])}; "
                f"expected {KIND!r} with {', '.join(FEATURES)}: look with the Linnet that released "
                "it, or give `--reference` with the dataset's folder"
            )
        values = np.array(contents["values"], np.float64).reshape(-1, len(FEATURES))
        return Sample(values, np.array(contents["answers"], np.int64))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DriftError(
            f"{path} is damaged ({error!r}): restore the release from a copy"
        ) from error

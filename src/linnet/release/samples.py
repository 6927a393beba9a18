"""The sample pictures of a release, with the graph's answers: what a server warms up on.

JSON with the pictures in base64: a few pictures need no Parquet, and a server without pyarrow is
half the size.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from linnet.errors import ReleaseError


@dataclass(frozen=True)
class Sample:
    """One encoded test picture, the index of its class, and the graph's probabilities [C]."""

    key: str
    encoded: bytes
    label: int
    probabilities: NDArray[np.float32]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples to a file."""
    rows = [
        {
            "key": sample.key,
            "label": sample.label,
            "probabilities": [float(value) for value in sample.probabilities],
            "picture": base64.b64encode(sample.encoded).decode(),
        }
        for sample in samples
    ]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a release.

    Raises:
        ReleaseError: the file is absent or damaged.
    """
    try:
        return [
            Sample(
                key=row["key"],
                encoded=base64.b64decode(row["picture"], validate=True),
                label=int(row["label"]),
                probabilities=np.array(row["probabilities"], np.float32),
            )
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} can't be read ({error!r}): restore it from a copy") from error

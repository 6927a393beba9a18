"""The sample pictures of a release, with the graph's answers: what a server warms up on."""

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "key": pa.array([sample.key for sample in samples], pa.string()),
            "image": pa.array(
                [{"bytes": sample.encoded, "path": sample.key} for sample in samples],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            "label": pa.array([sample.label for sample in samples], pa.int64()),
            "probabilities": pa.array(
                [sample.probabilities for sample in samples], pa.list_(pa.float32())
            ),
        }
    )
    pq.write_table(table, path)


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a release.

    Raises:
        ReleaseError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        return [
            Sample(
                row["key"],
                row["image"]["bytes"],
                row["label"],
                np.asarray(row["probabilities"], np.float32),
            )
            for row in rows
        ]
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} can't be read ({error}): restore it from a copy") from error

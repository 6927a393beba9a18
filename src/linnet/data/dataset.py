"""A dataset on disk: Parquet shards per split and a manifest that is written last.

The shards hold the pictures' original encoded bytes, so pandas, Hugging Face `datasets` and DuckDB
read them as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from linnet.errors import DatasetError
from linnet.manifest import read_manifest
from linnet.settings import SPLITS, Split

KIND = "linnet/dataset/v1"
MANIFEST = "dataset.json"
QUARANTINE = "quarantine.csv"
NEAR_DUPLICATES = "near_duplicates.csv"
CARD = "card.html"


@dataclass(frozen=True)
class Row:
    """One picture of a dataset; `label` is an index into the dataset's classes."""

    key: str
    encoded: bytes
    label: int
    sha256: str
    width: int
    height: int
    group: str | None
    attributes: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """An opened dataset. `mean` and `std` are of the training split, RGB, 0 to 1."""

    path: Path
    version: str
    classes: tuple[str, ...]
    counts: dict[Split, dict[str, int]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Return the dataset in a folder.

        Raises:
            DatasetError: the folder is absent, holds no finished dataset or one of another kind, or
                shards are missing.
        """
        manifest = read_manifest(path / MANIFEST, KIND, step="ingest", error=DatasetError)
        try:
            dataset = cls(
                path=path,
                version=manifest["version"],
                classes=tuple(manifest["classes"]),
                counts={split: dict(manifest["counts"][split]) for split in SPLITS},
                mean=_three(manifest["mean"]),
                std=_three(manifest["std"]),
                manifest=manifest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path / MANIFEST} is damaged ({error!r}): run ingest again"
            ) from error
        for split in SPLITS:
            dataset._check_shards(split)
        return dataset

    def size(self, split: Split) -> int:
        """Return how many pictures a split has."""
        return sum(self.counts[split].values())

    def shards(self, split: Split) -> list[Path]:
        """Return the split's Parquet files, in order."""
        return sorted(self.path.glob(f"{split}-*.parquet"))

    def rows(
        self, split: Split, *, batch_size: int = 256, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield a split's rows in their stable order, at most `batch_size` at a time.

        `columns` may name nested ones, such as `image.bytes`; a batch never spans two shards.
        """
        for shard in self.shards(split):
            with pq.ParquetFile(shard) as file:
                yield from file.iter_batches(batch_size, columns=columns)

    def pictures(self, split: Split) -> Iterator[Row]:
        """Yield a split's pictures in their stable order."""
        for batch in self.rows(split, batch_size=64):
            for row in batch.to_pylist():
                yield Row(
                    key=row["key"],
                    encoded=row["image"]["bytes"],
                    label=row["label"],
                    sha256=row["sha256"],
                    width=row["width"],
                    height=row["height"],
                    group=row["group"],
                    attributes={pair["key"]: pair["value"] for pair in row["attributes"] or ()},
                )

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Return a split's labels, int64 `[N]`, in the order of its rows."""
        return np.array(self._column(split, "label").to_pylist(), dtype=np.int64)

    def keys(self, split: Split) -> list[str]:
        """Return the keys of a split's pictures, in the order of its rows."""
        keys: list[str] = self._column(split, "key").to_pylist()
        return keys

    def _column(self, split: Split, name: str) -> pa.ChunkedArray:
        # Neither pq.read_table nor to_numpy: they import pandas, which takes most of a second.
        tables = [pq.ParquetFile(shard).read(columns=[name]) for shard in self.shards(split)]
        return pa.concat_tables(tables).column(name)

    def _check_shards(self, split: Split) -> None:
        try:
            found = sum(pq.read_metadata(shard).num_rows for shard in self.shards(split))
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(
                f"a {split} shard of the dataset {self.path} is damaged ({error}): run ingest again"
            ) from error
        if found != self.size(split):
            raise DatasetError(
                f"the dataset {self.path} has {found} {split} pictures, expected "
                f"{self.size(split)}: shards are missing, run ingest again or copy it whole"
            )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

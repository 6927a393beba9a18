"""Parts of a batch's output: a file of answers each, and a record that is written after it.

A part with a record is done and whole; what has none is answered again.
"""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from linnet.batch.settings import Shard
from linnet.errors import BatchError, StoreAbsentError
from linnet.stores.objects import ObjectStore

log = logging.getLogger(__name__)

COLUMNS = ("key", "label", "score", "abstain", "release", "true_label")


@dataclass(frozen=True, slots=True)
class Answered:
    """One picture's answer; `best` indexes the classes, `true_label` is what the source says."""

    key: str
    true_label: str | None
    best: int
    score: float
    abstain: bool
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that could not be answered, and why."""

    key: str
    true_label: str | None
    reason: str
    detail: str


@dataclass(frozen=True)
class Record:
    """What a finished part holds.

    `confusion` counts pictures by true and predicted class, of those whose true class the release
    knows; `unknown_labels` counts the others that have one.
    """

    pictures: str
    answered: int
    abstained: int
    labels: dict[str, int]
    confusion: dict[str, dict[str, int]]
    unknown_labels: dict[str, int]
    left_out: tuple[LeftOut, ...] = field(default=())

    @classmethod
    def of(cls, pictures: str, rows: Sequence[Answered | LeftOut], classes: Sequence[str]) -> Self:
        """Return the record of some rows; `pictures` is the digest of what they answer."""
        answered = [row for row in rows if isinstance(row, Answered)]
        known = set(classes)
        confusion: dict[str, Counter[str]] = {}
        unknown: Counter[str] = Counter()
        for row in answered:
            if row.true_label is None:
                continue
            if row.true_label in known:
                confusion.setdefault(row.true_label, Counter())[classes[row.best]] += 1
            else:
                unknown[row.true_label] += 1
        return cls(
            pictures=pictures,
            answered=len(answered),
            abstained=sum(row.abstain for row in answered),
            labels=dict(Counter(classes[row.best] for row in answered)),
            confusion={true: dict(found) for true, found in confusion.items()},
            unknown_labels=dict(unknown),
            left_out=tuple(row for row in rows if isinstance(row, LeftOut)),
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the record that JSON holds."""
        left_out = tuple(LeftOut(**row) for row in values["left_out"])
        return cls(**{**values, "left_out": left_out})


class Parts:
    """The parts of one shard below a place in a store."""

    def __init__(
        self, store: ObjectStore, prefix: str, shard: Shard, *, release: str, classes: Sequence[str]
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._shard = shard
        self._release = release
        self._classes = tuple(classes)

    def done(self, number: int) -> Record | None:
        """Return the record of a finished part, None for one that is still to do.

        Raises:
            BatchError: the record is damaged.
            StoreError: the store can't be read.
        """
        key = self._key("records", number, "json")
        try:
            return Record.from_json(json.loads(self._store.read(key)))
        except StoreAbsentError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise BatchError(
                f"{self._store.uri(key)} is damaged ({error!r}): delete it, and its part is "
                "answered again"
            ) from error

    def write(self, number: int, record: Record, rows: Sequence[Answered], *, as_csv: bool) -> None:
        """Write a part's answers, then its record.

        Raises:
            StoreError: the store is full, denies or can't be reached.
        """
        self._store.write(self._key("answers", number, "parquet"), self._parquet(rows))
        if as_csv:
            self._store.write(self._key("answers", number, "csv"), self._csv(rows))
        text = json.dumps(asdict(record), ensure_ascii=False)
        self._store.write(self._key("records", number, "json"), text.encode())

    def records(self, count: int) -> Iterator[Record]:
        """Yield the records of so many parts, one at a time.

        Raises:
            BatchError: one is gone or damaged.
        """
        for number in range(count):
            record = self.done(number)
            if record is None:
                raise BatchError(
                    f"{self._store.uri(self._key('records', number, 'json'))} is gone: run the "
                    "same command again, and its part is answered again"
                )
            yield record

    def drop_from(self, number: int) -> None:
        """Remove what an earlier state of the source left behind, from a part on."""
        while self.done(number) is not None:
            log.info("part %d is of pictures that are gone: removed", number)
            for folder, kind in (("records", "json"), ("answers", "parquet"), ("answers", "csv")):
                self._store.delete(self._key(folder, number, kind))
            number += 1

    def _key(self, folder: str, number: int, kind: str) -> str:
        name = f"{folder}/part-{self._shard}-{number:05d}.{kind}"
        return f"{self._prefix}/{name}" if self._prefix else name

    def _parquet(self, rows: Sequence[Answered]) -> bytes:
        # Made of one array: a list of arrays would be looked at number by number.
        numbers = np.array([row.probabilities for row in rows], np.float32)
        starts = np.arange(len(rows) + 1, dtype=np.int32) * len(self._classes)
        table = pa.table(
            {
                "key": pa.array([row.key for row in rows], pa.string()),
                "label": pa.array([self._classes[row.best] for row in rows], pa.string()),
                "score": pa.array([row.score for row in rows], pa.float32()),
                "abstain": pa.array([row.abstain for row in rows], pa.bool_()),
                "release": pa.array([self._release] * len(rows), pa.string()),
                "true_label": pa.array([row.true_label for row in rows], pa.string()),
                "probabilities": pa.ListArray.from_arrays(starts, numbers.ravel()),
            }
        )
        table = table.replace_schema_metadata({"classes": json.dumps(self._classes)})
        file = io.BytesIO()
        pq.write_table(table, file, use_dictionary=["label", "release", "true_label"])
        return file.getvalue()

    def _csv(self, rows: Sequence[Answered]) -> bytes:
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"probability {name}" for name in self._classes)])
        for row in rows:
            label, abstain = self._classes[row.best], str(row.abstain).lower()
            known = (row.key, label, f"{row.score:.7g}", abstain, self._release, row.true_label)
            writer.writerow([*known, *(f"{value:.7g}" for value in row.probabilities)])
        return file.getvalue().encode()

"""How often a model is right in use: true labels that came back, joined with what was answered.

Labels that the answering server took know their answer. Others, taken by another pod or from a
file, are looked up in the prediction log by request id, so no clock has to agree with another.
"""

import csv
import io
import logging
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from linnet.errors import FeedbackError, StoreAbsentError
from linnet.evaluation.slices import wilson
from linnet.inference.log_layout import FEEDBACK, PREDICTIONS
from linnet.stores.connections import Connections
from linnet.stores.objects import ObjectStore, open_store

log = logging.getLogger(__name__)

# A request's picture: its id and the picture's number in it.
Asked = tuple[str, int]

_SHOWN = 5
_SCHEMA = pa.schema(
    {
        "time": pa.timestamp("ms", tz="UTC"),
        "request_id": pa.string(),
        "number": pa.int32(),
        "true_label": pa.string(),
        "release": pa.string(),
        "label": pa.string(),
    }
)


@dataclass(frozen=True)
class ReleaseAccuracy:
    """What true labels say of a release; `low` and `high` bound the accuracy (Wilson)."""

    release: str
    labelled: int
    right: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class LiveAccuracy:
    """A model's accuracy in use, by release; `unknown` are pictures that no log has."""

    model: str
    releases: tuple[ReleaseAccuracy, ...]
    unknown: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class _Label:
    time: datetime
    asked: Asked
    true_label: str | None
    release: str | None = None
    label: str | None = None


class LogReader:
    """The prediction log of one model, as its servers write it."""

    def __init__(self, place: str, model: str, connections: Connections | None = None) -> None:
        self._store, self._prefix = open_store(place, connections)
        self._model = model
        self.place = place

    def labels(self, since: datetime) -> Iterator[_Label]:
        """Yield the true labels that came since then, and a day more, for clocks that are wrong."""
        since -= timedelta(days=1)
        for rows in self._rows(FEEDBACK, list(_SCHEMA.names), since):
            for row in rows:
                if row["time"] >= since:
                    asked = (row["request_id"], row["number"])
                    said = (row["true_label"], row["release"], row["label"])
                    yield _Label(row["time"], asked, *said)

    def answers(self, wanted: set[Asked]) -> dict[Asked, tuple[str, str]]:
        """Return release and label of pictures that were logged, the newest answer of each."""
        found: dict[Asked, tuple[str, str]] = {}
        columns = ["request_id", "number", "release", "label"]
        for rows in self._rows(PREDICTIONS, columns) if wanted else ():
            for row in reversed(rows):
                asked = (row["request_id"], row["number"])
                if asked in wanted:
                    found.setdefault(asked, (row["release"], row["label"]))
            if len(found) == len(wanted):
                break
        return found

    def write(self, labels: Sequence[_Label]) -> None:
        """Write true labels as a server does."""
        rows = [
            {
                "time": each.time,
                "request_id": each.asked[0],
                "number": each.asked[1],
                "true_label": each.true_label,
                "release": each.release,
                "label": each.label,
            }
            for each in labels
        ]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), file)
        name = f"{datetime.now(UTC):date=%Y-%m-%d/%H%M%S}-{secrets.token_hex(3)}.parquet"
        self._store.write(f"{self._below(FEEDBACK)}/{name}", file.getvalue())

    def _rows(
        self, kind: str, columns: list[str], since: datetime | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each part, the newest first."""
        first = "" if since is None else f"{since:date=%Y-%m-%d}"
        days = [day for day in self._store.folders(self._below(kind)) if day >= first]
        for day in reversed(days):
            keys = [entry.key for entry in self._store.entries(f"{self._below(kind)}/{day}")]
            for key in reversed(keys):
                yield _read(self._store, key, columns)

    def _below(self, kind: str) -> str:
        return "/".join(part for part in (self._prefix, kind, self._model) if part)


def live_accuracy(
    place: str,
    model: str,
    *,
    days: float = 7.0,
    confidence: float = 0.95,
    connections: Connections | None = None,
) -> LiveAccuracy:
    """Return a model's accuracy by release on the true labels of the last days.

    Of several labels for a picture the last one counts.

    Raises:
        FeedbackError: a part of the log is damaged.
        StoreError: or a subclass: the log can't be reached or read.
    """
    reader = LogReader(place, model, connections)
    labels: dict[Asked, _Label] = {}
    for each in reader.labels(datetime.now(UTC) - timedelta(days=days)):
        known = labels.get(each.asked)
        if known is None or each.time > known.time:
            labels[each.asked] = each
    answers = reader.answers({asked for asked, each in labels.items() if each.release is None})
    right: dict[str, list[bool]] = defaultdict(list)
    unknown = []
    for asked, each in labels.items():
        answer = answers.get(asked) if each.release is None else (each.release, each.label)
        if answer is None:
            unknown.append(asked)
        else:
            right[str(answer[0])].append(answer[1] == each.true_label)
    releases = [_accuracy(name, found, confidence) for name, found in sorted(right.items())]
    return LiveAccuracy(model, tuple(releases), tuple(sorted(unknown)))


def give(
    file: Path,
    place: str,
    model: str,
    *,
    skip_unknown: bool = False,
    connections: Connections | None = None,
) -> int:
    """Write the true labels of a CSV into a log and return how many.

    Columns: `request_id`, `label` (empty: of none of the classes) and, for requests of several
    pictures, `number`.

    Raises:
        FeedbackError: the file can't be read, or has requests that were not logged; nothing is
            written.
        StoreError: or a subclass: the log can't be reached or written.
    """
    labels = _read_labels(file)
    reader = LogReader(place, model, connections)
    answers = reader.answers({each.asked for each in labels})
    unknown = [each.asked for each in labels if each.asked not in answers]
    if unknown and not skip_unknown:
        shown = ", ".join(f"{id} ({number})" for id, number in unknown[:_SHOWN])
        raise FeedbackError(
            f"{len(unknown)} of the {len(labels)} pictures that {file} names were not logged for "
            f"{model} at {place}, or longer ago than it is kept: {shown}"
            f"{', …' if len(unknown) > _SHOWN else ''}. Check the ids and the model's name; "
            "--skip-unknown takes the others"
        )
    known = [each for each in labels if each.asked in answers]
    if known:
        joined = ((each, *answers[each.asked]) for each in known)
        reader.write([replace(each, release=r, label=label) for each, r, label in joined])
    return len(known)


def _accuracy(release: str, right: Sequence[bool], confidence: float) -> ReleaseAccuracy:
    hits, total = sum(right), len(right)
    return ReleaseAccuracy(release, total, hits, hits / total, *wilson(hits, total, confidence))


def _read(store: ObjectStore, key: str, columns: list[str]) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(io.BytesIO(store.read(key)), columns=columns)
        return list(table.to_pylist())
    except StoreAbsentError:
        # Its time was over: a server has just deleted it.
        return []
    except (pa.ArrowException, KeyError) as error:
        raise FeedbackError(
            f"{store.uri(key)} is no part of a prediction log ({error}): delete it, or give the "
            "place that servers log to"
        ) from error


def _read_labels(file: Path) -> list[_Label]:
    now = datetime.now(UTC)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FeedbackError(
            f"{file} can't be read as a table ({error}): give a CSV in UTF-8 with the columns "
            "request_id and label"
        ) from error
    if not rows or not {"request_id", "label"} <= rows[0].keys():
        raise FeedbackError(
            f"{file} has no lines, or not the columns request_id and label (and number, for "
            "requests of several pictures)"
        )
    try:
        return [
            _Label(now, (row["request_id"], int(row.get("number") or 0)), row["label"] or None)
            for row in rows
        ]
    except ValueError as error:
        raise FeedbackError(f"{file} has a number that is none ({error}): correct it") from error

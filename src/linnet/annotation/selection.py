"""Which pictures people should look at first: those that the release is least sure of."""

import hashlib
import heapq
import io
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from linnet.batch.predicting import batch
from linnet.batch.summary import PLAN
from linnet.data.pictures import decode, inspect
from linnet.data.sources import open_pile
from linnet.errors import AnnotationError, PictureError, StoreAbsentError
from linnet.inference.log_layout import PREDICTIONS
from linnet.settings import SourceSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import ObjectStore, open_store

log = logging.getLogger(__name__)

Order = Literal["margin", "entropy", "confidence"]

# What browsers show; other pictures are sent as PNG.
_SHOWN = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}
_COLUMNS = ("label", "score", "release", "probabilities")


@dataclass(frozen=True, eq=False)
class Answered:
    """A picture's answer; `probabilities` is [C]."""

    key: str
    label: str
    score: float
    release: str
    probabilities: NDArray[np.float64]

    @property
    def margin(self) -> float:
        """Return how far the best class is ahead of the second, 0 to 1."""
        second, best = np.sort(self.probabilities)[-2:]
        return float(best - second)

    @property
    def entropy(self) -> float:
        """Return the entropy of the probabilities in bits: 0 for an answer without doubt."""
        positive = self.probabilities[self.probabilities > 0]
        return float(-(positive * np.log2(positive)).sum())

    def rank(self, order: Order) -> tuple[float, str]:
        """Return what sorts the least certain answers first."""
        value = {"margin": self.margin, "entropy": -self.entropy, "confidence": self.score}[order]
        return value, self.key


@dataclass(frozen=True, eq=False)
class Candidate:
    """A picture to annotate, as a browser can show it, and the release's answer to it."""

    answer: Answered
    encoded: bytes
    sha256: str
    suffix: str

    @classmethod
    def of(cls, answer: Answered, encoded: bytes) -> "Candidate":
        """Return the candidate that an encoded picture is.

        Raises:
            PictureError: it can't be shown.
        """
        suffix = _SHOWN.get(inspect(encoded).format)
        if suffix is None:
            file = io.BytesIO()
            decode(encoded).save(file, "PNG")
            encoded, suffix = file.getvalue(), "png"
        return cls(answer, encoded, hashlib.sha256(encoded).hexdigest(), suffix)


@dataclass(frozen=True)
class Chosen:
    """The pictures to annotate in their order, and how many were there already or can't be shown.

    `known` counts pictures whose content another one or an earlier task has.
    """

    candidates: tuple[Candidate, ...]
    known: int
    unusable: int


class _Choice:
    """Lets each content pass once, and counts what it holds back."""

    def __init__(self, known: Iterable[str]) -> None:
        self._seen = set(known)
        self.known = self.unusable = 0

    def new(self, pictures: Iterable[tuple[Answered, bytes | None]]) -> Iterator[Candidate]:
        for answer, encoded in pictures:
            try:
                if encoded is None:
                    raise PictureError("missing", answer.key)
                candidate = Candidate.of(answer, encoded)
            except PictureError as error:
                log.debug("%s is left out: %s", answer.key, error)
                self.unusable += 1
                continue
            if candidate.sha256 in self._seen:
                self.known += 1
                continue
            self._seen.add(candidate.sha256)
            yield candidate


def choose(
    place: str,
    *,
    order: Order,
    limit: int,
    known: Iterable[str] = (),
    release: str | None = None,
    model: str | None = None,
    hours: float | None = None,
    connections: Connections | None = None,
) -> Chosen:
    """Return the pictures of a place that the release is least sure of, the least certain first.

    `place`: output of `linnet batch`; a prediction log, of which `model` is read, the last `hours`
    of it or all; or, with `release`, any source, which is answered first. `known` are SHA-256 of
    pictures that are not wanted again.

    Raises:
        AnnotationError: the place is none of these, or nothing of it can be annotated.
        LinnetError: a store, the source or the release can't be read; says why.
    """
    choice = _Choice(known)
    store, prefix = open_store(place, connections)
    if release is not None:
        found = _answered_now(place, release, choice, order, limit, connections)
    elif store.exists(_below(prefix, PLAN)):
        found = _of_batch(place, choice, order, limit, connections)
    elif store.folders(_below(prefix, PREDICTIONS)):
        rows = _logged(store, _below(prefix, PREDICTIONS, _only_model(store, prefix, model)), hours)
        found = heapq.nsmallest(limit, choice.new(rows), key=lambda c: c.answer.rank(order))
    else:
        raise AnnotationError(
            f"{place} is neither the output of `linnet batch` nor a prediction log: give one of "
            "them, or --release to answer the pictures of a folder first"
        )
    return Chosen(tuple(found), choice.known, choice.unusable)


def _answered_now(
    place: str,
    release: str,
    choice: _Choice,
    order: Order,
    limit: int,
    connections: Connections | None,
) -> list[Candidate]:
    with TemporaryDirectory(prefix="linnet-annotate-") as scratch:
        batch(SourceSettings(uri=place), release, scratch, connections=connections)
        return _of_batch(scratch, choice, order, limit, connections)


def _of_batch(
    output: str, choice: _Choice, order: Order, limit: int, connections: Connections | None
) -> list[Candidate]:
    store, prefix = open_store(output, connections)
    plan = json.loads(store.read(_below(prefix, PLAN)))
    answers = [
        _answered(row, row["key"])
        for entry in store.entries(_below(prefix, "answers"))
        if entry.key.endswith(".parquet")
        for row in _rows(store, entry.key, ("key", *_COLUMNS))
    ]
    answers.sort(key=lambda answer: answer.rank(order))
    with TemporaryDirectory(prefix="linnet-annotate-") as scratch:
        pile = open_pile(
            SourceSettings.model_validate(plan["source"]), Path(scratch), connections=connections
        )
        paths = {item.key: item.path for item in pile.items}

        def read(key: str) -> bytes | None:
            path = paths.get(key)
            try:
                return None if path is None else pile.read(path)
            except (OSError, StoreAbsentError):
                return None

        pictures = ((answer, read(answer.key)) for answer in answers)
        return [c for _, c in zip(range(limit), choice.new(pictures), strict=False)]


def _logged(
    store: ObjectStore, prefix: str, hours: float | None
) -> Iterator[tuple[Answered, bytes | None]]:
    since = datetime.now(UTC) - timedelta(hours=hours) if hours is not None else None
    for day in store.folders(prefix):
        if since is not None and day < f"{since:date=%Y-%m-%d}":
            continue
        for entry in store.entries(f"{prefix}/{day}"):
            columns = ("time", "request_id", "number", "picture", *_COLUMNS)
            for row in _rows(store, entry.key, columns):
                if since is None or row["time"] >= since:
                    yield _answered(row, f"{row['request_id']}/{row['number']}"), row["picture"]


def _rows(store: ObjectStore, key: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    try:
        yield from pq.read_table(io.BytesIO(store.read(key)), columns=list(columns)).to_pylist()
    except StoreAbsentError:
        # The log's own retention has just taken it.
        return
    except (pa.ArrowException, KeyError, OSError) as error:
        raise AnnotationError(
            f"{store.uri(key)} can't be read ({error}): expected Parquet with the columns "
            f"{', '.join(columns)}, as `linnet batch` and the prediction log write it"
        ) from error


def _answered(row: dict[str, Any], key: str) -> Answered:
    probabilities = np.array(row["probabilities"], np.float64)
    return Answered(key, row["label"], float(row["score"]), row["release"], probabilities)


def _only_model(store: ObjectStore, prefix: str, model: str | None) -> str:
    """Return the model to read of a log: the one asked for, or the only one there is."""
    models = store.folders(_below(prefix, PREDICTIONS))
    if model in models:
        return str(model)
    if model is None and len(models) == 1:
        return models[0]
    raise AnnotationError(
        f"the prediction log at {store.uri(prefix)} has answers of {', '.join(models)}, not of "
        f"{model or 'one model alone'}: say which with --model"
    )


def _below(prefix: str, *parts: str) -> str:
    return "/".join(part for part in (prefix, *parts) if part)

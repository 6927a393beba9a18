"""The prediction log: a sample of the requests and their answers, as Parquet in an object store.

Answers never wait for it: a request is noted in microseconds or dropped, and one thread makes parts
of what was noted and writes them. Everything is bounded: requests a second, bytes in memory, bytes
an hour, free space, days. What can't be kept is counted, and is never the caller's trouble.

    <to>/predictions/<model>/date=2026-11-21/093402-v3-5f3a91.parquet
    <to>/feedback/<model>/date=2026-11-21/093455-5f3a91.parquet

Days and times are the server's, in UTC. Servers hold no pyarrow, so arro3 writes.
"""

import io
import logging
import random
import re
import secrets
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnet.data.pictures import decode
from linnet.errors import LinnetError
from linnet.inference.answers import Answers
from linnet.inference.log_layout import FEEDBACK, PREDICTIONS
from linnet.inference.metrics import Metrics
from linnet.inference.settings import PredictionLogSettings
from linnet.inference.v2 import Buffer, Pixels
from linnet.stores.connections import Connections
from linnet.stores.objects import FolderStore, ObjectStore, Patience, open_store

if TYPE_CHECKING:
    from arro3.core import Array

logger = logging.getLogger(__name__)

Outcome = Literal["written", "too_many", "no_memory", "too_much", "disk_full", "lost"]

# A store that is down must not hold up what waits behind it for minutes.
_PATIENCE = Patience(attempts=2, first_wait_s=0.5, connect_s=5.0, read_s=15.0)
_ROW_BYTES = 300
_PURGE_EVERY_S = 3600.0
_LONGEST_RETRY_S = 60.0
_DAY = re.compile(r"date=(\d{4}-\d{2}-\d{2})")
_THUMBNAIL_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Told:
    """A true label that came back; `release` and `label` are what was answered, where known."""

    model: str
    request_id: str
    number: int
    true_label: str | None
    release: str | None
    label: str | None
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class _Noted:
    """One request with its answers; pictures are files, pixels, or nothing."""

    model: str
    release: str
    request_id: str
    classes: tuple[str, ...]
    answers: Answers
    pictures: Sequence[bytes | Pixels | None]
    size: int
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class _Part:
    """A Parquet file to write; `size` is what it holds of the memory."""

    key: str
    content: bytes
    of: tuple[str, str]
    rows: int
    size: int


class PredictionLog:
    """Takes notes on the event loop's thread, and writes them on one of its own.

    Raises:
        StoreError: the address is of no known kind, or S3 and nothing says where that is.
    """

    def __init__(
        self, settings: PredictionLogSettings, metrics: Metrics, connections: Connections | None
    ) -> None:
        self.on = settings.to is not None
        self._settings = settings
        self._metrics = metrics
        self._held = 0
        self._noted = 0
        self._lock = threading.Condition(threading.Lock())
        self._notes: deque[_Noted | Told] = deque()
        self._unwritten: deque[_Part] = deque()
        self._allowed = settings.per_second
        self._allowed_at = time.monotonic()
        self._hour = (0, 0)
        self._purged_at = -float("inf")
        self._failed = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        if settings.to is not None:
            self._store, self._prefix = open_store(settings.to, connections, patience=_PATIENCE)
            self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
            self._thread.start()
            metrics.log_held.set_function(lambda: self._held)
            metrics.log_failures.set_function(lambda: self._failed)

    def note(
        self,
        model: str,
        release: str,
        classes: tuple[str, ...],
        *,
        request_id: str,
        pixels: Pixels | None,
        encoded: Sequence[Buffer] | None,
        answers: Answers,
    ) -> None:
        """Take note of an answered request, if it is drawn and there is room for it.

        Nothing that goes wrong here is the request's trouble.
        """
        if not self.on or random.random() >= self._settings.share:
            return
        count = len(answers.best)
        outcome: Outcome | None
        try:
            given = list(encoded or ()) if pixels is None else list(pixels)
            pictures = [None] * count if self._settings.pictures == "none" else given
            size = count * _ROW_BYTES + answers.probabilities.nbytes + sum(map(_size, pictures))
            outcome = self._refusal(size)
            if outcome is None:
                # Copies: what came over the wire is not kept alive longer than the request.
                kept = [_copied(picture) for picture in pictures]
                self._put(_Noted(model, release, request_id, classes, answers, kept, size), size)
        except Exception:
            logger.exception("request %s could not be noted in the prediction log", request_id)
            outcome = "lost"
        if outcome is not None:
            self._count(model, release, outcome, count)

    def tell(self, told: Sequence[Told]) -> bool:
        """Take note of true labels; return whether there is room for them."""
        size = len(told) * _ROW_BYTES
        if not self.on or self._held + size > self._settings.memory_bytes:
            return False
        for each in told:
            self._put(each, _ROW_BYTES)
        return True

    def close(self, within_s: float) -> None:
        """Write what is noted and stop; what can't be written in time is counted as lost."""
        if self._thread is None:
            return
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(within_s)
        if left := list(self._unwritten):
            for part in left:
                self._count(*part.of, "lost", part.rows)
            rows = sum(part.rows for part in left)
            logger.warning("%d rows of the prediction log could not be written in time", rows)

    def _refusal(self, size: int) -> Outcome | None:
        """Return why a request of so many bytes is not noted, None where it may be."""
        if not self._take_turn():
            return "too_many"
        return "no_memory" if self._held + size > self._settings.memory_bytes else None

    def _put(self, note: "_Noted | Told", size: int) -> None:
        with self._lock:
            self._held += size
            self._noted += size
            self._notes.append(note)
            if self._noted >= self._settings.part_bytes and not self._failed:
                self._lock.notify()

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size

    def _take_turn(self) -> bool:
        """Return whether one more request may be logged this second (a bucket of tokens)."""
        now, most = time.monotonic(), max(1.0, self._settings.per_second)
        passed = now - self._allowed_at
        self._allowed = min(most, self._allowed + passed * self._settings.per_second)
        self._allowed_at = now
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._closing:
                    self._lock.wait(self._pause_s())
                closing, notes, size = self._closing, self._notes, self._noted
                self._notes, self._noted = deque(), 0
            try:
                self._unwritten.extend(self._parts_of(notes))
            except Exception:
                logger.exception("%d notes of the prediction log are lost", len(notes))
                self._give_back(size)
            try:
                self._write_all()
                if not closing:
                    self._purge()
            except Exception:
                logger.exception("the prediction log failed; serving goes on")
            if closing:
                return

    def _pause_s(self) -> float:
        """Return how long to wait for a part to fill: longer and longer while the store is down."""
        if not self._failed:
            return self._settings.part_s
        return max(self._settings.part_s, min(_LONGEST_RETRY_S, 2.0**self._failed))

    def _write_all(self) -> None:
        while self._unwritten:
            part = self._unwritten[0]
            outcome = self._written(part)
            if outcome is None:
                self._failed = min(self._failed + 1, 6)
                return
            self._unwritten.popleft()
            self._give_back(part.size)
            self._count(*part.of, outcome, part.rows)
        self._failed = 0

    def _written(self, part: _Part) -> Outcome | None:
        """Return what became of a part; None: try again later."""
        hour = int(time.time() // 3600)
        so_far = self._hour[1] if self._hour[0] == hour else 0
        if so_far + len(part.content) > self._settings.bytes_per_hour:
            return "too_much"
        if not self._has_space(self._store):
            return "disk_full"
        try:
            self._store.write(part.key, part.content)
        except (LinnetError, OSError) as error:
            if not self._failed:
                logger.warning("the prediction log can't be written; serving goes on: %s", error)
            return None
        self._hour = (hour, so_far + len(part.content))
        return "written"

    def _has_space(self, store: ObjectStore) -> bool:
        if not isinstance(store, FolderStore):
            return True
        folder = store.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free >= self._settings.least_free_bytes

    def _purge(self) -> None:
        """Delete the days that are older than the settings keep them."""
        now = time.monotonic()
        if self._settings.keep_days is None or now - self._purged_at < _PURGE_EVERY_S:
            return
        oldest = datetime.now(UTC).date() - timedelta(days=self._settings.keep_days)
        try:
            for kind in (PREDICTIONS, FEEDBACK):
                for model in self._store.folders(self._key(kind)):
                    self._purge_below(self._key(kind, model), oldest.isoformat())
        except (LinnetError, OSError) as error:
            logger.warning("old parts of the prediction log can't be deleted yet: %s", error)
        self._purged_at = now

    def _purge_below(self, prefix: str, oldest: str) -> None:
        for name in self._store.folders(prefix):
            day = _DAY.fullmatch(name)
            if day is None or day[1] >= oldest:
                continue
            keys = [entry.key for entry in self._store.entries(f"{prefix}/{name}")]
            for key in keys:
                self._store.delete(key)
            logger.info("%d parts of %s/%s were kept long enough: deleted", len(keys), prefix, name)

    def _parts_of(self, notes: "Iterable[_Noted | Told]") -> list[_Part]:
        """Return the files that notes make, each of one model, release and day, none too large."""
        predictions: dict[tuple[str, str, str], list[_Noted]] = defaultdict(list)
        told: dict[tuple[str, str], list[Told]] = defaultdict(list)
        sizes: dict[tuple[str, str, str], int] = defaultdict(int)
        parts = []
        for note in notes:
            day = _moment(note.time_s).strftime("date=%Y-%m-%d")
            if isinstance(note, Told):
                told[note.model, day].append(note)
                continue
            of = (note.model, note.release, day)
            if sizes[of] > self._settings.part_bytes:
                parts.append(self._prediction_part(*of, predictions.pop(of)))
                del sizes[of]
            predictions[of].append(note)
            sizes[of] += note.size
        parts += [self._prediction_part(*of, noted) for of, noted in predictions.items()]
        return parts + [
            self._feedback_part(model, day, rows) for (model, day), rows in told.items()
        ]

    def _prediction_part(
        self, model: str, release: str, day: str, noted: Sequence[_Noted]
    ) -> _Part:
        rows = [(note, number) for note in noted for number in range(len(note.answers.best))]
        probabilities = np.concatenate([note.answers.probabilities for note in noted])
        content = _parquet(
            {
                "time": _times([note.time_s for note, _ in rows]),
                "request_id": [note.request_id for note, _ in rows],
                "number": _array([number for _, number in rows], "int32"),
                "model": [model] * len(rows),
                "release": [release] * len(rows),
                "label": [n.classes[n.answers.best[i]] for n, i in rows],
                "score": _array([float(n.answers.scores[i]) for n, i in rows], "float32"),
                "abstain": _array([bool(n.answers.abstain[i]) for n, i in rows], "bool"),
                "probabilities": _lists(probabilities),
                "picture": _array([self._picture(n.pictures[i]) for n, i in rows], "binary"),
            }
        )
        version = re.sub(r"[^\w.-]", "_", release.rpartition("/")[2])
        key = self._key(PREDICTIONS, model, day, self._name(noted[0].time_s, version))
        size = sum(note.size for note in noted)
        return _Part(key, content, (model, release), len(rows), size)

    def _feedback_part(self, model: str, day: str, told: Sequence[Told]) -> _Part:
        content = _parquet(
            {
                "time": _times([row.time_s for row in told]),
                "request_id": [row.request_id for row in told],
                "number": _array([row.number for row in told], "int32"),
                "true_label": [row.true_label for row in told],
                "release": [row.release for row in told],
                "label": [row.label for row in told],
            }
        )
        key = self._key(FEEDBACK, model, day, self._name(told[0].time_s))
        return _Part(key, content, (model, FEEDBACK), len(told), len(told) * _ROW_BYTES)

    def _picture(self, picture: bytes | Pixels | None) -> bytes | None:
        """Return what is kept of a picture: the file as it came, or a small one."""
        original, side = self._settings.pictures == "original", self._settings.thumbnail_px
        if picture is None or (original and isinstance(picture, bytes)):
            return picture
        file = io.BytesIO()
        if isinstance(picture, bytes):
            shown = decode(picture, at_least_px=side)
        else:
            shown = Image.fromarray(picture)
        if original:
            shown.save(file, "PNG", compress_level=1)
        else:
            shown.thumbnail((side, side))
            shown.save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
        return file.getvalue()

    def _name(self, time_s: float, version: str = "") -> str:
        at = _moment(time_s).strftime("%H%M%S")
        return "-".join(part for part in (at, version, secrets.token_hex(3)) if part) + ".parquet"

    def _key(self, *parts: str) -> str:
        return "/".join(part for part in (self._prefix, *parts) if part)

    def _count(self, model: str, release: str, outcome: Outcome, rows: int) -> None:
        self._metrics.logged.labels(model, release, outcome).inc(rows)


def _copied(picture: Buffer | Pixels | None) -> bytes | Pixels | None:
    if picture is None or isinstance(picture, bytes):
        return picture
    return picture.copy() if isinstance(picture, np.ndarray) else bytes(picture)


def _size(picture: Buffer | Pixels | None) -> int:
    if picture is None:
        return 0
    return picture.nbytes if isinstance(picture, np.ndarray) else len(picture)


def _moment(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, UTC)


def _parquet(columns: dict[str, Any]) -> bytes:
    """Return a Parquet file of these columns; lists are of strings."""
    from arro3.core import Table
    from arro3.io import write_parquet

    arrays = {
        name: _array(values, "utf8") if isinstance(values, list) else values
        for name, values in columns.items()
    }
    file = io.BytesIO()
    write_parquet(Table.from_pydict(arrays), file, compression="zstd(1)")
    return file.getvalue()


def _array(
    values: Sequence[Any], kind: Literal["utf8", "binary", "int32", "float32", "bool"]
) -> "Array":
    from arro3.core import Array, DataType

    return Array(values, getattr(DataType, kind)())


def _times(seconds: Sequence[float]) -> "Array":
    from arro3.core import Array, DataType

    milliseconds = [round(1000 * value) for value in seconds]
    return Array(milliseconds, DataType.int64()).cast(DataType.timestamp("ms", tz="UTC"))


def _lists(rows: NDArray[np.float32]) -> "Array":
    """Return rows [N, C] as N lists."""
    from arro3.core import Array, list_array

    ends = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return list_array(Array.from_numpy(ends), Array.from_numpy(np.ascontiguousarray(rows).ravel()))

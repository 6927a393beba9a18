"""Pictures in, answers out: decoded as the server decodes, answered by the graph that it serves.

Threads read ahead, others decode and run the graph on one thread each, and the answers come back in
order, so memory holds some hundred pictures however many there are.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Semaphore

import numpy as np

from linnet.batch.parts import Answered, LeftOut, Parts, Record
from linnet.batch.settings import BatchSettings, Shard
from linnet.batch.summary import BatchSummary, Output
from linnet.data.preprocessing import Preprocessing, prepare
from linnet.data.sources import Item, open_pile
from linnet.data.workers import Workers, threads
from linnet.errors import PictureError, StoreAbsentError
from linnet.inference.answers import Rule
from linnet.inference.batch_size import measure
from linnet.inference.session import Session
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.release.opening import Release, open_release
from linnet.settings import SourceSettings
from linnet.stores.connections import Connections

log = logging.getLogger(__name__)

Loaded = tuple[Item, bytes | PictureError]

_CHUNK = 16
# Pictures of a run of the graph, where there are too few for measuring what suits it.
_AT_ONCE = 4
_WORTH_MEASURING = 500
_READERS = 4
# What is wrong with a label does not keep a picture from being answered.
_ABOUT_LABELS = frozenset(
    {
        "unlabelled",
        "unsplit",
        "tied_votes",
        "conflicting_labels",
        "conflicting_splits",
        "conflicting_groups",
    }
)


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures whose answers are written together; `pictures` is a digest that stands for them."""

    number: int
    pictures: str
    items: Sequence[Item]


def batch(
    source: SourceSettings,
    release: str,
    output: str,
    settings: BatchSettings | None = None,
    *,
    shard: Shard | None = None,
    connections: Connections | None = None,
) -> BatchSummary:
    """Answer every picture of a source, or of its shard, and return what came of it.

    `output` is a folder or `s3://bucket/prefix`. Parts that are there already, of the same pictures
    and the same release, are not done again.

    Raises:
        BatchError: `output` holds answers of something else, or no picture could be answered.
        SourceError: the source is absent, broken or unsafe.
        ReleaseError: the release is absent or not whole.
        StoreError: or a subclass: a store is full, denies or can't be reached.
    """
    settings, shard = settings or BatchSettings(), shard or Shard()
    started = time.monotonic()
    with TemporaryDirectory(prefix="linnet-batch-") as temporary:
        opened = open_release(release, scratch=Path(temporary), connections=connections)
        pile = open_pile(source, Path(temporary) / "source", connections=connections)
        answers = Output.open(output, opened, source, settings, shard, connections)
        read, items = pile.read, [item for item in pile.items if shard.has(item.key)]
        # A source may have millions of pictures: those of other shards are not kept in memory.
        del pile
        parts = _parts(items, settings.part_pictures, Path(temporary))
        todo = [part for part in parts if _to_do(part, answers.parts.done(part.number))]
        if len(todo) < len(parts):
            log.info("%d of %d parts are done already", len(parts) - len(todo), len(parts))
        if todo:
            pictures = sum(len(part.items) for part in todo)
            model = Model(opened, read, settings, measured=pictures >= _WORTH_MEASURING)
            _answer_all(model, answers.parts, todo, settings)
        summary = answers.finish(len(parts), Path(temporary), time.monotonic() - started)
    log.info("%s", summary.headline())
    summary.require_answers()
    return summary


class Model:
    """A release that answers loaded pictures. Safe to call from several threads.

    `measured`: the first thread that calls finds out how many pictures a run should have.
    """

    def __init__(
        self,
        release: Release,
        read: Callable[[Path], bytes],
        settings: BatchSettings,
        *,
        measured: bool,
    ) -> None:
        digest = release.manifest["files"][release.graph_path.name]["sha256"]
        self.threads = settings.threads or available_cpus()
        self.classes = tuple(release.manifest["classes"])
        self._read = read
        self._rule = Rule.of(release.manifest)
        self._spec = Preprocessing.from_json(release.manifest["preprocessing"])
        self._session = Session(release.graph_path, sha256=digest, threads=1)
        self._at_once = _AT_ONCE
        self._to_measure = Semaphore(int(measured))

    def load(self, items: Sequence[Item]) -> list[Loaded]:
        """Return pictures with their bytes, or with why they have none."""
        return [(item, self._bytes_of(item)) for item in items]

    def answer(self, loaded: Sequence[Loaded]) -> list[Answered | LeftOut]:
        """Return a row for each picture, those that were left out first."""
        items, prepared = [], []
        rows: list[Answered | LeftOut] = []
        for item, encoded in loaded:
            try:
                if isinstance(encoded, PictureError):
                    raise encoded
                prepared.append(prepare(encoded, self._spec))
                items.append(item)
            except PictureError as error:
                rows.append(LeftOut(item.key, item.label, error.reason, error.detail))
        at_once = self._pictures_of_a_run()
        for start in range(0, len(items), at_once):
            together = np.stack(prepared[start : start + at_once])
            said = self._rule.answer(self._session.predict(together))
            rows += [
                Answered(item.key, item.label, int(best), float(score), bool(abstain), found)
                for item, best, score, abstain, found in zip(
                    items[start : start + at_once],
                    *(said.best, said.scores, said.abstain, said.probabilities),
                    strict=True,
                )
            ]
        return rows

    def _pictures_of_a_run(self) -> int:
        # The others go on meanwhile: a whole batch shall not wait for one thread.
        if self._to_measure.acquire(blocking=False):
            side = self._spec.size_px
            self._at_once = measure(self._session, (side, side, 3)).pictures
        return self._at_once

    def _bytes_of(self, item: Item) -> bytes | PictureError:
        if item.path is None or (item.problem and item.problem not in _ABOUT_LABELS):
            return PictureError(item.problem or "missing", item.detail or "the file is not there")
        try:
            return self._read(item.path)
        except (FileNotFoundError, StoreAbsentError):
            return PictureError("missing", "the file is not there")
        except OSError as error:
            return PictureError("unreadable", error.strerror or str(error))


def _parts(items: Sequence[Item], size: int, scratch: Path) -> list[Part]:
    starts = range(0, len(items), size)
    pictures = (items[start : start + size] for start in starts)
    return [Part(number, _digest(some, scratch), some) for number, some in enumerate(pictures)]


def _digest(items: Sequence[Item], scratch: Path) -> str:
    """Return what stands for pictures: their names, labels and, of files, sizes and changes."""
    rows = [[item.key, item.label, item.problem, *_state(item, scratch)] for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _state(item: Item, scratch: Path) -> tuple[int, ...]:
    try:
        found = os.stat(item.path or "")
    except OSError:
        return ()
    # What was unpacked a moment ago has that moment's time.
    unpacked = item.path is not None and item.path.is_relative_to(scratch)
    return (found.st_size,) if unpacked else (found.st_size, found.st_mtime_ns)


def _to_do(part: Part, record: Record | None) -> bool:
    if record is not None and record.pictures != part.pictures:
        log.info("part %d is of pictures that have changed: answered again", part.number)
    return record is None or record.pictures != part.pictures


def _answer_all(model: Model, parts: Parts, todo: Sequence[Part], settings: BatchSettings) -> None:
    total = sum(len(part.items) for part in todo)
    with threads(_READERS, "read") as readers, threads(model.threads, "answer") as workers:
        rows = track(_rows(model, todo, readers, workers), "answer pictures", total=total)
        for part, found in groupby(rows, key=itemgetter(0)):
            of_part = [row for _, row in found]
            record = Record.of(part.pictures, of_part, model.classes)
            answered = [row for row in of_part if isinstance(row, Answered)]
            parts.write(part.number, record, answered, as_csv=settings.csv)


def _rows(
    model: Model, todo: Sequence[Part], readers: Workers, workers: Workers
) -> Iterator[tuple[Part, Answered | LeftOut]]:
    """Yield the rows of all parts in order, each with its part."""

    def load(chunk: tuple[Part, Sequence[Item]]) -> tuple[Part, list[Loaded]]:
        return chunk[0], model.load(chunk[1])

    def answer(chunk: tuple[Part, list[Loaded]]) -> tuple[Part, list[Answered | LeftOut]]:
        return chunk[0], model.answer(chunk[1])

    chunks = (
        (part, part.items[start : start + _CHUNK])
        for part in todo
        for start in range(0, len(part.items), _CHUNK)
    )
    for part, rows in workers.in_order(answer, readers.in_order(load, chunks)):
        for row in rows:
            yield part, row

"""Annotations of Label Studio as a source that ingest reads: pictures, a CSV of votes, reasons.

    annotations.csv     a line per picture: file, agreement, what the model said, a column per vote
    pictures/           the pictures, named by their content
    quarantine.csv      what people have to look at again, and why
    annotations.json    counts, agreement, the version of it all; written last

Pictures come before the CSV that names them and go after it, so what is there can always be read.
"""

import csv
import hashlib
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from linnet.annotation.agreement import agreeing, krippendorff_alpha
from linnet.annotation.label_studio import LabelStudio, Project
from linnet.annotation.labelling import Labelling
from linnet.errors import AnnotationAbsentError, AnnotationError, StoreAbsentError
from linnet.progress import track
from linnet.stores.connections import Connections
from linnet.stores.objects import ObjectStore, open_store

log = logging.getLogger(__name__)

KIND = "linnet/annotations/v1"
MANIFEST = "annotations.json"
TABLE = "annotations.csv"
QUARANTINE = "quarantine.csv"
PICTURES = "pictures"
VOTE = "vote "

_DIGITS = 4
_VERSION_DIGITS = 12


@dataclass(frozen=True)
class Exported:
    """What came out of a project.

    `version` changes with the annotations and with nothing else; `changed` says whether this call
    wrote a new one. `alpha` is Krippendorff's, None while no picture has two votes. `quarantined`
    counts pictures by reason, `waiting` those that nobody has annotated. `annotators` has, by their
    id, the votes and the share of them that the majority shares.
    """

    project: str
    destination: str
    version: str
    changed: bool
    pictures: int
    labels: dict[str, int]
    votes: int
    alpha: float | None
    quarantined: dict[str, int]
    waiting: int
    annotators: dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Voted:
    """A task that people have annotated or skipped; `votes` is by annotator."""

    task: int
    address: str
    data: Mapping[str, Any]
    votes: Mapping[str, str]
    skipped: int

    @property
    def majority(self) -> str | None:
        """Return the class with most votes, None for a tie."""
        (best, most), *others = Counter(self.votes.values()).most_common()
        return None if others and others[0][1] == most else best


@dataclass(frozen=True)
class _PutAside:
    task: int
    key: str
    reason: str
    detail: str


class _Problem(Exception):
    """Why a task's annotations can't be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def export(
    studio: LabelStudio,
    title: str,
    destination: str,
    *,
    least_votes: int = 1,
    connections: Connections | None = None,
) -> Exported:
    """Write a project's annotations to a folder or `s3://…` as a source for ingest.

    Of several annotations of one person for a picture the last counts. Pictures with fewer than
    `least_votes` are put aside; ties stay in the CSV, where ingest quarantines them, too.

    Raises:
        AnnotationError: or a subclass: nobody has annotated anything, `destination` holds something
            else, Label Studio can't be reached or refuses.
        StoreError: or a subclass: the destination can't be reached, denies or is full.
    """
    project = studio.get(title)
    labelling = Labelling.parse(project.config, title)
    shelf = _Shelf(*open_store(destination, connections))
    before = shelf.manifest(title)
    voted = [_read(task, labelling) for task in studio.tasks(project.id)]
    decided = [task for task in voted if task.votes or task.skipped]
    usable: dict[str, list[_Voted]] = defaultdict(list)
    aside: list[_PutAside] = []
    for task in track(sorted(decided, key=lambda task: task.task), "fetch pictures", len(decided)):
        try:
            _check(task, labelling, least_votes)
            usable[shelf.keep(task, studio)].append(task)
            if task.majority is None:
                raise _Problem("tied_votes", _counted(task))
        except _Problem as problem:
            key = str(task.data.get("key") or task.address)
            aside.append(_PutAside(task.task, key, problem.reason, problem.detail))
    if not usable:
        raise AnnotationError(
            f"project {title!r} has no annotation that can be used ({len(voted)} pictures, "
            f"{len(aside)} put aside): annotate some, then export again"
        )
    rows = sorted((file, task) for file, tasks in usable.items() for task in tasks)
    table, quarantine = _table(rows), _quarantine(aside, studio, project)
    content = json.dumps([title, table, quarantine]).encode()
    version = hashlib.sha256(content).hexdigest()[:_VERSION_DIGITS]
    waiting = len(voted) - len(decided)
    summary = _summary(title, shelf, version, before, rows, aside, waiting=waiting)
    if summary.changed:
        shelf.write(table, quarantine, summary, studio.address)
    return summary


class _Shelf:
    """The destination in a store."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self.uri = store.uri(prefix)
        self._kept: set[str] = set()
        self._there: set[str] = set()

    def manifest(self, title: str) -> dict[str, Any] | None:
        """Return the manifest of an earlier export, None where there is nothing.

        Raises:
            AnnotationError: something else is there.
        """
        try:
            found = json.loads(self._store.read(self._key(MANIFEST)))
        except StoreAbsentError:
            found = None
        except ValueError as error:
            raise AnnotationError(
                f"{MANIFEST} of {self.uri} is damaged ({error}): delete it and its folder, or "
                "export to another place"
            ) from error
        entries = [entry.key for entry in self._store.entries(self._prefix)] if found else []
        if found is None and any(True for _ in self._entries()):
            raise AnnotationError(
                f"{self.uri} is not empty and holds no {MANIFEST}, so it is left alone: choose "
                "another destination"
            )
        if found is not None and (found.get("kind"), found.get("project")) != (KIND, title):
            raise AnnotationError(
                f"{self.uri} holds the {found.get('kind')} of {found.get('project')!r}, not the "
                f"annotations of {title!r}: choose another destination"
            )
        self._there = {key.rpartition("/")[2] for key in entries if f"{PICTURES}/" in key}
        return None if found is None else dict(found)

    def keep(self, task: _Voted, studio: LabelStudio) -> str:
        """Fetch a task's picture unless it is here, and return its file.

        Raises:
            _Problem: it is gone, or is not the one that was imported.
        """
        expected = str(task.data.get("sha256") or "")
        suffix = task.address.rpartition(".")[2].lower()
        name = f"{expected}.{suffix}"
        if name not in self._there:
            try:
                content = studio.picture(task.address)
            except AnnotationAbsentError as error:
                raise _Problem("missing", str(error)) from error
            found = hashlib.sha256(content).hexdigest()
            if expected and found != expected:
                raise _Problem("changed", f"SHA-256 {found}, imported was {expected}")
            name = f"{found}.{suffix}"
            self._store.write(self._key(PICTURES, name), content)
            self._there.add(name)
        self._kept.add(name)
        return f"{PICTURES}/{name}"

    def write(self, table: str, quarantine: str, summary: Exported, address: str) -> None:
        """Write the tables, then the manifest; then remove pictures that are no longer named."""
        manifest = {"kind": KIND, "label_studio": address, **asdict(summary)}
        del manifest["changed"], manifest["destination"]
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        contents = ((QUARANTINE, quarantine), (TABLE, table), (MANIFEST, text))
        for name, content in contents:
            self._store.write(self._key(name), content.encode())
        for name in self._there - self._kept:
            self._store.delete(self._key(PICTURES, name))

    def _entries(self) -> Iterable[object]:
        try:
            yield from self._store.entries(self._prefix)
        except StoreAbsentError:
            return

    def _key(self, *parts: str) -> str:
        return "/".join(part for part in (self._prefix, *parts) if part)


def _read(task: Mapping[str, Any], labelling: Labelling) -> _Voted:
    """Return what people said about a task, by annotator, the last word of each."""
    votes: dict[str, str] = {}
    skipped = 0
    for annotation in sorted(task["annotations"], key=lambda one: (one["updated_at"], one["id"])):
        chosen = labelling.vote(annotation)
        who = str(annotation["completed_by"])
        votes.pop(who, None)
        if annotation["was_cancelled"] or chosen is None:
            skipped += 1
        else:
            votes[who] = chosen
    data = task["data"]
    return _Voted(task["id"], str(data.get(labelling.picture) or ""), data, votes, skipped)


def _check(task: _Voted, labelling: Labelling, least_votes: int) -> None:
    unknown = sorted(set(task.votes.values()) - set(labelling.classes))
    if not task.address:
        raise _Problem("no_picture", f"the task has nothing under {labelling.picture!r}")
    if not task.votes:
        raise _Problem("skipped", f"by {task.skipped}")
    if unknown:
        raise _Problem("unknown_label", f"{', '.join(unknown)}: not in the labelling any more")
    if len(task.votes) < least_votes:
        raise _Problem("too_few_votes", f"{len(task.votes)} of {least_votes}: {_counted(task)}")


def _counted(task: _Voted) -> str:
    counts = Counter(task.votes.values())
    return ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))


def _table(rows: Sequence[tuple[str, _Voted]]) -> str:
    annotators = sorted({who for _, task in rows for who in task.votes}, key=int)
    head = (
        "file",
        "key",
        "agreement",
        "answer",
        "release",
        *(f"{VOTE}{who}" for who in annotators),
    )
    return _csv(
        head,
        (
            (
                file,
                task.data.get("key"),
                _share(agreeing(list(task.votes.values()))),
                task.data.get("answer"),
                task.data.get("release"),
                *(task.votes.get(who) for who in annotators),
            )
            for file, task in rows
        ),
    )


def _quarantine(aside: Sequence[_PutAside], studio: LabelStudio, project: Project) -> str:
    pages = f"{studio.address}/projects/{project.id}/data?task="
    rows = ((row.key, row.reason, row.detail, f"{pages}{row.task}") for row in aside)
    return _csv(("key", "reason", "detail", "task"), rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.{_DIGITS}g}"


def _summary(
    title: str,
    shelf: _Shelf,
    version: str,
    before: Mapping[str, Any] | None,
    rows: Sequence[tuple[str, _Voted]],
    aside: Sequence[_PutAside],
    *,
    waiting: int,
) -> Exported:
    with_majority: dict[str, list[bool]] = defaultdict(list)
    for _, task in rows:
        for who, label in task.votes.items():
            with_majority[who].append(label == task.majority)
    alpha = krippendorff_alpha(list(task.votes.values()) for _, task in rows)
    labels = Counter(task.majority for _, task in rows if task.majority is not None)
    return Exported(
        project=title,
        destination=shelf.uri,
        version=version,
        changed=before is None or before.get("version") != version,
        pictures=labels.total(),
        labels=dict(sorted(labels.items())),
        votes=sum(len(found) for found in with_majority.values()),
        alpha=None if alpha is None else round(alpha, _DIGITS),
        quarantined=dict(sorted(Counter(row.reason for row in aside).items())),
        waiting=waiting,
        annotators={
            who: {"votes": len(found), "with_majority": round(sum(found) / len(found), _DIGITS)}
            for who, found in sorted(with_majority.items(), key=lambda each: int(each[0]))
        },
    )

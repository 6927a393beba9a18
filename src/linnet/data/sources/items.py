"""What every kind of source comes down to: keyed local files with labels."""

import difflib
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from linnet.errors import SourceError
from linnet.settings import Split

log = logging.getLogger(__name__)

# One for all: a source may have millions of pictures.
_NO_ATTRIBUTES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Item:
    """One picture, or what should have been one.

    `problem` is a reason for quarantine: "missing", "outside", "unreadable", "not_a_file",
    "symlink_loop", "unlabelled", "unsplit", "tied_votes", "conflicting_labels",
    "conflicting_splits" or "conflicting_groups"; `detail` says it in words. `added` names the
    further source that it is from.
    """

    key: str
    label: str | None
    path: Path | None
    split: Split | None = None
    group: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: _NO_ATTRIBUTES)
    problem: str | None = None
    detail: str = ""
    added: str | None = None


@dataclass(frozen=True)
class Source:
    """All items of a source, sorted by key; keys are unique, NFC and relative POSIX paths.

    Of each place, every item without a problem has a split, or none has. There are at least two
    classes.
    """

    uri: str
    items: tuple[Item, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the usable items, sorted."""
        return tuple(sorted({i.label for i in self.items if i.label and not i.problem}))


@dataclass(frozen=True, slots=True)
class Found:
    """A file below a folder, before anything is known about its label.

    `path` is None when there is nothing to read; then `problem` says why.
    """

    key: str
    path: Path | None
    problem: str | None = None
    detail: str = ""


def clean_key(name: str) -> str:
    """Return a name that every store can hold: NFC, and no bytes that are not UTF-8.

    The same name typed on macOS (NFD) and on Linux (NFC) becomes the same key.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def number_duplicates(found: Iterable[Found]) -> list[Found]:
    """Return the files sorted by key, the second of one key as `name~2.jpg`: none is lost."""
    taken: set[str] = set()
    unique = []
    for file in sorted(found, key=lambda f: (f.key, str(f.path))):
        key, number = file.key, 2
        while key in taken:
            key = numbered(file.key, number)
            number += 1
        taken.add(key)
        unique.append(file if key == file.key else replace(file, key=key))
    return sorted(unique, key=lambda f: f.key)


def numbered(key: str, number: int) -> str:
    """Return `a/b~2.jpg` for `a/b.jpg` and 2."""
    folder, slash, name = key.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    return f"{folder}{slash}" + (f"{stem}~{number}.{suffix}" if dot else f"{name}~{number}")


def only_classes(uri: str, items: list[Item], classes: Sequence[str]) -> list[Item]:
    """Return the items of these classes, and those without one; all of them if none is named.

    Raises:
        SourceError: a class that is named has no item.
    """
    if not classes:
        return items
    there = {item.label for item in items if item.label is not None}
    for name in classes:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(there))}"
            raise SourceError(f"source.classes names {name!r}, which {uri} does not have: {hint}")
    kept = [item for item in items if item.label is None or item.label in classes]
    log.info("%d pictures of other classes are left out", len(items) - len(kept))
    return kept


def checked_source(uri: str, items: Iterable[Item]) -> Source:
    """Return the items as a source.

    Raises:
        SourceError: there is no picture, or there are fewer than two classes.
    """
    source = Source(uri, tuple(sorted(items, key=lambda i: i.key)))
    if not source.items:
        raise SourceError(
            f"{uri} holds no pictures: expected class folders such as cat/1.jpg and dog/2.jpg, "
            "or a CSV with labels (source.csv)"
        )
    if len(source.classes) < 2:
        raise SourceError(_too_few_classes(source))
    return source


def _too_few_classes(source: Source) -> str:
    problems = sorted({i.problem for i in source.items if i.problem})
    unusable = f"; pictures that can't be used: {', '.join(problems)}" if problems else ""
    have = f"one class, {source.classes[0]!r}" if source.classes else "no labelled picture"
    return (
        f"{source.uri} holds {have}, expected at least two classes{unusable}. "
        "Give one folder per class, or a CSV with labels (source.csv)"
    )

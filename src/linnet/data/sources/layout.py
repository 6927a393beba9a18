"""Labels and splits from folder names: `class/…/file` or `split/class/…/file`."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from linnet.data.sources.items import Found, Item
from linnet.errors import SourceError
from linnet.settings import Split

log = logging.getLogger(__name__)

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

# Beside the class folders these are notes about the pictures, not pictures.
_NOTE_SUFFIXES = (
    *(".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml"),
    *(
        ".cfg",
        ".ini",
        ".log",
        ".html",
        ".htm",
        ".pdf",
        ".doc",
        ".docx",
        ".xls",
        ".xlsx",
        ".parquet",
    ),
    *(".py", ".sh", ".ipynb", ".mat", ".npy", ".npz", ".pkl", ".md5", ".sha256"),
)
_NOTE_NAMES = ("readme", "license", "licence", "copying", "authors", "changelog")


def split_names(extra: Mapping[str, str]) -> dict[str, str]:
    """Return every known split name in lower case → train, val, test or ignore."""
    return {**SPLIT_NAMES, **{name.casefold(): split for name, split in extra.items()}}


def unwrap(found: list[Found], splits: Mapping[str, str]) -> tuple[list[Found], str]:
    """Return the files below the folders that merely wrap everything, and those folders' path.

    `NAME/train/cat/1.jpg` becomes `train/cat/1.jpg`, with "NAME". A folder wraps when it is alone,
    isn't a split, and has folders but no pictures of its own. Notes beside it are left out.
    """
    wrapper = PurePosixPath()
    known = split_names(splits)
    while (name := _only_folder(found)) and name.casefold() not in known:
        inside = [f for f in found if f.key.startswith(f"{name}/")]
        below = [replace(f, key=f.key.removeprefix(f"{name}/")) for f in inside]
        if _only_notes_at_top(below) and any("/" in f.key for f in below):
            found, wrapper = below, wrapper / name
        else:
            break
    return found, "" if wrapper == PurePosixPath() else str(wrapper)


def label_by_folder(found: Iterable[Found], splits: Mapping[str, str], uri: str) -> list[Item]:
    """Return items labelled by the first folder below the split, or the first folder of all.

    Deeper folders belong to the class above them. All files of a class folder are items, whatever
    their names; a file outside any class is left out when its name is that of a note, and is
    "unlabelled" otherwise.

    Raises:
        SourceError: some of the top folders are splits and some are not.
    """
    known = split_names(splits)
    by_top = [(PurePosixPath(f.key).parts, f) for f in found]
    tops = {parts[0] for parts, _ in by_top if len(parts) > 1}
    _check_used(splits, tops, uri)
    ignored = {top for top in tops if known.get(top.casefold()) == "ignore"}
    if ignored:
        log.info("left out as the settings say: folders %s", ", ".join(sorted(ignored)))
    split_of = {top: known[top.casefold()] for top in tops - ignored if top.casefold() in known}
    others = sorted(tops - ignored - set(split_of))
    if split_of and others:
        raise SourceError(
            f"{uri} has the split folders {sorted(split_of)} and beside them {others}: say what "
            f"these are with source.splits, for example {{{others[0]}: val}} or "
            f"{{{others[0]}: ignore}}"
        )
    kept = [(parts, f) for parts, f in by_top if parts[0] not in ignored]
    items = (_item(f, parts, split_of) for parts, f in kept)
    return [item for item in items if item is not None]


def _item(found: Found, parts: tuple[str, ...], split_of: Mapping[str, str]) -> Item | None:
    split = split_of.get(parts[0])
    folders = parts[1:-1] if split else parts[:-1]
    label = folders[0] if folders else None
    problem, detail = found.problem, found.detail
    if label is None and problem is None:
        if _is_note(parts[-1]):
            return None
        problem, detail = "unlabelled", "not in a class folder"
    return Item(found.key, label, found.path, split=as_split(split), problem=problem, detail=detail)


def as_split(name: str | None) -> Split | None:
    """Return the split of this exact name, None for anything else."""
    return name if name in ("train", "val", "test") else None  # type: ignore[return-value]


def _check_used(splits: Mapping[str, str], tops: set[str], uri: str) -> None:
    present = {top.casefold() for top in tops}
    absent = [name for name in splits if name.casefold() not in present]
    if absent:
        raise SourceError(
            f"source.splits names {absent[0]!r}, but {uri} has no such folder; "
            f"its folders: {', '.join(sorted(tops)) or 'none'}"
        )


def _only_folder(found: list[Found]) -> str | None:
    tops = {f.key.partition("/")[0] for f in found if "/" in f.key}
    return tops.pop() if len(tops) == 1 and _only_notes_at_top(found) else None


def _only_notes_at_top(found: list[Found]) -> bool:
    return all("/" in f.key or _is_note(f.key) for f in found)


def _is_note(name: str) -> bool:
    name = name.casefold()
    return name.startswith(".") or name.endswith(_NOTE_SUFFIXES) or name in _NOTE_NAMES

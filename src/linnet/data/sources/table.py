"""Labels, splits and groups from a CSV that lists pictures."""

import csv
import difflib
import fnmatch
import io
import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from linnet.data.sources.items import Found, Item, clean_key
from linnet.data.sources.layout import as_split, split_names
from linnet.errors import SourceError
from linnet.settings import CsvSettings, Split

log = logging.getLogger(__name__)

_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Pictures:
    """The files that a CSV may name: `found` below `root`/`wrapper`, keys relative to that."""

    found: list[Found]
    root: Path
    wrapper: str = ""


@dataclass(frozen=True)
class _Row:
    """What one line says of its picture. `split` is a split, "ignore" or None."""

    line: int
    file: str
    label: str | None
    split: str | None
    group: str | None
    attributes: dict[str, str]
    problem: str | None = None
    detail: str = ""


def label_by_table(
    pictures: Pictures, settings: CsvSettings, splits: Mapping[str, str]
) -> list[Item]:
    """Return one item per picture that the CSV lists; the CSV decides, folder names don't count.

    Several lines for one picture must agree, else it is "conflicting_labels" (or _splits,
    _groups). Votes are decided by the majority, else "tied_votes". Blank labels are "unlabelled",
    a blank split beside filled ones "unsplit", files that aren't there "missing". Columns that the
    settings don't name become attributes, and so do votes.

    Raises:
        SourceError: the CSV is absent, not UTF-8, malformed, lacks a column, or names no file that
            is there.
    """
    path = _csv_path(pictures, settings)
    rows = list(_rows(path, settings, split_names(splits)))
    _check_splits(rows, path, settings, splits)
    ignored = sum(row.split == "ignore" for row in rows)
    if ignored:
        log.info("%s: %d lines left out as their split is to be ignored", path.name, ignored)
    items = _merge([row for row in rows if row.split != "ignore"], pictures, settings, path)
    _check_some_are_there(items, path, settings)
    _tell_unlisted(items, pictures, path, settings)
    return items


def _csv_path(pictures: Pictures, settings: CsvSettings) -> Path:
    given = Path(settings.path).expanduser()
    places = (given, pictures.root / given, pictures.root / pictures.wrapper / given)
    for place in places[:1] if given.is_absolute() else places[1:]:
        if place.is_file():
            return place
    tables = [f.key for f in pictures.found if f.key.lower().endswith((".csv", ".tsv", ".txt"))]
    near = difflib.get_close_matches(settings.path, tables, n=1, cutoff=0.3) or tables[:1]
    hint = f"did you mean {near[0]!r}?" if near else "check source.csv.path"
    raise SourceError(f"CSV {settings.path!r} is not there (below {pictures.root}); {hint}")


def _rows(path: Path, settings: CsvSettings, known: Mapping[str, str]) -> Iterator[_Row]:
    text = _text(path)
    delimiter = _delimiter(text, settings)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        settings = _with_votes(settings, reader.fieldnames)
        _check_columns(path, reader.fieldnames, settings)
        for cells in reader:
            if None in cells:
                raise SourceError(
                    f"{path} line {reader.line_num}: more cells than the header's "
                    f"{len(reader.fieldnames)} columns; quote cells that hold {delimiter!r}"
                )
            values = {name: (cell or "").strip() for name, cell in cells.items()}
            yield _row(reader.line_num, values, settings, known, path)
    except csv.Error as error:
        raise SourceError(f"{path} line {reader.line_num}: not valid CSV ({error})") from error


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"CSV {path} can't be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SourceError(
            f"{path} line {line} is not UTF-8 (byte 0x{content[error.start]:02x}): save the table "
            "as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def _delimiter(text: str, settings: CsvSettings) -> str:
    """Return the delimiter under which the header has most of the wanted, then most columns."""
    header = text.lstrip().split("\n", 1)[0]

    def fit(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return len(set(names) & set(_wanted(settings))), len(names)

    return max(_DELIMITERS, key=fit)


def _with_votes(settings: CsvSettings, columns: list[str]) -> CsvSettings:
    """Return the settings with patterns of vote columns, `vote *`, replaced by what they match."""
    named = {
        column: None
        for pattern in settings.vote_columns
        for column in ([] if pattern in columns else fnmatch.filter(columns, pattern)) or [pattern]
    }
    return settings.model_copy(update={"vote_columns": tuple(named)})


def _wanted(settings: CsvSettings) -> dict[str, str]:
    """Return the columns that the settings name → the setting that names it."""
    single = ["file_column", "split_column", "group_column"]
    if not settings.vote_columns:
        single.append("label_column")
    columns = {getattr(settings, name): name for name in single if getattr(settings, name)}
    return columns | dict.fromkeys(settings.vote_columns, "vote_columns")


def _check_columns(path: Path, columns: list[str], settings: CsvSettings) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise SourceError(f"{path} has the column {twice[0]!r} more than once: rename one")
    for column, setting in _wanted(settings).items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SourceError(
                f"{path} has no column {column!r}; {hint}Its columns: {', '.join(columns)}. Set "
                f"source.csv.{setting} (cells are parted by comma, semicolon, tab or |)"
            )


def _row(
    line: int, values: dict[str, str], settings: CsvSettings, known: Mapping[str, str], path: Path
) -> _Row:
    label, problem, detail = _label(values, settings)
    used = set(_wanted(settings)) - set(settings.vote_columns)
    return _Row(
        line=line,
        file=values[settings.file_column],
        label=label,
        split=_split(values[settings.split_column], known, f"{path} line {line}")
        if settings.split_column
        else None,
        group=values[settings.group_column] or None if settings.group_column else None,
        attributes={name: value for name, value in values.items() if value and name not in used},
        problem=problem,
        detail=detail,
    )


def _label(values: Mapping[str, str], settings: CsvSettings) -> tuple[str | None, str | None, str]:
    columns = settings.vote_columns or (settings.label_column,)
    votes = Counter(clean_key(values[name]) for name in columns if values[name])
    if not votes:
        return None, "unlabelled", f"blank: {', '.join(columns)}"
    best = votes.most_common()
    if len(best) > 1 and best[0][1] == best[1][1]:
        counts = ", ".join(f"{label} {count}" for label, count in sorted(best))
        return None, "tied_votes", counts
    return best[0][0], None, ""


def _split(value: str, known: Mapping[str, str], where: str) -> str | None:
    if not value:
        return None
    if value.casefold() not in known:
        raise SourceError(
            f"{where}: split {value!r} is none of {', '.join(sorted(known))}: say what it is with "
            f"source.splits, for example {{{value}: val}} or {{{value}: ignore}}"
        )
    return known[value.casefold()]


def _check_splits(
    rows: list[_Row], path: Path, settings: CsvSettings, splits: Mapping[str, str]
) -> None:
    if not rows:
        raise SourceError(f"{path} has no lines below its header: expected one per picture")
    if splits and not settings.split_column:
        raise SourceError(
            f"source.splits names {next(iter(splits))!r}, but with a CSV splits come from "
            "source.csv.split_column: set it"
        )


def _merge(rows: list[_Row], pictures: Pictures, settings: CsvSettings, path: Path) -> list[Item]:
    files = {f.key: f for f in pictures.found}
    lines: defaultdict[str, list[_Row]] = defaultdict(list)
    founds: dict[str, Found] = {}
    items = []
    for row in rows:
        if not row.file:
            key = f"{path.name} line {row.line}"
            items.append(Item(key, row.label, None, problem="missing", detail="no file name"))
            continue
        found = _find(row.file, files, pictures, settings)
        founds[found.key] = found
        lines[found.key].append(row)
    has_splits = any(row.split for row in rows)
    items += [_item(founds[key], lines[key], has_splits=has_splits) for key in lines]
    return items


def _find(
    file: str, files: Mapping[str, Found], pictures: Pictures, settings: CsvSettings
) -> Found:
    """Return the file that a cell names: below the root, with or without the folder around it."""
    name = file + settings.file_suffix
    key = _key(name, pictures, settings)
    windows_key = _key(name.replace("\\", "/"), pictures, settings)
    around = clean_key(pictures.root.name) + "/"
    for candidate in (key, windows_key, windows_key.removeprefix(around)):
        if candidate in files:
            return files[candidate]
    if windows_key.startswith(("../", "/")):
        return Found(clean_key(name).lstrip("/"), None, "outside", f"{name!r} is out of the folder")
    return Found(windows_key, None, "missing", f"{name!r} is not there")


def _key(name: str, pictures: Pictures, settings: CsvSettings) -> str:
    key = clean_key(posixpath.normpath(posixpath.join(settings.root, name)))
    for above in (clean_key(str(pictures.root)), clean_key(pictures.wrapper)):
        if above and key.startswith(f"{above}/"):
            key = key.removeprefix(f"{above}/")
    return key


def _item(found: Found, rows: list[_Row], *, has_splits: bool) -> Item:
    labels = sorted({row.label for row in rows if row.label})
    splits = sorted({row.split for row in rows if row.split})
    groups = sorted({row.group for row in rows if row.group})
    problem, detail = found.problem, found.detail
    for several, values in (("labels", labels), ("splits", splits), ("groups", groups)):
        if problem is None and len(values) > 1:
            problem, detail = f"conflicting_{several}", ", ".join(values)
    if problem is None and not labels:
        problem, detail = rows[0].problem, rows[0].detail
    if problem is None and has_splits and not splits:
        problem, detail = "unsplit", "no split, while other pictures have one"
    split: Split | None = as_split(splits[0]) if len(splits) == 1 else None
    return Item(
        found.key,
        labels[0] if len(labels) == 1 else None,
        found.path,
        split=split,
        group=groups[0] if len(groups) == 1 else None,
        attributes=rows[0].attributes,
        problem=problem,
        detail=detail,
    )


def _check_some_are_there(items: list[Item], path: Path, settings: CsvSettings) -> None:
    if items and all(item.problem in ("missing", "outside") for item in items):
        raise SourceError(
            f"none of the {len(items)} files that {path} names is there, for example "
            f"{items[0].key!r}: check source.csv.file_column ({settings.file_column!r}), "
            "source.csv.root and source.csv.file_suffix"
        )


def _tell_unlisted(
    items: list[Item], pictures: Pictures, path: Path, settings: CsvSettings
) -> None:
    listed = {item.key for item in items}
    start = _key(".", pictures, settings) if settings.root else ""
    below = [f.key for f in pictures.found if not start or f.key.startswith(f"{start}/")]
    unlisted = [key for key in below if "/" in key and key not in listed]
    if unlisted:
        log.warning(
            "%d files are not listed in %s and are left out, for example %s",
            *(len(unlisted), path.name, unlisted[0]),
        )

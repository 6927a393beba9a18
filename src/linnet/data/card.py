"""The data card: one self-contained HTML page that shows people what is in a dataset."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from linnet.data.dataset import CARD
from linnet.data.pictures import decode
from linnet.data.selection import Alike, Picture, Quarantined, Selection
from linnet.errors import PictureError
from linnet.settings import SPLITS, Split

THUMBNAIL_PX = 168
SAMPLES = 180
SAMPLES_PER_CLASS = 10
SHOWN_PAIRS = 12
SHOWN_QUARANTINED = 100
IMBALANCE = 10

ABOUT = {
    "animated": "more than one frame",
    "broken": "truncated or corrupt data",
    "conflicting_labels": "one picture under several labels: none is kept",
    "duplicate": "same bytes as another picture: kept in test, else in val, else in train",
    "empty": "no bytes",
    "missing": "listed, but not there",
    "near_duplicate": "looks like another picture: kept in test, else in val, else in train",
    "not_a_picture": "no picture under a picture's name",
    "outside": "a link out of the source",
    "tied_votes": "annotators disagree",
    "too_large": "more pixels than max_pixels",
    "too_small": "a side below min_side_px",
    "unlabelled": "no class is given",
    "unreadable": "the file can't be read",
    "unsplit": "no split is given, though others have one",
    "unsupported": "pixels that have no RGB meaning",
}


@dataclass(frozen=True)
class ClassRow:
    """A class in the table; `shares` are of the largest class, per split."""

    name: str
    counts: dict[Split, int]
    total: int
    shares: dict[Split, float]


@dataclass(frozen=True)
class Side:
    """How wide or high the pictures are, pixels."""

    name: str
    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class Shown:
    """A picture on the page; `thumbnail` is a data URI."""

    key: str
    label: str
    split: str
    thumbnail: str


def write_card(
    folder: Path,
    manifest: Mapping[str, Any],
    selection: Selection,
    splits: Mapping[Split, Sequence[Picture]],
) -> None:
    """Write `card.html` into the dataset's folder, whose shards are already there."""
    split_of = {p.item.key: split for split, pictures in splits.items() for p in pictures}
    rows = _class_rows(manifest)
    text = _template().render(
        manifest=manifest,
        rows=rows,
        totals={split: len(splits[split]) for split in SPLITS},
        pictures=len(selection.kept),
        megabytes=sum(shard.stat().st_size for shard in folder.glob("*.parquet")) / 1e6,
        notes=_notes(manifest, rows, selection),
        sides=_sides(selection.kept),
        samples=_samples(rows, splits),
        pairs=_pairs(selection.alike, split_of),
        quarantine=_quarantine_table(selection.quarantine),
        left_out=selection.quarantine[:SHOWN_QUARANTINED],
        all_left_out=len(selection.quarantine),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("linnet.data"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda n: f"{n:,}"
    return environment.get_template("card.html.j2")


def _class_rows(manifest: Mapping[str, Any]) -> list[ClassRow]:
    counts = {
        name: {split: manifest["counts"][split][name] for split in SPLITS}
        for name in manifest["classes"]
    }
    largest = max(sum(of_class.values()) for of_class in counts.values())
    return [
        ClassRow(
            name,
            of_class,
            sum(of_class.values()),
            {split: n / largest for split, n in of_class.items()},
        )
        for name, of_class in counts.items()
    ]


def _notes(
    manifest: Mapping[str, Any], rows: Sequence[ClassRow], selection: Selection
) -> list[tuple[bool, str]]:
    """Return what somebody should know before they train, each with whether it is a concern."""
    near = manifest["near_duplicates"]
    notes = []
    if near["mode"] == "ignore":
        notes.append((True, "Near duplicates were not looked for."))
    elif near["across_splits"]:
        done = (
            "the one of the less important split was dropped"
            if near["mode"] == "drop"
            else "kept; near_duplicates: drop would take them out of training"
        )
        told = f"{_pairs_of(near['across_splits'])} across official splits"
        notes.append((True, f"{told}: {done}."))
    else:
        notes.append((False, "No near duplicates lie across splits."))
    if near["not_compared"]:
        told = f"{near['not_compared']:,} pictures are too small or too plain"
        notes.append((False, f"{told} to be compared for near duplicates."))
    if near["under_two_labels"]:
        notes.append((True, f"{_pairs_of(near['under_two_labels'])} under two different labels."))
    notes += _label_notes(rows, selection.quarantine)
    crossing = _groups_across(selection.kept)
    if crossing:
        notes.append((True, f"{crossing} groups lie across official splits."))
    return notes


def _pairs_of(count: int) -> str:
    return f"{count:,} near-duplicate pair{'' if count == 1 else 's'}"


def _label_notes(
    rows: Sequence[ClassRow], quarantine: Sequence[Quarantined]
) -> list[tuple[bool, str]]:
    notes = []
    conflicting = sum(q.reason == "conflicting_labels" for q in quarantine)
    if conflicting:
        notes.append((True, f"{conflicting} pictures were left out for having several labels."))
    absent = [f"{row.name} ({split})" for row in rows for split in SPLITS if not row.counts[split]]
    if absent:
        notes.append((True, f"Classes without a picture in a split: {', '.join(absent[:8])}."))
    small, large = min(rows, key=lambda r: r.total), max(rows, key=lambda r: r.total)
    ratio = large.total / small.total
    if ratio >= IMBALANCE:
        told = f"{large.name} has {ratio:.0f} times the pictures of {small.name}"
        notes.append((True, f"Classes are out of balance: {told}."))
    else:
        notes.append((False, f"The largest class has {ratio:.1f} times the smallest."))
    return notes


def _groups_across(pictures: Iterable[Picture]) -> int:
    seen = {(p.item.group, p.item.split) for p in pictures if p.item.group is not None}
    return sum(n > 1 for n in Counter(group for group, _ in seen).values())


def _sides(pictures: Sequence[Picture]) -> list[Side]:
    sides = np.array([(p.facts.width, p.facts.height) for p in pictures])
    return [
        Side(name, int(values.min()), int(np.median(values)), int(values.max()))
        for name, values in zip(("width", "height"), sides.T, strict=True)
    ]


def _samples(
    rows: Sequence[ClassRow], splits: Mapping[Split, Sequence[Picture]]
) -> list[tuple[str, list[Shown]]]:
    """Return training pictures by class, chosen by their content; of many classes, the first."""
    per_class = max(2, min(SAMPLES_PER_CLASS, SAMPLES // len(rows)))
    shown_classes = rows[: SAMPLES // per_class]
    of_class: dict[str, list[Picture]] = {row.name: [] for row in rows}
    for picture in splits["train"]:
        of_class[picture.label].append(picture)
    return [
        (
            row.name,
            [
                _shown(picture, "train")
                for picture in sorted(of_class[row.name], key=lambda p: p.facts.sha256)[:per_class]
            ],
        )
        for row in shown_classes
    ]


def _pairs(alike: Iterable[Alike], split_of: Mapping[str, Split]) -> list[tuple[Shown, Shown, int]]:
    """Return the pairs that matter most: across splits, then under two labels, then the nearest."""
    telling = sorted(alike, key=lambda a: (not a.across_splits, not a.under_two_labels, a.bits))
    return [
        (
            _shown(a.first, split_of.get(a.first.item.key, "dropped")),
            _shown(a.second, split_of.get(a.second.item.key, "dropped")),
            a.bits,
        )
        for a in telling[:SHOWN_PAIRS]
    ]


def _quarantine_table(quarantine: Iterable[Quarantined]) -> list[tuple[str, str, int]]:
    counts = Counter(q.reason for q in quarantine)
    ordered = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    return [(reason, ABOUT.get(reason, ""), n) for reason, n in ordered]


def _shown(picture: Picture, split: str) -> Shown:
    return Shown(picture.item.key, picture.label, split, _thumbnail(picture.path))


def _thumbnail(path: Path) -> str:
    """Return a data URI of the picture at thumbnail size; empty if it went away meanwhile."""
    try:
        picture = decode(path.read_bytes(), at_least_px=THUMBNAIL_PX)
    except (OSError, PictureError):
        return ""
    small = max(picture.size) <= THUMBNAIL_PX // 2
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    file = BytesIO()
    picture.save(file, "PNG" if small else "JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

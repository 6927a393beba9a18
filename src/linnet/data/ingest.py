"""Labelled pictures in, a checked, split and versioned dataset out.

Two passes over the files: one decodes each picture on all cores and keeps only facts, one writes
the bytes to shards. In between, everything is decided from the facts alone.
"""

import csv
import hashlib
import json
import logging
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from linnet import __version__
from linnet.data.card import write_card
from linnet.data.dataset import KIND, MANIFEST, NEAR_DUPLICATES, QUARANTINE
from linnet.data.examination import Examined, Limits, Refused, examine
from linnet.data.selection import Picture, Quarantined, Selection, groups, select
from linnet.data.shards import Entry, Shard, write_shard
from linnet.data.sources import Item, Source, open_source
from linnet.data.splitting import Candidate, split_pictures
from linnet.data.workers import Workers, workers
from linnet.errors import SourceError
from linnet.folders import written_whole
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import SPLITS, IngestSettings, SourceSettings, Split
from linnet.stores.connections import Connections

log = logging.getLogger(__name__)

Splits = dict[Split, list[Picture]]

_PICTURES_PER_TASK = 32
_SMALLEST_STD = 1 / 255


@dataclass(frozen=True)
class IngestSummary:
    """What ingest made, for logs and for whoever called it."""

    path: Path
    version: str
    pictures: int
    classes: tuple[str, ...]
    counts: dict[Split, dict[str, int]]
    quarantined: dict[str, int]
    near_duplicates: dict[str, Any]
    seconds: float


def ingest(
    source: SourceSettings,
    destination: Path,
    settings: IngestSettings,
    *,
    scratch: Path | None = None,
    connections: Connections | None = None,
) -> IngestSummary:
    """Write the dataset of a source to `destination` and return what it holds.

    `scratch` is for what has to be downloaded or unpacked; by default a temporary folder. The same
    pictures and settings give the same version, whatever their order and the number of workers.

    Raises:
        SourceError: the source can't be used, too much of it was quarantined (what and why is left
            in `<destination>.quarantine.csv`), or a class is too small to be split.
        StoreError: the destination can't be written, or is full; nothing is left there.
    """
    started = time.monotonic()
    with _scratch(scratch) as unpacked, written_whole(destination, MANIFEST) as folder:
        opened = open_source(source, unpacked, connections=connections)
        with workers(settings.workers or available_cpus()) as pool:
            selection = select(_examine(opened, pool, settings), settings.near_duplicates)
            with _quarantine_explained(selection.quarantine, destination):
                _check_quarantine(opened, selection, settings)
                splits = _split(selection, settings)
            _write_shards(folder, splits, pool, settings.shard_pictures)
        manifest = _manifest(opened, selection, splits, settings)
        _write_quarantine(folder / QUARANTINE, selection.quarantine)
        _write_near_duplicates(folder / NEAR_DUPLICATES, selection, splits)
        write_card(folder, manifest, selection, splits)
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    summary = IngestSummary(
        path=destination,
        version=manifest["version"],
        pictures=len(selection.kept),
        classes=tuple(manifest["classes"]),
        counts=manifest["counts"],
        quarantined=manifest["quarantined"],
        near_duplicates=manifest["near_duplicates"],
        seconds=time.monotonic() - started,
    )
    log.info(
        "dataset %s: %d pictures of %d classes, %d quarantined, in %.1f s",
        *(summary.version, summary.pictures, len(summary.classes)),
        *(len(selection.quarantine), summary.seconds),
    )
    return summary


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="linnet-ingest-") as temporary:
        yield Path(temporary)


def _examine(
    source: Source, pool: Workers, settings: IngestSettings
) -> Iterator[tuple[Item, Examined | Refused]]:
    """Yield every item with what was found of it: first those to be read, by key."""
    readable = [i for i in source.items if i.problem is None and i.path is not None]
    limits = Limits(settings.min_side_px, settings.max_pixels, settings.near_duplicates != "ignore")
    tasks = (
        [item.path for item in readable[start : start + _PICTURES_PER_TASK] if item.path]
        for start in range(0, len(readable), _PICTURES_PER_TASK)
    )
    found = (
        facts
        for task in pool.in_order(partial(_examine_all, limits=limits), tasks)
        for facts in task
    )
    yield from zip(readable, track(found, "examine pictures", total=len(readable)), strict=True)
    for item in source.items:
        if item.problem is not None or item.path is None:
            yield item, Refused(item.problem or "missing", item.detail or "the file is not there")


def _examine_all(paths: Sequence[Path], limits: Limits) -> list[Examined | Refused]:
    return [examine(path, limits) for path in paths]


def _check_quarantine(source: Source, selection: Selection, settings: IngestSettings) -> None:
    left_out, total = len(selection.quarantine), len(source.items)
    if not selection.kept or left_out / total > settings.max_quarantined:
        raise SourceError(
            f"{left_out} of {total} pictures of {source.uri} can't be used, more than the share "
            f"that max_quarantined allows ({settings.max_quarantined:g}):\n"
            f"{_reasons(selection.quarantine)}\n"
            "Put the source right, or raise ingest.max_quarantined"
        )
    classes = sorted({picture.label for picture in selection.kept})
    if len(classes) < 2:
        raise SourceError(
            f"only pictures of class {classes[0]!r} of {source.uri} can be used, expected at least "
            f"two classes; left out were:\n{_reasons(selection.quarantine)}\nPut the source right"
        )


def _reasons(quarantine: Iterable[Quarantined]) -> str:
    keys: dict[str, list[str]] = defaultdict(list)
    for left_out in quarantine:
        keys[left_out.reason].append(left_out.item.key)
    lines = []
    for reason, having in sorted(keys.items(), key=lambda r: (-len(r[1]), r[0])):
        more = ", …" if len(having) > 3 else ""
        lines.append(f"  {reason}: {len(having)} ({', '.join(having[:3])}{more})")
    return "\n".join(lines)


@contextmanager
def _quarantine_explained(quarantine: Sequence[Quarantined], destination: Path) -> Iterator[None]:
    """Leave the quarantine beside the destination when the block refuses the source."""
    try:
        yield
    except SourceError as error:
        if not quarantine:
            raise
        left = destination.with_name(f"{destination.name}.{QUARANTINE}")
        _write_quarantine(left, quarantine)
        raise SourceError(f"{error}. Every picture that was left out, and why: {left}") from error


def _split(selection: Selection, settings: IngestSettings) -> Splits:
    candidates = [
        Candidate(
            picture.facts.sha256.hex(),
            picture.label,
            picture.item.split,
            group,
            added=picture.item.added is not None,
        )
        for picture, group in zip(selection.kept, groups(selection), strict=True)
    ]
    chosen = split_pictures(
        candidates,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
    )
    splits: Splits = {split: [] for split in SPLITS}
    for picture, split in zip(selection.kept, chosen, strict=True):
        splits[split].append(picture)
    return splits


def _write_shards(folder: Path, splits: Splits, pool: Workers, shard_pictures: int) -> None:
    classes = _classes(splits)
    shards = [
        Shard(folder / f"{split}-{start // shard_pictures:05d}.parquet", classes, entries)
        for split in SPLITS
        for start, entries in _parts(splits[split], classes, shard_pictures)
    ]
    written = pool.in_order(write_shard, shards)
    for _ in track(written, "write shards", total=len(shards)):
        pass


def _parts(
    pictures: list[Picture], classes: tuple[str, ...], size: int
) -> Iterator[tuple[int, tuple[Entry, ...]]]:
    """Yield the rows of each shard; a split without pictures gets one empty shard."""
    index = {name: i for i, name in enumerate(classes)}
    for start in range(0, max(1, len(pictures)), size):
        part = pictures[start : start + size]
        yield start, tuple(_entry(picture, index[picture.label]) for picture in part)


def _entry(picture: Picture, label: int) -> Entry:
    return Entry(
        path=picture.path,
        key=picture.item.key,
        label=label,
        sha256=picture.facts.sha256,
        width=picture.facts.width,
        height=picture.facts.height,
        group=picture.item.group,
        attributes=picture.item.attributes,
    )


def _classes(splits: Splits) -> tuple[str, ...]:
    return tuple(sorted({picture.label for pictures in splits.values() for picture in pictures}))


def _manifest(
    source: Source, selection: Selection, splits: Splits, settings: IngestSettings
) -> dict[str, Any]:
    classes = _classes(splits)
    mean, std = _mean_and_std(splits["train"])
    return {
        "kind": KIND,
        "version": _version(classes, splits),
        "classes": list(classes),
        "counts": {split: _counts(classes, splits[split]) for split in SPLITS},
        "mean": mean,
        "std": std,
        "quarantined": dict(sorted(Counter(q.reason for q in selection.quarantine).items())),
        "near_duplicates": {
            "mode": settings.near_duplicates,
            "pairs": len(selection.alike),
            "across_splits": sum(alike.across_splits for alike in selection.alike),
            "under_two_labels": sum(alike.under_two_labels for alike in selection.alike),
            "not_compared": sum(p.facts.fingerprint is None for p in selection.kept),
        },
        "source": source.uri,
        "settings": settings.model_dump(mode="json", exclude={"workers"}),
        "linnet": __version__,
    }


def _counts(classes: tuple[str, ...], pictures: list[Picture]) -> dict[str, int]:
    counts = Counter(picture.label for picture in pictures)
    return {name: counts[name] for name in classes}


def _version(classes: tuple[str, ...], splits: Splits) -> str:
    """Return 12 hex digits that stand for every row of every split."""
    digest = hashlib.sha256(json.dumps([KIND, classes]).encode())
    for split in SPLITS:
        for picture in splits[split]:
            item, facts = picture.item, picture.facts
            row = [split, item.key, picture.label, facts.sha256.hex(), item.group]
            digest.update(json.dumps([*row, sorted(item.attributes.items())]).encode())
    return digest.hexdigest()[:12]


def _mean_and_std(pictures: list[Picture]) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of R, G and B, 0 to 1, each picture weighing alike."""
    moments = np.frombuffer(b"".join(picture.facts.moments for picture in pictures))
    mean, squares = moments.reshape(-1, 2, 3).mean(axis=0)
    std = np.sqrt(np.maximum(squares - mean**2, _SMALLEST_STD**2))
    return mean.round(6).tolist(), std.round(6).tolist()


def _write_quarantine(path: Path, quarantine: Iterable[Quarantined]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "label", "split", "reason", "detail"])
        for q in quarantine:
            writer.writerow([q.item.key, q.item.label, q.item.split, q.reason, q.detail])


def _write_near_duplicates(path: Path, selection: Selection, splits: Splits) -> None:
    """Write the pairs that look alike; the split is empty for a picture that was dropped."""
    split_of = {p.item.key: split for split, pictures in splits.items() for p in pictures}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["key", "other_key", "label", "other_label", "split", "other_split", "bits"]
        )
        for alike in selection.alike:
            keys = (alike.first.item.key, alike.second.item.key)
            labels = (alike.first.label, alike.second.label)
            writer.writerow([*keys, *labels, *(split_of.get(key) for key in keys), alike.bits])

"""What a source holds, in a few letters: it changes when the source does, and costs a listing."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import TriggerError
from linnet.settings import PlaceSettings, SourceSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import StoredObject, open_store


@dataclass(frozen=True)
class Content:
    """Versions of a source's pictures and of its CSV of labels; None for what can't change."""

    pictures: str | None
    annotations: str | None


def content_of(source: SourceSettings, connections: Connections) -> Content:
    """Return what the source holds now, told by names, sizes and stamps; no file is read.

    Raises:
        StoreError: or a subclass: the place can't be reached or isn't there.
    """
    changing = [place for place in source.places if not _never_changes(place)]
    listed = [_listed(place, connections) for place in changing]
    labels = [entry for _, of_place in listed for entry in of_place]
    with_labels = any(place.csv is not None for place in changing)
    return Content(
        _version(entry for of_place, _ in listed for entry in of_place) if listed else None,
        _version(labels) if with_labels else None,
    )


def settled(
    source: SourceSettings, connections: Connections, *, settle_s: float, patience_s: float = 3600.0
) -> Content:
    """Return what the source holds once it has not changed for `settle_s` seconds.

    Raises:
        TriggerError: it went on changing for `patience_s` seconds.
    """
    until = time.monotonic() + patience_s
    before = content_of(source, connections)
    while time.monotonic() < until:
        time.sleep(settle_s)
        now = content_of(source, connections)
        if now == before:
            return now
        before = now
    raise TriggerError(
        f"{source.uri} has changed for {patience_s / 60:.0f} minutes without a pause of "
        f"{settle_s:g} s: wait until what is being written is whole, or take a longer --settle"
    )


def _never_changes(place: PlaceSettings) -> bool:
    return place.uri == "digits" or place.uri.startswith("torchvision://")


def _listed(
    place: PlaceSettings, connections: Connections
) -> tuple[list[StoredObject], list[StoredObject]]:
    """Return a place's pictures, and its CSV of labels where it has one."""
    store, prefix = open_store(place.uri, connections)
    entries = list(store.entries(prefix))
    if place.csv is None:
        return entries, []
    labels = [entry for entry in entries if entry.key.endswith(place.csv.path)]
    pictures = [entry for entry in entries if entry not in labels]
    if not labels and Path(place.csv.path).is_file():
        beside, _ = open_store(place.csv.path)
        labels = list(beside.entries())
    return pictures, labels


def _version(entries: Iterable[StoredObject]) -> str:
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.key):
        digest.update(f"{entry.key}\0{entry.size_bytes}\0{entry.stamp}\n".encode())
    return digest.hexdigest()[:12]

"""One way in for every kind of source."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from linnet.data.sources.archive import unpack
from linnet.data.sources.digits import digits
from linnet.data.sources.folder import walk
from linnet.data.sources.items import (
    Found,
    Item,
    Source,
    checked_source,
    number_duplicates,
    only_classes,
)
from linnet.data.sources.layout import label_by_folder, unwrap
from linnet.data.sources.remote import download, listed
from linnet.data.sources.table import Pictures, label_by_table
from linnet.data.sources.torchvision import torchvision_items
from linnet.errors import SourceError
from linnet.settings import PlaceSettings, SourceSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import open_store

# The column of a dataset that names the further source a picture is from.
ADDED = "added"

_EXPECTED = (
    "expected digits, a folder, a .zip or .tar file, s3://bucket/prefix or torchvision://NAME"
)


def open_source(
    source: SourceSettings, scratch: Path, *, connections: Connections | None = None
) -> Source:
    """Return the source's items as local files: where they are, or below `scratch`.

    Keys of a further source begin with its name.

    Raises:
        SourceError: the source is absent, broken, unsafe, or not labelled pictures.
        StoreError: an object store refused, or scratch is full.
    """
    return checked_source(source.uris, _joined(source, scratch.absolute(), connections))


@dataclass(frozen=True)
class Pile:
    """The pictures of a source, labelled or not, sorted by key; `read` returns a path's bytes."""

    items: tuple[Item, ...]
    read: Callable[[Path], bytes]


def open_pile(
    source: SourceSettings, scratch: Path, *, connections: Connections | None = None
) -> Pile:
    """Return the source's pictures for whoever needs no labels.

    Pictures of a bucket stay there and are read one by one; an archive, and what a CSV labels, are
    brought below `scratch` first.

    Raises:
        SourceError: the source is absent, broken or unsafe, or has no pictures.
        StoreError: an object store refused, or scratch is full.
    """
    pile = _in_bucket(source, connections) if source.uri.startswith("s3://") else None
    if pile is None:
        items = _joined(source, scratch.absolute(), connections)
        pile = Pile(tuple(items), Path.read_bytes)
    if not pile.items:
        raise SourceError(f"{source.uri} holds no pictures: give a folder or archive that has some")
    return Pile(tuple(sorted(pile.items, key=lambda item: item.key)), pile.read)


def _joined(source: SourceSettings, scratch: Path, connections: Connections | None) -> list[Item]:
    """Return the items of all places."""
    items = _of_classes(source, _items(source, scratch, connections))
    own_folders = {item.key.partition("/")[0] for item in items}
    for name, place in source.more.items():
        if name in own_folders:
            raise SourceError(
                f"source.more calls {place.uri} {name!r}, and {source.uri} has a folder of that "
                "name: take another name"
            )
        added = _items(place, scratch / "more" / name, connections)
        for item in _of_classes(place, added):
            attributes = {**item.attributes, ADDED: name}
            key = f"{name}/{item.key}"
            items.append(replace(item, key=key, attributes=attributes, added=name))
    return items


def _of_classes(place: PlaceSettings, items: list[Item]) -> list[Item]:
    return only_classes(place.uri, items, place.classes)


def _in_bucket(source: SourceSettings, connections: Connections | None) -> Pile | None:
    """Return the pictures of a bucket where they are, None for what has to be brought here."""
    if source.more:
        return None
    store, prefix = open_store(source.uri, connections)
    found, _ = unwrap(number_duplicates(listed(store, prefix)), source.splits)
    if not found or source.csv is not None:
        return None
    items = _of_classes(source, label_by_folder(found, source.splits, source.uri))
    return Pile(tuple(items), lambda path: store.read(path.as_posix()))


def _items(source: PlaceSettings, scratch: Path, connections: Connections | None) -> list[Item]:
    scheme, separator, rest = source.uri.partition("://")
    if source.uri == "digits":
        _only_plain(source)
        return digits(scratch)
    if not separator or scheme == "file":
        return _local_items(source, Path(rest or source.uri).expanduser().absolute(), scratch)
    if scheme == "torchvision":
        _only_plain(source)
        return torchvision_items(rest, scratch)
    if scheme == "s3":
        store, prefix = open_store(source.uri, connections)
        # The folder's own name counts: a CSV's paths may begin with it.
        name = rest.strip("/").rpartition("/")[2].strip(".") or "all"
        local = download(store, prefix, scratch / "downloaded" / name)
        return _local_items(source, local, scratch)
    raise SourceError(f"source {source.uri!r} is of no known kind ({scheme}://): {_EXPECTED}")


def _only_plain(source: PlaceSettings) -> None:
    if source.csv is not None or source.splits:
        raise SourceError(
            f"source {source.uri!r} brings its own labels and splits: leave out source.csv and "
            "source.splits"
        )


def _local_items(source: PlaceSettings, path: Path, scratch: Path) -> list[Item]:
    if not os.path.exists(path):  # unlike Path.exists, also False for a name that is too long
        raise SourceError(f"source {source.uri!r} is not there ({path}): {_EXPECTED}")
    left_packed: list[Found] = []
    if not path.is_dir() and not path.is_file():
        raise SourceError(f"source {source.uri!r} is a pipe, socket or device: {_EXPECTED}")
    if path.is_file():
        left_packed = unpack(path, scratch / "unpacked")
        path = scratch / "unpacked"
    found, wrapper = unwrap(number_duplicates([*walk(path), *left_packed]), source.splits)
    if source.csv is not None:
        return label_by_table(Pictures(found, path, wrapper), source.csv, source.splits)
    return label_by_folder(found, source.splits, source.uri)

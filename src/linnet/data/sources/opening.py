"""One way in for every kind of source."""

import re
from pathlib import Path

from linnet.data.sources.digits import digits
from linnet.data.sources.folder import walk
from linnet.data.sources.items import Found, Item, Source, checked_source
from linnet.data.sources.layout import label_by_folder, unwrap
from linnet.errors import SourceError
from linnet.settings import SourceSettings
from linnet.stores.connections import Connections

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def open_source(
    source: SourceSettings, scratch: Path, *, connections: Connections | None = None
) -> Source:
    """Return the source's items as local files: where they are, or below `scratch`.

    Raises:
        SourceError: the source is absent, broken, unsafe, or not labelled pictures.
        StoreError: an object store refused, or scratch is full.
    """
    return checked_source(source.uri, _items(source, scratch.absolute(), connections))


def _items(source: SourceSettings, scratch: Path, connections: Connections | None) -> list[Item]:
    uri = source.uri
    if uri == "digits":
        return digits(scratch)
    return _local_items(source, Path(uri).expanduser().absolute(), scratch)


def _local_items(source: SourceSettings, path: Path, scratch: Path) -> list[Item]:
    if not path.exists():
        raise SourceError(
            f"source {source.uri!r} is not there: expected digits, a folder, a .zip or .tar file, "
            "s3://bucket/prefix or torchvision://NAME; check the path"
        )
    found: list[Found] = walk(path)
    found, _ = unwrap(found, source.splits)
    return label_by_folder(found, source.splits, source.uri)

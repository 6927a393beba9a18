"""Pictures and archives in an object store, brought below scratch."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from linnet.data.sources.folder import left_behind
from linnet.data.sources.items import Found, clean_key
from linnet.data.sources.scratch import filled
from linnet.errors import SourceError
from linnet.progress import track

if TYPE_CHECKING:
    from linnet.stores.objects import ObjectStore, StoredObject

_AT_ONCE = 8


def download(store: "ObjectStore", prefix: str, folder: Path) -> Path:
    """Return the local copy of what lies at the prefix: an archive's path, or a folder's.

    Raises:
        SourceError: nothing is there, or a key would land outside the folder.
        StoreError: the store refused or did not answer, or no space is left.
    """
    with filled(folder) as unfinished:
        entries = list(_entries(store, prefix))
        jobs = ((entry, unfinished / _below(entry.key, prefix, store)) for entry in entries)
        done = _download_all(store, jobs)
        for _ in track(done, f"download {store.uri(prefix)}", total=len(entries)):
            pass
    only = folder / prefix.rpartition("/")[2]
    return only if len(entries) == 1 and entries[0].key == prefix else folder


def listed(store: "ObjectStore", prefix: str) -> list[Found]:
    """Return the objects below the prefix, each with its key in the store as path.

    There are none where the prefix is itself an object: an archive.

    Raises:
        SourceError: nothing is there, or a key would land outside a folder.
        StoreError: the store refused or did not answer.
    """
    return [
        Found(clean_key(name), Path(entry.key))
        for entry in _entries(store, prefix)
        if entry.key != prefix and not _is_left_behind(name := _below(entry.key, prefix, store))
    ]


def _is_left_behind(name: str) -> bool:
    *folders, file = name.split("/")
    return left_behind(file, folder=False) or any(left_behind(f, folder=True) for f in folders)


def _entries(store: "ObjectStore", prefix: str) -> Iterator["StoredObject"]:
    entries = iter(store.entries(prefix))
    first = next(entries, None)
    if first is None:
        raise SourceError(
            f"nothing lies at {store.uri(prefix)}: expected pictures below it or one archive; "
            "check the bucket and prefix"
        )
    yield first
    yield from entries


def _below(key: str, prefix: str, store: "ObjectStore") -> str:
    """Return where the object goes, relative to the folder."""
    name = key.removeprefix(f"{prefix}/") if prefix and key != prefix else key
    if key == prefix:
        name = key.rpartition("/")[2]
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise SourceError(
            f"{store.uri(prefix)} is unsafe: its object {key!r} would land outside the folder it "
            "is downloaded to. Rename that object"
        )
    return name


def _download_all(
    store: "ObjectStore", jobs: Iterable[tuple["StoredObject", Path]]
) -> Iterator[None]:
    """Fetch several at once, with few waiting, and yield for each; the first error stops it."""
    jobs = iter(jobs)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {pool.submit(_fetch, store, *job) for job in islice(jobs, 2 * _AT_ONCE)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_fetch, store, *job) for job in islice(jobs, len(done))}
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(store: "ObjectStore", entry: "StoredObject", path: Path) -> None:
    store.download(entry.key, path)

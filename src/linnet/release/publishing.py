"""Where releases lie, `<root>/<model>/<version>/`, and how one appears there whole or not at all.

A release counts from the moment its manifest is there. In a folder it is filled beside its place
and renamed. S3 can't rename, so a claim decides who fills the place: it names the content, and is
given up with the release's end, taken over by the same content, or by any other after an hour.
"""

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from linnet.errors import ReleaseError, ReleaseExistsError, StoreError
from linnet.stores.connections import Connections
from linnet.stores.objects import FolderStore, ObjectStore, folder_errors, open_store

logger = logging.getLogger(__name__)

MANIFEST = "release.json"
CLAIM_S = 3600.0


class Shelf(Protocol):
    """A root of releases. `uri` is without a trailing slash."""

    uri: str

    @property
    def store(self) -> ObjectStore:
        """Return where the releases' files are."""

    def key(self, *names: str) -> str:
        """Return the store's key of a model, a version or a file."""

    def place(self, model: str, version: str, *, content: str) -> AbstractContextManager[Path]:
        """Return a block that yields an empty folder and publishes what it then holds.

        On an error nothing is published. `content` tells this release's payload from another's.
        """


def open_shelf(root: str, connections: Connections | None) -> Shelf:
    """Return the shelf at a folder or `s3://bucket/prefix`.

    Raises:
        StoreError: the root is of no known kind, or in S3 without connections.
    """
    store, prefix = open_store(root, connections)
    if isinstance(store, FolderStore):
        return FolderShelf(store)
    return BucketShelf(store, prefix)


def versions(shelf: Shelf, model: str) -> list[str]:
    """Return the names of a model's versions, unfinished ones of a bucket too."""
    names = shelf.store.folders(shelf.key(model))
    return sorted((name for name in names if not name.startswith(".")), key=natural)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts v10 after v9."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


class FolderShelf:
    """Releases in a folder."""

    def __init__(self, store: FolderStore) -> None:
        self.store = store
        self.uri = store.uri()

    def key(self, *names: str) -> str:
        """Return the path below the root."""
        return "/".join(names)

    @contextmanager
    def place(self, model: str, version: str, *, content: str) -> Iterator[Path]:
        """Yield a hidden folder beside the release's place; rename it there at the end.

        Raises:
            ReleaseExistsError: the version is there, or another release of it was faster.
            StoreFullError: no space is left.
        """
        target = self.store.root / model / version
        if target.exists():
            raise exists(str(target))
        partial = target.with_name(f".{version}.partial-{secrets.token_hex(8)}")
        with folder_errors("write", target):
            try:
                partial.mkdir(parents=True)
                yield partial
                _sync(partial)
                try:
                    partial.rename(target)
                except OSError as error:
                    if target.exists():
                        raise exists(str(target)) from error
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)


class BucketShelf:
    """Releases in S3."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.store = store
        self.uri = store.uri(prefix)
        self._prefix = prefix

    def key(self, *names: str) -> str:
        """Return the key below the prefix."""
        return "/".join((self._prefix, *names) if self._prefix else names)

    @contextmanager
    def place(self, model: str, version: str, *, content: str) -> Iterator[Path]:
        """Claim the version, yield a local folder, then upload it, the manifest last.

        Raises:
            ReleaseExistsError: the version is there, or is being released by another.
            StoreError: or a subclass: the store can't be reached, denies or is full. What was
                uploaded stays invisible and in nobody's way.
        """
        self._refuse_finished(model, version)
        claim = self._claim(model, version, content)
        try:
            # Who finished in between gave up the claim only after writing the manifest.
            self._refuse_finished(model, version)
            with TemporaryDirectory(prefix="linnet-release-") as name:
                yield Path(name)
                self._upload(Path(name), model, version, claim)
        finally:
            with suppress(StoreError):
                self.store.delete(claim)

    def _upload(self, folder: Path, model: str, version: str, claim: str) -> None:
        for file in sorted(folder.iterdir()):
            if file.name != MANIFEST:
                self.store.upload(file, self.key(model, version, file.name))
        manifest = (folder / MANIFEST).read_bytes()
        if self._claims(model, version)[-1:] != [claim]:
            raise ReleaseError(
                f"the release {self._where(model, version)} took more than "
                f"{CLAIM_S / 60:.0f} minutes and another one took its version over: release again"
            )
        if not self.store.create(self.key(model, version, MANIFEST), manifest):
            raise exists(self._where(model, version))

    def _claim(self, model: str, version: str, content: str) -> str:
        """Return the key of our claim: a new one, or that of an interrupted same release."""
        found = self._claims(model, version)
        number = 1
        if found:
            latest = self._read_claim(found[-1])
            if latest.get("content") == content:
                return found[-1]
            if time.time() - float(latest.get("began", 0.0)) < CLAIM_S:
                raise self._busy(model, version, latest)
            number = int(found[-1].rpartition("/")[2]) + 1
        key = self.key(model, ".claims", version, f"{number:04}")
        claim = {"content": content, "began": time.time(), "token": secrets.token_hex(8)}
        if not self.store.create(key, json.dumps(claim).encode()):
            raise self._busy(model, version, {})
        return key

    def _claims(self, model: str, version: str) -> list[str]:
        return [entry.key for entry in self.store.entries(self.key(model, ".claims", version))]

    def _read_claim(self, key: str) -> dict[str, Any]:
        try:
            claim = json.loads(self.store.read(key))
        except (StoreError, ValueError):
            return {"began": time.time()}
        return claim if isinstance(claim, dict) else {}

    def _busy(self, model: str, version: str, claim: dict[str, Any]) -> ReleaseExistsError:
        began = claim.get("began")
        ago = f", begun {time.time() - began:.0f} s ago" if isinstance(began, float) else ""
        return ReleaseExistsError(
            f"another release of {self._where(model, version)} is under way{ago}: choose another "
            f"version; if it was interrupted, its version is free {CLAIM_S / 60:.0f} minutes "
            "after its beginning"
        )

    def _refuse_finished(self, model: str, version: str) -> None:
        if self.store.exists(self.key(model, version, MANIFEST)):
            raise exists(self._where(model, version))

    def _where(self, model: str, version: str) -> str:
        return f"{self.uri}/{model}/{version}"


def exists(where: str) -> ReleaseExistsError:
    """Return the error for a version that is released already."""
    return ReleaseExistsError(
        f"{where} is already released, and releases never change: give another release.version, "
        "or none for the next free one"
    )


def _sync(folder: Path) -> None:
    """Have the files on disk before their folder gets its name: a power cut leaves no half one."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

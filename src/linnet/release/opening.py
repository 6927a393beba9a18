"""Opening releases: found by address, fetched, checked file by file.

Servers start with this, so it imports no torch and no pyarrow.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from linnet.errors import ReleaseError, SettingsError, StoreAbsentError
from linnet.inference.session import MODEL
from linnet.release.publishing import MANIFEST
from linnet.release.signing import SIGNATURE, SIGNING_KEY, sign, verify
from linnet.stores.connections import Connections
from linnet.stores.objects import FolderStore, folder_errors, open_store, sha256_of
from linnet.stores.registry import Registry

KIND = "linnet/release/v1"
SAMPLES = "samples.json"

_ALIAS = re.compile(r"(?P<model>[a-z0-9-]+)@(?P<alias>[a-z0-9_-]+)")
_RESTORE = "restore it from a copy, or release the graph again under another version"


@dataclass(frozen=True)
class Release:
    """An opened release, whole and with the digests of its manifest: `path` is a local folder."""

    path: Path
    uri: str
    manifest: dict[str, Any]

    @property
    def model(self) -> str:
        """Return the model's name."""
        return str(self.manifest["model"])

    @property
    def version(self) -> str:
        """Return the version's name."""
        return str(self.manifest["version"])

    @property
    def graph_path(self) -> Path:
        """Return the ONNX graph's file."""
        return self.path / MODEL

    @property
    def samples_path(self) -> Path:
        """Return the file of sample pictures with the graph's answers."""
        return self.path / SAMPLES


def open_release(
    address: str | Path, *, scratch: Path, connections: Connections | None = None
) -> Release:
    """Open a release by folder, `s3://…` or `model@alias`, and check every file's digest.

    Where the connections name a trusted key, it must have signed the release. A release in S3 is
    downloaded to `<scratch>/<model>-<version>`.

    Raises:
        ReleaseError: there is none, it is half there, a file is not the one released, or the
            release isn't signed by who is trusted.
        StoreError: or a subclass: the store can't be reached or denies.
        TrackingError: an alias was given, and MLflow can't be reached.
    """
    uri = _resolve(str(address), connections)
    manifest = read_manifest(uri, connections)
    path = _local(uri, manifest, scratch, connections)
    _check_files(path, manifest, uri)
    if connections is not None and connections.trusted_key is not None:
        verify(path, connections.trusted_key, uri=uri)
        # What was verified is the file, so that is what counts.
        manifest = read_manifest(str(path), None)
    return Release(path, uri, manifest)


def _local(
    uri: str, manifest: dict[str, Any], scratch: Path, connections: Connections | None
) -> Path:
    """Return the folder of a release, downloaded if it is in S3."""
    store, prefix = open_store(uri, connections)
    if isinstance(store, FolderStore):
        return store.root
    path = scratch / f"{manifest['model']}-{manifest['version']}"
    for name in (*manifest["files"], MANIFEST):
        try:
            store.download(f"{prefix}/{name}", path / name)
        except StoreAbsentError as error:
            raise ReleaseError(f"{uri} is incomplete, {name} is gone: {_RESTORE}") from error
    with suppress(StoreAbsentError):
        store.download(f"{prefix}/{SIGNATURE}", path / SIGNATURE)
    return path


def sign_release(address: str, connections: Connections) -> str:
    """Sign a release that is there, in place of an older signature; return its address.

    Raises:
        ReleaseError: there is none, or it is not whole.
        SettingsError: there is no key to sign with, or it can't be used.
        StoreError: or a subclass: the store can't be reached or denies.
    """
    if connections.signing_key is None:
        raise SettingsError(
            f"no key to sign with: set {SIGNING_KEY} to a private key's PEM file "
            "(`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes one)"
        )
    anyone = replace(connections, trusted_key=None)
    with TemporaryDirectory(prefix="linnet-sign-") as scratch:
        release = open_release(address, scratch=Path(scratch), connections=anyone)
        copy = Path(scratch) / "copy"
        copy.mkdir()
        for name in (*release.manifest["files"], MANIFEST):
            shutil.copyfile(release.path / name, copy / name)
        sign(copy, connections.signing_key, connections.signing_password)
        store, prefix = open_store(release.uri, connections)
        store.upload(copy / SIGNATURE, f"{prefix}/{SIGNATURE}" if prefix else SIGNATURE)
    return release.uri


def _resolve(address: str, connections: Connections | None) -> str:
    found = _ALIAS.fullmatch(address)
    if found is None or connections is None:
        return address
    try:
        uri = Registry(connections).resolve(found["model"], found["alias"])
    except ModuleNotFoundError as error:
        raise ReleaseError(
            f"{address} is looked up in MLflow, which is not installed here: give the release's "
            "folder or s3://… address, or pip install 'linnet[tracking]'"
        ) from error
    if uri is None:
        raise ReleaseError(
            f"no release of {found['model']} has the alias {found['alias']} in MLflow at "
            f"{connections.tracking_shown}: `linnet releases` lists what there is"
        )
    return uri


def read_manifest(uri: str, connections: Connections | None) -> dict[str, Any]:
    """Return the manifest of a finished release.

    Raises:
        ReleaseError: there is none, or it is damaged or of another kind.
        StoreError: or a subclass: the store can't be reached or denies.
    """
    store, prefix = open_store(uri, connections)
    try:
        manifest = json.loads(store.read(f"{prefix}/{MANIFEST}" if prefix else MANIFEST))
    except StoreAbsentError as error:
        raise ReleaseError(
            f"{uri} is not a finished release ({error}): `linnet releases` lists what there is"
        ) from error
    except ValueError as error:
        raise ReleaseError(f"the manifest of {uri} is damaged ({error}): {_RESTORE}") from error
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind != KIND:
        raise ReleaseError(
            f"the manifest of {uri} is of kind {kind!r}, expected {KIND!r}: upgrade Linnet if a "
            "newer one wrote it"
        )
    absent = {"model", "version", "files", "metrics", "provenance"} - manifest.keys()
    if absent:
        raise ReleaseError(f"the manifest of {uri} lacks {', '.join(sorted(absent))}: {_RESTORE}")
    for name in manifest["files"]:
        if name != Path(name).name:
            raise ReleaseError(
                f"the manifest of {uri} names the file {name!r} outside it: {_RESTORE}"
            )
    return dict(manifest)


def _check_files(path: Path, manifest: dict[str, Any], uri: str) -> None:
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            raise ReleaseError(f"{uri} is incomplete, {name} is gone: {_RESTORE}")
        with folder_errors("read", path / name):
            found = sha256_of(path / name)
        if found != expected["sha256"]:
            raise ReleaseError(
                f"{name} of {uri} is not what was released: SHA-256 {found}, the manifest says "
                f"{expected['sha256']}: {_RESTORE}"
            )

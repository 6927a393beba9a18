"""Objects by key, in a folder or in any S3: one small protocol, errors that say what to check."""

import errno
import hashlib
import logging
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from linnet.errors import (
    StoreAbsentError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from linnet.stores.connections import Connections

if TYPE_CHECKING:
    from minio import Minio

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20
_PAGE_OBJECTS = 1000
# A part goes out in one send whose time limit is Patience.connect_s, so parts are as small as S3
# allows: 5 MiB in 15 s is what the slowest useful network gives.
_PART_BYTES = 5 << 20
_TRY_AGAIN_CODES = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "XMinioServerNotInitialized",
    }
)
_CREDENTIAL_CODES = frozenset({"AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken"})
_FULL_CODES = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
)


@dataclass(frozen=True)
class StoredObject:
    """One object: its key in the store, its size in bytes, and what changes with its content.

    `stamp` is S3's entity tag, or a file's time of change.
    """

    key: str
    size_bytes: int
    stamp: str = field(default="", compare=False)


@dataclass(frozen=True)
class Patience:
    """How long an S3 that does not answer is asked again, times in seconds."""

    attempts: int = 4
    first_wait_s: float = 0.5
    connect_s: float = 15.0
    read_s: float = 60.0


class ObjectStore(Protocol):
    """Bytes by key. Keys use `/`, have no leading `/`, and are listed in order."""

    def uri(self, key: str = "") -> str:
        """Return the full address of a key, for people and for records."""

    def exists(self, key: str) -> bool:
        """Return whether there is an object at this very key."""

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key lies below `prefix/` (or is `prefix`), in order of keys."""

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names one level below `prefix/` that have objects under them, in order."""

    def read(self, key: str) -> bytes:
        """Return a small object's bytes."""

    def write(self, key: str, content: bytes) -> None:
        """Store a small object whole, in place of what was there."""

    def create(self, key: str, content: bytes) -> bool:
        """Store a small object unless the key is taken; return whether this call stored it."""

    def upload(self, path: Path, key: str) -> None:
        """Store a file, read in pieces."""

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Fetch an object into a file that appears only when it is whole and has this digest."""

    def delete(self, key: str) -> None:
        """Remove an object; it is no error when there is none."""


def open_store(
    uri: str | Path, connections: Connections | None = None, *, patience: Patience | None = None
) -> tuple[ObjectStore, str]:
    """Return the store that an address is in, and the key or prefix it names there.

    `s3://bucket/some/prefix` gives the bucket's store and `some/prefix`; a folder gives a store of
    that folder and an empty prefix.

    Raises:
        StoreError: the address is of no known kind, or is S3 and there are no connections.
    """
    text = str(uri)
    if not text.startswith("s3://"):
        if "://" in text and not text.startswith("file://"):
            raise StoreError(f"{text} is neither a folder nor s3://bucket/prefix")
        return FolderStore(Path(text.removeprefix("file://"))), ""
    parts = urlsplit(text)
    if not parts.netloc:
        raise StoreError(f"{text} names no bucket: expected s3://bucket/prefix")
    if connections is None:
        raise StoreError(
            f"{text} is in S3, and nothing says where S3 is: set AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and, unless it is AWS, AWS_ENDPOINT_URL; in Python, pass "
            "connections=Connections.from_environment(workspace)"
        )
    # Not parts.path: a key may hold `?` and `#`.
    prefix = text.removeprefix("s3://").partition("/")[2].strip("/")
    return S3Store(parts.netloc, connections, patience=patience), prefix


def _stored(key: str, path: Path) -> StoredObject:
    found = path.stat()
    return StoredObject(key, found.st_size, str(found.st_mtime_ns))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_errors(operation: str, path: Path) -> Iterator[None]:
    """Turn the system's errors on files into ours: full, denied, absent, other.

    Raises:
        StoreError: or the subclass that fits.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"no space left to {operation} {where}: free some, or choose another folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreDeniedError(
                f"not allowed to {operation} {where} ({error.strerror}): check the owner and "
                "permissions of the folder, or choose another one"
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise StoreAbsentError(f"can't {operation} {where}: no such file or folder") from error
        raise StoreError(f"can't {operation} {where}: {error}") from error


class FolderStore:
    """Objects as files below a folder, each of which appears whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def uri(self, key: str = "") -> str:
        """Return the absolute path of a key."""
        return str(self._path(key))

    def exists(self, key: str) -> bool:
        """Return whether there is a file at this key."""
        return self._path(key).is_file()

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every file below the prefix, in order of keys; hidden files are left out."""
        start = self._path(prefix)
        with folder_errors("list", start):
            if start.is_file():
                yield _stored(prefix, start)
                return
            found = [
                path
                for path in start.rglob("*")
                if path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(start).parts)
            ]
            for path in sorted(found, key=lambda path: path.relative_to(self.root).as_posix()):
                yield _stored(path.relative_to(self.root).as_posix(), path)

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders one level below, in order, without hidden ones."""
        start = self._path(prefix)
        if not start.is_dir():
            return []
        with folder_errors("list", start):
            names = [path.name for path in start.iterdir() if path.is_dir()]
        return sorted(name for name in names if not name.startswith("."))

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        with folder_errors("read", self._path(key)):
            return self._path(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Write a file whole, in place of what was there."""
        with self._whole(key) as whole:
            whole.write_bytes(content)

    def create(self, key: str, content: bytes) -> bool:
        """Write a file unless the key is taken; return whether this call wrote it."""
        path = self._path(key)
        with folder_errors("write", path), _beside(path) as beside:
            beside.write_bytes(content)
            try:
                os.link(beside, path)
            except FileExistsError:
                return False
            return True

    def upload(self, path: Path, key: str) -> None:
        """Copy a file in."""
        with self._whole(key) as whole:
            shutil.copyfile(path, whole)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Copy a file out."""
        with folder_errors("copy", self._path(key)), _whole_file(path) as whole:
            shutil.copyfile(self._path(key), whole)
            _check_digest(whole, sha256, self.uri(key))

    def delete(self, key: str) -> None:
        """Remove a file if it is there."""
        with folder_errors("delete", self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key {key!r} leads out of {self.root}: keys are relative")
        return self.root / key

    @contextmanager
    def _whole(self, key: str) -> Iterator[Path]:
        with folder_errors("write", self._path(key)), _whole_file(self._path(key)) as whole:
            yield whole


class S3Store:
    """Objects of one bucket, by the `minio` client, which speaks to any S3."""

    def __init__(
        self, bucket: str, connections: Connections, *, patience: Patience | None = None
    ) -> None:
        self.bucket = bucket
        self.endpoint = connections.s3_endpoint or "https://s3.amazonaws.com"
        self.patience = patience or Patience()
        self._client = _client(connections, self.endpoint, self.patience)

    def uri(self, key: str = "") -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self.bucket}/{key}".rstrip("/")

    def exists(self, key: str) -> bool:
        """Return whether there is an object at this key."""
        try:
            self._call("look for", key, lambda: self._client.stat_object(self.bucket, key))
        except StoreAbsentError as error:
            # A HEAD has no body, so an absent bucket looks like an absent object.
            if not self._call("look for", "", lambda: self._client.bucket_exists(self.bucket)):
                raise StoreAbsentError(self._no_bucket()) from error
            return False
        return True

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object below the prefix, a page of a thousand at a time."""
        after: str | None = None
        while page := self._call("list", prefix, partial(self._page, prefix, after)):
            yield from (entry for entry in page if not entry.key.endswith("/"))
            after = page[-1].key
        if after is None and prefix and self.exists(prefix):
            stat = partial(self._client.stat_object, self.bucket, prefix)
            found = self._call("look for", prefix, stat)
            yield StoredObject(prefix, found.size or 0, found.etag or "")

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names one level below that have objects under them, in order."""
        start = f"{prefix}/" if prefix else ""

        def names() -> list[str]:
            found = self._client.list_objects(self.bucket, prefix=start)
            keys = [entry.object_name or "" for entry in found]
            return sorted(key[len(start) : -1] for key in keys if key.endswith("/"))

        return [name for name in self._call("list", prefix, names) if name]

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""

        def get() -> bytes:
            response = self._client.get_object(self.bucket, key)
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

        return self._call("read", key, get)

    def write(self, key: str, content: bytes) -> None:
        """Put an object whole."""
        self._call("write", key, lambda: self._put(key, content, {}))

    def create(self, key: str, content: bytes) -> bool:
        """Put an object unless the key is taken; return whether this call put it.

        `If-None-Match: *` makes the server decide between two at once. An S3 that ignores or
        refuses that header leaves the look before and after, which parts all but the closest race.
        """
        if self.exists(key):
            return False
        try:
            self._call("write", key, lambda: self._put(key, content, {"If-None-Match": "*"}))
        except _TakenError:
            # Our own put may have landed, its answer lost and the put tried again.
            pass
        except _NotImplementedError:
            self.write(key, content)
        return self.read(key) == content

    def upload(self, path: Path, key: str) -> None:
        """Put a file in parts, each with its digest, which the server checks."""
        with folder_errors("read", path):
            self._call(
                "write",
                key,
                lambda: self._client.fput_object(
                    self.bucket, key, str(path), part_size=_PART_BYTES
                ),
            )

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Fetch an object in pieces into a file that appears only when it is whole."""

        def get() -> None:
            with folder_errors("write", path), _whole_file(path) as whole:
                self._stream(key, whole)
                _check_digest(whole, sha256, self.uri(key))

        self._call("read", key, get)

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self._call("delete", key, lambda: self._client.remove_object(self.bucket, key))

    def _page(self, prefix: str, after: str | None) -> list[StoredObject]:
        found = self._client.list_objects(
            self.bucket, prefix=f"{prefix}/" if prefix else "", recursive=True, start_after=after
        )
        return [
            StoredObject(entry.object_name or "", entry.size or 0, entry.etag or "")
            for entry in islice(found, _PAGE_OBJECTS)
        ]

    def _stream(self, key: str, path: Path) -> None:
        response = self._client.get_object(self.bucket, key)
        try:
            with path.open("wb") as file:
                for piece in response.stream(_CHUNK_BYTES):
                    file.write(piece)
        finally:
            response.close()
            response.release_conn()

    def _put(self, key: str, content: bytes, headers: dict[str, str]) -> None:
        # The public put_object takes metadata only, no condition.
        self._client._put_object(self.bucket, key, content, dict(headers))

    def _call(self, operation: str, key: str, request: Callable[[], Result]) -> Result:
        """Make a request, again after a growing wait while the trouble may pass."""
        for attempt in range(1, self.patience.attempts + 1):
            try:
                return request()
            except Exception as error:
                if not _may_pass(error) or attempt == self.patience.attempts:
                    self._explain(operation, key, error)
                wait_s = self.patience.first_wait_s * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
                logger.warning(
                    "%s: can't %s %s yet (%s); trying again in %.1f s",
                    self.endpoint,
                    operation,
                    self.uri(key),
                    type(error).__name__,
                    wait_s,
                )
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _explain(self, operation: str, key: str, error: Exception) -> NoReturn:
        from minio.error import S3Error

        where = self.uri(key)
        if _may_pass(error):
            raise StoreUnreachableError(
                f"can't {operation} {where}: S3 at {self.endpoint} did not answer properly in "
                f"{self.patience.attempts} attempts ({_last_words(error)}). Check that the server "
                "runs, that this machine reaches it, and AWS_ENDPOINT_URL"
            ) from error
        code = error.code if isinstance(error, S3Error) else None
        if code == "PreconditionFailed":
            raise _TakenError(where) from error
        if code == "NoSuchBucket":
            raise StoreAbsentError(self._no_bucket()) from error
        if code in ("NoSuchKey", "NoSuchObject", "ResourceNotFound"):
            raise StoreAbsentError(f"can't {operation} {where}: no such object") from error
        status = _status(error)
        if code in _FULL_CODES or status == 507:
            raise StoreFullError(
                f"no space left to {operation} {where} at {self.endpoint} ({code}): free some, "
                "raise the bucket's quota, or choose another bucket"
            ) from error
        if status == 501:
            raise _NotImplementedError(where) from error
        if status in (401, 403) or code in _CREDENTIAL_CODES:
            raise StoreDeniedError(
                f"S3 at {self.endpoint} refused to {operation} {where} ({code}): check "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and that their policy "
                f"allows to {operation} objects of bucket {self.bucket}"
            ) from error
        if isinstance(error, (StoreError, OSError)):
            raise error
        raise StoreError(f"can't {operation} {where} at {self.endpoint}: {error}") from error

    def _no_bucket(self) -> str:
        return (
            f"bucket {self.bucket} does not exist at {self.endpoint}: correct the name, or make "
            f"it (aws s3 mb s3://{self.bucket} --endpoint-url {self.endpoint})"
        )


class _TakenError(StoreError):
    """A conditional put found the key taken."""


class _NotImplementedError(StoreError):
    """The server knows no conditional put."""


def _client(connections: Connections, endpoint: str, patience: Patience) -> "Minio":
    import certifi
    import urllib3
    from minio import Minio
    from minio.credentials.providers import (
        AWSConfigProvider,
        ChainedProvider,
        IamAwsProvider,
        Provider,
        StaticProvider,
    )

    credentials: Provider
    if connections.s3_access_key and connections.s3_secret_key:
        credentials = StaticProvider(
            connections.s3_access_key, connections.s3_secret_key, connections.s3_session_token
        )
    elif connections.s3_endpoint is None:
        credentials = ChainedProvider([AWSConfigProvider(), IamAwsProvider()])
    else:
        raise StoreDeniedError(
            f"no credentials for S3 at {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    parts = urlsplit(endpoint)
    return Minio(
        endpoint=parts.netloc,
        credentials=credentials,
        secure=parts.scheme == "https",
        region=connections.s3_region,
        http_client=urllib3.PoolManager(
            maxsize=10,
            timeout=urllib3.Timeout(connect=patience.connect_s, read=patience.read_s),
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=2),
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        ),
    )


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    from minio.error import S3Error
    from urllib3.exceptions import HTTPError

    if isinstance(error, HTTPError):
        return True
    if isinstance(error, S3Error) and (error.code in _FULL_CODES or error.code == "NotImplemented"):
        return False
    if isinstance(error, S3Error) and error.code in _TRY_AGAIN_CODES:
        return True
    status = _status(error)
    return status == 429 or (status is not None and status >= 500 and status not in (501, 507))


def _status(error: Exception) -> int | None:
    from minio.error import InvalidResponseError, S3Error, ServerError

    if isinstance(error, S3Error):
        return int(error.response.status)
    if isinstance(error, ServerError):
        return error.status_code
    if isinstance(error, InvalidResponseError):
        return error._code
    return None


def _last_words(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path in the same folder, which is removed if it is still there afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial-{secrets.token_hex(8)}")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yield a partial file that takes the place of `path` when the block ends well."""
    with _beside(path) as beside:
        yield beside
        beside.replace(path)


def _check_digest(path: Path, expected: str | None, uri: str) -> None:
    if expected is None:
        return
    found = sha256_of(path)
    if found != expected:
        raise StoreError(
            f"{uri} is not what was stored there: SHA-256 {found}, expected {expected}; "
            "restore it, or release again under another version"
        )

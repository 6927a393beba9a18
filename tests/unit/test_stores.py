import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import (
    StoreAbsentError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from linnet.stores.connections import Connections
from linnet.stores.objects import (
    FolderStore,
    Patience,
    S3Store,
    StoredObject,
    folder_errors,
    open_store,
    sha256_of,
)

QUICK = Patience(attempts=3, first_wait_s=0.01, connect_s=1.0, read_s=1.0)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_objects_are_written_listed_read_and_deleted(store: FolderStore) -> None:
    store.write("a/one", b"1")
    store.write("a/b/two", b"22")
    store.write("ab/three", b"333")
    assert [entry.key for entry in store.entries()] == ["a/b/two", "a/one", "ab/three"]
    assert list(store.entries("a")) == [StoredObject("a/b/two", 2), StoredObject("a/one", 1)]
    assert list(store.entries("a/one")) == [StoredObject("a/one", 1)]
    assert store.folders() == ["a", "ab"]
    assert store.folders("nothing") == []
    assert store.read("a/b/two") == b"22"
    store.delete("a/one")
    store.delete("a/one")
    assert not store.exists("a/one")
    assert not store.exists("a")


def test_a_key_is_created_once_even_by_many_at_a_time(store: FolderStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda n: store.create("claim", str(n).encode()), range(8)))
    assert sum(created) == 1
    assert store.read("claim") == str(created.index(True)).encode()
    assert [path.name for path in store.root.iterdir()] == ["claim"]


def test_a_file_goes_in_and_comes_out_the_same(store: FolderStore, tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "new" / "received"
    sent.write_bytes(os.urandom(3000))
    store.upload(sent, "große datei.bin")
    store.download("große datei.bin", received, sha256=sha256_of(sent))
    assert received.read_bytes() == sent.read_bytes()
    assert stat.S_IMODE(received.stat().st_mode) == stat.S_IMODE(sent.stat().st_mode)


def test_a_copy_with_another_digest_is_refused_and_leaves_no_file(
    store: FolderStore, tmp_path: Path
) -> None:
    store.write("key", b"altered")
    with pytest.raises(StoreError, match=r"is not what was stored there: SHA-256 \w{64}, expected"):
        store.download("key", tmp_path / "copies" / "file", sha256="0" * 64)
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "a/../../outside"])
def test_a_key_that_leads_out_of_the_folder_is_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(StoreError, match="leads out of"):
        store.read(key)


def test_an_absent_file_is_named(store: FolderStore) -> None:
    with pytest.raises(StoreAbsentError, match="nothing: no such file"):
        store.read("nothing")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, StoreFullError, "no space left to write"),
        (errno.EDQUOT, StoreFullError, "no space left to write"),
        (errno.EACCES, StoreDeniedError, "check the owner and permissions"),
        (errno.EROFS, StoreDeniedError, "not allowed to write"),
        (errno.EIO, StoreError, "can't write"),
    ],
)
def test_the_systems_errors_become_ours(code: int, kind: type[StoreError], words: str) -> None:
    with pytest.raises(kind, match=words), folder_errors("write", Path("/a/file")):
        raise OSError(code, os.strerror(code), "/a/file")


def test_a_full_disk_is_told_from_other_trouble(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(StoreFullError, match="free some"),
        folder_errors("write", tmp_path),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"one byte too many")


def test_an_address_names_a_folder_or_a_bucket_and_prefix(tmp_path: Path) -> None:
    connections = Connections(
        tracking_uri="", s3_endpoint="http://127.0.0.1:1", s3_access_key="k", s3_secret_key="s"
    )
    folder, prefix = open_store(tmp_path)
    assert (folder.uri("a/b"), prefix) == (f"{tmp_path}/a/b", "")
    bucket, prefix = open_store("s3://bucket/some/prefix/", connections)
    assert (bucket.uri("key"), prefix) == ("s3://bucket/key", "some/prefix")
    assert open_store("s3://bucket", connections)[1] == ""


def test_s3_without_connections_says_what_to_set() -> None:
    with pytest.raises(StoreError, match=r"AWS_ACCESS_KEY_ID, .*AWS_ENDPOINT_URL"):
        open_store("s3://bucket/prefix")


def test_s3_without_keys_says_what_to_set() -> None:
    connections = Connections(tracking_uri="", s3_endpoint="http://127.0.0.1:1")
    with pytest.raises(StoreDeniedError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store("s3://bucket/prefix", connections)


@pytest.mark.parametrize("address", ["gs://bucket/prefix", "https://example.org/x"])
def test_an_address_of_no_known_kind_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match="neither a folder nor s3://bucket/prefix"):
        open_store(address)


class _Answers(BaseHTTPRequestHandler):
    """An S3 that gives the answers it was told to, then says that the object is `content`."""

    answers: list[tuple[int, str]]
    content = b"content"

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        status, code = self.answers.pop(0) if self.answers else (200, "")
        body = f"<Error><Code>{code}</Code></Error>".encode() if code else self.content
        if code == "cut":
            body = self.content[:3]
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(self.content) if code == "cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def troubled() -> Any:
    """Return a maker of S3 stores whose server gives certain answers first."""
    servers = []

    def make(*answers: tuple[int, str]) -> S3Store:
        handler = type("Answers", (_Answers,), {"answers": list(answers)})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        connections = Connections(
            tracking_uri="",
            s3_endpoint=f"http://127.0.0.1:{servers[-1].server_port}",
            s3_access_key="key",
            s3_secret_key="secret",
            s3_region="us-east-1",
        )
        return S3Store("bucket", connections, patience=QUICK)

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "trouble", [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (200, "cut")]
)
def test_passing_trouble_is_waited_out(
    troubled: Any, tmp_path: Path, trouble: tuple[int, str]
) -> None:
    troubled(trouble, trouble).download("key", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_trouble_that_stays_ends_after_the_last_attempt(troubled: Any) -> None:
    with pytest.raises(StoreUnreachableError, match="in 3 attempts"):
        troubled(*[(503, "SlowDown")] * 3).read("key")


def test_a_denial_is_not_tried_again(troubled: Any) -> None:
    store = troubled((403, "AccessDenied"))
    with pytest.raises(StoreDeniedError, match="AccessDenied"):
        store.read("key")
    assert store.read("key") == b"content"


@pytest.mark.parametrize("code", ["XMinioStorageFull", "InsufficientStorage"])
def test_a_full_store_is_not_tried_again(troubled: Any, code: str) -> None:
    store = troubled((507, code))
    with pytest.raises(StoreFullError, match="free some"):
        store.write("key", b"")
    assert store.read("key") == b"content"

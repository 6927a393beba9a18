import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from minio.credentials import AssumeRoleProvider, StaticProvider
from minio.minioadmin import MinioAdmin

from linnet.errors import (
    StoreAbsentError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from linnet.stores.connections import Connections
from linnet.stores.objects import S3Store, StoredObject, open_store, sha256_of
from tests.services.conftest import QUICK, Bucket
from tests.services.start import free_port, serve_minio

pytestmark = pytest.mark.services


def test_objects_are_written_listed_read_and_deleted(minio: Bucket) -> None:
    store = minio.store()
    store.write("a/one", b"1")
    store.write("a/b/two", b"22")
    store.write("ab/three", b"333")
    assert [entry.key for entry in store.entries()] == ["a/b/two", "a/one", "ab/three"]
    assert list(store.entries("a")) == [StoredObject("a/b/two", 2), StoredObject("a/one", 1)]
    assert list(store.entries("a/one")) == [StoredObject("a/one", 1)]
    assert store.folders() == ["a", "ab"]
    assert store.folders("a") == ["b"]
    assert store.read("a/b/two") == b"22"
    store.delete("a/one")
    store.delete("a/one")
    assert not store.exists("a/one")
    assert not store.exists("a")


def test_more_objects_than_a_page_are_all_listed(
    minio: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linnet.stores.objects._PAGE_OBJECTS", 3)
    store = minio.store()
    for number in range(8):
        store.write(f"many/{number}", b"")
    assert [entry.key for entry in store.entries("many")] == [f"many/{n}" for n in range(8)]


def test_a_key_is_created_once_even_by_many_at_a_time(minio: Bucket) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        store = minio.store()
        start.wait()
        return store.create("claim", str(number).encode())

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(create, range(8)))
    assert sum(created) == 1
    assert minio.store().read("claim") == str(created.index(True)).encode()


def test_a_file_of_several_parts_comes_back_the_same(minio: Bucket, tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "new" / "received"
    sent.write_bytes(os.urandom(11 << 20))
    store = minio.store()
    store.upload(sent, "große datei ü?#.bin")
    store.download("große datei ü?#.bin", received, sha256=sha256_of(sent))
    assert received.read_bytes() == sent.read_bytes()


def test_a_download_with_another_digest_is_refused_and_leaves_no_file(
    minio: Bucket, tmp_path: Path
) -> None:
    store = minio.store()
    store.write("key", b"altered")
    with pytest.raises(StoreError, match="is not what was stored there: SHA-256"):
        store.download("key", tmp_path / "file", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_object_is_named(minio: Bucket) -> None:
    with pytest.raises(StoreAbsentError, match=f"s3://{minio.name}/nothing: no such object"):
        minio.store().read("nothing")


def test_an_absent_bucket_is_named_with_how_to_make_it(minio: Bucket) -> None:
    store, prefix = open_store("s3://no-such-bucket/a/b", minio.connections(Path()))
    assert prefix == "a/b"
    for request in (lambda: store.exists("x"), lambda: store.read("x"), lambda: store.folders()):
        with pytest.raises(StoreAbsentError, match="aws s3 mb s3://no-such-bucket"):
            request()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"s3_secret_key": "wrong-secret"}, "SignatureDoesNotMatch"),
        ({"s3_access_key": "nobody"}, "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_are_denied_with_what_to_check(
    minio: Bucket, wrong: dict[str, str], code: str
) -> None:
    store = minio.store(**wrong)
    for request in (lambda: store.write("x", b""), lambda: store.exists("x")):
        with pytest.raises(StoreDeniedError, match=rf"refused to .* \({code}\): check AWS_ACCESS"):
            request()


def test_who_may_only_read_is_denied_writing(minio: Bucket) -> None:
    minio.store().write("here", b"1")
    only_read = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}],
    }
    role = AssumeRoleProvider(
        sts_endpoint=minio.address,
        access_key=minio.access_key,
        secret_key=minio.secret_key,
        policy=json.dumps(only_read),
    ).retrieve()
    store = minio.store(
        s3_access_key=role.access_key,
        s3_secret_key=role.secret_key,
        s3_session_token=role.session_token,
    )
    assert store.read("here") == b"1"
    with pytest.raises(StoreDeniedError, match=r"refused to write .* \(AccessDenied\)"):
        store.write("there", b"2")


def test_a_closed_port_is_tried_again_then_an_error_says_what_to_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    connections = Connections(
        tracking_uri="", s3_endpoint=address, s3_access_key="a", s3_secret_key="b"
    )
    with pytest.raises(StoreUnreachableError, match=r"in 3 attempts.*AWS_ENDPOINT_URL") as caught:
        S3Store("bucket", connections, patience=QUICK).read("key")
    assert address in str(caught.value)
    assert caplog.text.count("trying again") == 2


def test_a_server_that_comes_back_is_used_after_the_wait(tmp_path: Path) -> None:
    port = free_port()
    connections = Connections(
        tracking_uri="",
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_access_key="linnet",
        s3_secret_key="linnet-secret",
    )
    server = serve_minio(tmp_path / "data", port, "linnet", "linnet-secret")
    try:
        store = S3Store("bucket", connections)
        store._client.make_bucket("bucket")
        store.write("key", b"kept")
        server.kill()
        server.wait()
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(store.read, "key")
            server = serve_minio(tmp_path / "data", port, "linnet", "linnet-secret")
            assert reading.result() == b"kept"
    finally:
        server.kill()
        server.wait()


def test_a_full_bucket_is_told_from_other_trouble(minio: Bucket) -> None:
    admin = MinioAdmin(
        endpoint=minio.address.removeprefix("http://"),
        credentials=StaticProvider(minio.access_key, minio.secret_key),
        secure=False,
    )
    admin.bucket_quota_set(minio.name, 1000)
    with pytest.raises(StoreFullError, match="raise the bucket's quota"):
        minio.store().write("key", bytes(5000))


def test_a_server_killed_in_the_middle_of_an_upload_leaves_nothing_to_see(tmp_path: Path) -> None:
    server = serve_minio(tmp_path / "data", port := free_port(), "linnet", "linnet-secret")
    connections = Connections(
        tracking_uri="",
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_access_key="linnet",
        s3_secret_key="linnet-secret",
    )
    store = S3Store("bucket", connections, patience=QUICK)
    store._client.make_bucket("bucket")
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    killer = threading.Timer(0.3, os.kill, (server.pid, signal.SIGKILL))
    try:
        killer.start()
        with pytest.raises(StoreUnreachableError, match="can't write s3://bucket/big"):
            store.upload(big, "big")
        server.wait()
        server = serve_minio(tmp_path / "data", port, "linnet", "linnet-secret")
        assert not store.exists("big")
        store.upload(big, "big")
        assert [entry.size_bytes for entry in store.entries()] == [400 << 20]
    finally:
        killer.join()
        server.kill()
        server.wait()

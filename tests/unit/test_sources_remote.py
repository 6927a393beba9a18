"""Sources in object stores; a folder's store speaks the same protocol as S3's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.data.sources import open_source
from linnet.data.sources.remote import download
from linnet.errors import SourceError, StoreDeniedError, StoreError
from linnet.settings import SourceSettings
from linnet.stores.objects import FolderStore, StoredObject


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "bucket")
    for number in range(50):
        store.write(f"data/pets/cat/{number}.jpg", f"cat {number}".encode())
    store.write("data/pets/dog/1.jpg", b"dog")
    store.write("data/pets.zip", b"an archive")
    return store


def test_a_prefix_becomes_a_folder(store: FolderStore, tmp_path: Path) -> None:
    local = download(store, "data/pets", tmp_path / "scratch/pets")
    assert local == tmp_path / "scratch/pets"
    assert len(list(local.rglob("*.jpg"))) == 51
    assert (local / "cat/7.jpg").read_bytes() == b"cat 7"


def test_one_archive_becomes_a_file(store: FolderStore, tmp_path: Path) -> None:
    local = download(store, "data/pets.zip", tmp_path / "scratch/pets")
    assert local.read_bytes() == b"an archive"


def test_the_whole_bucket_can_be_the_source(store: FolderStore, tmp_path: Path) -> None:
    local = download(store, "", tmp_path / "scratch/all")
    assert (local / "data/pets/dog/1.jpg").is_file()


def test_an_empty_prefix_is_an_error_that_names_it(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing lies at .*bucket/data/birds"):
        download(store, "data/birds", tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


class UnsafeStore(FolderStore):
    """A store with a key that S3 allows and no folder can hold safely."""

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        yield StoredObject(f"{prefix}/cat/../../../evil.jpg", 1)


def test_a_key_that_would_land_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unsafe: its object .*evil\.jpg"):
        download(UnsafeStore(tmp_path), "data", tmp_path / "scratch")


class DenyingStore(FolderStore):
    """A store that lists and then refuses one object."""

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        if key.endswith("/33.jpg"):
            raise StoreDeniedError("refused")
        super().download(key, path, sha256=sha256)


def test_a_download_that_fails_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(StoreDeniedError, match="refused"):
        download(DenyingStore(store.root), "data/pets", tmp_path / "scratch/pets")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_s3_without_connections_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_source(SourceSettings(uri="s3://bucket/pets"), tmp_path)

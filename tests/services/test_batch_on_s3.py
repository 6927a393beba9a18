"""A batch whose pictures and answers are in a real MinIO."""

import shutil
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest

from linnet.batch.predicting import batch
from linnet.batch.settings import BatchSettings, Shard
from linnet.batch.summary import BatchSummary
from linnet.data.sources import open_pile
from linnet.errors import SourceError, StoreDeniedError
from linnet.settings import SourceSettings
from tests.pictures import class_folders, jpeg, write_tree
from tests.services.conftest import Bucket
from tests.serving.tiny_release import write_release

pytestmark = pytest.mark.services

FOUR = BatchSettings(part_pictures=4)


def upload(minio: Bucket, folder: Path, prefix: str) -> SourceSettings:
    store = minio.store()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        store.upload(file, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return SourceSettings(uri=f"s3://{minio.name}/{prefix}")


def answers_in(minio: Bucket, prefix: str) -> pd.DataFrame:
    store = minio.store()
    parts = [entry.key for entry in store.entries(f"{prefix}/answers")]
    return pd.concat([pd.read_parquet(BytesIO(store.read(key))) for key in parts])


def test_pictures_of_a_bucket_are_answered_like_those_of_a_folder_and_none_is_kept_here(
    minio: Bucket, tmp_path: Path
) -> None:
    release = str(write_release(tmp_path, {"one.jpg": jpeg(1)}))
    folder = class_folders(tmp_path / "in", {"daisy": 6, "tulip": 5})
    write_tree(folder, {"daisy/bad.jpg": b"no picture", ".hidden/x.jpg": jpeg(9)})
    source = upload(minio, folder, "in")
    connections = minio.connections(tmp_path)
    output = f"s3://{minio.name}/out"
    there = batch(source, release, output, FOUR, connections=connections)
    here = batch(SourceSettings(uri=str(folder)), release, str(tmp_path / "out"), FOUR)
    assert (there.confusion, there.left_out) == (here.confusion, here.left_out)
    near = pd.concat([pd.read_parquet(p) for p in sorted(tmp_path.glob("out/answers/*"))])
    pd.testing.assert_frame_equal(answers_in(minio, "out"), near)
    assert b"daisy/bad.jpg" in minio.store().read("out/quarantine.csv")
    assert BatchSummary.load(output, connections) == there
    scratch = tmp_path / "scratch"
    open_pile(source, scratch, connections=connections)
    assert not scratch.exists()


def test_a_batch_in_a_bucket_goes_on_where_it_was_and_shards_meet(
    minio: Bucket, tmp_path: Path
) -> None:
    release = str(write_release(tmp_path, {"one.jpg": jpeg(1)}))
    source = upload(minio, class_folders(tmp_path / "in", {"daisy": 9, "tulip": 8}), "in")
    connections, output = minio.connections(tmp_path), f"s3://{minio.name}/out"
    batch(source, release, output, FOUR, shard=Shard(1, 2), connections=connections)
    store = minio.store()
    first = [entry.key for entry in store.entries("out/records")]
    store.delete(first[0])
    store.write(first[0].replace("records", "answers").replace("json", "parquet"), b"half")
    again = batch(source, release, output, FOUR, shard=Shard(1, 2), connections=connections)
    assert again.missing_shards == ("2-of-2",)
    whole = batch(source, release, output, FOUR, shard=Shard(2, 2), connections=connections)
    assert whole.pictures == 17
    assert answers_in(minio, "out").key.nunique() == 17


def test_an_archive_in_a_bucket_is_unpacked_here(minio: Bucket, tmp_path: Path) -> None:
    release = str(write_release(tmp_path, {"one.jpg": jpeg(1)}))
    class_folders(tmp_path / "in", {"daisy": 2, "tulip": 2})
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", tmp_path / "in")
    minio.store().upload(Path(archive), "pictures.zip")
    source = SourceSettings(uri=f"s3://{minio.name}/pictures.zip")
    found = batch(source, release, str(tmp_path / "out"), connections=minio.connections(tmp_path))
    assert found.answered == 4


def test_a_bucket_that_has_nothing_or_denies_is_told(minio: Bucket, tmp_path: Path) -> None:
    release = str(write_release(tmp_path, {"one.jpg": jpeg(1)}))
    source = SourceSettings(uri=f"s3://{minio.name}/nothing")
    with pytest.raises(SourceError, match="nothing lies at"):
        batch(source, release, str(tmp_path / "out"), connections=minio.connections(tmp_path))
    folder = SourceSettings(uri=str(class_folders(tmp_path / "in", {"daisy": 1, "tulip": 1})))
    denied = minio.connections(tmp_path, s3_secret_key="wrong-wrong")
    with pytest.raises(StoreDeniedError):
        batch(folder, release, f"s3://{minio.name}/out", connections=denied)

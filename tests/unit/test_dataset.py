"""A dataset on disk, read by us and by others."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.errors import DatasetError
from linnet.settings import CsvSettings, IngestSettings, SourceSettings
from tests.pictures import class_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Forty cats and twenty dogs with groups and attributes, in shards of ten."""
    root = tmp_path_factory.mktemp("source")
    class_folders(root, {"cat": 40, "dog": 20})
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{path.parent.name}-{i // 2},cam{i % 3}"
        for i, path in enumerate(sorted(root.glob("*/*.jpg")))
    ]
    (root / "labels.csv").write_text("\n".join(["file,label,group,camera", *rows]))
    source = SourceSettings(uri=str(root), csv=CsvSettings(path="labels.csv", group_column="group"))
    destination = tmp_path_factory.mktemp("out") / "dataset"
    ingest(source, destination, IngestSettings(shard_pictures=10, workers=2))
    return Dataset.open(destination)


def test_the_manifest_says_what_is_in_the_shards(dataset: Dataset) -> None:
    assert dataset.classes == ("cat", "dog")
    assert sum(dataset.size(split) for split in ("train", "val", "test")) == 60
    for split in ("train", "val", "test"):
        counted = np.bincount(dataset.labels(split), minlength=2).tolist()
        assert dict(zip(dataset.classes, counted, strict=True)) == dataset.counts[split]
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))


def test_rows_come_in_one_stable_order(dataset: Dataset) -> None:
    keys = dataset.keys("train")
    assert keys == sorted(keys)
    assert len(dataset.shards("train")) == -(-len(keys) // 10)
    from_rows = [key for batch in dataset.rows("train", batch_size=7) for key in batch["key"]]
    assert [str(key) for key in from_rows] == keys
    pictures = list(dataset.pictures("train"))
    assert [picture.key for picture in pictures] == keys
    assert [picture.label for picture in pictures] == dataset.labels("train").tolist()


def test_a_row_carries_the_original_bytes_and_what_the_source_said(dataset: Dataset) -> None:
    picture = next(dataset.pictures("test"))
    image = Image.open(BytesIO(picture.encoded))
    assert (image.format, image.size) == ("JPEG", (picture.width, picture.height))
    assert picture.key.startswith(dataset.classes[picture.label])
    assert picture.group is not None
    assert picture.group.startswith(dataset.classes[picture.label])
    assert picture.attributes["camera"].startswith("cam")


def test_columns_can_be_chosen_down_to_the_bytes(dataset: Dataset) -> None:
    batch = next(dataset.rows("val", columns=["image.bytes", "label"]))
    assert batch.schema.names == ["image", "label"]
    assert list(batch["image"][0].as_py()) == ["bytes"]


def test_pandas_reads_it(dataset: Dataset) -> None:
    frame = pd.concat(pd.read_parquet(shard) for shard in dataset.shards("train"))
    assert frame["key"].tolist() == dataset.keys("train")
    assert Image.open(BytesIO(frame["image"].iloc[0]["bytes"])).size == (96, 72)


def test_duckdb_reads_it(dataset: Dataset) -> None:
    files = str(dataset.path / "train-*.parquet")
    counted = duckdb.sql(
        f"select label, count(*) from '{files}' group by label order by label"
    ).fetchall()
    assert dict(counted) == dict(enumerate(dataset.counts["train"].values()))
    sizes = duckdb.sql(f"select octet_length(image.bytes) from '{files}'").fetchall()
    assert min(size for (size,) in sizes) > 500


def test_hugging_face_datasets_shows_pictures_and_class_names(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import datasets

    files = {split: str(dataset.path / f"{split}-*.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    train = loaded["train"]
    assert train.num_rows == dataset.size("train")
    assert train.features["label"].names == list(dataset.classes)
    assert train[0]["image"].size == (96, 72)
    assert train[0]["attributes"][0]["key"]


def copy(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.path, tmp_path / "copy"))


def test_a_folder_without_a_manifest_is_no_dataset(dataset: Dataset, tmp_path: Path) -> None:
    half = copy(dataset, tmp_path)
    (half / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="not a finished dataset"):
        Dataset.open(half)
    with pytest.raises(DatasetError, match="not a finished dataset"):
        Dataset.open(tmp_path / "absent")


def test_a_missing_shard_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    half = copy(dataset, tmp_path)
    (half / "train-00001.parquet").unlink()
    with pytest.raises(DatasetError, match="train pictures, expected"):
        Dataset.open(half)


def test_a_cut_shard_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    half = copy(dataset, tmp_path)
    shard = half / "test-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="test shard"):
        Dataset.open(half)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "linnet/report/v1"}'])
def test_another_kind_of_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError):
        Dataset.open(tmp_path)


def test_a_damaged_manifest_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    half = copy(dataset, tmp_path)
    manifest = json.loads((half / "dataset.json").read_text())
    del manifest["counts"]["val"]
    (half / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="damaged"):
        Dataset.open(half)

"""Pictures and weights that lie in a real MinIO."""

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from linnet.data.ingest import ingest
from linnet.data.sources import open_source
from linnet.errors import LinnetError, SourceError
from linnet.settings import IngestSettings, SourceSettings, TrainSettings
from linnet.training import fit
from tests.services.conftest import Bucket
from tests.shades import TRAIN, write_shades

pytestmark = pytest.mark.services


def _upload(minio: Bucket, folder: Path, prefix: str) -> None:
    store = minio.store()
    for file in folder.rglob("*.png"):
        store.upload(file, f"{prefix}/{file.relative_to(folder).as_posix()}")


def test_a_prefix_of_class_folders_gives_the_dataset_of_the_folder_itself(
    minio: Bucket, tmp_path: Path
) -> None:
    write_shades(tmp_path / "pictures", each=12)
    _upload(minio, tmp_path / "pictures", "shades")
    settings = IngestSettings(workers=1)
    connections = minio.connections(tmp_path)
    there = SourceSettings(uri=f"s3://{minio.name}/shades")
    here = SourceSettings(uri=str(tmp_path / "pictures"))
    far = ingest(there, tmp_path / "far", settings, connections=connections)
    near = ingest(here, tmp_path / "near", settings)
    assert far.version == near.version
    assert far.pictures == 24


def test_a_prefix_with_nothing_below_it_is_named(minio: Bucket, tmp_path: Path) -> None:
    source = SourceSettings(uri=f"s3://{minio.name}/nothing")
    with pytest.raises(SourceError, match="nothing"):
        open_source(source, tmp_path, connections=minio.connections(tmp_path))


def test_weights_are_fetched_from_a_bucket(minio: Bucket, tmp_path: Path) -> None:
    write_shades(tmp_path / "pictures", each=12)
    here = SourceSettings(uri=str(tmp_path / "pictures"))
    ingest(here, tmp_path / "dataset", IngestSettings(workers=1))
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), weights)
    minio.store().upload(weights, "weights/test_resnet.safetensors")
    address = f"s3://{minio.name}/weights/test_resnet.safetensors"
    stage = {"epochs": 1}
    settings = TrainSettings.parse({**TRAIN, "weights": address, "whole": stage})
    report = fit(
        tmp_path / "dataset",
        tmp_path / "checkpoint",
        settings,
        workspace=tmp_path / "workspace",
        connections=minio.connections(tmp_path),
    )
    assert report.epochs == 1
    missing = settings.model_copy(update={"weights": f"{address}.absent"})
    with pytest.raises(LinnetError, match="absent"):
        fit(
            tmp_path / "dataset",
            tmp_path / "second",
            missing,
            workspace=tmp_path / "workspace",
            connections=minio.connections(tmp_path),
        )
    assert not (tmp_path / "second").exists()

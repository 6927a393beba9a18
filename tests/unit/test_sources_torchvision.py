"""Sources that are torchvision's datasets, from files made here: nothing is downloaded."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnet.data.sources import open_source
from linnet.errors import SourceError
from linnet.settings import SourceSettings

datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")


def test_generated_pictures_become_png_files(tmp_path: Path) -> None:
    uri = "torchvision://FakeData?size=12&num_classes=3&image_size=[3,16,20]"
    source = open_source(SourceSettings(uri=uri), tmp_path)
    assert len(source.items) == 12
    assert set(source.classes) <= {"0", "1", "2"}
    assert {item.split for item in source.items} == {None}
    with Image.open(source.items[0].path) as picture:
        assert (picture.format, picture.size) == ("PNG", (20, 16))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Make a tiny copy of OxfordIIITPet as it lies on disk, splits trainval and test."""
    base = tmp_path / "root" / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations/trimaps").mkdir(parents=True)
    for split, numbers in {"trainval": range(4), "test": range(4, 6)}.items():
        lines = []
        for number in numbers:
            name = f"{'Abyssinian' if number % 2 else 'great_pug'}_{number}"
            Image.new("RGB", (9, 9), (number, 0, 0)).save(base / "images" / f"{name}.jpg")
            lines.append(f"{name} {2 - number % 2} 1 1")
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "root"


def test_a_dataset_of_files_keeps_its_files_classes_and_splits(pets: Path, tmp_path: Path) -> None:
    uri = f"torchvision://OxfordIIITPet?root={pets}"
    source = open_source(SourceSettings(uri=uri), tmp_path / "scratch")
    assert Counter((i.split, i.label) for i in source.items) == {
        ("train", "Abyssinian"): 2,
        ("train", "Great Pug"): 2,
        ("test", "Abyssinian"): 1,
        ("test", "Great Pug"): 1,
    }
    assert all(i.path is not None and i.path.is_relative_to(pets) for i in source.items)
    assert source.items[0].key == "test/Abyssinian/1-Abyssinian_5.jpg"


def test_a_split_that_is_asked_for_comes_without_a_split(pets: Path, tmp_path: Path) -> None:
    uri = f"torchvision://OxfordIIITPet?root={pets}&split=trainval"
    source = open_source(SourceSettings(uri=uri), tmp_path / "scratch")
    assert Counter(i.split for i in source.items) == {None: 4}


def test_a_dataset_of_arrays_with_train_and_test_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(batches):
        data = np.full((2, 3072), number, np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1]}))
    names = ["T-shirt/top", "dog"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # Only the official files have the official digests.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    uri = f"torchvision://CIFAR10?root={tmp_path / 'root'}"
    source = open_source(SourceSettings(uri=uri), tmp_path / "scratch")
    assert source.classes == ("T-shirt/top", "dog")
    assert Counter(i.split for i in source.items) == {"train": 10, "test": 2}
    assert source.items[0].key == "test/T-shirt_top/0.png"
    with Image.open(source.items[0].path) as picture:
        assert picture.getpixel((0, 0)) == (5, 5, 5)


def test_a_dataset_of_class_folders_keeps_its_files(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        folder = tmp_path / "root/eurosat/2750" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / f"{name}_1.jpg")
    uri = f"torchvision://EuroSAT?root={tmp_path / 'root'}"
    source = open_source(SourceSettings(uri=uri), tmp_path / "scratch")
    assert [(i.key, i.label) for i in source.items] == [
        ("all/Forest/0-Forest_1.jpg", "Forest"),
        ("all/River/1-River_1.jpg", "River"),
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("torchvision://CIFAR11", "did you mean CIFAR10 or CIFAR100"),
        ("torchvision://oxfordpet", "did you mean OxfordIIITPet"),
        ("torchvision://CocoDetection", "no labelled dataset of torchvision"),
        ("torchvision://FakeData?sise=3", r"no argument 'sise'; it takes .*size"),
        ("torchvision://FakeData?size=many", "can't be read"),
        ("torchvision://Imagenette?size=huge", "can't be made: Unknown value 'huge'"),
        (
            "torchvision://Places365",
            r"no split named train or trainval.*split=NAME.*train-standard",
        ),
        ("torchvision://FER2013", r"can't be had .*Check the network.*root=/folder"),
    ],
)
def test_a_dataset_that_can_not_be_had_is_an_error(uri: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=expected):
        open_source(SourceSettings(uri=uri), tmp_path)


def test_its_own_labels_leave_no_room_for_a_table_or_split_names(tmp_path: Path) -> None:
    for uri in ("digits", "torchvision://FakeData"):
        settings = SourceSettings(uri=uri, splits={"holdout": "val"})
        with pytest.raises(SourceError, match=r"leave out source\.csv and source\.splits"):
            open_source(settings, tmp_path)

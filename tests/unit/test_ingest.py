"""Ingest: from a folder of pictures, good and bad, to a dataset, and nothing lost on the way."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnet.data.dataset import Dataset
from linnet.data.ingest import IngestSummary, ingest
from linnet.data.shards import Shard, write_shard
from linnet.errors import SourceError, StoreError
from linnet.settings import CsvSettings, IngestSettings, SourceSettings
from tests.pictures import (
    bad_pictures,
    class_folders,
    encoded,
    good_pictures,
    jpeg,
    photograph,
    write_tree,
)


def run(root: Path, destination: Path, csv: CsvSettings | None = None, **settings: object):
    values = {"workers": 1, "max_quarantined": 1.0, **settings}
    source = SourceSettings(uri=str(root), csv=csv)
    return ingest(source, destination, IngestSettings.parse(values))


def quarantine(destination: Path) -> dict[str, tuple[str, str]]:
    """Return reason and detail by key."""
    with (destination / "quarantine.csv").open(newline="") as file:
        return {row["key"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pets", {"cat": 12, "dog": 12})


def test_a_folder_becomes_a_dataset(pets: Path, tmp_path: Path) -> None:
    summary = run(pets, tmp_path / "dataset")
    assert isinstance(summary, IngestSummary)
    assert summary.pictures == 24
    assert summary.classes == ("cat", "dog")
    assert summary.counts["train"] == {"cat": 8, "dog": 8}
    assert summary.counts["val"] == summary.counts["test"] == {"cat": 2, "dog": 2}
    names = sorted(path.name for path in (tmp_path / "dataset").iterdir())
    assert names == sorted(
        ["card.html", "dataset.json", "near_duplicates.csv", "quarantine.csv"]
        + [f"{split}-00000.parquet" for split in ("test", "train", "val")]
    )
    assert Dataset.open(tmp_path / "dataset").version == summary.version


def test_every_kind_of_picture_is_kept_as_it_is(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", {"cat": 6, "dog": 6}, seed=100)
    write_tree(root / "cat", good_pictures())
    summary = run(root, tmp_path / "dataset", near_duplicates="ignore")
    assert summary.quarantined == {}
    dataset = Dataset.open(tmp_path / "dataset")
    stored = {p.key: p for split in ("train", "val", "test") for p in dataset.pictures(split)}
    for name, content in good_pictures().items():
        assert stored[f"cat/{name}"].encoded == content
    turned = stored["cat/rotated.jpg"]
    assert (turned.width, turned.height) == (72, 96)


def test_every_bad_picture_is_quarantined_with_its_reason(pets: Path, tmp_path: Path) -> None:
    bad = bad_pictures()
    write_tree(pets / "dog", {name: content for name, (_, content) in bad.items()})
    summary = run(pets, tmp_path / "dataset")
    found = quarantine(tmp_path / "dataset")
    assert {key: reason for key, (reason, _) in found.items()} == {
        f"dog/{name}": reason for name, (reason, _) in bad.items()
    }
    assert all(detail for _, detail in found.values())
    assert summary.quarantined == Counter(reason for reason, _ in bad.values())
    assert summary.pictures == 24
    assert "not_a_picture" in (tmp_path / "dataset" / "card.html").read_text()


def test_a_file_that_is_listed_but_missing_is_quarantined(pets: Path, tmp_path: Path) -> None:
    rows = [f"{p.relative_to(pets)},{p.parent.name}" for p in sorted(pets.glob("*/*"))]
    (pets / "labels.csv").write_text("\n".join(["file,label", *rows, "dog/absent.jpg,dog"]))
    run(pets, tmp_path / "dataset", csv=CsvSettings(path="labels.csv"))
    assert quarantine(tmp_path / "dataset")["dog/absent.jpg"][0] == "missing"


def test_too_large_and_too_small_are_settings(pets: Path, tmp_path: Path) -> None:
    write_tree(pets / "cat", {"big.jpg": jpeg(500, 300, 200), "small.jpg": jpeg(501, 40, 30)})
    run(pets, tmp_path / "dataset", min_side_px=50, max_pixels=59_999)
    assert {key: reason for key, (reason, _) in quarantine(tmp_path / "dataset").items()} == {
        "cat/big.jpg": "too_large",
        "cat/small.jpg": "too_small",
    }


def test_one_of_several_identical_pictures_is_kept(pets: Path, tmp_path: Path) -> None:
    write_tree(pets / "cat", {"copy.jpg": (pets / "cat/003.jpg").read_bytes()})
    run(pets, tmp_path / "dataset")
    assert quarantine(tmp_path / "dataset") == {
        "cat/copy.jpg": ("duplicate", "same bytes as cat/003.jpg")
    }


def test_one_picture_under_two_labels_is_not_kept_at_all(pets: Path, tmp_path: Path) -> None:
    write_tree(pets / "dog", {"cat.jpg": (pets / "cat/003.jpg").read_bytes()})
    run(pets, tmp_path / "dataset")
    assert quarantine(tmp_path / "dataset") == {
        "cat/003.jpg": ("conflicting_labels", "also labelled dog"),
        "dog/cat.jpg": ("conflicting_labels", "also labelled cat"),
    }


def official(tmp_path: Path) -> Path:
    """Return train, val and test folders, each with its own pictures."""
    root = tmp_path / "official"
    for number, split in enumerate(("train", "val", "test")):
        class_folders(root / split, {"cat": 4, "dog": 4}, seed=1000 * number)
    return root


def test_official_splits_are_kept(tmp_path: Path) -> None:
    run(official(tmp_path), tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    for split in ("train", "val", "test"):
        assert {key.split("/")[0] for key in dataset.keys(split)} == {split}


def test_a_test_picture_is_not_also_trained_on(tmp_path: Path) -> None:
    root = official(tmp_path)
    content = (root / "test/cat/000.jpg").read_bytes()
    write_tree(root, {"train/cat/again.jpg": content, "val/cat/again.jpg": content})
    run(root, tmp_path / "dataset")
    expected = ("duplicate", "same bytes as test/cat/000.jpg of test")
    assert quarantine(tmp_path / "dataset") == {
        "train/cat/again.jpg": expected,
        "val/cat/again.jpg": expected,
    }


def near_duplicate(path: Path) -> bytes:
    with Image.open(path) as image:
        return encoded(image, quality=85)


def test_near_duplicates_over_official_splits_are_counted_and_shown(tmp_path: Path) -> None:
    root = official(tmp_path)
    write_tree(root, {"train/cat/again.jpg": near_duplicate(root / "test/cat/000.jpg")})
    summary = run(root, tmp_path / "dataset")
    assert summary.near_duplicates["across_splits"] == summary.near_duplicates["pairs"] == 1
    card = (tmp_path / "dataset/card.html").read_text()
    assert "1 near-duplicate pair" in card
    assert "train/cat/again.jpg" in card
    with (tmp_path / "dataset/near_duplicates.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["split"], row["other_split"]) == ("test", "train")


def test_near_duplicates_are_dropped_from_the_less_important_split(tmp_path: Path) -> None:
    root = official(tmp_path)
    write_tree(root, {"train/cat/again.jpg": near_duplicate(root / "test/cat/000.jpg")})
    run(root, tmp_path / "dataset", near_duplicates="drop")
    assert quarantine(tmp_path / "dataset") == {
        "train/cat/again.jpg": ("near_duplicate", "looks like test/cat/000.jpg of test")
    }


def test_near_duplicates_under_two_labels_are_a_concern_of_the_card(
    pets: Path, tmp_path: Path
) -> None:
    write_tree(pets / "dog", {"again.jpg": near_duplicate(pets / "cat/000.jpg")})
    summary = run(pets, tmp_path / "dataset")
    assert summary.near_duplicates["under_two_labels"] == 1
    assert "two different labels" in (tmp_path / "dataset/card.html").read_text()


def test_near_duplicates_can_be_ignored(pets: Path, tmp_path: Path) -> None:
    write_tree(pets / "cat", {"again.jpg": near_duplicate(pets / "cat/000.jpg")})
    assert run(pets, tmp_path / "dataset", near_duplicates="ignore").near_duplicates["pairs"] == 0


def test_near_duplicates_are_never_parted_by_our_splits(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", {"cat": 12, "dog": 12})
    for path in sorted(root.glob("*/*.jpg")):
        path.with_name(f"{path.stem}-again.jpg").write_bytes(near_duplicate(path))
    run(root, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    for split in ("train", "val", "test"):
        originals = {key.replace("-again", "") for key in dataset.keys(split)}
        assert len(dataset.keys(split)) == 2 * len(originals)


def test_the_version_depends_on_neither_workers_nor_shards(pets: Path, tmp_path: Path) -> None:
    versions = {
        run(pets, tmp_path / f"{workers}", workers=workers, shard_pictures=shard).version
        for workers, shard in ((1, 2048), (2, 5), (3, 1))
    }
    assert len(versions) == 1


def test_the_same_pictures_give_the_same_files_whatever_the_order(
    pets: Path, tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere"
    for path in sorted(pets.glob("*/*"), reverse=True):
        write_tree(again, {str(path.relative_to(pets)): path.read_bytes()})
    run(pets, tmp_path / "first", workers=2)
    run(again, tmp_path / "second")
    for name in ("train-00000.parquet", "val-00000.parquet", "test-00000.parquet"):
        first, second = (tmp_path / which / name for which in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_the_version_depends_on_the_pictures_and_the_split(pets: Path, tmp_path: Path) -> None:
    first = run(pets, tmp_path / "first").version
    assert run(pets, tmp_path / "seed", seed=7).version != first
    write_tree(pets / "cat", {"000.jpg": jpeg(999)})
    assert run(pets, tmp_path / "changed").version != first


def test_mean_and_std_are_those_of_the_training_pictures(tmp_path: Path) -> None:
    root = official(tmp_path)
    for path in root.glob("train/*/*.jpg"):
        path.unlink()
    for number, colour in enumerate([(250, 20, 10), (240, 20, 30), (10, 20, 200), (0, 20, 220)]):
        content = encoded(Image.new("RGB", (64, 64), colour), "PNG")
        write_tree(root / "train", {f"{'cat' if number < 2 else 'dog'}/{number}.png": content})
    run(root, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    assert np.allclose(dataset.mean, np.array([125, 20, 115]) / 255, atol=1e-5)
    assert np.allclose(dataset.std[0], np.std([250, 240, 10, 0]) / 255, atol=1e-5)
    assert dataset.std[1] == pytest.approx(1 / 255, abs=1e-5)


def test_a_photographs_mean_and_std_come_close_to_the_full_picture(tmp_path: Path) -> None:
    root = official(tmp_path)
    run(root, tmp_path / "dataset")
    pixels = [np.asarray(Image.open(p)).reshape(-1, 3) for p in root.glob("train/*/*.jpg")]
    whole = np.concatenate(pixels) / 255
    dataset = Dataset.open(tmp_path / "dataset")
    assert np.allclose(dataset.mean, whole.mean(axis=0), atol=0.01)
    assert np.allclose(dataset.std, whole.std(axis=0), atol=0.01)


def test_names_of_all_kinds_survive(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", {"кошка": 4, "犬 & <b>": 4})
    long = "x" * 240 + ".jpg"
    write_tree(root / "кошка", {long: jpeg(800), 'a "quoted", name.jpg': jpeg(801)})
    summary = run(root, tmp_path / "dataset")
    assert summary.classes == ("кошка", "犬 & <b>")
    dataset = Dataset.open(tmp_path / "dataset")
    keys = {key for split in ("train", "val", "test") for key in dataset.keys(split)}
    assert {f"кошка/{long}", 'кошка/a "quoted", name.jpg'} <= keys
    card = (tmp_path / "dataset/card.html").read_text()
    assert "<b>" not in card.split("<h2>Classes</h2>")[1].split("</table>")[0].replace(
        "<b>4</b>", ""
    ).replace("<b>6</b>", "")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no pictures"):
        run(tmp_path / "empty", tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_one_class_is_an_error(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", {"cat": 5})
    with pytest.raises(SourceError, match="at least two classes"):
        run(root, tmp_path / "dataset")


def test_one_class_after_quarantine_is_an_error(pets: Path, tmp_path: Path) -> None:
    for path in pets.glob("dog/*"):
        path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"(?s)only pictures of class 'cat'.*empty: 12"):
        run(pets, tmp_path / "dataset")


def test_a_class_with_one_picture_is_an_error(pets: Path, tmp_path: Path) -> None:
    class_folders(pets, {"dodo": 1}, seed=700)
    with pytest.raises(SourceError, match="class 'dodo' has 1 picture, expected at least 3"):
        run(pets, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_too_much_quarantine_is_an_error_and_leaves_the_list(pets: Path, tmp_path: Path) -> None:
    for path in sorted(pets.glob("dog/*"))[:8]:
        path.write_bytes(b"gone")
    (pets / "cat/000.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match="9 of 24 pictures") as error:
        run(pets, tmp_path / "dataset", max_quarantined=0.3)
    message = str(error.value)
    assert "not_a_picture: 8 (dog/000.jpg, dog/001.jpg, dog/002.jpg, …)" in message
    assert "empty: 1 (cat/000.jpg)" in message
    left = tmp_path / "dataset.quarantine.csv"
    assert str(left) in message
    assert len(left.read_text().splitlines()) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "pets"]


def test_an_empty_destination_is_filled_and_a_dataset_replaced(pets: Path, tmp_path: Path) -> None:
    destination = tmp_path / "made" / "dataset"
    destination.mkdir(parents=True)
    first = run(pets, destination)
    assert run(pets, destination, seed=9).version != first.version
    assert [path.name for path in destination.parent.iterdir()] == ["dataset"]


def test_somebody_elses_folder_is_left_alone(pets: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "thesis", {"chapter.txt": b"words"})
    with pytest.raises(StoreError, match="left alone"):
        run(pets, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_full_disk_is_an_error_that_has_a_number() -> None:
    shard = Shard(Path("/dev/full"), ("cat", "dog"), ())
    with pytest.raises(OSError, match="No space left") as error:
        write_shard(shard)
    assert error.value.errno == errno.ENOSPC


FULL = """
import sys
from pathlib import Path
from linnet.data.ingest import ingest
from linnet.errors import StoreFullError
from linnet.settings import IngestSettings, SourceSettings
try:
    ingest(SourceSettings(uri=sys.argv[1]), Path(sys.argv[2]) / "dataset", IngestSettings())
except StoreFullError as error:
    print(error)
    print(sorted(path.name for path in Path(sys.argv[2]).iterdir()))
"""


def test_no_space_left_says_what_to_do_and_leaves_nothing(pets: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=32k tmpfs "$1" && shift && exec "$@"'
    if subprocess.run([*mounted, script, "sh", str(disk), "true"], capture_output=True).returncode:
        pytest.skip("this system does not let us mount a small disk")
    command = [*mounted, script, "sh", str(disk), sys.executable, "-c", FULL, str(pets), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, left = done.stdout.strip().rsplit("\n", 1)
    assert "no space left" in message
    assert "free some" in message
    assert left == "[]"


SLOW = """
import sys
from pathlib import Path
from linnet.data.ingest import ingest
from linnet.settings import IngestSettings, SourceSettings
ingest(SourceSettings(uri=sys.argv[1]), Path(sys.argv[2]), IngestSettings(workers=2))
"""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_ingest_leaves_no_dataset_and_no_process(
    signal_: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "source/cat").mkdir(parents=True)
    (tmp_path / "source/dog").mkdir()
    large = write_tree(tmp_path, {"source/cat/0.png": encoded(photograph(0, 1500, 1000), "PNG")})
    for number in range(1, 1000):
        name = f"source/{'cat' if number % 2 else 'dog'}/{number}.png"
        (tmp_path / name).hardlink_to(large / "source/cat/0.png")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "source"), str(tmp_path / "dataset")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    children = wait_for_children(process.pid, 2)
    process.send_signal(signal_) if signal_ == signal.SIGKILL else os.killpg(process.pid, signal_)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    wait_until_gone(children)
    assert not (tmp_path / "dataset").exists()
    if signal_ == signal.SIGINT:
        assert stderr.count(b"KeyboardInterrupt") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def wait_for_children(pid: int, count: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    while len(children := listed.read_text().split()) < count:
        time.sleep(0.01)
    time.sleep(0.2)
    return [int(child) for child in children]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_manifest_says_where_the_dataset_came_from(pets: Path, tmp_path: Path) -> None:
    run(pets, tmp_path / "dataset", seed=5)
    manifest = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert manifest["kind"] == "linnet/dataset/v1"
    assert manifest["source"] == str(pets)
    assert manifest["settings"]["seed"] == 5
    assert "workers" not in manifest["settings"]


def test_a_file_that_changes_meanwhile_is_an_error(pets: Path, tmp_path: Path) -> None:
    from linnet.data.shards import Entry

    entry = Entry(pets / "cat/000.jpg", "cat/000.jpg", 0, b"\0" * 32, 96, 72, None, {})
    with pytest.raises(SourceError, match="changed while"):
        write_shard(Shard(tmp_path / "train-00000.parquet", ("cat", "dog"), (entry,)))

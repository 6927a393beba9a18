"""Several sources in one dataset: the first keeps its splits, whatever joins it."""

import csv
from pathlib import Path

import pytest

from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.data.sources import open_pile, open_source
from linnet.data.splitting import Candidate, split_pictures
from linnet.errors import SettingsError, SourceError
from linnet.evaluation.slices import values_of
from linnet.launch import with_absolute_paths
from linnet.settings import SPLITS, IngestSettings, RunSettings, SourceSettings, Split
from linnet.stores.connections import Connections
from linnet.submission import check_reachable
from linnet.triggers.content import content_of
from tests.pictures import class_folders, jpeg, write_tree

NEW = tuple(range(500, 530))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pets", {"cat": 20, "dog": 20})


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    """Annotated pictures as they come out of Label Studio."""
    return votes(tmp_path / "voted", {f"{n}.jpg": jpeg(n) for n in NEW})


def votes(
    folder: Path, pictures: dict[str, bytes], labels: tuple[str, ...] = ("cat", "dog")
) -> Path:
    write_tree(folder / "pictures", pictures)
    with (folder / "annotations.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "vote 1"])
        rows.writerows((f"pictures/{n}", labels[i % len(labels)]) for i, n in enumerate(pictures))
    return folder


def joined(own: Path, added: Path, name: str = "annotated") -> SourceSettings:
    table = {"path": "annotations.csv", "vote_columns": ["vote *"]}
    more = {name: {"uri": str(added), "csv": table}}
    return SourceSettings.parse({"uri": str(own), "more": more})


def made(source: SourceSettings, destination: Path) -> Dataset:
    ingest(source, destination, IngestSettings(workers=1, max_quarantined=1.0))
    return Dataset.open(destination)


def splits(dataset: Dataset) -> dict[str, Split]:
    return {key: split for split in SPLITS for key in dataset.keys(split)}


def test_what_joins_is_told_by_its_name_and_labelled_its_own_way(pets: Path, voted: Path) -> None:
    source = open_source(joined(pets, voted), voted.parent / "scratch")
    assert source.uri == f"{pets} + {voted}"
    assert source.classes == ("cat", "dog")
    added = [item for item in source.items if item.added]
    assert [item.key for item in added] == [f"annotated/pictures/{n}.jpg" for n in NEW]
    assert {item.attributes["added"] for item in added} == {"annotated"}
    assert len(source.items) == 40 + len(NEW)
    pile = open_pile(joined(pets, voted), voted.parent / "again")
    assert [item.key for item in pile.items] == [item.key for item in source.items]


def test_the_first_source_keeps_its_splits_and_the_added_pictures_theirs(
    pets: Path, voted: Path, tmp_path: Path
) -> None:
    alone = splits(made(SourceSettings(uri=str(pets)), tmp_path / "alone"))
    once = made(joined(pets, voted), tmp_path / "once")
    votes(voted, {f"{n}.jpg": jpeg(n) for n in (*NEW, *range(600, 620))})
    later = splits(made(joined(pets, voted), tmp_path / "later"))
    assert splits(once).items() >= alone.items()
    assert later.items() >= splits(once).items()
    assert len(later) == 40 + len(NEW) + 20
    assert set(values_of(once, "test", ["added"])["added"]) == {"(none)", "annotated"}


def test_a_picture_that_is_there_already_is_kept_once_and_never_under_two_labels(
    pets: Path, tmp_path: Path
) -> None:
    mine = sorted((pets / "cat").iterdir())[:2]
    pictures = {f"{number}.jpg": file.read_bytes() for number, file in enumerate(mine)}
    added = votes(tmp_path / "voted", pictures)
    dataset = made(joined(pets, added), tmp_path / "dataset")
    found = {key: split for key, split in splits(dataset).items() if "annotated" in key}
    assert found == {}
    with (tmp_path / "dataset/quarantine.csv").open(newline="") as file:
        reasons = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        "annotated/pictures/0.jpg": "duplicate",
        "annotated/pictures/1.jpg": "conflicting_labels",
        f"cat/{mine[1].name}": "conflicting_labels",
    }


def test_an_added_picture_stays_with_those_that_look_like_it() -> None:
    own = [Candidate(f"{label}{n}", label, group=f"{label}{n}") for label in "ab" for n in range(9)]
    added = [Candidate(f"new {p.group}", p.label, group=p.group, added=True) for p in own]
    both = split_pictures([*added, *own], val_fraction=0.2, test_fraction=0.2, seed=1)
    assert both[: len(own)] == both[len(own) :]
    assert both[len(own) :] == split_pictures(own, val_fraction=0.2, test_fraction=0.2, seed=1)
    burst = [Candidate(f"burst {n}", "a", group="burst", added=True) for n in range(20)]
    of_burst = split_pictures([*own, *burst], val_fraction=0.4, test_fraction=0.4, seed=1)
    assert len(set(of_burst[len(own) :])) == 1


def test_added_pictures_are_drawn_by_the_fractions_and_keep_splits_of_their_own() -> None:
    own = [Candidate(f"{label}{n}", label, "test") for label in "ab" for n in range(3)]
    own += [Candidate(f"{label}{n}", label, "train") for label in "ab" for n in range(3, 9)]
    added = [Candidate(str(n), "ab"[n % 2], added=True) for n in range(4000)]
    given = Candidate("given", "a", "val", added=True)
    found = split_pictures([*own, given, *added], val_fraction=0.2, test_fraction=0.1, seed=1)
    assert found[len(own)] == "val"
    drawn = found[len(own) + 1 :]
    assert drawn.count("val") / 4000 == pytest.approx(0.2, abs=0.02)
    assert drawn.count("test") / 4000 == pytest.approx(0.1, abs=0.02)


def test_a_class_that_few_added_pictures_have_is_refused() -> None:
    own = [Candidate(f"{label}{n}", label) for label in "ab" for n in range(9)]
    new = Candidate("c", "c", added=True)
    with pytest.raises(SourceError, match=r"class 'c' has no \w+ picture"):
        split_pictures([*own, new], val_fraction=0.2, test_fraction=0.2, seed=1)


def test_a_name_that_a_folder_has_or_that_is_no_name_is_refused(pets: Path, voted: Path) -> None:
    with pytest.raises(SourceError, match=r"'cat', and .* has a folder of that name"):
        open_source(joined(pets, voted, "cat"), voted.parent / "scratch")
    with pytest.raises(SettingsError, match=r"more\.\.\./up"):
        joined(pets, voted, "../up")


def test_what_joins_is_watched_and_made_reachable_like_the_first(
    pets: Path, voted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections.from_environment(voted.parent, {})
    source = joined(pets, voted)
    before = content_of(source, connections)
    votes(voted, {f"{n}.jpg": jpeg(n) for n in NEW}, ("dog", "cat"))
    relabelled = content_of(source, connections)
    write_tree(voted / "pictures", {"1.jpg": jpeg(1)})
    assert (relabelled.annotations != before.annotations, before.pictures is not None) == (
        True,
    ) * 2
    assert content_of(source, connections).pictures != relabelled.pictures
    monkeypatch.chdir(voted.parent)
    run = RunSettings(source=joined(Path("pets"), Path("voted")))
    moved = with_absolute_paths(run)
    assert [place.uri for place in moved.source.places] == [str(pets), str(voted)]
    run = RunSettings.parse({"source": {"more": {"annotated": {"uri": "voted"}}}})
    with pytest.raises(SettingsError, match=r"source\.more\.annotated\.uri is 'voted'"):
        check_reachable(run)

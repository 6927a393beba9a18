"""Sources that are folders, and the built-in digits."""

import os
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from linnet.data.sources import Item, Source, open_source
from linnet.data.sources.items import Found
from linnet.data.sources.layout import label_by_folder, unwrap
from linnet.errors import SourceError
from linnet.settings import SourceSettings

NFD_CAFE = unicodedata.normalize("NFD", "café")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())
    return root


def opened(root: Path, tmp_path: Path, **settings: object) -> Source:
    return open_source(SourceSettings.parse({"uri": str(root), **settings}), tmp_path / "scratch")


def by_key(source: Source) -> dict[str, Item]:
    return {item.key: item for item in source.items}


def test_the_digits_are_real_pictures_of_ten_classes(tmp_path: Path) -> None:
    source = open_source(SourceSettings(), tmp_path)
    assert len(source.items) == 1797
    assert source.classes == tuple("0123456789")
    with Image.open(source.items[0].path) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (8, 8), "L")
        assert 200 < picture.getextrema()[1] <= 255


def test_the_digits_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (open_source(SourceSettings(), tmp_path / name) for name in "ab")
    assert [i.key for i in first.items] == [i.key for i in second.items]
    pairs = list(zip(first.items, second.items, strict=True))[::200]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in pairs)


def test_importing_sources_pulls_in_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys, linnet.data.sources\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'kfp', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_class_folders_give_labels_and_no_splits(tmp_path: Path) -> None:
    source = opened(tree(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg"), tmp_path)
    assert [(i.key, i.label, i.split) for i in source.items] == [
        ("cat/1.jpg", "cat", None),
        ("dog/2.jpg", "dog", None),
        ("dog/3.jpg", "dog", None),
    ]
    assert source.items[0].path == tmp_path / "pets/cat/1.jpg"


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("VAL", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders_are_known_by_their_usual_names(
    folder: str, split: str, tmp_path: Path
) -> None:
    source = opened(tree(tmp_path / "pets", f"{folder}/cat/1.jpg", f"{folder}/dog/2.jpg"), tmp_path)
    assert {(i.label, i.split) for i in source.items} == {("cat", split), ("dog", split)}


def test_other_split_names_come_from_the_settings(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg", "Holdout/cat/3.jpg")
    tree(root, "spare/cat/4.jpg")
    source = opened(root, tmp_path, splits={"holdout": "val", "spare": "ignore"})
    assert Counter(i.split for i in source.items) == {"train": 2, "val": 1}


def test_a_folder_beside_the_splits_is_an_error_that_names_it_and_the_setting(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg", "holdout/cat/3.jpg")
    with pytest.raises(SourceError, match=r"\['holdout'\].*source\.splits.*holdout: val"):
        opened(root, tmp_path)


def test_a_split_of_the_settings_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg")
    with pytest.raises(SourceError, match=r"'holdot'.*its folders: train"):
        opened(root, tmp_path, splits={"holdot": "val"})


@pytest.mark.parametrize("wrapper", ["pets", "downloads/pets"])
def test_a_folder_that_only_wraps_is_unwrapped(wrapper: str, tmp_path: Path) -> None:
    names = ["train/cat/1.jpg", "test/dog/2.jpg", "manifest.csv", "ORIGIN.md", "LICENSE"]
    root = tree(tmp_path / "outer", *(f"{wrapper}/{name}" for name in names), "README.txt")
    source = opened(root, tmp_path)
    assert [(i.key, i.label, i.split) for i in source.items] == [
        ("test/dog/2.jpg", "dog", "test"),
        ("train/cat/1.jpg", "cat", "train"),
    ]


def test_a_single_class_with_pictures_of_its_own_is_not_a_wrapper() -> None:
    found = [Found(key, Path(key)) for key in ("cat/1.jpg", "cat/siamese/2.jpg")]
    assert unwrap(found, {}) == (found, "")


def test_deeper_folders_belong_to_the_class_above_them() -> None:
    found = [Found(key, Path(key)) for key in ("cat/siamese/a/1.jpg", "dog/2.jpg")]
    items = label_by_folder(found, {}, "pets")
    assert [item.label for item in items] == ["cat", "dog"]


def test_notes_beside_the_classes_are_left_out_and_pictures_there_are_unlabelled(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg", "labels.csv", "notes.md", "stray.jpg")
    items = by_key(opened(root, tmp_path))
    assert set(items) == {"cat/1.jpg", "dog/2.jpg", "stray.jpg"}
    assert (items["stray.jpg"].label, items["stray.jpg"].problem) == (None, "unlabelled")


def test_every_file_of_a_class_is_an_item_but_not_what_desktops_leave(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat/1.jpg", "cat/notes.txt", "cat/.hidden.jpg", "dog/noending")
    tree(root, ".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "__MACOSX/cat/._1.jpg", "cat/._1.jpg")
    tree(root, "cat/.ipynb_checkpoints/1.jpg", ".git/config")
    source = opened(root, tmp_path)
    assert [i.key for i in source.items] == [
        "cat/.hidden.jpg",
        "cat/1.jpg",
        "cat/notes.txt",
        "dog/noending",
    ]


def test_keys_and_classes_are_nfc_and_two_spellings_of_one_name_are_both_kept(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "pets", f"{NFD_CAFE}/1.jpg", "café/1.jpg", "日本/2.jpg")
    if len(os.listdir(root)) < 3:
        pytest.skip("this file system holds the two spellings to be one name")
    source = opened(root, tmp_path)
    assert [i.key for i in source.items] == ["café/1.jpg", "café/1~2.jpg", "日本/2.jpg"]
    assert source.classes == ("café", "日本")
    assert len({i.path for i in source.items}) == 3


def test_names_of_255_bytes_and_of_no_utf8_are_kept(tmp_path: Path) -> None:
    long = "ü" * 125 + "x.jpg"
    root = tree(tmp_path / "pets", f"cat/{long}", "dog/2.jpg")
    try:
        (root / "dog" / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    source = opened(root, tmp_path)
    assert [i.key for i in source.items] == [f"cat/{long}", "dog/2.jpg", r"dog/bad\xff.jpg"]
    assert all(i.path is not None and i.path.read_bytes() for i in source.items)


def test_a_relative_folder_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source(SourceSettings(uri="pets"), Path("scratch"))
    assert all(i.path is not None and i.path.is_absolute() for i in source.items)


def test_links_that_stay_inside_are_followed_and_others_have_a_problem(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg", "dog/deep/3.jpg")
    tree(tmp_path, "secret/key.jpg")
    (root / "cat/inside.jpg").symlink_to("../dog/2.jpg")
    (root / "cat/outside.jpg").symlink_to("../../secret/key.jpg")
    (root / "cat/absolute.jpg").symlink_to(tmp_path / "secret/key.jpg")
    (root / "cat/gone.jpg").symlink_to("nothing.jpg")
    (root / "cat/itself.jpg").symlink_to("itself.jpg")
    (root / "cat/loop").symlink_to("..")
    (root / "cat/folder").symlink_to("../dog/deep")
    (root / "cat/away").symlink_to(tmp_path / "secret")
    items = by_key(opened(root, tmp_path))
    assert {key: item.problem for key, item in items.items()} == {
        "cat/1.jpg": None,
        "cat/absolute.jpg": "outside",
        "cat/away": "outside",
        "cat/folder/3.jpg": None,
        "cat/gone.jpg": "missing",
        "cat/inside.jpg": None,
        "cat/itself.jpg": "symlink_loop",
        "cat/loop": "symlink_loop",
        "cat/outside.jpg": "outside",
        "dog/2.jpg": None,
        "dog/deep/3.jpg": None,
    }
    assert all((item.path is None) == (item.problem is not None) for item in items.values())
    assert all(item.detail for item in items.values() if item.problem)


def test_folders_that_link_to_each_other_come_to_an_end(tmp_path: Path) -> None:
    classes = [f"class{n}" for n in range(8)]
    root = tree(tmp_path / "pets", *(f"{name}/1.jpg" for name in classes))
    for name in classes:
        for other in classes:
            if other != name:
                (root / name / f"to_{other}").symlink_to(f"../{other}")
    problems = Counter(i.problem for i in opened(root, tmp_path).items)
    assert problems == {None: 8 + 8 * 7, "symlink_loop": 8 * 7 * 7}


def test_a_pipe_and_a_socket_are_not_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg")
    os.mkfifo(root / "cat/pipe.jpg")
    monkeypatch.chdir(root / "cat")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as opened_socket:
        opened_socket.bind("socket.jpg")
        items = by_key(opened(root, tmp_path))
    assert items["cat/pipe.jpg"].problem == "not_a_file"
    assert items["cat/socket.jpg"].problem == "not_a_file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat/1.jpg", "cat/2.jpg", "dog/2.jpg")
    (root / "cat/1.jpg").chmod(0)
    assert by_key(opened(root, tmp_path))["cat/1.jpg"].problem == "unreadable"
    (root / "cat").chmod(0)
    with pytest.raises(SourceError, match=r"cat can't be listed .*permissions"):
        opened(root, tmp_path)
    (root / "cat").chmod(0o755)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "holds no pictures"),
        (["notes.txt"], "holds no pictures"),
        (["cat/1.jpg"], "one class, 'cat', expected at least two"),
        (["train/cat/1.jpg", "test/cat/2.jpg"], "one class, 'cat', expected at least two"),
        (["1.jpg", "2.jpg"], "no labelled picture.*unlabelled.*one folder per class"),
    ],
)
def test_a_folder_without_two_classes_is_an_error(
    names: list[str], expected: str, tmp_path: Path
) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    with pytest.raises(SourceError, match=expected):
        opened(tree(root, *names), tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/no/such/folder", "is not there .*expected digits, a folder"),
        ("/" + "x" * 5000, "is not there"),
        ("ftp://host/pets", r"no known kind \(ftp://\)"),
    ],
)
def test_a_source_that_is_not_there_is_an_error(uri: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=expected):
        open_source(SourceSettings(uri=uri), tmp_path)


def test_a_pipe_as_the_source_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe, socket or device"):
        opened(tmp_path / "pipe", tmp_path)

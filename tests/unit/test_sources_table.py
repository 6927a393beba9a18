"""Sources whose labels come from a CSV."""

import logging
from pathlib import Path

import pytest

from linnet.data.sources import Item, Source, open_source
from linnet.errors import SourceError
from linnet.settings import SourceSettings

PICTURES = tuple(f"{number}.jpg" for number in range(1, 7))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    (folder / "images").mkdir(parents=True)
    for name in PICTURES:
        (folder / "images" / name).write_bytes(name.encode())
    return folder


def opened(
    root: Path, text: str | bytes, splits: object = None, *, below: str = "images", **csv: object
) -> Source:
    content = text if isinstance(text, bytes) else text.encode()
    (root / "labels.csv").write_bytes(content)
    settings = {"path": "labels.csv", "root": below, **csv}
    values = {"uri": str(root), "csv": settings, "splits": splits or {}}
    return open_source(SourceSettings.parse(values), root.parent / "scratch")


def by_key(source: Source) -> dict[str, Item]:
    return {item.key.removeprefix("images/"): item for item in source.items}


def test_a_table_gives_labels_splits_groups_and_attributes(root: Path) -> None:
    source = opened(
        root,
        "file,label,part,patient,age\n1.jpg,cat,train,p1,7\n2.jpg,dog,TEST,p2,\n3.jpg,dog,dev,,9\n",
        split_column="part",
        group_column="patient",
    )
    assert [(i.label, i.split, i.group, dict(i.attributes)) for i in source.items] == [
        ("cat", "train", "p1", {"age": "7"}),
        ("dog", "test", "p2", {}),
        ("dog", "val", None, {"age": "9"}),
    ]
    assert [i.path for i in source.items] == [root / "images" / f"{n}.jpg" for n in (1, 2, 3)]


def test_the_layout_of_mhist_is_read(root: Path) -> None:
    source = opened(
        root,
        "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
        "\n1.jpg,SSA,6,train\n2.jpg,HP,0,test\n",
        file_column="Image Name",
        label_column="Majority Vote Label",
        split_column="Partition",
    )
    assert source.classes == ("HP", "SSA")
    assert dict(source.items[0].attributes) == {
        "Number of Annotators who Selected SSA (Out of 7)": "6"
    }


@pytest.mark.parametrize(
    ("prefix", "below"),
    [
        ("", "images"),
        ("./", "images"),
        ("..\\images\\", "images"),
        ("images/", ""),
        ("pets/images/", ""),
        ("pets\\images\\", ""),
    ],
)
def test_files_are_found_below_the_root_with_or_without_the_folder_around(
    prefix: str, below: str, root: Path
) -> None:
    source = opened(root, f"file,label\n{prefix}1.jpg,cat\n{prefix}2.jpg,dog\n", below=below)
    assert [(i.key, i.problem) for i in source.items] == [
        ("images/1.jpg", None),
        ("images/2.jpg", None),
    ]


def test_absolute_paths_below_the_folder_are_found(root: Path) -> None:
    text = f"file,label\n{root}/images/1.jpg,cat\n{root}/images/2.jpg,dog\n"
    assert all(i.problem is None for i in opened(root, text).items)


def test_a_manifest_that_names_the_wrapping_folder_is_read(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "holdout/dog/2.jpg"):
        (tmp_path / "outer/pets" / name).parent.mkdir(parents=True)
        (tmp_path / "outer/pets" / name).write_bytes(b"x")
    (tmp_path / "outer/pets/manifest.csv").write_text(
        "path,class,split,sha256,group\n"
        "pets/train/cat/1.jpg,cat,train,ab,g1\npets/holdout/dog/2.jpg,dog,holdout,cd,g2\n"
    )
    columns = {"file_column": "path", "label_column": "class"}
    columns |= {"split_column": "split", "group_column": "group", "path": "manifest.csv"}
    for place in ("outer", "outer/pets"):
        values = {"uri": str(tmp_path / place), "csv": columns, "splits": {"holdout": "val"}}
        source = open_source(SourceSettings.parse(values), tmp_path / "scratch")
        assert [(i.key, i.label, i.split, i.group) for i in source.items] == [
            ("holdout/dog/2.jpg", "dog", "val", "g2"),
            ("train/cat/1.jpg", "cat", "train", "g1"),
        ]


def test_the_majority_of_votes_decides_and_ties_have_a_problem(root: Path) -> None:
    source = opened(
        root,
        "file,a,b,c\n1.jpg,cat,cat,dog\n2.jpg,dog,dog,\n3.jpg,cat,dog,\n4.jpg,,,\n5.jpg,a,b,c\n",
        vote_columns=["a", "b", "c"],
    )
    items = by_key(source)
    assert {key: (i.label, i.problem) for key, i in items.items()} == {
        "1.jpg": ("cat", None),
        "2.jpg": ("dog", None),
        "3.jpg": (None, "tied_votes"),
        "4.jpg": (None, "unlabelled"),
        "5.jpg": (None, "tied_votes"),
    }
    assert items["3.jpg"].detail == "cat 1, dog 1"
    assert dict(items["1.jpg"].attributes) == {"a": "cat", "b": "cat", "c": "dog"}


def test_a_pattern_stands_for_every_annotator_there_is(root: Path) -> None:
    table = "file,vote 1,vote 7,note\n1.jpg,cat,cat,dog\n2.jpg,cat,dog,dog\n3.jpg,,dog,cat\n"
    items = by_key(opened(root, table, vote_columns=["vote *"]))
    assert {key: (i.label, i.problem) for key, i in items.items() if i.label or i.problem} == {
        "1.jpg": ("cat", None),
        "2.jpg": (None, "tied_votes"),
        "3.jpg": ("dog", None),
    }
    with pytest.raises(SourceError, match="no column 'votes \\*'"):
        opened(root, table, vote_columns=["votes *"])


def test_rows_that_can_not_be_used_become_items_with_a_problem(root: Path) -> None:
    (root.parent / "secret.jpg").write_bytes(b"x")
    source = opened(
        root,
        "file,label,split,group\n"
        "1.jpg,cat,train,g\n2.jpg,dog,test,g\n"
        "3.jpg,,train,g\n"
        "gone.jpg,cat,train,g\n"
        "../../secret.jpg,cat,train,g\n"
        "/etc/passwd,cat,train,g\n"
        ",cat,train,g\n"
        "4.jpg,cat,,g\n"
        "1.jpg,cat,train,g\n"
        "5.jpg,cat,train,g\n5.jpg,dog,train,g\n"
        "6.jpg,cat,train,g\n6.jpg,cat,test,g\n",
        split_column="split",
        group_column="group",
    )
    assert {key: item.problem for key, item in by_key(source).items()} == {
        "1.jpg": None,
        "2.jpg": None,
        "3.jpg": "unlabelled",
        "gone.jpg": "missing",
        "../../secret.jpg": "outside",
        "etc/passwd": "outside",
        "labels.csv line 8": "missing",
        "4.jpg": "unsplit",
        "5.jpg": "conflicting_labels",
        "6.jpg": "conflicting_splits",
    }
    assert all(i.path is None for i in source.items if i.problem in ("missing", "outside"))


def test_a_blank_split_column_means_no_splits(root: Path) -> None:
    source = opened(root, "file,label,split\n1.jpg,cat,\n2.jpg,dog,\n", split_column="split")
    assert {(i.split, i.problem) for i in source.items} == {(None, None)}


def test_a_picture_of_two_groups_has_a_problem(root: Path) -> None:
    text = "file,label,group\n1.jpg,cat,a\n2.jpg,dog,b\n3.jpg,dog,a\n3.jpg,dog,b\n"
    assert by_key(opened(root, text, group_column="group"))["3.jpg"].problem == (
        "conflicting_groups"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_out(delimiter: str, root: Path) -> None:
    text = "file,label,note\n1.jpg,cat,x\n2.jpg,dog,y\n".replace(",", delimiter)
    assert opened(root, text).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbffile,label\r\n1.jpg,cat\r\n2.jpg,dog\r\n",
        b" file , label \n 1.jpg , cat \n2.jpg,dog\n\n",
        b'"file","label"\n"1.jpg","cat"\n"2.jpg","dog"\n',
    ],
    ids=["bom-and-crlf", "spaces", "quotes"],
)
def test_the_habits_of_spreadsheets_are_read(text: bytes, root: Path) -> None:
    source = opened(root, text)
    assert [(i.label, i.problem) for i in source.items] == [("cat", None), ("dog", None)]


def test_bare_ids_are_completed_by_the_suffix(root: Path) -> None:
    source = opened(root, "id,label\n1,cat\n2,dog\n", file_column="id", file_suffix=".jpg")
    assert all(i.problem is None for i in source.items)


def test_pictures_that_the_table_leaves_out_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    opened(root, "file,label\n1.jpg,cat\n2.jpg,dog\n")
    assert "4 files are not listed in labels.csv" in caplog.text


def test_split_values_to_ignore_leave_their_rows_out(root: Path) -> None:
    text = "file,label,split\n1.jpg,cat,train\n2.jpg,dog,train\n3.jpg,dog,unused\n"
    source = opened(root, text, {"unused": "ignore"}, split_column="split")
    assert len(source.items) == 2


@pytest.mark.parametrize(
    ("text", "csv", "expected"),
    [
        ("file,lable\n1.jpg,cat\n", {}, r"no column 'label'; did you mean 'lable'\?.*label_column"),
        ("file:label\n1.jpg:cat\n", {}, "no column 'file'.*parted by comma, semicolon"),
        ("file,label\n", {}, "no lines below its header"),
        ("", {}, "no column 'file'"),
        ("file,label,label\n1.jpg,cat,cat\n", {}, "'label' more than once"),
        ("file,label\n1.jpg,cat,white\n", {}, "line 2: more cells than the header's 2"),
        ('file,label\n"1.jpg,cat\n', {}, "line 1: not valid CSV"),
        ("file,label\na.jpg,cat\nb.jpg,dog\n", {}, "none of the 2 files.*source.csv.root"),
        ("file,label\n1.jpg,caf\xe9\n".encode("latin1"), {}, "line 2 is not UTF-8 .byte 0xe9"),
        ("file,label\n1.jpg,cat\n".encode("utf-16"), {}, "line 1 is not UTF-8"),
        (
            "file,label,split\n1.jpg,cat,holdout\n",
            {"split_column": "split"},
            "line 2: split 'holdout'.*source.splits.*holdout: val",
        ),
        ("file,label\n1.jpg,cat\n", {"path": "label.csv"}, "did you mean 'labels.csv'"),
        ("file,label\n1.jpg,cat\n", {"path": "/no/labels.csv"}, "'/no/labels.csv' is not there"),
        ("file,label\n1.jpg,cat\n2.jpg,cat\n", {}, "one class, 'cat'"),
    ],
)
def test_a_table_that_can_not_be_read_is_an_error_that_says_what_to_do(
    text: str | bytes, csv: dict[str, object], expected: str, root: Path
) -> None:
    with pytest.raises(SourceError, match=expected):
        opened(root, text, **csv)


def test_splits_without_a_split_column_are_an_error(root: Path) -> None:
    with pytest.raises(SourceError, match="split_column: set it"):
        opened(root, "file,label\n1.jpg,cat\n2.jpg,dog\n", {"holdout": "val"})


def test_only_the_named_classes_are_read_and_one_that_is_not_there_is_an_error(root: Path) -> None:
    (root / "labels.csv").write_text("file,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,bird\n4.jpg,\n")

    def items(*classes: str) -> tuple[Item, ...]:
        csv = {"path": "labels.csv", "root": "images"}
        values = {"uri": str(root), "csv": csv, "classes": classes}
        return open_source(SourceSettings.parse(values), root.parent / "scratch").items

    assert [item.label for item in items("dog", "cat")] == ["cat", "dog", None]
    with pytest.raises(SourceError, match=r"names 'brid', which .* did you mean 'bird'"):
        items("cat", "brid")

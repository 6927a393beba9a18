"""Sources that are archives: unpacked whole and safely, or not at all."""

import errno
import io
import logging
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from linnet.data.sources import Item, Source, archive, open_source
from linnet.errors import SourceError, StoreFullError
from linnet.settings import SourceSettings

PETS = {"pets/train/cat/1.jpg": b"cat one", "pets/test/dog/2.jpg": b"dog two", "pets/README": b"x"}
KINDS = [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz"]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened_zip:
            for name, content in members.items():
                opened_zip.writestr(name, content)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as opened_tar:
        for name, content in members.items():
            opened_tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", size: int = 0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as opened_tar:
        for info in members:
            opened_tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def opened(path: Path) -> Source:
    return open_source(SourceSettings(uri=str(path)), path.parent / "scratch")


def by_key(source: Source) -> dict[str, Item]:
    return {item.key: item for item in source.items}


def contents(source: Source) -> dict[str, bytes]:
    return {i.key: i.path.read_bytes() for i in source.items if i.path is not None}


def left_in_scratch(tmp_path: Path) -> list[str]:
    return [str(p.relative_to(tmp_path)) for p in (tmp_path / "scratch").rglob("*")]


@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_of_archive_is_unpacked_and_unwrapped(suffix: str, tmp_path: Path) -> None:
    source = opened(packed(tmp_path / f"pets{suffix}", PETS))
    assert [(i.key, i.label, i.split) for i in source.items] == [
        ("test/dog/2.jpg", "dog", "test"),
        ("train/cat/1.jpg", "cat", "train"),
    ]
    assert contents(source)["train/cat/1.jpg"] == b"cat one"


def test_an_archive_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "pets.tar.gz", PETS).rename(tmp_path / "download")
    assert len(opened(path).items) == 2


def test_a_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = packed(tmp_path / "inner.zip", PETS).read_bytes()
    members = {"cat/1.jpg": b"x", "dog/2.jpg": b"y", "dog/inner.zip": inner}
    assert set(by_key(opened(packed(tmp_path / "pets.tar", members)))) == set(members)


def test_unpacking_again_gives_the_archive_as_it_is_now(tmp_path: Path) -> None:
    opened(packed(tmp_path / "pets.zip", PETS))
    source = opened(packed(tmp_path / "pets.zip", {"cat/3.jpg": b"x", "dog/4.jpg": b"y"}))
    assert [i.key for i in source.items] == ["cat/3.jpg", "dog/4.jpg"]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "cat/../../evil.jpg",
        "/tmp/evil.jpg",
        "..\\evil.jpg",
        "C:\\evil.jpg",
        "cat/..",
    ],
)
def test_a_member_that_would_land_outside_refuses_the_whole_archive(
    name: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    path = packed(tmp_path / "deep" / f"pets{suffix}", PETS | {name: b"evil"})
    with pytest.raises(SourceError, match=r"unsafe: its member .*outside the folder"):
        opened(path)
    assert not list(tmp_path.rglob("*evil*"))
    assert left_in_scratch(tmp_path / "deep") == []


def test_links_in_a_tar_are_kept_inside_and_told_when_they_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    source = opened(
        tar_of(
            tmp_path / "pets.tar",
            member("cat/1.jpg", size=3),
            member("dog/2.jpg", size=4),
            member("dog/inside.jpg", tarfile.SYMTYPE, target="../cat/1.jpg"),
            member("dog/hard.jpg", tarfile.LNKTYPE, target="cat/1.jpg"),
            member("dog/up.jpg", tarfile.SYMTYPE, target="../../../secret.jpg"),
            member("dog/absolute.jpg", tarfile.SYMTYPE, target=str(tmp_path / "secret.jpg")),
            member("dog/hard-out.jpg", tarfile.LNKTYPE, target="/etc/passwd"),
            member("dog/loop", tarfile.SYMTYPE, target="."),
            member("dog/gone.jpg", tarfile.SYMTYPE, target="nothing.jpg"),
        )
    )
    assert {key: i.problem for key, i in by_key(source).items()} == {
        "cat/1.jpg": None,
        "dog/2.jpg": None,
        "dog/absolute.jpg": "outside",
        "dog/gone.jpg": "missing",
        "dog/hard-out.jpg": "outside",
        "dog/hard.jpg": None,
        "dog/inside.jpg": None,
        "dog/loop": "symlink_loop",
        "dog/up.jpg": "outside",
    }
    assert contents(source)["dog/hard.jpg"] == contents(source)["dog/inside.jpg"] == b"xxx"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    path = tar_of(
        tmp_path / "pets.tar",
        member("cat", tarfile.SYMTYPE, target=str(tmp_path / "target")),
        member("cat/1.jpg", size=3),
        member("dog/2.jpg", size=3),
    )
    items = by_key(opened(path))
    assert {key: i.problem for key, i in items.items()} == {
        "cat/1.jpg": None,
        "cat~2": "outside",
        "dog/2.jpg": None,
    }
    path = tar_of(
        tmp_path / "links.tar",
        member("dog/2.jpg", size=3),
        member("cat", tarfile.SYMTYPE, target=str(tmp_path / "target")),
        member("cat/link.jpg", tarfile.SYMTYPE, target="x"),
    )
    with pytest.raises(SourceError, match=r"unsafe: its member 'cat/link\.jpg'"):
        opened(path)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_link_in_a_zip_is_a_link(tmp_path: Path) -> None:
    path = packed(tmp_path / "pets.zip", {"cat/1.jpg": b"x", "dog/2.jpg": b"y"})
    with zipfile.ZipFile(path, "a") as opened_zip:
        link = zipfile.ZipInfo("dog/out.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        opened_zip.writestr(link, "/etc/passwd")
    assert by_key(opened(path))["dog/out.jpg"].problem == "outside"


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_pipes_and_devices_are_told_and_not_made(kind: bytes, tmp_path: Path) -> None:
    source = opened(
        tar_of(
            tmp_path / "pets.tar",
            member("cat/1.jpg", size=3),
            member("dog/2.jpg", size=3),
            member("dog/device.jpg", kind),
        )
    )
    item = by_key(source)["dog/device.jpg"]
    assert (item.label, item.path, item.problem) == ("dog", None, "not_a_file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_two_members_of_one_name_are_both_kept(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / f"pets{suffix}"
    names = ["cat/é.jpg", unicodedata.normalize("NFD", "cat/é.jpg"), "cat/é.jpg", "dog/2.jpg"]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as opened_zip:
            for number, name in enumerate(names):
                opened_zip.writestr(name, f"{number}")
    else:
        with tarfile.open(path, "w") as opened_tar:
            for number, name in enumerate(names):
                opened_tar.addfile(member(name, size=1), io.BytesIO(f"{number}".encode()))
    assert contents(opened(path)) == {
        "cat/é.jpg": b"0",
        "cat/é~2.jpg": b"1",
        "cat/é~3.jpg": b"2",
        "dog/2.jpg": b"3",
    }
    assert "more than once" in caplog.text


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_too_long_for_file_systems_are_shortened_and_stay_apart(
    suffix: str, tmp_path: Path
) -> None:
    fits, long = "ü" * 125 + "x.jpg", "ü" * 300
    members = {f"cat/{fits}": b"0", f"cat/{long}a.jpg": b"1", f"cat/{long}b.jpg": b"2"}
    source = opened(packed(tmp_path / f"pets{suffix}", members | {"dog/2.jpg": b"3"}))
    assert sorted(contents(source).values()) == [b"0", b"1", b"2", b"3"]
    assert f"cat/{fits}" in by_key(source)
    assert all(len(i.path.name.encode()) <= 255 for i in source.items if i.path)


def test_a_path_too_long_for_the_system_is_an_error(tmp_path: Path) -> None:
    deep = "/".join(["folder" * 30] * 30) + "/1.jpg"
    with pytest.raises(SourceError, match="File name too long"):
        opened(packed(tmp_path / "pets.tar", PETS | {deep: b"x"}))


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_cut_short_is_an_error_and_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    noise = bytes(range(256)) * 400
    path = packed(tmp_path / f"pets{suffix}", {"cat/1.jpg": noise, "dog/2.jpg": noise[::-1]})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match="broken or cut short"):
        opened(path)
    assert left_in_scratch(tmp_path) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_damaged_archive_is_an_error(suffix: str, tmp_path: Path) -> None:
    path = packed(tmp_path / f"pets{suffix}", PETS | {"pets/train/cat/3.jpg": bytes(5000)})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 if suffix != ".zip" else 45
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(SourceError, match="broken or cut short"):
        opened(path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
def test_a_file_that_is_no_archive_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(content)
    with pytest.raises(SourceError, match="neither a zip nor a tar archive"):
        opened(tmp_path / "pets.zip")


def test_an_encrypted_zip_is_an_error(tmp_path: Path) -> None:
    path = packed(tmp_path / "pets.zip", {"cat/1.jpg": b"x", "dog/2.jpg": b"y"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 0x1  # the directory's flag "encrypted"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is encrypted"):
        opened(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_bomb_is_an_error_before_it_fills_the_disk(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED_BYTES", 100_000)
    members = {"cat/1.jpg": bytes(90_000), "dog/2.jpg": bytes(5_000_000)}
    with pytest.raises(SourceError, match="archive bomb"):
        opened(packed(tmp_path / f"pets{suffix}", members))
    assert left_in_scratch(tmp_path) == []


def test_hard_links_count_towards_the_size_of_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED_BYTES", 100_000)
    monkeypatch.setattr(archive, "MAX_GROWTH", 1)
    links = [member(f"dog/{n}.jpg", tarfile.LNKTYPE, target="cat/1.jpg") for n in range(20)]
    with pytest.raises(SourceError, match="archive bomb"):
        opened(tar_of(tmp_path / "pets.tar", member("cat/1.jpg", size=50_000), *links))


def test_too_many_members_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    with pytest.raises(SourceError, match="more than 2 members"):
        opened(packed(tmp_path / "pets.zip", PETS))


def test_a_file_that_others_take_for_a_folder_is_an_error(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "pets.tar", member("cat", size=3), member("cat/1.jpg", size=3))
    with pytest.raises(SourceError, match="both as a file and as a folder"):
        opened(path)


def test_no_space_left_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = packed(tmp_path / "pets.zip", PETS)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(StoreFullError, match="no space is left to unpack"):
        opened(path)
    assert left_in_scratch(tmp_path) == []

"""Zip and tar archives, unpacked below scratch without trusting them."""

import logging
import lzma
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from linnet.data.sources.items import Found, clean_key, numbered
from linnet.data.sources.scratch import filled
from linnet.errors import SourceError
from linnet.progress import track

log = logging.getLogger(__name__)

MAX_MEMBERS = 5_000_000
# Pictures hardly shrink when packed, so more growth than this is an attack, not a dataset.
MAX_GROWTH = 100
ALWAYS_ALLOWED_BYTES = 2**30

_NAME_MAX_BYTES = 255
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, UnicodeDecodeError),
)


@dataclass(frozen=True)
class _Member:
    """One entry of an archive. `open` is for files, `target` for links."""

    name: str
    kind: Literal["file", "folder", "link", "special"]
    size_bytes: int
    open: Callable[[], IO[bytes] | None]
    target: str = ""


def unpack(archive: Path, folder: Path) -> list[Found]:
    """Unpack the archive to `folder`, all of it or nothing, and return what was not unpacked.

    Names become NFC. A second member of one name is unpacked as `name~2.jpg`, and a name that is
    too long for file systems is shortened with a digest: nothing is lost. Links are made last, so
    that nothing is ever written through one; pipes and devices are returned as "not_a_file".

    Raises:
        SourceError: the archive is broken, encrypted, too big when unpacked, or has a member that
            would land outside the folder.
        StoreFullError: no space is left.
    """
    with filled(folder) as unfinished:
        return _unpack(archive, unfinished)


def _unpack(archive: Path, folder: Path) -> list[Found]:
    links: list[_Member] = []
    special: list[Found] = []
    allowed = max(ALWAYS_ALLOWED_BYTES, MAX_GROWTH * archive.stat().st_size)
    unpacked = 0
    for count, member in enumerate(_members(archive), start=1):
        unpacked += member.size_bytes
        _check_size(archive, count, unpacked, allowed)
        inside = _inside(archive, member.name)
        if member.kind == "link":
            links.append(member)
        elif member.kind == "special":
            detail = "a pipe or device in the archive"
            special.append(Found(clean_key(str(inside)), None, "not_a_file", detail))
        else:
            _write(member, folder, inside, archive)
    for member in links:
        _link(member, folder, _inside(archive, member.name), archive)
    return special


def _members(archive: Path) -> Iterator[_Member]:
    with _reported(archive):
        if tarfile.is_tarfile(archive):
            yield from _tar_members(archive)
        elif zipfile.is_zipfile(archive):
            yield from _zip_members(archive)
        else:
            raise SourceError(
                f"{archive} is neither a zip nor a tar archive, or it is broken or cut short: "
                "fetch it again, or unpack it yourself and give the folder"
            )


@contextmanager
def _reported(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise SourceError(
            f"{archive} is broken or cut short ({error}): fetch it again, or unpack it yourself "
            "and give the folder"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # The system's errors are numbered; gzip's and bz2's own are not.
        raise SourceError(f"{archive} is broken or cut short ({error}): fetch it again") from error


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for info in track(members, f"unpack {archive.name}", total=len(members)):
            if info.flag_bits & 0x1:
                raise SourceError(
                    f"{archive} is encrypted (member {info.filename!r}): unpack it with its "
                    "password and give the folder"
                )
            name = info.filename.replace("\\", "/")
            mode = info.external_attr >> 16
            if info.is_dir() or name.endswith("/"):
                yield _Member(name, "folder", 0, lambda: None)
            elif stat.S_ISLNK(mode):
                target = opened.read(info).decode("utf-8", "surrogateescape")
                yield _Member(name, "link", 0, lambda: None, target)
            else:
                yield _Member(name, "file", info.file_size, partial(opened.open, info))


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as opened:
        sizes: dict[str, int] = {}
        for info in track(opened, f"unpack {archive.name}"):
            if info.isdir():
                yield _Member(info.name, "folder", 0, lambda: None)
            elif info.isfile() or (info.islnk() and info.linkname in sizes):
                sizes[info.name] = sizes[info.linkname] if info.islnk() else info.size
                content = partial(opened.extractfile, info)
                yield _Member(info.name, "file", sizes[info.name], content)
            elif info.issym() or info.islnk():
                yield _Member(info.name, "link", 0, lambda: None, info.linkname)
            else:
                yield _Member(info.name, "special", 0, lambda: None)


def _check_size(archive: Path, members: int, unpacked: int, allowed: int) -> None:
    if members > MAX_MEMBERS:
        raise SourceError(
            f"{archive} has more than {MAX_MEMBERS:,} members, which looks like an archive bomb: "
            "unpack it yourself and give the folder if it is what you expect"
        )
    if unpacked > allowed:
        raise SourceError(
            f"{archive} unpacks to more than {allowed:,} bytes, over {MAX_GROWTH} times its size, "
            "which looks like an archive bomb: unpack it yourself and give the folder if it is "
            "what you expect"
        )


def _inside(archive: Path, name: str) -> PurePosixPath:
    slashed = name.replace("\\", "/")
    absolute = slashed.startswith("/") or slashed[1:3] == ":/"
    if absolute or ".." in slashed.split("/") or "\0" in name:
        raise _unsafe(archive, name)
    return PurePosixPath(*(_fitting(part) for part in PurePosixPath(name).parts))


def _unsafe(archive: Path, name: str) -> SourceError:
    return SourceError(
        f"{archive} is unsafe: its member {name!r} would land outside the folder it is unpacked "
        "to; nothing was kept. Don't use this archive"
    )


def _fitting(part: str) -> str:
    name = unicodedata.normalize("NFC", part)
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_MAX_BYTES:
        return name
    suffix = PurePosixPath(name).suffix if len(PurePosixPath(name).suffix) <= 8 else ""
    ending = f"~{sha256(encoded).hexdigest()[:12]}{suffix}"
    start = encoded[: _NAME_MAX_BYTES - len(os.fsencode(ending))].decode("utf-8", "ignore")
    log.warning("a name of %d bytes is too long and was shortened: %s", len(encoded), start)
    return start + ending


def _free(folder: Path, inside: PurePosixPath) -> Path:
    """Return a path that isn't taken; the file system itself says which names it holds equal."""
    path, number = folder / inside, 2
    while os.path.lexists(path):
        path = folder / numbered(str(inside), number)
        number += 1
    if number > 2:
        log.warning("the archive has %s more than once; kept as %s", inside, path.name)
    return path


def _write(member: _Member, folder: Path, inside: PurePosixPath, archive: Path) -> None:
    try:
        if member.kind == "folder":
            (folder / inside).mkdir(parents=True, exist_ok=True)
            return
        path = _free(folder, inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _reported(archive), path.open("xb") as unpacked:
            packed = member.open()
            if packed is not None:
                with packed:
                    shutil.copyfileobj(packed, unpacked, 2**20)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise SourceError(
            f"{archive} has {member.name!r} both as a file and as a folder: pack it again"
        ) from error


def _link(member: _Member, folder: Path, inside: PurePosixPath, archive: Path) -> None:
    """Make the link as it is; reading the folder finds out where it leads.

    Its own place must be inside, though: an earlier link may stand in for a parent folder.
    """
    path = _free(folder, inside)
    if not path.parent.resolve().is_relative_to(folder.resolve()) or "\0" in member.target:
        raise _unsafe(archive, member.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(member.target)

"""Every file below a folder, with links that lead out of it found out."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from linnet.data.sources.items import Found, clean_key, number_duplicates
from linnet.errors import SourceError

log = logging.getLogger(__name__)

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


def walk(root: Path) -> list[Found]:
    """Return the files below `root`, sorted by key.

    Hidden folders, `__MACOSX` and the files that desktops leave behind are left out. A link that
    stays inside is followed, a linked folder once. What can't be read comes back with a problem:
    "outside", "missing", "symlink_loop", "not_a_file" or "unreadable".

    Raises:
        SourceError: a folder can't be listed.
    """
    return number_duplicates(_below(root, root, Path(os.path.realpath(root)), linked=False))


def _below(folder: Path, root: Path, real_root: Path, *, linked: bool) -> Iterator[Found]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise SourceError(
            f"folder {folder} can't be listed ({error.strerror}): check its permissions"
        ) from error
    for entry in entries:
        if left_behind(entry.name, folder=entry.name.startswith(".") and entry.is_dir()):
            log.debug("left out: %s", entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), root, real_root, linked=linked)
        elif entry.is_symlink():
            yield from _behind_link(Path(entry.path), root, real_root, linked=linked)
        else:
            yield _file(Path(entry.path), root)


def left_behind(name: str, *, folder: bool) -> bool:
    """Return whether a name is of a hidden folder, or of what desktops leave behind."""
    name = name.casefold()
    if name == "__macosx" or name in _SYSTEM_FILES or name.startswith("._"):
        return True
    return folder and name.startswith(".")


def _behind_link(link: Path, root: Path, real_root: Path, *, linked: bool) -> Iterator[Found]:
    key = clean_key(link.relative_to(root).as_posix())
    try:
        target = Path(os.path.realpath(link, strict=True))
    except FileNotFoundError:
        target = Path(os.path.realpath(link))
        problem = "missing" if target.is_relative_to(real_root) else "outside"
        yield Found(key, None, problem, f"a link to {os.readlink(link)}, which is not there")
        return
    except OSError as error:
        yield Found(key, None, "symlink_loop", f"a link that can't be followed: {error.strerror}")
        return
    if not target.is_relative_to(real_root):
        yield Found(key, None, "outside", f"a link to {os.readlink(link)}, out of the folder")
    elif not target.is_dir():
        yield _file(link, root)
    elif linked or Path(os.path.realpath(link.parent)).is_relative_to(target):
        yield Found(key, None, "symlink_loop", f"a link to the folder {os.readlink(link)} again")
    else:
        yield from _below(link, root, real_root, linked=True)


def _file(path: Path, root: Path) -> Found:
    key = clean_key(path.relative_to(root).as_posix())
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Found(key, None, "unreadable", str(error.strerror))
    if not stat.S_ISREG(mode):
        return Found(key, None, "not_a_file", "a pipe, socket or device")
    if not os.access(path, os.R_OK):
        return Found(key, None, "unreadable", "permission denied")
    return Found(key, path)

"""Folders below scratch that are either whole or not there."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linnet.errors import SourceError, StoreFullError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `folder` at the end, or goes away on an error.

    Raises:
        StoreFullError: no space is left.
        SourceError: scratch can't be written.
    """
    partial = _empty_beside(folder)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise _explained(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _empty_beside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise _explained(error, folder) from error


def _explained(error: OSError, folder: Path) -> StoreFullError | SourceError:
    if error.errno in _NO_SPACE:
        return StoreFullError(
            f"no space is left to unpack pictures to {folder.parent}: free some, or set another "
            "scratch folder (TMPDIR)"
        )
    return SourceError(f"pictures can't be brought to {folder}: {error}")

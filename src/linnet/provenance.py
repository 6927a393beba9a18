"""Which code made a thing."""

import subprocess
from functools import cache
from pathlib import Path

from linnet import __version__

_HERE = Path(__file__).resolve().parent


@cache
def code_revision() -> str:
    """Return the git revision of this code, with `-dirty` when files differ from it.

    Where there is no checkout: what the image's build wrote to `REVISION` beside this file, else
    the package's version.
    """
    return _of_checkout(_HERE) or _of_image(_HERE) or __version__


def _of_checkout(folder: Path) -> str | None:
    """Return the revision, unless the folder only happens to lie in somebody else's checkout."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _of_image(folder: Path) -> str | None:
    try:
        return (folder / "REVISION").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

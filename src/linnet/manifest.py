"""The manifest that each artifact folder has: it is written last and says what the folder is."""

import json
from pathlib import Path
from typing import Any

from linnet.errors import LinnetError


def read_manifest(path: Path, kind: str, *, step: str, error: type[LinnetError]) -> dict[str, Any]:
    """Return what a manifest says.

    Args:
        path: the manifest in its folder.
        kind: what its `kind` has to be, such as `linnet/graph/v1`.
        step: the command that writes such folders.
        error: raised where the folder holds no finished artifact, or one of another kind.
    """
    artifact = kind.split("/")[1]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as absent:
        raise error(
            f"{path.parent} holds no {path.name}, so it is not a finished {artifact}: "
            f"give the folder that `linnet {step}` wrote, or run it again"
        ) from absent
    except (OSError, ValueError) as damage:
        raise error(
            f"{path} can't be read ({damage}): run `linnet {step}` again, or copy the folder whole"
        ) from damage
    found = values.get("kind") if isinstance(values, dict) else None
    if found != kind:
        raise error(
            f"{path} is of kind {found!r}, expected {kind!r}: "
            f"give a {artifact}, or upgrade Linnet if a newer one wrote it"
        )
    return dict(values)

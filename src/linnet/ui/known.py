"""What a release tells about the model that answers: examples, report, and how it came to be."""

import logging
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from linnet.data.pictures import decode
from linnet.errors import (
    EvaluationError,
    PictureError,
    ReleaseError,
    SettingsError,
    StoreError,
    TrackingError,
)
from linnet.evaluation.report import PAGE, Report
from linnet.release.opening import Release, open_release
from linnet.release.samples import Sample, read_samples
from linnet.stores.connections import Connections
from linnet.ui.asking import Model

logger = logging.getLogger(__name__)

_THUMBNAIL_PX = 240


@dataclass(frozen=True)
class KnownRelease:
    """A release that was opened. `report` is null where this version can't read it."""

    release: Release
    samples: tuple[Sample, ...]
    report: Report | None

    @property
    def name(self) -> str:
        """Return model and version, as answers name them."""
        return f"{self.release.model}/{self.release.version}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return tuple(self.release.manifest["classes"])

    @property
    def page(self) -> Path | None:
        """Return the report as a page, where the release has one."""
        path = self.release.path / PAGE
        return path if path.is_file() else None

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what the release was made of."""
        return dict(self.release.manifest["provenance"])


def know(address: str, *, scratch: Path, connections: Connections) -> KnownRelease:
    """Open the release at an address and read what it tells.

    Raises:
        LinnetError: as `open_release` and `read_samples`.
    """
    release = open_release(address, scratch=scratch, connections=connections)
    try:
        report = Report.load(release.path)
    except EvaluationError as error:
        logger.warning("the model page is without a report: %s", error)
        report = None
    return KnownRelease(release, tuple(read_samples(release.samples_path)), report)


def find(model: Model, *, scratch: Path, connections: Connections) -> KnownRelease | None:
    """Return the release that a model says it is, if it lies where releases go."""
    if connections.release_root is None:
        return None
    address = f"{connections.release_root}/{model.release}"
    try:
        found = know(address, scratch=scratch, connections=connections)
    except (ReleaseError, StoreError, TrackingError) as error:
        logger.debug("no release at %s: %s", address, error)
        return None
    return found if set(found.classes) == set(model.classes) else None


def follow(
    known: KnownRelease | None, model: Model, *, scratch: Path, connections: Connections
) -> KnownRelease | None:
    """Return the release that a model says it is now; of the one before nothing is kept."""
    if known is not None and known.name == model.release:
        return known
    if known is not None and known.release.path.is_relative_to(scratch):
        shutil.rmtree(known.release.path, ignore_errors=True)
    return find(model, scratch=scratch, connections=connections)


def require_same_classes(known: KnownRelease, model: Model) -> None:
    """Refuse a release of another model than the one that answers.

    Raises:
        SettingsError: their classes differ.
    """
    if set(known.classes) != set(model.classes):
        raise SettingsError(
            f"{known.release.uri} knows the classes {_few(known.classes)}, but {model.name} on the "
            f"server answers {_few(model.classes)}: give --release of the model that is served, or "
            "--model"
        )


def thumbnail(encoded: bytes) -> bytes:
    """Return a small JPEG of a picture, or a grey one where it can't be used."""
    try:
        picture = decode(encoded, at_least_px=_THUMBNAIL_PX)
    except PictureError:
        picture = Image.new("RGB", (_THUMBNAIL_PX, _THUMBNAIL_PX), "grey")
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    file = BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _few(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""The first look at a picture: can it be used, and the few numbers that ingest needs of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from linnet.data.duplicates import fingerprint
from linnet.data.pictures import decode_opened, describe, open_header, verify
from linnet.errors import PictureError

# Small enough to be quick, large enough for the fingerprint and the colours: their mean is exact to
# three digits, their standard deviation up to 3 % below that of the full picture.
_REDUCED_PX = 48
_LEVELS = np.arange(256) / 255.0
_POWERS = np.stack([_LEVELS, _LEVELS**2], axis=1)

# The usual decoders are loaded here and not at the first picture, once in every process.
Image.preinit()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture must satisfy; `fingerprints` says whether near duplicates are wanted."""

    min_side_px: int
    max_pixels: int
    fingerprints: bool


@dataclass(frozen=True, slots=True)
class Examined:
    """What is kept of a usable picture.

    `moments` is the mean of R, G, B and then of their squares, channels from 0 to 1, as the bytes
    of six float64: there are as many of these in memory as there are pictures.
    """

    sha256: bytes
    width: int
    height: int
    fingerprint: bytes | None
    moments: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a picture can't be used: a short stable word and the detail."""

    reason: str
    detail: str


def examine(path: Path, limits: Limits) -> Examined | Refused:
    """Return the facts of a picture file, or why it can't be used.

    All of its data is decoded, a JPEG at a reduced scale, so that damage is found.
    """
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        return Refused("missing", "the file is not there")
    except OSError as error:
        return Refused("unreadable", error.strerror or str(error))
    try:
        return examine_encoded(encoded, limits)
    except PictureError as error:
        return Refused(error.reason, error.detail)


def examine_encoded(encoded: bytes, limits: Limits) -> Examined:
    """Return the facts of an encoded picture.

    Raises:
        PictureError: `empty`, `too_small`, `animated`, or as `linnet.data.pictures.decode`.
    """
    if not encoded:
        raise PictureError("empty", "the file has no bytes")
    opened = open_header(encoded)
    info = describe(opened)
    if min(info.width, info.height) < limits.min_side_px:
        raise PictureError(
            "too_small",
            f"{info.width} × {info.height} px, expected {limits.min_side_px} px or more a side",
        )
    if info.frames > 1:
        raise PictureError("animated", f"{info.frames} frames, expected one")
    if info.format == "PNG":
        verify(encoded)
    reduced = decode_opened(opened, at_least_px=_REDUCED_PX, max_pixels=limits.max_pixels)
    return Examined(
        sha256=hashlib.sha256(encoded).digest(),
        width=info.width,
        height=info.height,
        fingerprint=fingerprint(reduced) if limits.fingerprints else None,
        moments=_moments(reduced),
    )


def _moments(image: Image.Image) -> bytes:
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    means = counts @ _POWERS / (image.width * image.height)
    return means.T.tobytes()

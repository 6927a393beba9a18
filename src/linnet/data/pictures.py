"""Encoded pictures to RGB pixels, whatever they were saved as.

Nothing here trusts the file's name: the bytes decide. Only the formats below are tried, so no
picture can start a PostScript interpreter or another exotic decoder.
"""

import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from linnet.errors import PictureError

# MPO, JPEG with several frames, comes in through the JPEG plugin.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What Pillow's decoders are known to raise on damaged bytes.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)

# `decode` checks the size before any pixel is decoded and says so; Pillow's warning adds nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class PictureInfo:
    """What the header says: the format, the size in pixels once upright, the frames."""

    format: str
    width: int
    height: int
    frames: int


def inspect(encoded: bytes) -> PictureInfo:
    """Return what the header of a picture says, without decoding it.

    Raises:
        PictureError: `not_a_picture`; `too_large` beyond what Pillow opens at all (179 million
            pixels).
    """
    return describe(open_header(encoded))


def decode(
    encoded: bytes, *, at_least_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the first frame as an upright RGB picture.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8, CMYK and
    palettes converted. With `at_least_px` a JPEG is decoded at the smallest DCT scale whose shorter
    side is not below it, which is several times faster for large photographs.

    Raises:
        PictureError: `not_a_picture`, `too_large` (more than `max_pixels`, found before decoding),
            `broken` (truncated or corrupt) or `unsupported` (pixels that have no RGB meaning).
    """
    return decode_opened(open_header(encoded), at_least_px=at_least_px, max_pixels=max_pixels)


def verify(encoded: bytes) -> None:
    """Check the checksums of a PNG, which decoding skips; other formats have none.

    Raises:
        PictureError: `broken`.
    """
    opened = open_header(encoded)
    try:
        opened.verify()
    except _DECODING_ERRORS as error:
        raise PictureError("broken", f"{opened.format}: {error}") from error


def open_header(encoded: bytes) -> Image.Image:
    """Return a Pillow picture of which only the header has been read.

    Raises:
        PictureError: as `inspect`.
    """
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise PictureError("not_a_picture", _what_it_looks_like(encoded)) from error
    except _DECODING_ERRORS as error:
        raise PictureError("not_a_picture", f"unreadable header: {error}") from error


def describe(opened: Image.Image) -> PictureInfo:
    """Return what the header of an opened picture says."""
    width, height = opened.size
    if _orientation(opened) >= 5:
        width, height = height, width
    # The further frames of an MPO are previews and depth maps of the same photograph.
    several = opened.format != "MPO" and getattr(opened, "is_animated", False)
    frames = getattr(opened, "n_frames", 1) if several else 1
    return PictureInfo(opened.format or "", width, height, frames)


def decode_opened(
    opened: Image.Image, *, at_least_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return what `decode` does, from a picture whose header is already read."""
    width, height = opened.size
    if width * height > max_pixels:
        raise PictureError("too_large", f"{width} × {height} px is more than {max_pixels} pixels")
    try:
        if at_least_px is not None:
            opened.draft("RGB", (at_least_px, at_least_px))
        opened.load()
    except _DECODING_ERRORS as error:
        raise PictureError("broken", f"{opened.format}: {error}") from error
    except MemoryError as error:
        raise PictureError("too_large", f"{width} × {height} px don't fit in memory") from error
    turn = _TRANSPOSE.get(_orientation(opened))
    rgb = _to_rgb(opened)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it is damaged."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODING_ERRORS:
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BITS:
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise PictureError("unsupported", "floating-point pixels have no agreed range")
    elif image.has_transparency_data:
        return _over_white(image)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise PictureError("unsupported", f"{image.mode} pixels: {error}") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).clip(0, 65535)
    return Image.fromarray((pixels // 257).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _what_it_looks_like(encoded: bytes) -> str:
    """Return a few words on bytes that no decoder knows, for whoever has to find the file."""
    if not encoded:
        return "the file is empty"
    start = encoded[:256].lstrip().lower()
    if start.startswith((b"<?xml", b"<svg")):
        return "an SVG or XML document"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if encoded[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "a HEIC or AVIF picture, which is not read: convert it to JPEG"
    if start.isascii() and start.decode("ascii", "replace").isprintable():
        return "text"
    return f"starts with {encoded[:8].hex(' ')}, expected one of {', '.join(FORMATS)}"

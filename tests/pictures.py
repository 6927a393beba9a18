"""Small made pictures of every kind that people have, and of what only looks like pictures."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Return a smooth picture that no other seed resembles."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0, width: int = 96, height: int = 72, **options: Any) -> bytes:
    return encoded(photograph(seed, width, height), **options)


def animated_gif(frames: int) -> bytes:
    first, *rest = (photograph(seed) for seed in range(frames))
    return encoded(first, "GIF", save_all=True, append_images=rest)


def turned_jpeg(orientation: int) -> bytes:
    """Return 96 × 72 stored pixels, red on their left, with an EXIF orientation."""
    image = Image.new("RGB", (96, 72), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 48, 72))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif, quality=95)


def sixteen_bits(level: int, kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray(np.full((72, 96), level, np.uint16)), kind)


def bomb() -> bytes:
    """Return 100 megapixels in a few kilobytes."""
    return encoded(Image.new("1", (10_000, 10_000)), "PNG")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def good_pictures() -> dict[str, bytes]:
    """Return one picture of every kind that is understood, by name."""
    photo = photograph(1)
    return {
        "baseline.jpg": jpeg(1),
        "progressive.jpg": jpeg(1, progressive=True),
        "grey.jpg": encoded(photo.convert("L")),
        "cmyk.jpg": encoded(photo.convert("CMYK")),
        "rotated.jpg": turned_jpeg(6),
        "truecolour.png": encoded(photo, "PNG"),
        "palette.png": encoded(photo.quantize(32), "PNG"),
        "rgba.png": encoded(photo.convert("RGBA"), "PNG"),
        "grey-alpha.png": encoded(photo.convert("LA"), "PNG"),
        "one-bit.png": encoded(photo.convert("1"), "PNG"),
        "sixteen-bits.png": sixteen_bits(40_000),
        "sixteen-bits.tif": sixteen_bits(40_000, "TIFF"),
        "photo.tif": encoded(photo, "TIFF"),
        "single.gif": encoded(photo, "GIF"),
        "photo.webp": encoded(photo, "WEBP"),
        "photo.bmp": encoded(photo, "BMP"),
        "photo.ppm": encoded(photo, "PPM"),
    }


def bad_pictures() -> dict[str, tuple[str, bytes]]:
    """Return the reason for quarantine and the bytes, by name."""
    whole, png = jpeg(2), encoded(photograph(2), "PNG")
    corrupt = bytearray(png)
    corrupt[len(png) // 2 : len(png) // 2 + 40] = b"\xff" * 40
    return {
        "truncated.jpg": ("broken", whole[: len(whole) // 2]),
        "truncated.png": ("broken", png[: len(png) // 2]),
        "corrupt.png": ("broken", bytes(corrupt)),
        "header-only.jpg": ("not_a_picture", whole[:20]),
        "zero-bytes.jpg": ("empty", b""),
        "drawing.png": ("not_a_picture", SVG),
        "note.jpg": ("not_a_picture", b"buy milk\n"),
        "page.jpg": ("not_a_picture", b"<!DOCTYPE html><title>404</title>"),
        "noise.jpg": ("not_a_picture", bytes(range(256)) * 8),
        "bomb.png": ("too_large", bomb()),
        "dot.png": ("too_small", encoded(photograph(2, 4, 40), "PNG")),
        "moving.gif": ("animated", animated_gif(3)),
        "float.tif": ("unsupported", encoded(Image.new("F", (40, 40)), "TIFF")),
    }


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by their path below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def class_folders(root: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write different photographs into one folder per class, such as `{"cat": 10, "dog": 8}`."""
    files, number = {}, seed
    for name, count in counts.items():
        for index in range(count):
            files[f"{name}/{index:03d}.jpg"] = jpeg(number)
            number += 1
    return write_tree(root, files)

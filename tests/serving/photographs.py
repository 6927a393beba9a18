"""Real photographs (scikit-learn's two), in every form that a person may send them."""

from functools import cache
from importlib import resources
from io import BytesIO

import numpy as np
from PIL import Image


@cache
def photographs() -> dict[str, bytes]:
    """The two JPEG files as they are, 640 × 427."""
    folder = resources.files("sklearn.datasets") / "images"
    return {name: (folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")}


def opened(name: str = "china.jpg") -> Image.Image:
    return Image.open(BytesIO(photographs()[name]))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@cache
def forms() -> dict[str, bytes]:
    """One photograph, saved in many ways that all show the same."""
    photo = opened()
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = photo.copy()
    alpha.putalpha(255)
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": photographs()["china.jpg"],
        "progressive jpeg": saved(photo, "JPEG", progressive=True, quality=95),
        "grey jpeg": saved(grey, "JPEG", quality=95),
        "cmyk jpeg": saved(photo.convert("CMYK"), "JPEG", quality=95),
        "jpeg turned by exif": saved(turned, "JPEG", quality=95, exif=exif),
        "png": saved(photo, "PNG", compress_level=1),
        "rgba png": saved(alpha, "PNG", compress_level=1),
        "palette png": saved(photo.quantize(256), "PNG"),
        "grey png": saved(grey, "PNG", compress_level=1),
        "16 bit png": saved(deep, "PNG", compress_level=1),
        "webp": saved(photo, "WEBP", quality=95),
        "tiff": saved(photo, "TIFF", compression="tiff_lzw"),
        "bmp": saved(photo, "BMP"),
        "gif of two frames": saved(
            photo.quantize(256), "GIF", save_all=True, append_images=[Image.new("P", photo.size)]
        ),
    }

"""From an encoded picture to the network's input: one function for training and for serving.

Training, evaluation, batch prediction and the server all call `prepare`, so they can't differ.
Normalisation is not here: it is part of the network and of the exported graph.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnet.data.pictures import MAX_PIXELS, decode
from linnet.errors import DatasetError

Fit = Literal["squash", "crop", "pad"]

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Preprocessing:
    """The square that the network sees and how a picture is made to fit it.

    squash resizes both sides; crop resizes the shorter side and cuts the centre; pad resizes the
    longer side and fills with grey.
    """

    size_px: int
    fit: Fit = "squash"

    def to_json(self) -> dict[str, Any]:
        """Return the form that manifests carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that a manifest describes.

        Raises:
            DatasetError: a key is missing or unknown to this version of Linnet.
        """
        size_px, fit = values.get("size_px"), values.get("fit")
        if not isinstance(size_px, int) or fit not in get_args(Fit) or len(values) != 2:
            raise DatasetError(
                f"preprocessing {dict(values)} is not known here, expected size_px (an integer) "
                f"and fit ({', '.join(get_args(Fit))}): was it written by a newer Linnet?"
            )
        return cls(size_px, cast(Fit, fit))


def prepare(
    encoded: bytes, spec: Preprocessing, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return the picture as the network sees it: uint8 `[size, size, 3]`, RGB, C-contiguous.

    Raises:
        PictureError: as `linnet.data.pictures.decode`.
    """
    image = decode(encoded, at_least_px=spec.size_px, max_pixels=max_pixels)
    return np.array(_FITS[spec.fit](image, spec.size_px))


def prepare_pixels(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """Return what `prepare` makes of a picture that is decoded already, uint8 `[H, W, 3]`, RGB."""
    return np.array(_FITS[spec.fit](Image.fromarray(pixels), spec.size_px))


def on_picture(
    values: NDArray[np.float32], spec: Preprocessing, width: int, height: int
) -> NDArray[np.float32]:
    """Return values of the network's square, `[size, size]`, where they lie on the picture.

    `[height, width]`, of a picture of any scale; 0 where `crop` lets the network see nothing.
    """
    square, bilinear = Image.fromarray(values), Image.Resampling.BILINEAR
    if spec.fit == "squash":
        return np.array(square.resize((width, height), bilinear))
    if spec.fit == "pad":
        across, down = (spec.size_px * side / max(width, height) for side in (width, height))
        edge = (spec.size_px - across) / 2, (spec.size_px - down) / 2
        box = (*edge, edge[0] + across, edge[1] + down)
        return np.array(square.resize((width, height), bilinear, box=box))
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    laid = np.zeros((height, width), np.float32)
    laid[top : top + side, left : left + side] = np.array(square.resize((side, side), bilinear))
    return laid


def prepare_many(
    encoded: Sequence[bytes], spec: Preprocessing, *, threads: int, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return a batch, uint8 `[N, size, size, 3]`, prepared by threads (Pillow frees the GIL).

    Raises:
        PictureError: of the first picture, in order, that can't be used.
    """
    batch = np.empty((len(encoded), spec.size_px, spec.size_px, 3), np.uint8)

    def fill(index: int) -> None:
        batch[index] = prepare(encoded[index], spec, max_pixels=max_pixels)

    if threads <= 1 or len(encoded) <= 1:
        for index in range(len(encoded)):
            fill(index)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, range(len(encoded))):
                pass
    return batch


def _squash(image: Image.Image, size: int) -> Image.Image:
    return _resize(image, size, size, box=(0, 0, *image.size))


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return _resize(image, size, size, box=(left, top, left + side, top + side))


def _pad(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), _GREY)
    inner = _resize(image, width, height, box=(0, 0, *image.size))
    square.paste(inner, ((size - width) // 2, (size - height) // 2))
    return square


def _resize(
    image: Image.Image, width: int, height: int, *, box: tuple[float, float, float, float]
) -> Image.Image:
    """Return the box resized with antialiasing; `reducing_gap` makes large pictures cheap."""
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


_FITS = {"squash": _squash, "crop": _crop, "pad": _pad}

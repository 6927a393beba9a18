"""Preparing pictures for the network."""

import numpy as np
import pytest
from PIL import Image

from linnet.data.preprocessing import Fit, Preprocessing, prepare, prepare_many
from linnet.errors import DatasetError, PictureError
from tests.pictures import bad_pictures, encoded, good_pictures, jpeg


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("name", ["baseline.jpg", "rotated.jpg", "rgba.png", "sixteen-bits.png"])
def test_every_picture_becomes_the_square_of_the_network(name: str, fit: Fit) -> None:
    pixels = prepare(good_pictures()[name], Preprocessing(33, fit))
    assert pixels.shape == (33, 33, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.flags["WRITEABLE"]


def stripes() -> bytes:
    """Return 120 × 40 pixels: red, green and blue squares side by side."""
    image = Image.new("RGB", (120, 40))
    for number, colour in enumerate(("red", "lime", "blue")):
        image.paste(colour, (40 * number, 0, 40 * number + 40, 40))
    return encoded(image, "PNG")


def test_squash_keeps_everything() -> None:
    row = prepare(stripes(), Preprocessing(30, "squash"))[15]
    assert row[[4, 15, 25]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_crop_keeps_the_centre() -> None:
    pixels = prepare(stripes(), Preprocessing(30, "crop"))
    assert pixels[15, 15].tolist() == [0, 255, 0]
    assert (pixels[:, 2:-2, 1] > 250).all()


def test_pad_keeps_the_shape_and_fills_with_grey() -> None:
    pixels = prepare(stripes(), Preprocessing(30, "pad"))
    assert pixels[0, 0].tolist() == pixels[29, 29].tolist() == [128, 128, 128]
    assert pixels[15, [4, 15, 25]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_a_batch_is_the_pictures_one_by_one() -> None:
    contents = [jpeg(seed) for seed in range(7)]
    spec = Preprocessing(24)
    one_by_one = np.stack([prepare(content, spec) for content in contents])
    for threads in (1, 3):
        assert np.array_equal(prepare_many(contents, spec, threads=threads), one_by_one)


def test_an_empty_batch_has_the_shape_of_a_batch() -> None:
    assert prepare_many([], Preprocessing(24), threads=2).shape == (0, 24, 24, 3)


def test_a_bad_picture_in_a_batch_is_an_error() -> None:
    _, broken = bad_pictures()["truncated.jpg"]
    with pytest.raises(PictureError, match="broken"):
        prepare_many([jpeg(0), broken, jpeg(1)], Preprocessing(24), threads=2)


def test_a_large_jpeg_looks_the_same_as_a_lossless_copy() -> None:
    photo = Image.effect_mandelbrot((900, 600), (-2, -1, 1, 1), 60).convert("RGB")
    spec = Preprocessing(64)
    from_jpeg = prepare(encoded(photo, quality=95), spec).astype(float)
    from_png = prepare(encoded(photo, "PNG"), spec).astype(float)
    assert np.abs(from_jpeg - from_png).mean() < 3


def test_preprocessing_goes_through_json_unchanged() -> None:
    spec = Preprocessing(96, "pad")
    assert Preprocessing.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"size_px": "96", "fit": "pad"},
        {"size_px": 96, "fit": "stretch"},
        {"size_px": 96, "fit": "pad", "sharpen": True},
    ],
)
def test_unknown_preprocessing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match="newer Linnet"):
        Preprocessing.from_json(values)

"""Decoding: every kind of picture becomes RGB, everything else a reason."""

import warnings

import numpy as np
import pytest
from PIL import Image

from linnet.data.pictures import decode, inspect
from linnet.errors import PictureError
from tests.pictures import (
    SVG,
    animated_gif,
    bad_pictures,
    bomb,
    encoded,
    good_pictures,
    jpeg,
    photograph,
    sixteen_bits,
    turned_jpeg,
)


@pytest.mark.parametrize("name", good_pictures())
def test_every_kind_becomes_rgb(name: str) -> None:
    content = good_pictures()[name]
    image, info = decode(content), inspect(content)
    assert image.mode == "RGB"
    assert image.size == (info.width, info.height)
    assert info.frames == 1


@pytest.mark.parametrize(
    "name",
    ["progressive.jpg", "truecolour.png", "rgba.png", "photo.webp", "photo.bmp", "photo.tif"],
)
def test_the_colours_survive(name: str) -> None:
    pixels = np.asarray(decode(good_pictures()[name]), dtype=float)
    assert np.abs(pixels - np.asarray(photograph(1), dtype=float)).mean() < 8


def test_cmyk_is_not_inverted() -> None:
    red = np.asarray(decode(encoded(Image.new("RGB", (32, 32), "red").convert("CMYK"))))
    assert red[16, 16, 0] > 240
    assert red[16, 16, 1:].max() < 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("level", "expected"), [(0, 0), (257 * 100, 100), (65535, 255)])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str, level: int, expected: int) -> None:
    assert np.asarray(decode(sixteen_bits(level, kind))).max() == expected


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert decode(encoded(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)


def test_a_transparent_palette_entry_lies_over_white() -> None:
    palette = Image.new("P", (32, 32), 0)
    assert decode(encoded(palette, "PNG", transparency=0)).getpixel((5, 5)) == (255, 255, 255)


RED_SIDE = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom"} | {
    8: "bottom"
}


@pytest.mark.parametrize(("orientation", "side"), RED_SIDE.items())
def test_exif_turns_the_picture_upright(orientation: int, side: str) -> None:
    content = turned_jpeg(orientation)
    image, info = decode(content), inspect(content)
    assert image.size == (info.width, info.height)
    assert image.size == ((96, 72) if orientation < 5 else (72, 96))
    width, height = image.size
    middles = {
        "left": (2, height // 2),
        "right": (width - 3, height // 2),
        "top": (width // 2, 2),
        "bottom": (width // 2, height - 3),
    }
    red, _, blue = image.getpixel(middles[side])
    assert red > 200 > 50 > blue


def test_a_nonsense_orientation_is_ignored() -> None:
    assert decode(turned_jpeg(77)).size == (96, 72)


def test_a_jpeg_is_decoded_small_but_never_below_what_is_asked() -> None:
    content = jpeg(0, 960, 720)
    assert decode(content, at_least_px=90).size == (120, 90)
    assert decode(content, at_least_px=91).size == (240, 180)
    assert decode(content, at_least_px=2000).size == (960, 720)


@pytest.mark.parametrize("name", [n for n, (r, _) in bad_pictures().items() if r == "broken"])
def test_damaged_pictures_are_broken(name: str) -> None:
    with pytest.raises(PictureError) as error:
        decode(bad_pictures()[name][1])
    assert error.value.reason == "broken"


@pytest.mark.parametrize("at_least_px", [None, 9])
def test_a_truncated_jpeg_is_found_at_any_scale(at_least_px: int | None) -> None:
    content = jpeg(3, 640, 480)
    with pytest.raises(PictureError, match="truncated"):
        decode(content[:-200], at_least_px=at_least_px)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SVG, "SVG"),
        (b"<html>not found</html>", "HTML"),
        (b"a,b,c", "text"),
        (b"", "empty"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\x89PNX\r\n\x1a\n", "89 50 4e 58"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n\xff", "expected one of"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words) as error:
        inspect(content)
    assert error.value.reason == "not_a_picture"


def test_a_hundred_megapixels_are_refused_before_they_are_decoded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(PictureError, match="10000 × 10000") as error:
            decode(bomb())
    assert error.value.reason == "too_large"


def test_more_than_pillow_opens_is_too_large() -> None:
    with pytest.raises(PictureError) as error:
        inspect(encoded(Image.new("1", (20_000, 10_000)), "PNG"))
    assert error.value.reason == "too_large"


def test_the_pixel_limit_can_be_set() -> None:
    with pytest.raises(PictureError, match="more than 6911"):
        decode(jpeg(0), max_pixels=96 * 72 - 1)
    assert decode(jpeg(0), max_pixels=96 * 72).size == (96, 72)


def test_frames_are_counted() -> None:
    assert inspect(animated_gif(4)).frames == 4
    assert inspect(animated_gif(1)).frames == 1


def test_a_photograph_with_an_embedded_preview_is_one_picture() -> None:
    two = encoded(photograph(0), "MPO", save_all=True, append_images=[photograph(1)])
    assert inspect(two).frames == 1
    assert decode(two).size == (96, 72)

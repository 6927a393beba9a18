"""An attribution drawn on its picture, readable without telling red from green."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from linnet.evaluation.explanation import Attribution

# Viridis at even steps: equal steps look equal, also to those who see fewer colours. Source:
# Smith and van der Walt, matplotlib, CC0.
COLOURS = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)
LINE_AT = 0.5

_SMOOTH = 0.025
_STRONGEST = 0.8
_MARGIN_PX = 8


def overlay(picture: Image.Image, attribution: Attribution) -> Image.Image:
    """Return a grey picture with what speaks for the label in colour, strongest at 1.

    A line, white in black, surrounds what is above half of the strongest. What speaks against the
    label is not shown. `attribution` [H, W] covers the picture at any scale.
    """
    heat = _heat(attribution, picture.size)
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    opacity = (_STRONGEST * np.sqrt(heat))[..., np.newaxis]
    mixed = grey * (1 - opacity) + _scale()[(heat * 255).round().astype(np.uint8)] * opacity
    inside = Image.fromarray(heat > LINE_AT).convert("L")
    line = max(1, round(max(picture.size) / 400))
    mixed[_border(inside, 2 * line)] = 0
    mixed[_border(inside, line)] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def with_legend(drawn: Image.Image, label: str) -> Image.Image:
    """Return an overlay with its scale of colours below it."""
    bar = Image.fromarray(np.repeat(_scale()[np.newaxis], 10, axis=0).astype(np.uint8))
    font = ImageFont.load_default(13)
    below = _MARGIN_PX * 3 + bar.height + 16
    width = max(drawn.width, 240)
    sheet = Image.new("RGB", (width, drawn.height + below), "white")
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    top = drawn.height + _MARGIN_PX
    sheet.paste(bar.resize((width - 2 * _MARGIN_PX, bar.height)), (_MARGIN_PX, top))
    text, at = ImageDraw.Draw(sheet), top + bar.height + _MARGIN_PX // 2
    text.text((_MARGIN_PX, at), "nothing", "black", font)
    text.text((width - _MARGIN_PX, at), f"speaks most for {label}", "black", font, "ra")
    return sheet


def _heat(attribution: Attribution, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return what is above 0, from 0 to 1, without the grain of single pixels."""
    wanted = np.array(Image.fromarray(attribution.clip(0)).resize(size, Image.Resampling.BILINEAR))
    levels = Image.fromarray((255 * to_one(wanted)).round().astype(np.uint8))
    smooth = levels.filter(ImageFilter.GaussianBlur(_SMOOTH * max(size)))
    return to_one(np.asarray(smooth, np.float32))


def to_one(values: Attribution) -> Attribution:
    """Return values that are not below 0 as shares of the largest."""
    return values / max(float(values.max()), float(np.finfo(np.float32).tiny))


def _border(inside: Image.Image, width: int) -> NDArray[np.bool_]:
    grown = inside.filter(ImageFilter.MaxFilter(2 * width + 1))
    border: NDArray[np.bool_] = np.asarray(grown) != np.asarray(inside)
    return border


@cache
def _scale() -> NDArray[np.float32]:
    """Return 256 colours, float32 [256, 3]."""
    known = np.array([[int(name[at : at + 2], 16) for at in (1, 3, 5)] for name in COLOURS])
    places = np.linspace(0, 1, len(COLOURS))
    wanted = np.linspace(0, 1, 256)
    return np.stack([np.interp(wanted, places, channel) for channel in known.T], 1).astype(
        np.float32
    )

"""Pictures made worse in eight ways and five strengths, as the network sees them. Pure.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, 2019. Lengths are shares of the picture's side, so that strengths mean the same at
every size.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Pixels = NDArray[np.uint8]

SEVERITIES = (1, 2, 3, 4, 5)

_GREY = (128, 128, 128)


def corrupt(picture: Pixels, name: str, severity: int, *, seed: int) -> Pixels:
    """Return a picture, uint8 [S, S, 3], corrupted; the same seed gives the same picture.

    Args:
        picture: RGB, at the size of the network's input.
        name: one of `CORRUPTIONS`.
        severity: 1, the weakest, to 5.
        seed: of the noise, and of where things go.
    """
    change, strengths = CORRUPTIONS[name]
    return change(picture, strengths[severity - 1], np.random.default_rng(seed))


def _noise(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    noise = random.standard_normal(picture.shape, dtype=np.float32) * np.float32(255 * strength)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def _blur(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    radius = strength * len(picture)
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(strength))
    with Image.open(file) as decoded:
        return np.array(decoded)


def _brightness(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    change = 255 * strength * random.choice((-1, 1))
    return (picture + np.float32(change)).clip(0, 255).astype(np.uint8)


def _contrast(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    return np.array(ImageEnhance.Contrast(Image.fromarray(picture)).enhance(strength))


def _rotation(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    angle = strength * random.choice((-1, 1))
    image = Image.fromarray(picture)
    return np.array(image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_GREY))


def _occlusion(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    side = round(len(picture) * strength**0.5)
    top, left = random.integers(0, len(picture) - side + 1, size=2)
    covered = picture.copy()
    covered[top : top + side, left : left + side] = _GREY
    return covered


def _scale(picture: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    size = len(picture)
    side = max(1, round(size * strength))
    smaller = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), _GREY)
    square.paste(smaller, ((size - side) // 2, (size - side) // 2))
    return np.array(square)


# The strengths by severity: standard deviation, radius, quality, shift, factor, degrees either way,
# share of the area that is covered, and share of the side that the picture shrinks to.
CORRUPTIONS: dict[
    str, tuple[Callable[[Pixels, float, np.random.Generator], Pixels], tuple[float, ...]]
] = {
    "noise": (_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": (_blur, (0.01, 0.014, 0.018, 0.023, 0.03)),
    "JPEG": (_jpeg, (50, 25, 15, 10, 7)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "rotation": (_rotation, (5, 10, 20, 30, 45)),
    "occlusion": (_occlusion, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "scale": (_scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
}

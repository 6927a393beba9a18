"""What drift is looked for in: a few numbers of each picture, and the release's answer to it.

The served graph gives probabilities and no embedding, so there is none here: decision record 15.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnet.data.pictures import decode, inspect
from linnet.data.preprocessing import Preprocessing, prepare
from linnet.errors import PictureError
from linnet.inference.answers import Rule
from linnet.machine import available_cpus

Floats = NDArray[np.float64]

# Every picture is looked at in this size at most, so that sharpness means the same for all.
SIDE_PX = 256
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_FLATTEST = 1e-6
_AT_ONCE = 64
_DIGITS = 5

ABOUT = {
    "brightness": "mean of the grey picture, 0 black to 1 white",
    "contrast": "standard deviation of the grey picture, 0 to 0.5",
    "sharpness": "logarithm of the variance of the edges (Laplacian); falls with blur",
    "colour": "mean difference between a pixel's largest and smallest channel, 0 grey to 1",
    "warmth": "mean of red minus blue, -1 to 1",
    "size": "logarithm to base 2 of width × height",
    "aspect": "logarithm to base 2 of width / height, 0 square",
    "confidence": "probability of the model's answer",
}
FEATURES = tuple(ABOUT)


class Answering(Protocol):
    """What gives probabilities: an opened release's graph."""

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, H, W, 3]."""


@dataclass(frozen=True)
class Sample:
    """Pictures in numbers: `values` [N, F] in the order of `FEATURES`, `answers` [N] of classes.

    `unreadable` more pictures could not be decoded.
    """

    values: Floats
    answers: NDArray[np.int64]
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.answers)

    def rows(self, chosen: NDArray[np.int64]) -> Self:
        """Return some of the pictures."""
        return type(self)(self.values[chosen], self.answers[chosen])


def describe(picture: Image.Image, width: int, height: int) -> list[float]:
    """Return the numbers of an upright RGB picture of this size before it was reduced."""
    reduced = picture.copy()
    reduced.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    pixels = np.asarray(reduced, np.float32) / 255
    grey = np.asarray(pixels @ _LUMA, np.float32)
    numbers = (
        grey.mean(),
        grey.std(),
        np.log10(_edges(grey).var() + _FLATTEST),
        (pixels.max(axis=2) - pixels.min(axis=2)).mean(),
        (pixels[..., 0] - pixels[..., 2]).mean(),
        np.log2(width * height),
        np.log2(width / height),
    )
    return [rounded(number) for number in numbers]


def rounded(number: float) -> float:
    """Return a number as a release keeps it: what is equal in a picture stays equal there."""
    return round(float(number), _DIGITS)


def measure(
    encoded: Iterable[bytes], model: Answering, preprocessing: Preprocessing, rule: Rule
) -> Sample:
    """Return the sample that these encoded pictures are, in order, some at a time in memory."""
    values: list[list[float]] = []
    answers: list[NDArray[np.int64]] = []
    unreadable = 0
    for batch in _batches(encoded):
        seen = [one for one in _decoded(batch, preprocessing) if one is not None]
        unreadable += len(batch) - len(seen)
        if seen:
            judged = rule.answer(model.predict(np.stack([prepared for _, prepared in seen])))
            answers.append(judged.best.astype(np.int64))
            scores = [rounded(score) for score in judged.scores]
            values += [[*row, score] for (row, _), score in zip(seen, scores, strict=True)]
    return Sample(
        np.array(values, np.float64).reshape(-1, len(FEATURES)),
        np.concatenate(answers) if answers else np.empty(0, np.int64),
        unreadable,
    )


def describe_encoded(encoded: bytes) -> list[float]:
    """Return the numbers of an encoded picture.

    Raises:
        PictureError: it can't be decoded.
    """
    info = inspect(encoded)
    return describe(decode(encoded, at_least_px=SIDE_PX), info.width, info.height)


def _decoded(
    batch: Sequence[bytes], spec: Preprocessing
) -> list[tuple[list[float], NDArray[np.uint8]] | None]:
    def one(encoded: bytes) -> tuple[list[float], NDArray[np.uint8]] | None:
        try:
            return describe_encoded(encoded), prepare(encoded, spec)
        except PictureError:
            return None

    with ThreadPoolExecutor(available_cpus()) as pool:
        return list(pool.map(one, batch))


def _edges(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the discrete Laplacian inside the picture; nothing of a picture of fewer pixels."""
    if min(grey.shape) < 3:
        return np.zeros((1, 1), np.float32)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    edges: NDArray[np.float32] = around - 4 * grey[1:-1, 1:-1]
    return edges


def _batches(encoded: Iterable[bytes]) -> Iterable[list[bytes]]:
    batch: list[bytes] = []
    for one in encoded:
        batch.append(one)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch

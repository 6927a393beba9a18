"""Why a model answers as it does: asked again through its endpoint, drawn, and said in words."""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from linnet.data.pictures import decode
from linnet.data.preprocessing import on_picture, prepare
from linnet.errors import PictureError
from linnet.evaluation.explanation import Attribution, Explanation, explain
from linnet.evaluation.overlay import overlay
from linnet.ui.asking import Model, Pixels, Probabilities, refused

_LEAST_PX, _MOST_PX = 320, 640
_UNKNOWN_SIDE_PX = 224
_PICTURES_PER_CALL = 16
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Why:
    """The picture with what speaks for `label`, a JPEG; and `words`, where most of it lies.

    Several `releases` mean that a canary's and the champion's answers are mixed in it.
    """

    label: str
    drawn: bytes
    words: str
    releases: tuple[str, ...]


class _Asked:
    """A model as `explain` calls it, which notes the releases that answered."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.releases: set[str] = set()

    def __call__(self, batch: Pixels) -> Probabilities:
        probabilities, releases = self._model.probabilities(batch)
        self.releases |= releases
        return probabilities


def find_out(model: Model, encoded: bytes) -> Why:
    """Ask a model about a picture with parts of it hidden, and draw what they were worth.

    Raises:
        RequestRefusedError: the picture can't be used.
        ServerError: or a subclass, as `Model.answer`.
    """
    said, asked = model.answer(encoded), _Asked(model)
    label = model.classes.index(said.label) if said.label in model.classes else None
    try:
        seen, picture = _seen(model, encoded), _shown(encoded)
    except PictureError as error:
        raise refused(error) from error
    found = explain(asked, seen, label, batch_size=_PICTURES_PER_CALL)
    attribution = _laid(found, model, picture)
    file = BytesIO()
    overlay(picture, attribution).save(file, "JPEG", quality=88)
    words = _where(attribution)
    return Why(model.classes[found.label], file.getvalue(), words, tuple(sorted(asked.releases)))


def _seen(model: Model, encoded: bytes) -> Pixels:
    """Return the picture as the network sees it, or a small one where that is not known."""
    if model.preprocessing is not None:
        return prepare(encoded, model.preprocessing)
    picture = decode(encoded, at_least_px=_UNKNOWN_SIDE_PX)
    picture.thumbnail((_UNKNOWN_SIDE_PX, _UNKNOWN_SIDE_PX))
    return np.array(picture)


def _shown(encoded: bytes) -> Image.Image:
    """Return the picture at a size that a drawing needs and a page shows."""
    picture = decode(encoded, at_least_px=_MOST_PX)
    times = math.ceil(_LEAST_PX / max(picture.size))
    if times > 1:
        enlarged = picture.width * times, picture.height * times
        return picture.resize(enlarged, Image.Resampling.NEAREST)
    picture.thumbnail((_MOST_PX, _MOST_PX))
    return picture


def _laid(found: Explanation, model: Model, picture: Image.Image) -> Attribution:
    if model.preprocessing is None:
        return found.attribution
    return on_picture(found.attribution, model.preprocessing, picture.width, picture.height)


def _where(attribution: Attribution) -> str:
    """Say in which ninth of the picture most of what speaks for the answer lies."""
    ninths = [
        [float(part.clip(0).mean()) for part in np.array_split(band, 3, axis=1)]
        for band in np.array_split(attribution, 3, axis=0)
    ]
    row, column = divmod(int(np.argmax(ninths)), 3)
    if max(map(max, ninths)) == 0:
        return "nowhere in particular"
    return "in the centre" if row == column == 1 else f"at the {_ROWS[row]} {_COLUMNS[column]}"

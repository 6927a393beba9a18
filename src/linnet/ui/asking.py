"""The model behind a V2 endpoint: ours by its named outputs, another by what its metadata says."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnet.client import ENCODED, OUTPUTS, Client, ModelDescription, Tensor
from linnet.data.pictures import decode
from linnet.data.preprocessing import Preprocessing, prepare
from linnet.errors import DatasetError, PictureError, RequestRefusedError, ServerError

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]

# How far from 1 a row of probabilities may add up to; anything else is taken for scores.
_SUM_TOLERANCE = 0.01
_MOST_PICTURES = 16
# In a rollout releases take turns: one with half of the traffic is missed in one of 32 looks.
_TRIES = 5


@dataclass(frozen=True)
class Said:
    """What a model says about a picture.

    `bars` has each class with its probability, the most probable first; it is empty while the
    classes of the release that answered are not known.
    """

    label: str
    score: float
    abstain: bool
    release: str
    bars: tuple[tuple[str, float], ...]


class Model(Protocol):
    """A model that answers about pictures, one at a time. Safe to use from several threads.

    `classes` and `release` are those of the start, or of the last `look_again`. `preprocessing` is
    how it makes a picture its own, where it says so.
    """

    name: str
    classes: tuple[str, ...]
    release: str
    preprocessing: Preprocessing | None

    def look_again(self) -> None:
        """Ask anew which release answers; the one known so far stays while it is one of them.

        Raises:
            ServerError: or a subclass, as `open_model`.
        """
        ...

    def answer(self, encoded: bytes) -> Said:
        """Return the answer to an encoded picture.

        Raises:
            RequestRefusedError: the picture can't be used.
            ServerError: or a subclass, as `Client.predict`.
        """
        ...

    def probabilities(self, batch: Pixels) -> tuple[Probabilities, set[str]]:
        """Return probabilities [N, C] of pictures, uint8 [N, H, W, 3], and who answered.

        Raises:
            ServerError: or a subclass, as `Client.predict`.
        """
        ...


def refused(error: PictureError) -> RequestRefusedError:
    """Return what to raise for a picture that is found here that it can't be used."""
    said = f"the picture can't be used ({error.detail})"
    return RequestRefusedError(said, said=said)


def open_model(client: Client) -> Model:
    """Return the model that a client asks.

    Raises:
        ServerError: or a subclass: the server can't be asked, or takes no pictures in a form that
            its metadata tells.
    """
    said = client.describe()
    outputs = {tensor.name for tensor in said.outputs}
    if outputs >= set(OUTPUTS) and ENCODED in {tensor.name for tensor in said.inputs}:
        return LinnetModel(client, said)
    return OtherModel(client, said)


class LinnetModel:
    """A model on a Linnet server, which decodes and resizes itself."""

    def __init__(self, client: Client, said: ModelDescription) -> None:
        self._client = client
        self.name = said.name
        self._classes_of: dict[str, tuple[str, ...]] = {}
        self._take(said)

    def look_again(self) -> None:
        """Ask anew which release answers."""
        if (said := _another(self._client, self.release)) is not None:
            self._take(said)

    def answer(self, encoded: bytes) -> Said:
        """Return the answer to an encoded picture."""
        (answer,) = self._client.predict([encoded])
        if answer.release not in self._classes_of:
            self._learn()
        names = self._classes_of.get(answer.release, ())
        bars = _bars(names, answer.probabilities)
        return Said(answer.label, answer.score, answer.abstain, answer.release, bars)

    def probabilities(self, batch: Pixels) -> tuple[Probabilities, set[str]]:
        """Return probabilities [N, C] of pictures, uint8 [N, H, W, 3], and the releases."""
        answers = self._client.predict(batch)
        releases = {answer.release for answer in answers}
        return np.stack([answer.probabilities for answer in answers]), releases

    def _learn(self) -> None:
        """Learn the classes of a release: of a canary the one that happens to be asked now."""
        said = self._client.describe()
        self._classes_of[_release(said)] = _classes(said, _matrix(said))

    def _take(self, said: ModelDescription) -> None:
        self.classes = _classes(said, _matrix(said))
        self.preprocessing = _preprocessing(said.properties)
        self.release = _release(said)
        self._classes_of[self.release] = self.classes


class OtherModel:
    """A model of another V2 server: one picture input, and an output with a number a class.

    Raises:
        ServerError: its metadata has no such input or output.
    """

    def __init__(self, client: Client, said: ModelDescription) -> None:
        self._client = client
        self.name = said.name
        self._take(said)

    def look_again(self) -> None:
        """Ask anew which release answers."""
        if (said := _another(self._client, self.release)) is not None:
            self._take(said)

    def answer(self, encoded: bytes) -> Said:
        """Return the answer to an encoded picture."""
        if self._input.datatype == "BYTES":
            (row,) = self._ask([encoded])
        else:
            (row,) = self._ask_pixels(self._pixels(encoded)[np.newaxis])
        bars = _bars(self.classes, row)
        label, score = bars[0]
        return Said(label, score, False, self.release, bars)

    def probabilities(self, batch: Pixels) -> tuple[Probabilities, set[str]]:
        """Return probabilities [N, C] of pictures, uint8 [N, H, W, 3], and the model itself."""
        if self._input.datatype == "BYTES":
            return self._ask([_png(pixels) for pixels in batch]), {self.release}
        return self._ask_pixels(batch), {self.release}

    def _take(self, said: ModelDescription) -> None:
        self._input, self._output = _picture_input(said), _matrix(said)
        self.classes = _classes(said, self._output)
        height, width = _sides(self._input)
        square = height == width and height > 0
        self.preprocessing = Preprocessing(height) if square else _preprocessing(said.properties)
        self.release = _release(said)

    def _ask_pixels(self, batch: Pixels) -> Probabilities:
        last = self._input.shape[3] == 3
        return self._ask(np.ascontiguousarray(batch if last else batch.transpose(0, 3, 1, 2)))

    def _ask(self, pictures: list[bytes] | Pixels) -> Probabilities:
        name = self._output.name
        most = self._input.shape[0] if self._input.shape[0] > 0 else _MOST_PICTURES
        pieces = [pictures[start : start + most] for start in range(0, len(pictures), most)]
        try:
            rows = [self._client.infer(self._input.name, piece, [name])[name] for piece in pieces]
            values = np.concatenate(rows).astype(np.float32).reshape(-1, len(self.classes))
        except (KeyError, ValueError) as error:
            raise ServerError(
                f"{self._client.server} did not answer {name} with {len(self.classes)} numbers a "
                f"picture, as its metadata says ({error!r})"
            ) from error
        return values if _are_probabilities(values) else _softmax(values)

    def _pixels(self, encoded: bytes) -> Pixels:
        height, width = _sides(self._input)
        try:
            if self.preprocessing is not None:
                return prepare(encoded, self.preprocessing)
            picture = decode(encoded)
        except PictureError as error:
            raise refused(error) from error
        size = (width if width > 0 else picture.width, height if height > 0 else picture.height)
        return np.asarray(picture.resize(size))


def _another(client: Client, release: str) -> ModelDescription | None:
    """Return what another release says of itself, None while `release` is one of those there."""
    said = [client.describe() for _ in range(_TRIES)]
    return None if release in map(_release, said) else said[-1]


def _picture_input(said: ModelDescription) -> Tensor:
    """Return the input that takes pictures, pixels before encoded ones."""
    pixels = [one for one in said.inputs if one.datatype == "UINT8" and _sides(one) != (0, 0)]
    encoded = [one for one in said.inputs if one.datatype == "BYTES" and len(one.shape) == 1]
    if len(said.inputs) == 1 and (pixels or encoded):
        return (pixels or encoded)[0]
    raise ServerError(
        f"{said.name} takes {_shown(said.inputs)}: this page can send one input, UINT8 "
        "[N, H, W, 3] or [N, 3, H, W], or BYTES [N] of encoded pictures. Normalisation has to be "
        "the model's own, because V2's metadata can't tell it"
    )


def _sides(tensor: Tensor) -> tuple[int, int]:
    """Return height and width of a picture tensor, -1 for any; zeros for any other tensor."""
    shape = tensor.shape
    if len(shape) == 4 and shape[3] == 3:
        return shape[1], shape[2]
    if len(shape) == 4 and shape[1] == 3:
        return shape[2], shape[3]
    return 0, 0


def _matrix(said: ModelDescription) -> Tensor:
    """Return the output with a number a class."""
    found = [one for one in said.outputs if one.datatype == "FP32" and len(one.shape) == 2]
    if found and found[0].shape[1] > 1:
        return found[0]
    raise ServerError(
        f"{said.name} answers {_shown(said.outputs)}: this page can show an output FP32 "
        "[N, classes] with two classes or more"
    )


def _shown(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{one.name} {one.datatype} {list(one.shape)}" for one in tensors) or "nothing"


def _classes(said: ModelDescription, output: Tensor) -> tuple[str, ...]:
    """Return the names of the classes, as far as the metadata has as many as the output."""
    given = said.properties.get("classes", ())
    names = tuple(given.split(",") if isinstance(given, str) else given)
    count = output.shape[1]
    return names if len(names) == count else tuple(f"class {one}" for one in range(count))


def _release(said: ModelDescription) -> str:
    return str(said.properties.get("release", "/".join((said.name, *said.versions[:1]))))


def _preprocessing(properties: Mapping[str, Any]) -> Preprocessing | None:
    try:
        return Preprocessing.from_json(
            {"size_px": int(properties["size_px"]), "fit": properties["fit"]}
        )
    except (KeyError, ValueError, DatasetError):
        return None


def _bars(names: tuple[str, ...], row: Probabilities) -> tuple[tuple[str, float], ...]:
    if len(names) != len(row):
        return ()
    order = np.argsort(-row, kind="stable")
    return tuple((names[index], float(row[index])) for index in order)


def _png(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _are_probabilities(values: Probabilities) -> bool:
    return bool((values >= 0).all() and (abs(values.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def _softmax(values: Probabilities) -> Probabilities:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)

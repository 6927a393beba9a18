"""What `linnet explain` does: open a model, explain its answers to pictures, write overlays."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol, get_args

import numpy as np
from PIL import Image

from linnet.data.pictures import decode
from linnet.data.preprocessing import Preprocessing, on_picture, prepare
from linnet.errors import NetworkError, PictureError, SettingsError
from linnet.evaluation.explanation import Explanation, Pixels, Predict, explain
from linnet.evaluation.overlay import overlay, with_legend
from linnet.inference.answers import Rule
from linnet.inference.local import LocalModel, read_pictures
from linnet.release.opening import open_release
from linnet.stores.connections import Connections
from linnet.stores.objects import folder_errors

Method = Literal["occlusion", "integrated_gradients", "grad_cam"]
METHODS: tuple[Method, ...] = get_args(Method)

# Of an overlay's longer side.
_SMALLEST_PX, _LARGEST_PX = 512, 1024


@dataclass(frozen=True)
class Explained:
    """The explained label of one picture, its probability, and the file with its overlay."""

    picture: Path
    label: str
    probability: float
    method: Method
    overlay: Path


class Model(Protocol):
    """What an opened release and an opened checkpoint have in common."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    rule: Rule

    @property
    def probabilities(self) -> Predict:
        """Return what gives probabilities [N, C] of prepared pictures."""


def explain_files(
    pictures: Sequence[Path],
    *,
    release: str | None = None,
    checkpoint: Path | None = None,
    method: str = "occlusion",
    label: str | None = None,
    layer: str | None = None,
    output: Path | None = None,
    connections: Connections | None = None,
) -> list[Explained]:
    """Explain the answers of a release or a checkpoint, and write each overlay as a PNG.

    Args:
        pictures: files.
        release: folder, `s3://…` or `model@alias`.
        checkpoint: folder that train wrote; give this or a release.
        method: one of `METHODS`; a release has only its graph, so only occlusion.
        label: the class to explain; null: the model's answer to each picture.
        layer: of a checkpoint's network, for grad_cam; null: the last with maps.
        output: a file for one picture, or a folder; null: the working directory.
        connections: where S3 and MLflow are, for a release.

    Raises:
        SettingsError: what is asked for contradicts itself, or the class is unknown, with the
            nearest names.
        PictureError: a picture can't be used; nothing is written.
        LinnetError: the model or a picture can't be opened, or an overlay can't be written.
    """
    chosen = _method(method, release, checkpoint, layer)
    places = _places(pictures, output, chosen)
    encoded = read_pictures(pictures)
    if checkpoint is not None:
        model, explain_one = _open_checkpoint(checkpoint, chosen, layer)
    else:
        model, explain_one = _open_release(str(release), connections)
    asked = None if label is None else _index(label, model.classes)
    prepared = [
        _prepared(path, one, model.preprocessing)
        for path, one in zip(pictures, encoded, strict=True)
    ]
    explained = []
    for path, one, pixels, place in zip(pictures, encoded, prepared, places, strict=True):
        index = asked
        if index is None:
            index = int(model.rule.labels(model.probabilities(pixels[np.newaxis]))[0])
        found = explain_one(pixels, index)
        name = model.classes[index]
        with folder_errors("write", place):
            _drawn(one, found, model.preprocessing, name).save(place, "PNG")
        explained.append(Explained(path, name, found.probability, chosen, place))
    return explained


def _method(method: str, release: str | None, checkpoint: Path | None, layer: str | None) -> Method:
    if (release is None) == (checkpoint is None):
        raise SettingsError(
            "`linnet explain` needs either --release (such as flowers@champion) or --checkpoint "
            "(a folder that `linnet train` wrote)"
        )
    if method not in METHODS:
        raise SettingsError(f"--method {method!r} is not known: expected {', '.join(METHODS)}")
    if release is not None and method != "occlusion":
        raise SettingsError(
            f"--method {method} looks into the network, and a release has only its graph: give "
            "--checkpoint, or --method occlusion"
        )
    if layer is not None and method != "grad_cam":
        raise SettingsError(f"--layer {layer!r} is for --method grad_cam, got {method}")
    return method


def _places(pictures: Sequence[Path], output: Path | None, method: Method) -> list[Path]:
    """Return where each picture's overlay goes."""
    if output is not None and len(pictures) == 1 and not output.is_dir():
        if output.suffix.lower() != ".png":
            raise SettingsError(
                f"--output {output} is no folder yet, and a picture is written as PNG: make the "
                "folder first, or give a name that ends in .png"
            )
        return [output]
    folder = output or Path()
    if not folder.is_dir():
        raise SettingsError(
            f"--output {folder} is no folder, and there are {len(pictures)} pictures: make it first"
        )
    places = [folder / f"{path.stem}-{method}.png" for path in pictures]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise SettingsError(f"several pictures would be written to {', '.join(twice)}: rename them")
    return places


def _open_release(
    address: str, connections: Connections | None
) -> tuple[Model, Callable[[Pixels, int], Explanation]]:
    with TemporaryDirectory(prefix="linnet-explain-") as scratch:
        model = LocalModel(open_release(address, scratch=Path(scratch), connections=connections))
    return model, lambda pixels, label: explain(model.probabilities, pixels, label)


def _open_checkpoint(
    path: Path, method: Method, layer: str | None
) -> tuple[Model, Callable[[Pixels, int], Explanation]]:
    try:
        from linnet.training.attribution import OpenedCheckpoint
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"checkpoint {path} needs {error.name}, which is not installed here: pip install "
            "'linnet[train]', or give --release"
        ) from error
    opened = OpenedCheckpoint(path)
    if method == "integrated_gradients":
        return opened, opened.integrated_gradients
    if method == "grad_cam":
        return opened, lambda pixels, label: opened.grad_cam(pixels, label, layer)
    return opened, lambda pixels, label: explain(opened.probabilities, pixels, label)


def _index(label: str, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    near = difflib.get_close_matches(label, classes, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(classes[:10])}"
    raise SettingsError(f"--label {label!r} is no class of this model: {hint}")


def _prepared(path: Path, encoded: bytes, spec: Preprocessing) -> Pixels:
    try:
        return prepare(encoded, spec)
    except PictureError as error:
        raise PictureError(error.reason, f"{path}: {error.detail}") from error


def _drawn(
    encoded: bytes, explanation: Explanation, spec: Preprocessing, label: str
) -> Image.Image:
    picture = decode(encoded)
    scale = min(max(1.0, _SMALLEST_PX / max(picture.size)), _LARGEST_PX / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    laid = on_picture(explanation.attribution, spec, width, height)
    return with_legend(overlay(picture.resize((width, height)), laid), label)

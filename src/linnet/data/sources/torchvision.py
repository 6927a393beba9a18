"""torchvision's labelled datasets, with their official splits."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml
from PIL import Image

from linnet.data.sources.items import Item, clean_key
from linnet.data.sources.scratch import filled
from linnet.errors import SourceError
from linnet.progress import track
from linnet.settings import Split

# The datasets that give (picture, class index); the others are for detection, captions, video, ….
LABELLED = (
    *("CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211"),
    *("DTD", "EMNIST", "EuroSAT", "FER2013", "FGVCAircraft", "FakeData", "FashionMNIST"),
    *("Flowers102", "Food101", "GTSRB", "INaturalist", "ImageNet", "Imagenette", "KMNIST"),
    *("LFWPeople", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365", "QMNIST"),
    *("RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS"),
)
# For each of our splits, the names that datasets give it; the first that one knows is taken.
_SPLITS: tuple[tuple[Split, tuple[str, ...]], ...] = (
    ("train", ("train", "trainval")),
    ("val", ("val", "valid")),
    ("test", ("test",)),
)
# Where the datasets keep their files (or files and labels) and their labels, if they do.
_FILES = ("samples", "_samples", "_image_files", "_images")
_LABELS = ("targets", "_labels")


def torchvision_items(request: str, scratch: Path) -> list[Item]:
    """Return the items of `NAME?argument=value&…`; files stay where they are, others become PNG.

    The arguments are those of the dataset's class, and `root`: where it is kept or downloaded to,
    by default below scratch. Official splits are kept (trainval counts as train); when the
    arguments choose one (`split=` or `train=`), its pictures come without a split.

    Raises:
        SourceError: no such labelled dataset or argument, or it can't be downloaded or read.
    """
    name, _, query = request.partition("?")
    name = name.strip("/")
    make = _dataset_class(name)
    arguments = _arguments(name, make, query)
    home = scratch / "torchvision" / name
    if "root" in _parameters(make):
        arguments = {"root": str(home / "root"), **arguments}
    with filled(home / "pictures") as unfinished:
        items = list(_all_items(name, make, arguments, unfinished))
    return [_at_home(item, unfinished, home / "pictures") for item in items]


def _all_items(name: str, make: type, arguments: Mapping[str, Any], folder: Path) -> Iterator[Item]:
    try:
        for split, dataset in _official_splits(name, make, arguments):
            yield from _dataset_items(name, dataset, split, folder)
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise SourceError(
            f"torchvision://{name} can't be read ({type(error).__name__}: {error}): check its "
            "arguments, or remove its root folder and fetch it again"
        ) from error


def _dataset_class(name: str) -> type:
    if name not in LABELLED:
        lower = {known.lower(): known for known in LABELLED}
        near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(lower[n] for n in near)}? " if near else ""
        raise SourceError(
            f"torchvision://{name} is no labelled dataset of torchvision; {hint}"
            f"Known: {', '.join(LABELLED)}"
        )
    try:
        from torchvision import datasets
    except ImportError as error:
        raise SourceError(
            f"torchvision://{name} needs torchvision, which is not installed: "
            "pip install 'linnet[train]'"
        ) from error
    found: type | None = getattr(datasets, name, None)
    if found is None:
        raise SourceError(f"this version of torchvision has no {name}: install a newer one")
    return found


def _arguments(name: str, make: type, query: str) -> dict[str, Any]:
    known = sorted(_parameters(make) - {"transform", "target_transform", "transforms", "loader"})
    arguments = {key: yaml.safe_load(value) for key, value in parse_qsl(query)}
    for key in arguments:
        if key not in known:
            raise SourceError(
                f"torchvision://{name} takes no argument {key!r}; it takes {', '.join(known)}"
            )
    return arguments


def _parameters(make: type) -> set[str]:
    """Return the names that the class takes, those that it hands on to its bases included."""
    names: set[str] = set()
    for base in make.__mro__:
        parameters = inspect.signature(base).parameters
        names |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names - {"self", "args", "kwargs"}


def _official_splits(
    name: str, make: type, arguments: Mapping[str, Any]
) -> Iterator[tuple[Split | None, Any]]:
    parameters = _parameters(make)
    if "train" in parameters and "train" not in arguments:
        yield "train", _load(name, make, {**arguments, "train": True})
        yield "test", _load(name, make, {**arguments, "train": False})
    elif "split" in parameters and "split" not in arguments and "train" not in parameters:
        yield from _named_splits(name, make, arguments)
    else:
        yield None, _load(name, make, arguments)


def _named_splits(
    name: str, make: type, arguments: Mapping[str, Any]
) -> Iterator[tuple[Split | None, Any]]:
    for split, names in _SPLITS:
        refused: list[str] = []
        for theirs in names:
            try:
                dataset = _load(name, make, {**arguments, "split": theirs})
            except _UnknownSplitError as error:
                refused.append(str(error))
            else:
                yield split, dataset
                break
        if split == "train" and len(refused) == len(names):
            raise SourceError(
                f"torchvision://{name} has no split named {' or '.join(names)}; choose one with "
                f"torchvision://{name}?split=NAME. {refused[0]}"
            )


class _UnknownSplitError(ValueError):
    """The dataset has no split of this name."""


def _load(name: str, make: type, arguments: Mapping[str, Any]) -> Any:
    """Return the dataset from where it is, or download it."""
    try:
        try:
            return make(**arguments)
        except (RuntimeError, OSError):
            if "download" not in _parameters(make) or "download" in arguments:
                raise
            Path(arguments["root"]).mkdir(parents=True, exist_ok=True)
            return make(**{**arguments, "download": True})
    except ValueError as error:
        if "argument split" in str(error):
            raise _UnknownSplitError(str(error)) from error
        raise SourceError(f"torchvision://{name} can't be made: {error}") from error
    except (RuntimeError, OSError, ImportError, TypeError) as error:
        raise SourceError(
            f"torchvision://{name} can't be had ({type(error).__name__}: {error}). Check the "
            f"network, or fetch it elsewhere and give torchvision://{name}?root=/folder"
        ) from error


def _dataset_items(name: str, dataset: Any, split: Split | None, folder: Path) -> Iterator[Item]:
    classes = _class_names(dataset)
    kept = _kept_files(dataset)
    width = len(str(len(dataset)))
    for index in track(range(len(dataset)), f"read {name} {split or ''}", total=len(dataset)):
        picture, target = kept[index] if kept else dataset[index]
        if not isinstance(target, int | None) or not isinstance(picture, Path | Image.Image):
            raise SourceError(
                f"torchvision://{name} gives {type(picture).__name__} and "
                f"{type(target).__name__}, expected pictures and whole-number labels: check the "
                "arguments"
            )
        label = None if target is None else _name_of(target, classes)
        key = "/".join([split or "all", _folder_name(label), f"{index:0{width}d}"])
        if isinstance(picture, Path):
            key, path = f"{key}-{clean_key(picture.name)}", picture.absolute()
        else:
            path = _save(picture, folder, f"{key}.png")
            key = f"{key}.png"
        problem = "unlabelled" if label is None else None
        yield Item(key, label, path, split=split, problem=problem)


def _class_names(dataset: Any) -> list[str]:
    """Return the names by index; several names of one class are joined. Empty if there are none."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    joined = [", ".join(n) if isinstance(n, tuple | list) else str(n) for n in names]
    return [clean_key(name) for name in joined]


def _name_of(target: int, classes: Sequence[str]) -> str:
    return classes[target] if target < len(classes) else str(target)


def _folder_name(label: str | None) -> str:
    return "unlabelled" if label is None else label.replace("/", "_")


def _kept_files(dataset: Any) -> list[tuple[Path, int]]:
    """Return the dataset's own files with their labels, or nothing if it doesn't keep such lists.

    The lists are torchvision's private matter, so they are believed only when their lengths fit
    and they agree with the first picture that the dataset gives.
    """
    for name in _FILES:
        files = getattr(dataset, name, None)
        if not isinstance(files, list) or not files or len(files) != len(dataset):
            continue
        if isinstance(files[0], tuple):
            pairs = [(Path(pair[0]), pair[1]) for pair in files if isinstance(pair[0], str | Path)]
        else:
            labels: Sequence[int] = next(
                (v for v in (getattr(dataset, n, None) for n in _LABELS) if v), []
            )
            pairs = [(Path(f), t) for f, t in zip(files, labels, strict=False)]
        if len(pairs) == len(dataset) and pairs[0][0].is_file() and pairs[0][1] == dataset[0][1]:
            return pairs
    return []


def _save(picture: Image.Image, folder: Path, key: str) -> Path:
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def _at_home(item: Item, unfinished: Path, folder: Path) -> Item:
    if item.path is None or not item.path.is_relative_to(unfinished):
        return item
    return replace(item, path=folder / item.path.relative_to(unfinished))

"""Networks of timm by name, with pretrained weights that provably fit."""

import difflib
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional

from linnet.errors import CheckpointError, NetworkError, TrainingError
from linnet.training import perceptron
from linnet.training.checkpoint import WEIGHTS, CheckpointManifest

Three = tuple[float, float, float]

HeadInit = Literal["undecided", "xavier"]

_LISTED = 3

# timm names every file that it loads; what failed to load is an error here anyway.
logging.getLogger("timm").setLevel(logging.WARNING)


class Classifier(nn.Module):
    """A network that takes pictures as they are stored: uint8 `[N, S, S, 3]` in, logits out.

    Normalisation happens here, on the device, so that a quarter of the bytes travels. The
    network's own weights keep timm's names.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: Three, std: Three) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255.0 * torch.tensor(mean), persistent=False)
        self.register_buffer("scale", 1 / (255.0 * torch.tensor(std)), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits, `[N, classes]`."""
        logits: Tensor = self.network(self.normalise(pictures))
        return logits

    def normalise(self, pictures: Tensor) -> Tensor:
        """Return what the network takes: float32 `[N, 3, S, S]` in channels-last memory."""
        _, height, width, _ = pictures.shape
        # Whole rows of pixels: ONNX Runtime takes ten times as long where three channels come last.
        rows = pictures.flatten(2).float()
        rows = rows.sub_(self.mean.repeat(width)).mul_(self.scale.repeat(width))
        return rows.view(-1, height, width, 3).permute(0, 3, 1, 2)

    def features(self, pictures: Tensor) -> Tensor:
        """Return what the network's classifier takes, `[N, features]`."""
        return pooled_features(self.network, self.normalise(pictures))


@dataclass(frozen=True)
class Head:
    """The last layer of a network, where it is one: logits = layer(pooled features)."""

    name: str
    layer: nn.Module


def build(
    network: str,
    classes: int,
    *,
    weights: str | Path = "none",
    dropout: float = 0.0,
    size_px: int | None = None,
    hidden: Sequence[int] | None = None,
    head_init: HeadInit = "undecided",
) -> nn.Module:
    """Return one of timm's networks with a classifier for so many classes.

    `weights` is `none`, `hub` (timm's own) or a .safetensors or .pth file. A file must hold every
    tensor of the network but the classifier's, which is taken too where it has the same shape.
    `size_px` matters to networks of a fixed input size only, `hidden` to network mlp.

    Raises:
        NetworkError: no such network, with the nearest names; the hub can't be reached; the file
            doesn't fit, with the first tensors that don't.
    """
    check_name(network)
    options: dict[str, Any] = {"drop_rate": dropout} if dropout else {}
    fixed = getattr(timm.get_pretrained_cfg(network), "fixed_input_size", False)
    if fixed and size_px is not None:
        options["img_size"] = size_px
    if network == perceptron.mlp.__name__ and hidden is not None:
        options["hidden"] = tuple(hidden)
    if weights == "hub":
        built = _from_hub(network, classes, options)
        start_classifier(built, head_init)
        return built
    built = _create(network, classes, options)
    start_classifier(built, head_init)
    if weights != "none":
        load_weights(built, Path(weights), network)
    return built


def start_classifier(network: nn.Module, how: HeadInit) -> None:
    """Give a new classifier its first weights.

    `undecided` ones are small, so that it begins near equal probabilities. Some of timm's networks
    draw them by the number of classes alone: with two classes and 1,280 features a first loss of 7
    instead of 0.7, which a frozen backbone's head hardly recovers from. `xavier` is Glorot's and
    Bengio's uniform draw (2010).
    """
    found = _timm(network).get_classifier()
    for head in found if isinstance(found, tuple | list) else (found,):
        for layer in head.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                if how == "xavier":
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def layers_named(network: nn.Module, names: Sequence[str], setting: str) -> list[nn.Module]:
    """Return a network's layers by name.

    Raises:
        TrainingError: there is no such layer, with the nearest names.
    """
    layers = dict(network.named_modules())
    for name in names:
        if name not in layers or not name:
            near = difflib.get_close_matches(name, layers, n=_LISTED, cutoff=0.4)
            known = near or [name for name, _ in network.named_children()]
            raise TrainingError(
                f"{setting} names {name!r}, which is no layer of this network: "
                + (f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}")
            )
    return [layers[name] for name in names]


def check_name(network: str) -> None:
    """Raise NetworkError, with the nearest names, unless timm has this network."""
    if timm.is_model(network) and "/" not in network:
        return
    near = difflib.get_close_matches(network, timm.list_models(), n=_LISTED, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has them all"
    raise NetworkError(f"network {network!r} is not one of timm's: {hint}")


def normalisation(network: str) -> tuple[Three, Three]:
    """Return the mean and standard deviation, RGB, that a network was pretrained with."""
    pretrained = timm.get_pretrained_cfg(network)
    if pretrained is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return _three(pretrained.mean), _three(pretrained.std)


def load_weights(built: nn.Module, path: Path, network: str) -> None:
    """Load a file's tensors, all but the classifier's strictly.

    Raises:
        NetworkError: the file is absent, damaged, or of another network.
    """
    given = _fitted(_read_tensors(path), built)
    wanted = built.state_dict()
    new = {key for key in wanted if _in_classifier(key, built)}
    for key in new:
        if key in given and given[key].shape != wanted[key].shape:
            del given[key]
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - given.keys() - new - counters)
    unexpected = sorted(k for k in given.keys() - wanted.keys() if not _in_classifier(k, built))
    mismatched = sorted(
        k for k in given.keys() & wanted.keys() if given[k].shape != wanted[k].shape
    )
    if missing or unexpected or mismatched:
        shapes = (f"{k} is {_shape(given[k])}, expected {_shape(wanted[k])}" for k in mismatched)
        raise NetworkError(
            f"weights {path} don't fit {network}: "
            + _joined(
                _first("missing", missing),
                _first("unexpected", unexpected),
                _first("of another shape", list(shapes)),
            )
            + f". Give the weights of a {network}, or name the network that they are of"
        )
    built.load_state_dict({key: given[key] for key in wanted.keys() & given.keys()}, strict=False)


def load_checkpoint(path: Path) -> tuple[nn.Module, CheckpointManifest]:
    """Return the network of a checkpoint folder, in eval mode on the CPU, and its manifest.

    The network is timm's own: normalised float32 `[N, 3, S, S]` in, logits out.

    Raises:
        CheckpointError: the folder is absent, half written or damaged.
    """
    manifest = CheckpointManifest.read(path)
    network = build(
        manifest.network,
        len(manifest.classes),
        dropout=manifest.dropout,
        size_px=manifest.preprocessing.size_px,
        hidden=manifest.settings.get("hidden"),
    )
    try:
        network.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS} is absent, damaged or not of a {manifest.network} ({error}): "
            "train again or copy the checkpoint whole"
        ) from error
    return network.eval(), manifest


def find_head(classifier: Classifier, size_px: int) -> Head | None:
    """Return the last layer, if the rest of the network in eval mode gives exactly its input.

    None for the few networks of timm whose classifier is several layers: their features can't be
    cached. Tried on two pictures of noise rather than looked up in a list of networks.
    """
    network = classifier.network
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, size_px, size_px, 3), dtype=torch.uint8, generator=generator)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            layer = _timm(network).get_classifier()
            if not isinstance(layer, nn.Module) or not list(layer.parameters()):
                return None
            same = torch.allclose(layer(classifier.features(noise)), classifier(noise), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    finally:
        network.train(was_training)
    names = [name for name, module in network.named_modules() if module is layer]
    return Head(names[0], layer) if same and names else None


def pooled_features(network: nn.Module, pictures: Tensor) -> Tensor:
    """Return the features before a timm network's classifier, `[N, features]`."""
    maps = _timm(network).forward_features(pictures)
    features: Tensor = _timm(network).forward_head(maps, pre_logits=True)
    return features


def drop(features: Tensor, share: float, training: bool) -> Tensor:
    """Return features with a share of them zeroed while training."""
    return functional.dropout(features, share, training) if share else features


def classifier_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the classifier, which may be several layers."""
    return [p for name, p in network.named_parameters() if _in_classifier(name, network)]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names and values."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        values = tensors[name].detach().cpu().contiguous().view(-1)
        sha.update(values.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _timm(network: nn.Module) -> Any:
    """Return the network with the methods and attributes that timm gives to all of its own."""
    return network


def _create(network: str, classes: int, options: dict[str, Any]) -> nn.Module:
    try:
        built: nn.Module = timm.create_model(network, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise NetworkError(
            f"network {network} can't be built with {options}: {error}. Set dropout to 0, use "
            "another size_px, or choose another network"
        ) from error
    return built


def _from_hub(network: str, classes: int, options: dict[str, Any]) -> nn.Module:
    pretrained = timm.get_pretrained_cfg(network)
    if pretrained is None or not pretrained.has_weights:
        raise NetworkError(
            f"timm has no pretrained weights for {network}: set train.weights to none or to a "
            "file, or choose a network of timm.list_pretrained()"
        )
    try:
        built: nn.Module = timm.create_model(
            network, pretrained=True, num_classes=classes, **options
        )
    # The hub's client and its transports raise errors of many families.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NetworkError(
            f"the weights of {network} can't be had from timm's hub ({reason[0]}): check the "
            "network, or set train.weights to a .safetensors or .pth file, to s3://bucket/key, or "
            "to none"
        ) from error
    return built


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NetworkError(
            f"weights {path} is not a file: expected hub, none, a .safetensors or .pth file, or "
            "s3://bucket/key"
        )
    try:
        tensors = load_state_dict(str(path), weights_only=True)
    # What torch.load raises on foreign bytes is anything that unpickling them runs into.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NetworkError(
            f"weights {path} can't be read ({reason[0]}): expected tensors by name, saved as "
            ".safetensors or by torch.save"
        ) from error
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise NetworkError(
            f"weights {path} hold something else than tensors by name: save the network's "
            "state_dict()"
        )
    return dict(tensors)


def _fitted(given: dict[str, Tensor], built: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's names and sizes, by the network family's own rule."""
    adapt = getattr(sys.modules[type(built).__module__], "checkpoint_filter_fn", None)
    if adapt is None or {k: v.shape for k, v in given.items()} == {
        k: v.shape for k, v in built.state_dict().items()
    }:
        return given
    try:
        return dict(adapt(dict(given), built))
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, TypeError):
        # Of another family: said better by the comparison that follows.
        return given


def _three(values: Sequence[float]) -> Three:
    red, green, blue = values
    return red, green, blue


def _in_classifier(key: str, network: nn.Module) -> bool:
    names = _timm(network).pretrained_cfg.get("classifier") or ()
    return key.startswith(tuple(f"{n}." for n in ([names] if isinstance(names, str) else names)))


def _first(what: str, names: list[str]) -> str:
    if not names:
        return ""
    rest = len(names) - _LISTED
    return f"{what} {', '.join(names[:_LISTED])}" + (f" and {rest} more" if rest > 0 else "")


def _shape(tensor: Tensor) -> str:
    return " × ".join(str(side) for side in tensor.shape) or "a scalar"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)

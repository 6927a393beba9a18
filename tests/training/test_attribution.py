"""Explanations of a network that learnt what decides: sane by Adebayo et al., 2018.

Made pictures: noise with a grey square, which means nothing, and a coloured one, which is the
class, each at a random place.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import spearmanr

from linnet.errors import CheckpointError, NetworkError, TrainingError
from linnet.evaluation.explanation import Explanation, blurred, explain
from linnet.training.attribution import OpenedCheckpoint
from linnet.training.network import Classifier, load_checkpoint
from tests.checkpoints import write_checkpoint

SIDE, SPOT = 64, 16
METHODS = ("occlusion", "integrated_gradients")


@dataclass(frozen=True)
class Made:
    """A picture, its class, and where the squares are."""

    pixels: NDArray[np.uint8]
    label: int
    object: tuple[slice, slice]
    distractor: tuple[slice, slice]


def make(seed: int) -> Made:
    random = np.random.default_rng(seed)
    pixels = random.normal(110, 25, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    label = int(random.integers(3))
    halves = random.permutation(2) * SIDE // 2  # one square in each half: they never overlap
    places = []
    for half in halves:
        top, left = random.integers(0, SIDE // 2 - SPOT + 1), random.integers(0, SIDE - SPOT + 1)
        places.append((slice(half + top, half + top + SPOT), slice(left, left + SPOT)))
    pixels[places[1]] = 180
    pixels[places[0]] = 30
    pixels[(*places[0], 2 - label)] = 220
    return Made(pixels, label, places[0], places[1])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Train in the same order of additions everywhere, and not wait for a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("untrained")
    return write_checkpoint(root / "checkpoint", "test_resnet", side=SIDE)


@pytest.fixture(scope="module")
def trained(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that names the colour of the square."""
    torch.manual_seed(1)
    network, manifest = load_checkpoint(untrained)
    model = Classifier(network, manifest.mean, manifest.std).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    made = [make(seed) for seed in range(480)]
    pictures = torch.from_numpy(np.stack([each.pixels for each in made]))
    labels = torch.tensor([each.label for each in made])
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(4):
        for batch in torch.randperm(len(made)).split(24):
            optimizer.zero_grad()
            loss(model(pictures[batch]), labels[batch]).backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_bytes((untrained / "model.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def shown() -> list[Made]:
    return [make(seed) for seed in range(1000, 1008)]


def explained(opened: OpenedCheckpoint, method: str, made: Made) -> Explanation:
    if method == "occlusion":
        return explain(opened.probabilities, made.pixels, made.label)
    return opened.integrated_gradients(made.pixels, made.label)


def ranks_agree(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return Spearman's correlation of two maps, averaged to 8 × 8 cells first."""
    cells = [each.reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel() for each in (one, other)]
    return float(spearmanr(*cells).statistic)


def test_the_network_has_learnt_the_colours(trained: Path, shown: list[Made]) -> None:
    answers = OpenedCheckpoint(trained).probabilities(np.stack([made.pixels for made in shown]))
    assert answers.argmax(axis=1).tolist() == [made.label for made in shown]


@pytest.mark.parametrize("method", METHODS)
def test_more_speaks_for_the_answer_on_the_object_than_off_it(
    trained: Path, shown: list[Made], method: str
) -> None:
    opened = OpenedCheckpoint(trained)
    on, distracted, share = [], [], SPOT**2 / SIDE**2
    for made in shown:
        speaks = explained(opened, method, made).attribution.clip(0)
        on.append(speaks[made.object].sum() / speaks.sum())
        distracted.append(speaks[made.distractor].sum() / speaks.sum())
    assert np.mean(on) > 3 * share
    assert np.mean(on) > 2 * np.mean(distracted)


@pytest.mark.parametrize("method", METHODS)
def test_explanations_change_when_weights_are_random(
    trained: Path, untrained: Path, shown: list[Made], method: str
) -> None:
    of_trained, of_random = (
        [explained(opened, method, made).attribution for made in shown]
        for opened in (OpenedCheckpoint(trained), OpenedCheckpoint(untrained))
    )
    agreement = [ranks_agree(*pair) for pair in zip(of_trained, of_random, strict=True)]
    assert np.mean(agreement) < 0.5
    again = explained(OpenedCheckpoint(trained), method, shown[0]).attribution
    assert ranks_agree(of_trained[0], again) > 0.999


def test_integrated_gradients_add_up_to_the_difference_in_log_odds(
    trained: Path, shown: list[Made]
) -> None:
    opened = OpenedCheckpoint(trained)
    for made in shown[:4]:
        found = opened.integrated_gradients(made.pixels, made.label)
        both = np.stack([made.pixels, blurred(made.pixels)])
        probability = opened.probabilities(both)[:, made.label].astype(np.float64)
        difference = np.subtract(*np.log(probability / (1 - probability)))
        assert found.attribution.sum() == pytest.approx(difference, rel=0.05, abs=0.1)
        assert found.probability == pytest.approx(probability[0], abs=1e-6)


def test_a_layer_that_is_not_there_is_an_error_with_the_nearest_names(untrained: Path) -> None:
    grad_cam = partial(OpenedCheckpoint(untrained).grad_cam, make(1).pixels, 0)
    with pytest.raises(TrainingError, match=r"'layr4'.*did you mean layer4"):
        grad_cam("layr4")
    with pytest.raises(NetworkError, match=r"'fc'.*\[1, 3\].*needs maps.*such as layer4"):
        grad_cam("fc")


def test_grad_cam_shows_what_a_layer_saw(trained: Path, shown: list[Made]) -> None:
    opened, pixels = OpenedCheckpoint(trained), shown[0].pixels
    found = opened.grad_cam(pixels, shown[0].label, "layer2")
    assert found.attribution.shape == (SIDE, SIDE)
    assert found.attribution.min() == 0 < found.attribution.max()
    other = opened.grad_cam(pixels, (shown[0].label + 1) % 3, "layer2")
    assert not np.allclose(found.attribution, other.attribution)
    last = opened.grad_cam(pixels, shown[0].label)
    assert (last.attribution == opened.grad_cam(pixels, shown[0].label, "layer4").attribution).all()


def test_a_network_without_maps_has_no_grad_cam(tmp_path: Path) -> None:
    opened = OpenedCheckpoint(write_checkpoint(tmp_path / "mlp", "mlp"))
    with pytest.raises(NetworkError, match="use the method integrated_gradients or occlusion"):
        opened.grad_cam(np.zeros((32, 32, 3), np.uint8), 0)


def test_a_checkpoint_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        OpenedCheckpoint(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(CheckpointError, match="of kind 'other'"):
        OpenedCheckpoint(tmp_path)

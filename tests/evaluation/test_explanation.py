"""Explanations that need a model's answers alone, how they are drawn, and the report's panels."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from linnet.data.preprocessing import Fit, Preprocessing, on_picture, prepare_pixels
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.explanation import explain
from linnet.evaluation.overlay import LINE_AT, overlay, with_legend
from linnet.evaluation.panels import choose, explain_panels
from linnet.evaluation.report import PAGE, Report
from linnet.inference.predict import Predictions
from linnet.settings import EvaluateSettings
from tests.graphs import relabel
from tests.pictures import encoded, photograph
from tests.release_parts import write_dataset, write_graph

SIDE = 48
PATCH = (slice(6, 18), slice(28, 40))


def white_spot(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Answer with how white the whitest 8 × 8 square of each picture is."""
    squares = pictures.astype(np.float32).mean(axis=3).reshape(len(pictures), 6, 8, 6, 8)
    share = 0.02 + 0.96 * squares.mean(axis=(2, 4)).max(axis=(1, 2)) / 255
    return np.stack([1 - share, share], axis=1).astype(np.float32)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    pixels = np.random.default_rng(3).integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[PATCH] = 255
    return pixels


def test_what_the_answer_rests_on_is_what_speaks_for_it(picture: NDArray[np.uint8]) -> None:
    found = explain(white_spot, picture, 1)
    assert found.attribution.shape == (SIDE, SIDE)
    assert found.attribution.dtype == np.float32
    assert found.probability == pytest.approx(white_spot(picture[None])[0, 1])
    row, column = np.unravel_index(found.attribution.argmax(), found.attribution.shape)
    assert PATCH[0].start <= row < PATCH[0].stop
    assert PATCH[1].start <= column < PATCH[1].stop
    outside = np.ones((SIDE, SIDE), bool)
    outside[PATCH] = False
    assert found.attribution[PATCH].mean() > 3 * found.attribution[outside].mean()


def test_of_two_classes_what_speaks_for_one_speaks_against_the_other(
    picture: NDArray[np.uint8],
) -> None:
    one, other = (explain(white_spot, picture, label).attribution for label in (1, 0))
    assert other == pytest.approx(-one, abs=1e-4)


def test_the_most_probable_class_is_explained_unless_another_is_asked_for(
    picture: NDArray[np.uint8],
) -> None:
    assert explain(white_spot, picture).label == 1
    assert explain(white_spot, picture // 8).label == 0


def test_an_explanation_is_the_same_each_time_and_in_every_size_of_batch(
    picture: NDArray[np.uint8],
) -> None:
    sizes: list[int] = []

    def counted(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(pictures))
        return white_spot(pictures)

    before = picture.copy()
    one, other = (explain(counted, picture, batch_size=size).attribution for size in (32, 7))
    assert (one == other).all()
    assert (picture == before).all()
    assert sum(sizes) == 2 * 166
    assert max(sizes) == 32


def test_what_no_part_decides_has_no_explanation(picture: NDArray[np.uint8]) -> None:
    found = explain(lambda some: np.full((len(some), 3), 1 / 3, np.float32), picture)
    assert not found.attribution.any()
    drawn = np.asarray(overlay(Image.fromarray(picture), found.attribution))
    assert (drawn[..., 0] == drawn[..., 1]).all(), "colour, where nothing speaks"


def test_a_certain_answer_is_explained_too(picture: NDArray[np.uint8]) -> None:
    def certain(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        other = 1e-12 * white_spot(pictures)[:, :1]
        return np.concatenate([other, 1 - other], axis=1).astype(np.float32)

    found = explain(certain, picture)
    assert found.probability == 1
    assert found.attribution[PATCH].mean() > 0.1


def test_pictures_may_have_any_shape() -> None:
    found = explain(
        lambda some: np.full((len(some), 2), 0.5, np.float32), np.zeros((9, 31, 3), np.uint8)
    )
    assert found.attribution.shape == (9, 31)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(120, 60), (50, 90)])
def test_an_attribution_is_laid_where_the_network_saw_it(fit: Fit, width: int, height: int) -> None:
    spec = Preprocessing(64, fit)
    white = np.zeros((height, width, 3), np.uint8)
    white[height // 2 : height // 2 + 15, width // 2 - 15 : width // 2] = 255
    seen = prepare_pixels(white, spec)[..., 0].astype(np.float32)
    seen[seen == 128] = 0  # what pad fills with
    laid = on_picture(seen, spec, width, height)
    assert laid.shape == (height, width)
    rows, columns = np.nonzero(laid > 127)
    assert (rows.min(), rows.max()) == pytest.approx((height // 2, height // 2 + 14), abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((width // 2 - 15, width // 2 - 1), abs=2)


def test_an_overlay_is_bright_where_much_speaks_and_grey_where_nothing_does() -> None:
    attribution = np.zeros((10, 10), np.float32)
    attribution[:5, :5] = 1
    attribution[5:, 5:] = -1
    picture = Image.new("RGB", (200, 100), (120, 60, 60))
    drawn = np.asarray(overlay(picture, attribution)).astype(int)
    assert drawn.shape == (100, 200, 3)
    assert drawn[10, 20, 1] - drawn[10, 20, 2] > 100, "yellow"
    assert np.ptp(drawn[90, 20]) == 0
    assert np.ptp(drawn[90, 180]) == 0, "what speaks against the label is not shown"
    assert (drawn.reshape(-1, 3) == 255).all(axis=1).any(), f"a line at {LINE_AT}"
    assert with_legend(overlay(picture, attribution), "rose").size[1] > 130


def test_panels_are_half_right_and_begin_with_every_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.35, 0.65]])
    labels = np.array([0, 0, 0, 1, 0])
    predictions = Predictions(list("abcde"), labels, probabilities.astype(np.float32))
    answers = probabilities.argmax(axis=1)
    assert choose(predictions, answers, 4) == [4, 0, 3, 1]
    assert choose(predictions, answers, 2) == [4, 0]
    assert choose(predictions, answers, 99) == [4, 0, 3, 1, 2]
    assert choose(predictions, answers, 0) == []


class WhiteSpot:
    """The model above as a graph that takes squares of 48 pixels."""

    preprocessing = Preprocessing(SIDE, "crop")

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return white_spot(pictures)


def test_a_panel_lays_the_attribution_on_the_whole_picture(picture: NDArray[np.uint8]) -> None:
    wide = np.pad(picture, ((0, 0), (SIDE // 2, SIDE // 2), (0, 0)))
    predictions = Predictions(["one.png"], np.array([1]), white_spot(picture[None]))
    (panel,) = explain_panels(
        WhiteSpot(),
        {"one.png": encoded(Image.fromarray(wide), "PNG")},
        predictions,
        np.array([1]),
        [0],
        classes=("plain", "spot"),
        batch_size=32,
    )
    cells = panel.cells()
    assert cells.shape == (16, 16)
    assert cells.max() == 255
    assert not cells[:, :4].any()
    assert not cells[:, 12:].any()
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    assert 2 <= row <= 5
    assert 8 <= column <= 11


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_dataset(root / "dataset")
    relabel(root / "dataset", "test", {0: 1})
    write_graph(root / "graph")
    return root


def test_the_report_shows_what_speaks_for_answers(parts: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(bootstrap_samples=100, mistakes=0, explain=3)
    evaluate(parts / "graph", parts / "dataset", tmp_path / "report", settings, model="colours")
    panels = Report.load(tmp_path / "report").panels
    assert [panel.right for panel in panels] == [False, True, True]
    assert panels[0].label == "green"
    assert panels[0].predicted == "blue"
    page = (tmp_path / "report" / PAGE).read_text(encoding="utf-8")
    assert "What speaks for the answers" in page
    assert page.count('src="data:image/jpeg;base64,') == 3


def test_no_pictures_are_explained_when_it_is_switched_off(parts: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(bootstrap_samples=100, explain=0)
    evaluate(parts / "graph", parts / "dataset", tmp_path / "report", settings, model="colours")
    assert "What speaks" not in (tmp_path / "report" / PAGE).read_text(encoding="utf-8")
    path = tmp_path / "report" / "report.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values.pop("panels") == []
    path.write_text(json.dumps(values), encoding="utf-8")
    assert Report.load(tmp_path / "report").panels == ()


def test_a_photograph_of_another_shape_than_the_networks_is_explained_whole() -> None:
    photo = np.asarray(photograph(1, 90, 48))
    found = explain(lambda some: white_spot(some[:, :48, :48]), photo, 1)
    assert not found.attribution[:, 80:].any(), "what the model never sees"

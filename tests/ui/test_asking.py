"""What the page makes of other V2 servers, by their metadata alone."""

import numpy as np
import pytest

from linnet.client import Client
from linnet.errors import RequestRefusedError, ServerError
from linnet.ui.asking import open_model
from linnet.ui.why import find_out
from tests.ui.another_server import Another, serving
from tests.ui.conftest import RED

LAST = {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
FIRST = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 8, 12]}
ANY_SIZE = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
FILES = {"name": "file", "datatype": "BYTES", "shape": [-1]}
NAMES = {"classes": ["rot", "grün", "blau"]}


@pytest.mark.parametrize("given", [LAST, FIRST, ANY_SIZE, FILES])
def test_pictures_are_sent_in_the_form_that_the_metadata_asks_for(given: dict[str, object]) -> None:
    with serving(Another(given)) as another, Client(another.url, model="brightest") as client:
        said = open_model(client).answer(RED)
    assert (said.label, said.abstain, said.release) == ("class 0", False, "brightest/1")
    assert said.score == pytest.approx(1.0)
    assert [name for name, _ in said.bars] == ["class 0", "class 1", "class 2"]


def test_probabilities_are_shown_as_they_are_and_classes_by_name() -> None:
    another = Another(LAST, properties=NAMES, scores=False)
    grey = np.full((2, 8, 8, 3), (50, 100, 50), np.uint8)
    with serving(another), Client(another.url, model="brightest") as client:
        model = open_model(client)
        rows, releases = model.probabilities(grey)
        said = model.answer(RED)
    np.testing.assert_allclose(rows, [[0.25, 0.5, 0.25]] * 2)
    assert (said.label, said.score, releases) == ("rot", 1.0, {"brightest/1"})


def test_a_gateway_is_asked_for_the_model_s_host() -> None:
    with serving(Another(LAST)) as another:
        with Client(another.url, model="brightest", authority="brightest.example.org") as client:
            open_model(client)
        assert another.authority == "brightest.example.org"


@pytest.mark.parametrize("given", [FIRST, FILES])
def test_answers_of_other_servers_are_explained_too(given: dict[str, object]) -> None:
    another = Another(given, properties=NAMES)
    with serving(another), Client(another.url, model="brightest") as client:
        why = find_out(open_model(client), RED)
    assert why.label == "rot"
    assert why.drawn.startswith(b"\xff\xd8")


def test_a_broken_picture_is_found_before_it_is_sent() -> None:
    with (
        serving(Another(LAST)) as another,
        Client(another.url, model="brightest") as client,
        pytest.raises(RequestRefusedError, match="the picture can't be used"),
    ):
        open_model(client).answer(b"no picture")


@pytest.mark.parametrize(
    "another",
    [
        Another({"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}),
        Another({"name": "x", "datatype": "UINT8", "shape": [-1, 8]}),
        Another(LAST, outputs=[{"name": "y", "datatype": "INT64", "shape": [-1]}]),
    ],
    ids=["floats", "no picture", "no probabilities"],
)
def test_a_model_that_takes_or_gives_something_else_is_refused(another: Another) -> None:
    with (
        serving(another),
        Client(another.url, model="brightest") as client,
        pytest.raises(ServerError, match="this page can s"),
    ):
        open_model(client)


def test_another_number_of_answers_than_promised_is_an_error() -> None:
    outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}]
    with (
        serving(Another(LAST, outputs=outputs)) as another,
        Client(another.url, model="brightest") as client,
        pytest.raises(ServerError, match="did not answer scores with 4 numbers a picture"),
    ):
        open_model(client).answer(RED)

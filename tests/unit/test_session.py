"""Graphs on ONNX Runtime: what is checked when they are opened, and what they answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from linnet.data.dataset import Dataset
from linnet.errors import GraphError
from linnet.inference.predict import predict_split
from linnet.inference.session import Graph, Portions, Session
from tests.release_parts import SIDE, write_dataset, write_graph


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "graph")


def test_a_graph_answers_with_probabilities_of_any_number_of_pictures(graph: Path) -> None:
    opened = Graph(graph, threads=1)
    for pictures in (1, 5):
        batch = np.full((pictures, SIDE, SIDE, 3), 10, np.uint8)
        batch[:, :, :, 1] = 200
        found = opened.predict(batch)
        assert found.shape == (pictures, 3)
        assert found.dtype == np.float32
        assert found.sum(axis=1) == pytest.approx(1)
        assert {opened.classes[index] for index in found.argmax(axis=1)} == {"green"}


def test_a_graph_can_be_asked_from_several_threads(graph: Path) -> None:
    opened = Graph(graph)
    batches = [np.full((2, SIDE, SIDE, 3), value, np.uint8) for value in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(opened.predict, batches))
    for batch, answer in zip(batches, found, strict=True):
        assert answer == pytest.approx(opened.predict(batch))


def test_portions_are_put_together_in_order(graph: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (11, SIDE, SIDE, 3), np.uint8)
    whole = Session(graph / "model.onnx").predict(pictures)
    found = Portions(graph / "model.onnx", threads=3)
    assert found.predict(pictures) == pytest.approx(whole, abs=1e-6)
    assert found.predict(pictures[:0]).shape == (0, 3)
    assert np.array_equal(found.predict(pictures), found.predict(pictures))


def test_a_folder_without_a_manifest_is_not_a_finished_graph(graph: Path) -> None:
    (graph / "graph.json").unlink()
    with pytest.raises(GraphError, match=r"no graph\.json.*linnet export"):
        Graph(graph)


def test_an_absent_model_is_an_error(graph: Path) -> None:
    (graph / "model.onnx").unlink()
    with pytest.raises(GraphError, match=r"model\.onnx can't be read"):
        Graph(graph)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "linnet/graph/v9"}', "\xff"])
def test_a_damaged_or_foreign_manifest_is_an_error(graph: Path, text: str) -> None:
    (graph / "graph.json").write_text(text, encoding="latin-1")
    with pytest.raises(GraphError, match=r"graph\.json"):
        Graph(graph)


def test_a_manifest_that_lacks_a_key_is_an_error(graph: Path) -> None:
    values = json.loads((graph / "graph.json").read_text())
    del values["classes"]
    (graph / "graph.json").write_text(json.dumps(values))
    with pytest.raises(GraphError, match=r"damaged.*classes"):
        Graph(graph)


def test_a_model_that_is_not_the_manifests_is_an_error(graph: Path) -> None:
    path = graph / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(GraphError, match=r"digest .* damaged or replaced"):
        Graph(graph)


def test_bytes_that_are_no_model_are_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(GraphError, match="can't load") as caught:
        Session(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_pictures_of_another_size_or_type_are_an_error(graph: Path) -> None:
    opened = Graph(graph)
    with pytest.raises(GraphError, match=r"got uint8 of shape \[1, 9, 9, 3\]"):
        opened.predict(np.zeros((1, 9, 9, 3), np.uint8))
    with pytest.raises(GraphError, match="got float32"):
        opened.predict(np.zeros((1, SIDE, SIDE, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_a_split_is_answered_in_its_order_whatever_the_batch(
    tmp_path: Path, graph: Path, batch_size: int
) -> None:
    dataset = Dataset.open(write_dataset(tmp_path / "dataset"))
    found = predict_split(Graph(graph), dataset, "test", batch_size=batch_size)
    assert found.keys == dataset.keys("test")
    assert found.labels.tolist() == dataset.labels("test").tolist()
    assert found.probabilities.argmax(axis=1).tolist() == found.labels.tolist()

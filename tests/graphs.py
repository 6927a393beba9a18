"""Variations of the datasets and graphs of `tests.release_parts`, for evaluation and the gate."""

import json
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import numpy_helper

from linnet.stores.objects import sha256_of
from tests.release_parts import write_graph

CHANNEL = {"red": 0, "green": 1, "blue": 2, "violet": 2}


def relabel(dataset: Path, split: str, labels: dict[int, int]) -> None:
    """Give rows of a split other labels; the manifest's counts stay what they were in all."""
    path = dataset / f"{split}-00000.parquet"
    table = pq.read_table(path)
    changed = [
        labels.get(row, label) for row, label in enumerate(table.column("label").to_pylist())
    ]
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, "label", pa.array(changed, pa.int64())), path)


def keep_rows(dataset: Path, split: str, rows: list[int]) -> None:
    """Leave only some rows of a split."""
    path = dataset / f"{split}-00000.parquet"
    table = pq.read_table(path).take(pa.array(rows, pa.int64()))
    pq.write_table(table, path)
    manifest = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    labels = table.column("label").to_pylist()
    manifest["counts"][split] = {
        name: labels.count(index) for index, name in enumerate(manifest["classes"])
    }
    (dataset / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")


def answer_with(graph: Path, channels: list[int]) -> Path:
    """Make the graph's classes stand for other colour channels, and its manifest agree."""
    path = graph / "model.onnx"
    model = onnx.load(path)
    (order,) = (tensor for tensor in model.graph.initializer if tensor.name == "order")
    values = numpy_helper.to_array(order).copy()
    values[:] = channels
    order.CopyFrom(numpy_helper.from_array(values, "order"))
    onnx.save(model, path)
    manifest = json.loads((graph / "graph.json").read_text(encoding="utf-8"))
    manifest["sha256"] = sha256_of(path)
    (graph / "graph.json").write_text(json.dumps(manifest), encoding="utf-8")
    return graph


def write_champion(root: Path, *, classes: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """Write a perfect champion with its classes in this order: its graph's file, its manifest."""
    graph = answer_with(write_graph(root / "champion"), [CHANNEL[name] for name in classes])
    manifest = {
        "version": "v1",
        "classes": list(classes),
        "preprocessing": {"size_px": 8, "fit": "squash"},
    }
    return graph / "model.onnx", manifest

"""A report's folder: `predictions.parquet`, `report.html` and, last, `report.json`."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from linnet.evaluation.page import render
from linnet.evaluation.report import MANIFEST, PAGE, PREDICTIONS, Report
from linnet.folders import written_whole
from linnet.inference.predict import Predictions


def write(
    destination: Path,
    report: Report,
    predictions: Predictions,
    pictures: Mapping[str, bytes],
) -> None:
    """Write the report's folder whole, `report.json` last.

    `pictures` are the encoded pictures that the page shows, by key.

    Raises:
        StoreError: `destination` is taken or can't be written.
    """
    with written_whole(destination, MANIFEST) as folder:
        _write_predictions(folder / PREDICTIONS, predictions)
        (folder / PAGE).write_text(render(report, predictions, pictures), encoding="utf-8")
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _write_predictions(path: Path, predictions: Predictions) -> None:
    table = pa.table(
        {
            "key": pa.array(predictions.keys, pa.string()),
            "label": pa.array(predictions.labels, pa.int64()),
            "probabilities": pa.array(list(predictions.probabilities), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path)

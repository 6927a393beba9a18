"""Answers of a graph for a whole split, decoding the next pictures while it computes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing, prepare_many
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import Split

Batch = tuple[list[str], NDArray[np.int64], NDArray[np.uint8]]


class Classifier(Protocol):
    """What can answer pictures: an opened graph, or a champion's."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how pictures become the input."""

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of pictures, uint8 [N, H, W, 3]."""


@dataclass(frozen=True)
class Predictions:
    """A split's answers in the order of its rows: labels [N], probabilities [N, C]."""

    keys: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def predict_split(
    graph: Classifier,
    dataset: Dataset,
    split: Split,
    *,
    batch_size: int = 32,
    threads: int | None = None,
) -> Predictions:
    """Answer every picture of a split, holding only three batches of pictures in memory.

    `threads` decode; null: one per CPU this process may use.
    """
    keys: list[str] = []
    labels, probabilities = [], []
    batches = _prepared(dataset, split, graph.preprocessing, batch_size, threads)
    total = -(-dataset.size(split) // batch_size)
    for batch_keys, batch_labels, pictures in track(batches, f"answer {split}", total):
        keys += batch_keys
        labels.append(batch_labels)
        probabilities.append(graph.predict(pictures))
    if not keys:
        return Predictions(
            [], np.empty(0, np.int64), np.empty((0, len(dataset.classes)), np.float32)
        )
    return Predictions(keys, np.concatenate(labels), np.concatenate(probabilities))


def _prepared(
    dataset: Dataset, split: Split, spec: Preprocessing, batch_size: int, threads: int | None
) -> Iterator[Batch]:
    """Yield prepared batches; the next one is prepared while the caller works on this one."""

    def prepare(rows: pa.RecordBatch) -> Batch:
        encoded = rows.column("image").field("bytes").to_pylist()
        pictures = prepare_many(encoded, spec, threads=threads or available_cpus())
        labels = np.asarray(rows.column("label"), dtype=np.int64)
        return rows.column("key").to_pylist(), labels, pictures

    columns = ("key", "label", "image.bytes")
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as ahead:
        waiting = None
        for rows in dataset.rows(split, batch_size=batch_size, columns=columns):
            coming = ahead.submit(prepare, rows)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()

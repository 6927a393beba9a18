"""How answers hold when pictures are corrupted: the graph that serves, asked again."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import prepare_many
from linnet.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Pixels, corrupt
from linnet.inference.answers import Rule
from linnet.inference.predict import Classifier
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import Split

Kind = tuple[str, int]
Batch = tuple[Kind, NDArray[np.int64], Pixels]


@dataclass(frozen=True)
class CorruptionRow:
    """Accuracy under one corruption, by severity from 1 to 5."""

    name: str
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Robustness:
    """Accuracy on corrupted test pictures, and on the same pictures as they are."""

    pictures: int
    clean_accuracy: float
    mean_accuracy: float
    corruptions: tuple[CorruptionRow, ...]

    @property
    def worst(self) -> CorruptionRow:
        """Return the corruption with the lowest accuracy over all severities."""
        return min(self.corruptions, key=lambda row: sum(row.accuracy))


def measure_robustness(
    graph: Classifier,
    dataset: Dataset,
    split: Split,
    *,
    pictures: int,
    rule: Rule,
    batch_size: int,
    seed: int,
) -> Robustness | None:
    """Answer evenly spread pictures of a split as they are and under every corruption.

    A batch is decoded once and corrupted by threads while the graph answers the one before it.
    None without pictures.
    """
    count = min(pictures, dataset.size(split))
    if not count:
        return None
    chosen = np.linspace(0, dataset.size(split) - 1, count).round().astype(np.int64)
    right: dict[Kind, int] = dict.fromkeys(_kinds(), 0)
    batches = _ahead(_corrupted(graph, dataset, split, chosen, batch_size=batch_size, seed=seed))
    total = len(right) * -(-count // batch_size)
    for kind, labels, corrupted in track(batches, "answer corrupted", total):
        right[kind] += int((rule.labels(graph.predict(corrupted)) == labels).sum())
    rows = tuple(
        CorruptionRow(name, tuple(right[name, severity] / count for severity in SEVERITIES))
        for name in CORRUPTIONS
    )
    mean = float(np.mean([row.accuracy for row in rows]))
    return Robustness(count, right["none", 0] / count, mean, rows)


def _kinds() -> list[Kind]:
    return [("none", 0), *itertools.product(CORRUPTIONS, SEVERITIES)]


def _corrupted(
    graph: Classifier,
    dataset: Dataset,
    split: Split,
    chosen: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
) -> Iterator[Batch]:
    threads = available_cpus()
    start = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="corrupt") as pool:
        for encoded, labels in _pictures(dataset, split, chosen, batch_size):
            clean = prepare_many(encoded, graph.preprocessing, threads=threads)
            for name, severity in _kinds():
                if name == "none":
                    yield (name, severity), labels, clean
                    continue
                seeds = [seed + start + number for number in range(len(clean))]

                def change(
                    picture: Pixels, seed: int, name: str = name, severity: int = severity
                ) -> Pixels:
                    return corrupt(picture, name, severity, seed=seed)

                yield (name, severity), labels, np.stack(list(pool.map(change, clean, seeds)))
            start += len(clean)


def _pictures(
    dataset: Dataset, split: Split, chosen: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
    wanted = set(chosen.tolist())
    rows = (row for index, row in enumerate(dataset.pictures(split)) if index in wanted)
    while batch := list(itertools.islice(rows, batch_size)):
        yield [row.encoded for row in batch], np.array([row.label for row in batch], np.int64)


def _ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the same batches; the next is made while the caller works on this one."""
    waiting = iter(batches)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as one:
        coming = one.submit(next, waiting, None)
        while (batch := coming.result()) is not None:
            coming = one.submit(next, waiting, None)
            yield batch

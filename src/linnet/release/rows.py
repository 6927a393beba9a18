"""Some pictures of a split, evenly spread over it and prepared as the network takes them."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing, prepare_many
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import Split

_BATCH = 32


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of `count` indices, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def prepared_rows(
    dataset: Dataset, split: Split, chosen: NDArray[np.int64], spec: Preprocessing, *, what: str
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield pictures, uint8 [N, S, S, 3], and labels [N] of the chosen rows, in order."""
    batches = _encoded(dataset, split, chosen)
    for encoded, labels in track(batches, what, -(-len(chosen) // _BATCH)):
        pictures = prepare_many(encoded, spec, threads=available_cpus())
        yield pictures, np.array(labels, np.int64)


def _encoded(
    dataset: Dataset, split: Split, chosen: NDArray[np.int64]
) -> Iterator[tuple[list[bytes], list[int]]]:
    wanted = set(chosen.tolist())
    rows = enumerate(dataset.pictures(split))
    picked = (row for index, row in rows if index in wanted)
    while batch := list(itertools.islice(picked, _BATCH)):
        yield [row.encoded for row in batch], [row.label for row in batch]

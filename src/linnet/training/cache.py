"""Arrays on disk that are computed once: decoded pictures and a frozen backbone's features.

They live in the workspace under a name that says what they were made from, appear whole or not at
all, are read through the page cache, and can be deleted whenever no training runs.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing, prepare_many
from linnet.errors import StoreFullError
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import Split
from linnet.stores.objects import folder_errors

_BATCH = 256


def decoded_pictures(
    dataset: Dataset, split: Split, preprocessing: Preprocessing, *, folder: Path
) -> NDArray[np.uint8]:
    """Return a split's pictures as the network sees them, uint8 `[N, S, S, 3]`, memory-mapped.

    Raises:
        StoreFullError: they don't fit into what is free at `folder`.
    """
    size = preprocessing.size_px
    name = f"{dataset.version}-{size}px-{preprocessing.fit}"
    threads = available_cpus()

    def batches() -> Iterable[NDArray[np.uint8]]:
        rows = dataset.rows(split, batch_size=_BATCH, columns=["image.bytes"])
        total = sum(-(-n // _BATCH) for n in [dataset.size(split)])
        for batch in track(rows, f"Decoding {split} pictures", total):
            encoded = batch.column(0).field("bytes").to_pylist()
            yield prepare_many(encoded, preprocessing, threads=threads)

    return computed_once(
        folder / "pictures" / name / f"{split}.npy",
        (dataset.size(split), size, size, 3),
        np.uint8,
        batches,
    )


def computed_once(
    path: Path,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    batches: Callable[[], Iterable[NDArray[Any]]],
) -> NDArray[Any]:
    """Return the array at `path`, memory-mapped, after writing it from its batches if need be.

    Of several processes that want the same array one computes it and the others wait.

    Raises:
        StoreFullError: the array doesn't fit.
    """
    if not path.exists():
        with folder_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not path.exists():
                    file.truncate(0)
                    check_space(path.parent, int(np.prod(shape)) * np.dtype(dtype).itemsize)
                    write_array(file, shape, dtype, batches())
                    partial.replace(path)
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def write_array(
    file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike, batches: Iterable[NDArray[Any]]
) -> None:
    """Write an .npy file batch by batch, so that memory stays flat and a full disk is an error."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    written = 0
    for batch in batches:
        file.write(np.ascontiguousarray(batch, dtype=dtype).data)
        written += len(batch)
    file.flush()
    if written != shape[0]:
        raise ValueError(f"{written} rows were computed, expected {shape[0]}")


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise StoreFullError before a long computation whose result could not be kept."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise StoreFullError(
            f"{folder} has {free / 1e9:.1f} GB free and {needed_bytes / 1e9:.1f} GB are needed: "
            "free some, use a workspace elsewhere, or a smaller train.size_px"
        )

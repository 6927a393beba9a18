import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from linnet.data.dataset import KIND, MANIFEST

CLASSES = ("dark", "grey", "light")
SIZES = {"train": 60, "val": 24, "test": 6}


@pytest.fixture(scope="package", autouse=True)
def one_cpu() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much on a busy machine."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    yield
    os.sched_setaffinity(0, cpus)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three mean brightnesses, 16 px: learnt within a few steps."""
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", SIZES)


def write_dataset(path: Path, sizes: dict[str, int], classes: tuple[str, ...] = CLASSES) -> Path:
    path.mkdir()
    chance = np.random.default_rng(1)
    counts = {}
    for split, size in sizes.items():
        labels = [row % len(classes) for row in range(size)]
        rows = [
            {
                "key": f"{split}/{row}.png",
                "image": {"bytes": _picture(label, chance), "path": None},
                "label": label,
            }
            for row, label in enumerate(labels)
        ]
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("key", pa.string()), ("image", image), ("label", pa.int64())])
        pq.write_table(pa.Table.from_pylist(rows, schema), path / f"{split}-00000.parquet")
        counts[split] = {name: labels.count(index) for index, name in enumerate(classes)}
    manifest = {
        "kind": KIND,
        "version": "0123456789ab",
        "classes": classes,
        "counts": counts,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "quarantined": {"broken": 10},
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def _picture(label: int, chance: np.random.Generator) -> bytes:
    pixels = chance.normal(60 + 65 * label, 50, (16, 16, 3)).clip(0, 255).astype(np.uint8)
    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()

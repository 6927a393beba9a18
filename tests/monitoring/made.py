"""Made pictures of three colours in noise, and a release that was measured on some of them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from linnet.data.ingest import ingest
from linnet.release.bundle import release
from linnet.settings import IngestSettings, ReleaseSettings, SourceSettings
from linnet.stores.connections import Connections
from tests.release_parts import CLASSES, write_graph, write_report

SIDE = 24


def picture(seed: int, label: int | None = None, *, blur: float = 0.0, dark: float = 1.0) -> bytes:
    """Return a PNG of noise in the colour of a class, drawn unless it is given."""
    random = np.random.default_rng(seed)
    label = int(random.integers(3)) if label is None else label
    base = np.full(3, 90.0) + random.normal(0, 8)
    base[2 - label] += random.uniform(30, 90)
    pixels = base * dark + random.normal(0, 40 * dark, (SIDE, SIDE, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    (image.filter(ImageFilter.GaussianBlur(blur)) if blur else image).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, encoded: list[bytes]) -> Path:
    folder.mkdir(parents=True)
    for number, one in enumerate(encoded):
        (folder / f"{number:04}.png").write_bytes(one)
    return folder


def write_release(folder: Path, connections: Connections, *, per_class: int = 80) -> Path:
    """Release the graph that names the brightest channel, measured on such pictures."""
    for label, name in enumerate(CLASSES):
        seeds = range(1000 * label, 1000 * label + per_class)
        write_pictures(folder / "source" / name, [picture(seed, label) for seed in seeds])
    settings = IngestSettings(val_fraction=0.1, test_fraction=0.8, near_duplicates="ignore")
    source = SourceSettings(uri=str(folder / "source"))
    summary = ingest(source, folder / "dataset", settings.model_copy(update={"workers": 1}))
    graph = write_graph(folder / "graph")
    manifest = json.loads((graph / "graph.json").read_text())
    manifest["dataset_version"] = summary.version
    (graph / "graph.json").write_text(json.dumps(manifest))
    report = write_report(folder / "report", graph, folder / "dataset")
    made = release(
        graph,
        report,
        folder / "dataset",
        model="colours",
        settings=ReleaseSettings(),
        connections=connections,
    )
    return Path(made.uri)

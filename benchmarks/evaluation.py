"""How near evaluation comes to the bare session: `python -m benchmarks.evaluation`.

Answers photographs with a network of timm in fp32 and int8: a split of a dataset as evaluate does,
decoding included, and pictures under every corruption. Both beside ONNX Runtime alone, which has
prepared batches of 8 on a thread and a session of one thread per CPU, the faster of its two
arrangements (the other, one session on all CPUs with batches of 32, is told too). Prints the ratios
of CPU time, which stand on a busy machine, and of the rates by the clock: each the median of
rounds in which all take turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import graphs
from benchmarks.limit import Limit
from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.data.preprocessing import Preprocessing
from linnet.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from linnet.evaluation.robustness import measure_robustness
from linnet.inference.answers import Rule
from linnet.inference.predict import predict_split
from linnet.inference.session import Portions, Session
from linnet.settings import IngestSettings, SourceSettings
from tests.serving.photographs import photographs

TARGET = 0.8
BATCH = 32
ROUNDS = 5
BARE_S = 2.0


@dataclass(frozen=True)
class Graph:
    """A graph as evaluate calls it."""

    portions: Portions
    preprocessing: Preprocessing = graphs.SPEC

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        """Return probabilities of pictures."""
        return self.portions.predict(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv2_100")
    parser.add_argument("--pictures", type=int, default=480)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = Dataset.open(write_dataset(folder, wanted.pictures))
        whole = graphs.fp32(wanted.network)
        small = graphs.int8(whole, list(photographs().values()))
        results = {"network": wanted.network, "target": f">= {TARGET}"}
        for name, encoded in (("fp32", whole), ("int8", small)):
            model = graphs.save(encoded, folder / f"{name}.onnx")
            results |= {name: measure(model, dataset)}
        print(json.dumps(results, indent=1))


def measure(model: Path, dataset: Dataset) -> dict[str, object]:
    """Return the ratios of a graph, and what a picture costs in each way."""
    graph, whole = Graph(Portions(model)), Session(model)
    limit = Limit(model, next(dataset.pictures("test")).encoded)
    count = dataset.size("test")
    side = graphs.SPEC.size_px
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    kinds = 1 + len(CORRUPTIONS) * len(SEVERITIES)

    def bare() -> tuple[float, float]:
        done = limit.run("narrow", "uint8", BARE_S)
        return done["cpu_s"], 1 / done["rate"]

    def one_session() -> int:
        for _ in range(4):
            whole.predict(noise)
        return 4 * BATCH

    def split() -> int:
        predict_split(graph, dataset, "test", batch_size=BATCH)
        return count

    def corrupted() -> int:
        measure_robustness(
            graph, dataset, "test", pictures=BATCH, rule=Rule(), batch_size=BATCH, seed=0
        )
        return kinds * BATCH

    ways = {"split": split, "corrupted": corrupted, "one session on all CPUs": one_session}
    bares: list[tuple[float, float]] = []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        bares.append(bare())
        for name, way in ways.items():
            found[name].append(timed(way))
    return {
        "by CPU time, of the bare session": {
            name: ratio(bares, rounds, 0) for name, rounds in found.items()
        },
        "by the clock, of the bare session's rate": {
            name: ratio(bares, rounds, 1) for name, rounds in found.items()
        },
        "CPU ms of a picture": {
            name: round(1000 * statistics.median(each[0] for each in rounds), 2)
            for name, rounds in {"bare": bares, **found}.items()
        },
    }


def ratio(bares: list[tuple[float, float]], rounds: list[tuple[float, float]], at: int) -> float:
    """Return the median over rounds of the bare session's seconds by a way's."""
    pairs = zip(bares, rounds, strict=True)
    return round(statistics.median(bare[at] / way[at] for bare, way in pairs), 2)


def timed(way: Callable[[], int]) -> tuple[float, float]:
    """Return the seconds of a picture, of all threads' CPU and by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    pictures = way()
    return (time.process_time() - cpu) / pictures, (time.perf_counter() - clock) / pictures


def write_dataset(folder: Path, count: int) -> Path:
    """Ingest JPEGs of 320 by 240, cut out of two photographs; all but a few are test pictures."""
    random = np.random.default_rng(0)
    for name, encoded in photographs().items():
        photo = Image.open(BytesIO(encoded))
        for split, pictures in (("train", 8), ("val", 8), ("test", count // 2)):
            place = folder / "pictures" / split / Path(name).stem
            place.mkdir(parents=True)
            for number in range(pictures):
                left, top = random.integers(0, (photo.width - 320, photo.height - 240))
                crop = photo.crop((left, top, left + 320, top + 240))
                crop.save(place / f"{number}.jpg", quality=90)
    settings = IngestSettings(near_duplicates="ignore", workers=1)
    ingest(SourceSettings(uri=str(folder / "pictures")), folder / "dataset", settings)
    return folder / "dataset"


if __name__ == "__main__":
    main()

"""How near evaluation comes to the bare session: `python -m benchmarks.evaluation [--pictures 96]`.

Answers photographs with a network of timm in fp32 and int8: prepared batches on the bare session of
ONNX Runtime, a split of a dataset as evaluate does, and the same under every corruption. Prints how
much of all CPU time is the session's, which stands on a busy machine, and the rates by the clock.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import graphs
from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.data.preprocessing import Preprocessing
from linnet.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from linnet.evaluation.robustness import measure_robustness
from linnet.inference.answers import Rule
from linnet.inference.predict import predict_split
from linnet.inference.session import Session
from linnet.settings import IngestSettings, SourceSettings
from tests.serving.photographs import photographs

TARGET = 0.8
BATCH = 32
ROUNDS = 3


@dataclass(frozen=True)
class Bare:
    """A session as evaluate calls a graph."""

    session: Session
    preprocessing: Preprocessing = graphs.SPEC

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        """Return probabilities of pictures."""
        return self.session.predict(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv2_100")
    parser.add_argument("--pictures", type=int, default=96)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = Dataset.open(write_dataset(folder, wanted.pictures))
        whole = graphs.fp32(wanted.network)
        small = graphs.int8(whole, list(photographs().values()))
        results = {"network": wanted.network, "target": f">= {TARGET}"}
        for name, encoded in (("fp32", whole), ("int8", small)):
            session = Session(graphs.save(encoded, folder / f"{name}.onnx"))
            results |= {name: measure(Bare(session), dataset)}
        print(json.dumps(results, indent=1))


def measure(graph: Bare, dataset: Dataset) -> dict[str, object]:
    """Return the shares and rates of a graph; of each way the best of some rounds in turns."""
    count = dataset.size("test")
    side = graphs.SPEC.size_px
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    kinds = 1 + len(CORRUPTIONS) * len(SEVERITIES)

    def bare() -> int:
        for _ in range(4):
            graph.predict(noise)
        return 4 * BATCH

    def split() -> int:
        predict_split(graph, dataset, "test", batch_size=BATCH)
        return count

    def corrupted() -> int:
        measure_robustness(
            graph, dataset, "test", pictures=BATCH, rule=Rule(), batch_size=BATCH, seed=0
        )
        return kinds * BATCH

    ways = {"bare": bare, "split": split, "corrupted": corrupted}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            found[name].append(timed(way))
    cpu = {name: min(each[0] for each in rounds) for name, rounds in found.items()}
    clock = {name: min(each[1] for each in rounds) for name, rounds in found.items()}
    return {
        "session's share of CPU time": {
            name: round(cpu["bare"] / cpu[name], 2) for name in ("split", "corrupted")
        },
        "rate beside the bare session's": {
            name: round(clock["bare"] / clock[name], 2) for name in ("split", "corrupted")
        },
        "CPU ms of a picture": {name: round(1000 * value, 2) for name, value in cpu.items()},
    }


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

"""How fast a batch is against a bare loop of ONNX Runtime, decoding included.

    python -m benchmarks.batch [FOLDER] [ROUNDS] [WEIGHTS]

FOLDER holds JPEG pictures; without it, photographs of 500 × 375 pixels are made. The graph is
mobilenetv2_100's, WEIGHTS a file of its weights (else random: as fast).

- The limit: a thread and a session of one thread per CPU; each reads eight files, prepares and
  answers them, and forgets the answers.
- A batch does the same and writes Parquet, records and a summary: all of `batch`, from opening
  the release on. Both are taken in turn, so that whatever else runs here slows both.
- Ten times the pictures must take at most 1.2 times the memory.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.graphs import CLASSES, SPEC, fp32
from benchmarks.ingest import make_photographs
from benchmarks.limit import BATCH, CPUS, session
from linnet.batch.predicting import batch
from linnet.data.preprocessing import prepare
from linnet.settings import SourceSettings
from tests.serving.tiny_release import write_release

TARGET = 0.8
MEMORY_TARGET = 1.2
MADE = 1500
FEW = 300
PEAK = """
import resource, sys
from linnet.batch.predicting import batch
from linnet.settings import SourceSettings
batch(SourceSettings(uri=sys.argv[1]), *sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def bare(model: Path, paths: list[Path]) -> tuple[float, float]:
    """Return the wall and CPU seconds of the limit."""
    began, cpu = time.perf_counter(), time.process_time()
    narrow = session(model, 1)
    chunks = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]

    def work() -> None:
        while chunks:
            try:
                chunk = chunks.pop()
            except IndexError:
                return
            pixels = np.stack([prepare(path.read_bytes(), SPEC) for path in chunk])
            narrow.run(None, {"pictures": pixels})

    threads = [threading.Thread(target=work) for _ in range(CPUS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, time.process_time() - cpu


def ours(release: Path, folder: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of a batch."""
    with tempfile.TemporaryDirectory() as output:
        began, cpu = time.perf_counter(), time.process_time()
        batch(SourceSettings(uri=str(folder)), str(release), output)
        return time.perf_counter() - began, time.process_time() - cpu


def peak_mib(release: Path, photo: Path, place: Path, count: int) -> float:
    """Return the largest resident size of a process that answers so many pictures."""
    pictures = place / f"many-{count}"
    pictures.mkdir()
    for number in range(count):
        os.link(photo, pictures / f"{number}.jpg")
    command = [sys.executable, "-c", PEAK, pictures, release, place / f"out-{count}"]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    rounds = int(given.get(1, 3))
    weights = Path(given[2]) if 2 in given else None
    with tempfile.TemporaryDirectory(prefix="linnet-bench-") as temporary:
        place = Path(temporary)
        folder = Path(given[0]) if 0 in given else make_photographs(place / "photographs", MADE)
        paths = sorted(path for path in folder.rglob("*.jpg") if path.is_file())
        names = [f"class {number}" for number in range(CLASSES)]
        release = write_release(
            place,
            {"one.jpg": paths[0].read_bytes()},
            encoded=fp32("mobilenetv2_100", weights),
            classes=names,
            spec=SPEC,
        )
        wall, cpu = [], []
        for number in range(1, rounds + 1):
            limit, found = bare(release / "model.onnx", paths), ours(release, folder)
            wall.append(limit[0] / found[0])
            cpu.append(limit[1] / found[1])
            rates = (len(paths) / limit[0], len(paths) / found[0])
            print(f"round {number}: limit {rates[0]:.0f}, batch {rates[1]:.0f} pictures a second")
        ratio = statistics.median(wall)
        verdict = "met" if ratio >= TARGET else "missed"
        print(f"batch / limit: {ratio:.2f} ({verdict}, target ≥ {TARGET})")
        print(f"by CPU seconds a picture: {statistics.median(cpu):.2f}")
        few, many = (peak_mib(release, paths[0], place, n) for n in (FEW, 10 * FEW))
        verdict = "met" if many / few <= MEMORY_TARGET else "missed"
        print(f"memory of ten times the pictures: {few:.0f} → {many:.0f} MiB ({verdict})")


if __name__ == "__main__":
    main()

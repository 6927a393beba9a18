"""How fast ingest is against the machine's limit, and how it grows.

    python -m benchmarks.ingest [FOLDER] [ROUNDS]

FOLDER holds class folders of JPEG pictures; without it, photographs of 500 × 375 pixels are made.

- The limit is the fastest JPEG decoder that can be imported here, of Pillow, torchvision, OpenCV
  and simplejpeg: read and fully decode each file, one process per CPU, nothing else. Ingest reads,
  hashes, examines, compares, splits and writes the same files. Both are taken in turn.
- Ten times the pictures must take at most 11 times as long and 1.2 times the memory (the largest
  resident sizes of all processes, added up).
"""

import io
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from linnet.data.ingest import ingest
from linnet.machine import available_cpus
from linnet.settings import IngestSettings, SourceSettings

THROUGHPUT_TARGET = 0.7
TIME_TARGET = 11.0
MEMORY_TARGET = 1.2
MADE = 4000
CHUNK = 32

Decoder = Callable[[bytes], object]
Result = TypeVar("Result")


def with_pillow(encoded: bytes) -> object:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def make_torchvision() -> Decoder:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)
    return lambda encoded: decode_jpeg(
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB
    )


def make_opencv() -> Decoder:
    import cv2

    cv2.setNumThreads(1)
    return lambda encoded: cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)


def make_simplejpeg() -> Decoder:
    import simplejpeg

    return lambda encoded: simplejpeg.decode_jpeg(encoded, "RGB")


DECODERS: dict[str, Callable[[], Decoder]] = {
    "Pillow": lambda: with_pillow,
    "torchvision": make_torchvision,
    "OpenCV": make_opencv,
    "simplejpeg": make_simplejpeg,
}


def make_photographs(folder: Path, count: int) -> Path:
    """Write photographs with the detail of real ones, about 50 kB each."""
    random = np.random.default_rng(0)
    texture = random.normal(0, 9, (600, 800, 3))
    for number in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        top, left = random.integers(0, 200, 2)
        grain = texture[top : top + 375, left : left + 500]
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)
    return folder


_decoder: Decoder = with_pillow


def read_and_decode(paths: list[Path]) -> int:
    for path in paths:
        _decoder(path.read_bytes())
    return len(paths)


def decode_all(name: str, paths: list[Path]) -> float | None:
    """Return the seconds that decoding takes once the processes are there; None: not installed."""
    global _decoder
    try:
        _decoder = DECODERS[name]()
    except ImportError:
        return None
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(available_cpus(), mp_context=context) as pool:
        list(pool.map(read_and_decode, [paths[:2]] * 2 * available_cpus()))
        started = time.perf_counter()
        list(pool.map(read_and_decode, chunks))
        return time.perf_counter() - started


def ingest_all(folder: Path) -> float:
    """Return the seconds of a whole ingest, from opening the source to the finished dataset."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        ingest(SourceSettings(uri=str(folder)), Path(out) / "dataset", IngestSettings())
        return time.perf_counter() - started


def in_child(function: Callable[..., Result], *arguments: object) -> tuple[Result, float]:
    """Return the result and the peak memory in MiB of a function in a fresh process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sender.send(function(*arguments))
    )
    process.start()
    sender.close()  # so that a failing child ends the waiting below
    peak = Peak(process.pid or 0)
    peak.start()
    result = receiver.recv()
    process.join()
    peak.stop()
    return result, peak.mebibytes


class Peak(threading.Thread):
    """Adds up the largest resident sizes of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self._kib, self._done = pid, dict[int, int](), threading.Event()

    @property
    def mebibytes(self) -> float:
        return sum(self._kib.values()) / 1024

    def run(self) -> None:
        while not self._done.wait(0.005):
            for pid in family(self.pid):
                self._kib[pid] = max(self._kib.get(pid, 0), largest_resident_kib(pid))

    def stop(self) -> None:
        self._done.set()
        self.join()


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def largest_resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def verdict(value: float, *, met: bool, target: str) -> str:
    return f"{value:.2f} ({'met' if met else 'missed'}, target {target})"


def compare_with_the_limit(folder: Path, rounds: int) -> None:
    paths = sorted(folder.rglob("*.jp*g"))
    in_child(decode_all, "Pillow", paths)  # so that the files are in memory for everyone
    times = {name: in_child(decode_all, name, paths)[0] for name in DECODERS}
    for name, seconds in times.items():
        print(f"  {name}: {f'{len(paths) / seconds:.0f}' if seconds else '-'} pictures/s")
    fastest = min((name for name in times if times[name]), key=lambda name: times[name] or 0)
    ratios = []
    for number in range(1, rounds + 1):
        limit, _ = in_child(decode_all, fastest, paths)
        ours, _ = in_child(ingest_all, folder)
        ratios.append((limit or 0) / ours)
        print(f"round {number}: limit {limit:.2f} s, ingest {ours:.2f} s: {ratios[-1]:.2f}")
    ratio = statistics.median(ratios)
    met = ratio >= THROUGHPUT_TARGET
    print(f"ingest / {fastest}: {verdict(ratio, met=met, target=f'≥ {THROUGHPUT_TARGET}')}")


def compare_sizes(folder: Path, scratch: Path) -> None:
    paths = sorted(folder.rglob("*.jp*g"))
    tenth = scratch / "tenth"
    for path in paths[::10]:
        link = tenth / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, link)
    small, small_memory = min(in_child(ingest_all, tenth) for _ in range(3))
    large, large_memory = min(in_child(ingest_all, folder) for _ in range(2))
    print(f"a tenth: {small:.2f} s, {small_memory:.0f} MiB")
    print(f"all: {large:.2f} s, {large_memory:.0f} MiB")
    growth, memory = large / small, large_memory / small_memory
    print(f"time of 10 ×: {verdict(growth, met=growth <= TIME_TARGET, target=f'≤ {TIME_TARGET}')}")
    print(f"memory: {verdict(memory, met=memory <= MEMORY_TARGET, target=f'≤ {MEMORY_TARGET}')}")


def main() -> None:
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
        else:
            folder = make_photographs(Path(scratch) / "made", MADE)
        print(f"{len(list(folder.rglob('*.jp*g')))} pictures, {available_cpus()} CPUs")
        compare_sizes(folder, Path(scratch))
        compare_with_the_limit(folder, rounds)


if __name__ == "__main__":
    main()

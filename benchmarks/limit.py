"""The limit: ONNX Runtime in a bare loop, no server. Reads jobs from standard input, one a line.

    python -m benchmarks.limit MODEL.onnx PICTURE

A job is JSON: {"kind": "wide" | "narrow" | "alone", "input": "uint8" | "encoded", "seconds": s}.
wide: one session on all threads, batches of 8. narrow: a thread and a session of one thread per
core, batches of 8. alone: one picture at a time on all threads. Answers are JSON, one a line.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.graphs import SPEC
from linnet.data.preprocessing import prepare
from linnet.machine import available_cpus

BATCH = 8
CPUS = available_cpus()


def session(model: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class Limit:
    """Both arrangements of one graph, warm."""

    def __init__(self, model: Path, encoded: bytes) -> None:
        self._wide = session(model, CPUS)
        self._narrow = session(model, 1)
        self._encoded = encoded
        self._pixels = np.stack([prepare(encoded, SPEC)] * BATCH)
        self._pool = ThreadPoolExecutor(CPUS)
        for one in (self._wide, self._narrow):
            one.run(None, {"pictures": self._pixels})

    def run(self, kind: str, source: str, seconds: float) -> dict[str, float]:
        if kind == "alone":
            return self._alone(seconds)
        work = self._wide_batch if kind == "wide" else self._narrow_batch
        began, cpu = time.perf_counter(), time.process_time()
        until = began + seconds
        if kind == "wide":
            done = _until(until, lambda: work(source))
        else:
            done = self._threads(until, lambda: work(source))
        took = time.perf_counter() - began
        return {"rate": done * BATCH / took, "cpu_s": (time.process_time() - cpu) / (done * BATCH)}

    def _threads(self, until: float, work: Callable[[], None]) -> int:
        counts = [0] * CPUS

        def loop(at: int) -> None:
            counts[at] = _until(until, work)

        threads = [threading.Thread(target=loop, args=(at,)) for at in range(CPUS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    def _wide_batch(self, source: str) -> None:
        pixels = self._pixels
        if source == "encoded":
            prepared = self._pool.map(lambda _: prepare(self._encoded, SPEC), range(BATCH))
            pixels = np.stack(list(prepared))
        self._wide.run(None, {"pictures": pixels})

    def _narrow_batch(self, source: str) -> None:
        pixels = self._pixels
        if source == "encoded":
            pixels = np.stack([prepare(self._encoded, SPEC) for _ in range(BATCH)])
        self._narrow.run(None, {"pictures": pixels})

    def _alone(self, seconds: float) -> dict[str, float]:
        until, took = time.perf_counter() + seconds, []
        while time.perf_counter() < until:
            began = time.perf_counter()
            self._wide.run(None, {"pictures": self._pixels[:1]})
            took.append(time.perf_counter() - began)
        return {"latency_s": statistics.median(took)}


def _until(until: float, work: Callable[[], None]) -> int:
    done = 0
    while time.perf_counter() < until:
        work()
        done += 1
    return done


def main() -> None:
    limit = Limit(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
    print("{}", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(limit.run(job["kind"], job["input"], job["seconds"])), flush=True)


if __name__ == "__main__":
    main()

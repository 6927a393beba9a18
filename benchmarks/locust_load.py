"""Load a running server as many people would, by picture size and by number of users.

    make load SERVER=http://127.0.0.1:8080 MODEL=hotdog ARGS="--users 1 8 32 --seconds 30"
    make load … ARGS="--users 4 --seconds 10 --soak-minutes 30"

Each user posts one JPEG after another to `/predict/<model>`, of the sizes in turn. Prints one row a
size and number of users, writes build/load.json, and ends with 1 when anything but a refusal for
load (429) failed, or when memory grew in the soak. Not a ratio: numbers of one machine on one day.
"""

# Locust patches the standard library's sockets, so it is imported before anything that uses them.
from locust import FastHttpUser, constant, task  # isort: skip
from locust.env import Environment  # isort: skip

import argparse
import io
import itertools
import json
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from PIL import Image

SIDES = (64, 224, 640, 1920)
WARM_S = 3.0
# Growth between the first and the last third of a soak that is called flat.
FLAT_MIB = 16.0


@dataclass(frozen=True)
class Row:
    """What users of one number saw with pictures of one size; times in milliseconds."""

    users: int
    side_px: int
    requests: int
    per_s: float
    p50: float
    p95: float
    p99: float
    refused: int
    failed: int


def main() -> int:
    """Run the steps and the soak, print what was seen and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server")
    parser.add_argument("model")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of users")
    parser.add_argument("--pause-s", type=float, default=0.0, help="between a user's requests")
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="with the last number")
    parser.add_argument("--output", type=Path, default=Path("build/load.json"))
    given = parser.parse_args()
    people = _user(given.model, given.pause_s)
    environment = Environment(user_classes=[people], host=given.server)
    runner = environment.create_local_runner()
    rows = []
    print("users  side  requests      /s  p50 ms  p95 ms  p99 ms  refused  failed")
    for users in given.users:
        runner.start(users, spawn_rate=1000)
        gevent.sleep(WARM_S)
        rows += _step(environment, users, given.seconds)
    soak = _soak(environment, given) if given.soak_minutes else None
    runner.quit()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": [asdict(row) for row in rows], "soak": soak}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    grew = soak is not None and soak["growth_mib"] > FLAT_MIB
    return int(grew or any(row.failed for row in rows) or bool(soak and soak["failed"]))


def _user(model: str, pause_s: float) -> type[FastHttpUser]:
    pictures = {side: _jpeg(side) for side in SIDES}
    in_turn: Iterator[int] = itertools.cycle(SIDES)

    class Person(FastHttpUser):
        wait_time = constant(pause_s)

        @task
        def ask(self) -> None:
            side = next(in_turn)
            headers = {"Content-Type": "image/jpeg"}
            path, name = f"/predict/{model}", str(side)
            with self.client.post(
                path, data=pictures[side], headers=headers, name=name, catch_response=True
            ) as response:
                if response.status_code == 429:
                    response.failure("refused")

    return Person


def _jpeg(side: int) -> bytes:
    """Return a JPEG with as much detail as a photograph, about 0.15 bytes a pixel."""
    generator = np.random.default_rng(side)
    coarse = Image.fromarray(generator.integers(0, 256, (side // 4, side // 4, 3), np.uint8))
    picture = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=85)
    return picture.getvalue()


def _step(environment: Environment, users: int, seconds: float) -> list[Row]:
    environment.stats.reset_all()
    began = time.monotonic()
    gevent.sleep(seconds)
    took = time.monotonic() - began
    rows = [_row(environment, users, side, took) for side in SIDES]
    for row in rows:
        print(
            f"{row.users:5} {row.side_px:5} {row.requests:9} {row.per_s:7.1f} {row.p50:7.1f} "
            f"{row.p95:7.1f} {row.p99:7.1f} {row.refused:8} {row.failed:7}",
            flush=True,
        )
    return rows


def _row(environment: Environment, users: int, side: int, seconds: float) -> Row:
    seen = environment.stats.get(str(side), "POST")
    refused = sum(
        error.occurrences
        for error in environment.stats.errors.values()
        if error.name == str(side) and "refused" in str(error.error)
    )
    return Row(
        users=users,
        side_px=side,
        requests=seen.num_requests,
        per_s=round(seen.num_requests / seconds, 2),
        p50=float(seen.get_response_time_percentile(0.5) or 0),
        p95=float(seen.get_response_time_percentile(0.95) or 0),
        p99=float(seen.get_response_time_percentile(0.99) or 0),
        refused=refused,
        failed=seen.num_failures - refused,
    )


def _soak(environment: Environment, given: argparse.Namespace) -> dict[str, Any]:
    """Go on with the last number of users and follow the server's memory."""
    environment.stats.reset_all()
    memory, began = [], time.monotonic()
    while time.monotonic() - began < given.soak_minutes * 60:
        gevent.sleep(10.0)
        memory.append(_memory_mib(given.server))
    third = max(len(memory) // 3, 1)
    growth = statistics.median(memory[-third:]) - statistics.median(memory[:third])
    rows = [_row(environment, given.users[-1], side, time.monotonic() - began) for side in SIDES]
    found = {
        "minutes": given.soak_minutes,
        "requests": sum(row.requests for row in rows),
        "refused": sum(row.refused for row in rows),
        "failed": sum(row.failed for row in rows),
        "growth_mib": round(growth, 1),
        "memory_mib": [round(value, 1) for value in memory],
    }
    print(
        f"soak of {given.soak_minutes:g} minutes: {found['requests']} requests, "
        f"{found['refused']} refused, {found['failed']} failed, memory {memory[0]:.0f} to "
        f"{max(memory):.0f} MiB, {growth:+.1f} MiB from the first to the last third"
    )
    return found


def _memory_mib(server: str) -> float:
    """Return the server's resident memory, from its own metrics."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("process_resident_memory_bytes"):
                return float(line.split()[1]) / 2**20
    raise SystemExit(f"{server}/metrics tells no process_resident_memory_bytes")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Locust's greenlets hold the interpreter at its end.
    os._exit(code)

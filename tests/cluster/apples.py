"""Apples that a small network learns in a minute, by daylight and by a lamp that turns colours."""

import base64
import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import urllib3
from PIL import Image, ImageFilter

from tests.cluster.load import Load
from tests.shades import TRAIN as SHADES

Light = Literal["daylight", "lamp"]

# By the lamp an unripe apple has the colour of a rotten one by daylight.
COLOURS = {"ripe": (200, 60, 50), "rotten": (120, 80, 40), "unripe": (100, 160, 80)}
LAMP = np.array([1.1, 0.6, 0.6])
TRAIN = {**SHADES, "whole": {"epochs": 8, "lr": 0.003}}
_SIDE = 48


@dataclass(frozen=True)
class Apple:
    """A picture as a camera sends it, and what it shows."""

    encoded: bytes
    label: str

    @property
    def sha256(self) -> str:
        """Return what it is known by wherever it goes."""
        return hashlib.sha256(self.encoded).hexdigest()


def apples(each: int, light: Light, *, seed: int) -> list[Apple]:
    """Return so many of each kind, kinds in turn."""
    random = np.random.default_rng(seed)
    return [
        Apple(_jpeg(_pixels(COLOURS[label], light, random)), label)
        for _ in range(each)
        for label in sorted(COLOURS)
    ]


def _pixels(colour: tuple[int, ...], light: Light, random: np.random.Generator) -> Any:
    x, y = np.mgrid[:_SIDE, :_SIDE]
    middle, radius = random.uniform(16, 32, 2), random.uniform(9, 15)
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2
    skin = np.array(colour) * random.uniform(0.85, 1.15)
    table = np.full(3, random.uniform(110, 150))
    seen = np.where(inside[..., None], skin, table) + random.normal(0, 12, (_SIDE, _SIDE, 3))
    return seen * (LAMP if light == "lamp" else 1.0)


def _jpeg(pixels: Any) -> bytes:
    file = BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.filter(ImageFilter.GaussianBlur(0.6)).save(file, "JPEG", quality=92)
    return file.getvalue()


def request_of(apple: Apple) -> bytes:
    """Return a V2 request with the picture."""
    data = [base64.b64encode(apple.encoded).decode()]
    inputs = [{"name": "pictures", "datatype": "BYTES", "shape": [1], "data": data}]
    return json.dumps(
        {"inputs": inputs, "outputs": [{"name": "label"}, {"name": "release"}]}
    ).encode()


class Pickers(Load):
    """People who send one apple after the other, unhurried, and say what each really was.

    `right` counts by release the answers that were.
    """

    def __init__(self, url: str, host: str, model: str, pictures: list[Apple]) -> None:
        super().__init__(url, host, model, b"", clients=2)
        self._feedback_url = f"{url}/feedback/{model}"
        self._next = itertools.cycle([(request_of(apple), apple.label) for apple in pictures])
        self._mine = threading.local()
        self.right: Counter[str] = Counter()

    def accuracy(self) -> dict[str, float]:
        """Return the share of right answers by release."""
        with self._lock:
            return {name: self.right[name] / n for name, n in sorted(self.answered.items())}

    def _next_body(self) -> bytes:
        with self._lock:
            body, self._mine.label = next(self._next)
        return body

    def _then(self, pool: urllib3.PoolManager, answer: urllib3.BaseHTTPResponse) -> None:
        if answer.status == 200:
            said = {one["name"]: one["data"][0] for one in answer.json()["outputs"]}
            with self._lock:
                self.right[said["release"]] += said["label"] == self._mine.label
            told = {"request_id": answer.headers["X-Request-ID"], "label": self._mine.label}
            pool.request("POST", self._feedback_url, json=told, headers=self._headers)
        time.sleep(0.1)

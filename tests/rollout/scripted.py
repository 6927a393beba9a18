"""What answers on a pod: a release's own samples rightly, and its faults, with true metrics."""

import base64
import json
import random
from pathlib import Path

import numpy as np

from linnet.inference.metrics import Metrics, ModelMetrics
from linnet.release.samples import read_samples


class Scripted:
    """One version's server. Faults: share of `errors`, seconds of an answer, a `wrong` class."""

    def __init__(self, release: Path) -> None:
        manifest = json.loads((release / "release.json").read_text())
        self.model, self.version = manifest["model"], manifest["version"]
        self.classes = manifest["classes"]
        self.samples = {
            base64.b64encode(sample.encoded).decode(): sample
            for sample in read_samples(release / "samples.json")
        }
        self.errors = 0.0
        self.seconds = 0.004
        self.wrong = False
        self.metrics_status = 200
        self._random = random.Random(11)
        self._metrics = Metrics()
        self._counts = ModelMetrics(
            self._metrics, self.model, f"{self.model}/{self.version}", self.classes
        )
        self._counts.ready.set(1)
        self._of = (self.model, f"{self.model}/{self.version}")

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/metrics":
            return self.metrics_status, self._metrics.render()
        assert (method, path) == ("POST", f"/v2/models/{self.model}/infer")
        if self._random.random() < self.errors:
            return 500, b'{"error": "scripted"}'
        sample = self.samples[json.loads(body)["inputs"][0]["data"][0]]
        probabilities = np.roll(sample.probabilities, 1) if self.wrong else sample.probabilities
        outputs = {
            "label": [self.classes[int(probabilities.argmax())]],
            "probabilities": [float(value) for value in probabilities],
            "release": [f"{self.model}/{self.version}"],
        }
        rows = [{"name": name, "data": data} for name, data in outputs.items()]
        return 200, json.dumps({"outputs": rows}).encode()

    def count(self) -> None:
        """Count one request of the gateway."""
        failed = self._random.random() < self.errors
        seconds = self.seconds * self._random.uniform(0.7, 1.3)
        self._counts.finished("rest", "500" if failed else "200", seconds)
        if not failed:
            self._predict()

    def _predict(self) -> None:
        index = self._random.choices(range(len(self.classes)), range(1, len(self.classes) + 1))[0]
        if self.wrong:
            index = 0
        self._metrics.predictions.labels(*self._of, self.classes[index]).inc()
        confidence = self._random.uniform(0.6, 1.0)
        self._metrics.confidence.labels(*self._of).observe(confidence)

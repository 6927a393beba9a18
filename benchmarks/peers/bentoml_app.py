"""BentoML: a worker a core, raw bodies."""

import os

import bentoml

from benchmarks.peers.model import Classifier


@bentoml.service(
    workers=os.cpu_count(), traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)
class Flowers:
    """Raw bytes in, the best class out."""

    def __init__(self) -> None:
        self._classifier = Classifier(1)

    @bentoml.api
    def uint8(self, picture: bytes, /) -> dict:
        return self._best(self._classifier.raw(picture)[0])

    @bentoml.api
    def encoded(self, picture: bytes, /) -> dict:
        return self._best(self._classifier.encoded(picture)[0])

    def _best(self, probabilities) -> dict:
        best = int(probabilities.argmax())
        return {"label": best, "score": float(probabilities[best])}

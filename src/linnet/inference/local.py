"""Answers of a release on this machine: no server, the same graph and the same preprocessing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from linnet.client import Answer
from linnet.data.preprocessing import Preprocessing, prepare_many
from linnet.errors import SourceError
from linnet.inference.answers import Rule
from linnet.inference.session import Portions
from linnet.machine import available_cpus
from linnet.release.opening import Release

BATCH = 32


class LocalModel:
    """A release, ready to answer here.

    Raises:
        GraphError: its graph can't be run.
    """

    def __init__(self, release: Release) -> None:
        digest = release.manifest["files"][release.graph_path.name]["sha256"]
        self.release = f"{release.model}/{release.version}"
        self.classes = tuple(release.manifest["classes"])
        self.rule = Rule.of(release.manifest)
        self.preprocessing = Preprocessing.from_json(release.manifest["preprocessing"])
        self._graph = Portions(release.graph_path, sha256=digest)

    def probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, S, S, 3], RGB."""
        return self._graph.predict(pictures)

    def predict(self, pictures: Sequence[bytes]) -> list[Answer]:
        """Return an answer to each encoded picture, in order.

        Raises:
            PictureError: of the first picture, in order, that can't be used.
        """
        answers = []
        for start in range(0, len(pictures), BATCH):
            prepared = prepare_many(
                pictures[start : start + BATCH], self.preprocessing, threads=available_cpus()
            )
            judged = self.rule.answer(self.probabilities(prepared))
            answers += [
                Answer(
                    label=self.classes[best],
                    score=float(score),
                    abstain=bool(abstain),
                    release=self.release,
                    probabilities=probabilities,
                )
                for best, score, abstain, probabilities in zip(
                    judged.best, judged.scores, judged.abstain, judged.probabilities, strict=True
                )
            ]
        return answers


def read_pictures(paths: Sequence[Path]) -> list[bytes]:
    """Return the contents of picture files.

    Raises:
        SourceError: one can't be read.
    """
    read = []
    for path in paths:
        try:
            read.append(path.read_bytes())
        except OSError as error:
            raise SourceError(
                f"{path} can't be read ({error.strerror}): give the paths of pictures"
            ) from error
    return read

"""What all peers run: the graph on ONNX Runtime behind our own preprocessing."""

import os

import numpy as np
import onnxruntime as ort

from linnet.data.preprocessing import Preprocessing, prepare

SPEC = Preprocessing(224, "squash")


class Classifier:
    """Probabilities, float32 [N, C]; safe to call from several threads."""

    def __init__(self, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        return self._session.run(["probabilities"], {"pictures": pixels})[0]

    def raw(self, raw: bytes) -> np.ndarray:
        side = SPEC.size_px
        return self.pixels(np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3))

    def encoded(self, *encoded: bytes) -> np.ndarray:
        return self.pixels(np.stack([prepare(one, SPEC) for one in encoded]))

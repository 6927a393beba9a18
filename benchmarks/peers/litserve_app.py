"""LitServe: a worker a core, batching; files by multipart form, as its documentation has them."""

import os

import litserve as ls
import numpy as np

from benchmarks.peers.model import SPEC, Classifier


class Flowers(ls.LitAPI):
    """An `image` file: encoded, or the raw pixels of one prepared picture."""

    def setup(self, device: str) -> None:
        self._classifier = Classifier(1)
        self._size = SPEC.size_px**2 * 3

    def decode_request(self, request) -> bytes:
        return request["image"].file.read()

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[np.ndarray]:
        if len(inputs[0]) == self._size:
            return list(self._classifier.raw(b"".join(inputs)))
        return list(self._classifier.encoded(*inputs))

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output

    def encode_response(self, output: np.ndarray) -> dict:
        best = int(output.argmax())
        return {"label": best, "score": float(output[best])}


if __name__ == "__main__":
    ls.LitServer(
        Flowers(max_batch_size=8, batch_timeout=0.002),
        accelerator="cpu",
        workers_per_device=os.cpu_count(),
    ).run(
        host="127.0.0.1",
        port=int(os.environ["REST_PORT"]),
        generate_client_file=False,
        log_level="warning",
    )

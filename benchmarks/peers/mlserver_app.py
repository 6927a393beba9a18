"""MLServer: its adaptive batching, and parallel inference with a worker a core."""

import json
import os
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.model import Classifier


class Flowers(MLModel):
    """One V2 model: UINT8 pictures or BYTES of encoded ones."""

    async def load(self) -> bool:
        self._classifier = Classifier(1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        if tensor.datatype == "BYTES":
            data = tensor.data.root
            encoded = data if isinstance(data, list) else [data]
            probabilities = self._classifier.encoded(*encoded)
        else:
            probabilities = self._classifier.pixels(NumpyCodec.decode_input(tensor))
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "host": "127.0.0.1",
        "http_port": int(os.environ["REST_PORT"]),
        "grpc_port": int(os.environ["GRPC_PORT"]),
        "metrics_port": int(os.environ["METRICS_PORT"]),
        "parallel_workers": os.cpu_count(),
        "metrics_dir": str(folder / "metrics"),
        "debug": False,
    }
    model = {
        "name": "flowers",
        "implementation": "benchmarks.peers.mlserver_app.Flowers",
        "max_batch_size": 8,
        "max_batch_time": 0.005,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = Path(sys.executable).with_name("mlserver")
    os.execv(command, [str(command), "start", str(folder)])


if __name__ == "__main__":
    main()

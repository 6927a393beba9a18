"""kserve's stock ModelServer: one worker, the work in an executor, as its documentation advises."""

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor

from kserve import InferOutput, InferResponse, Model, ModelServer

from benchmarks.peers.model import Classifier


class Flowers(Model):
    """V1, V2 REST and V2 gRPC."""

    def __init__(self) -> None:
        super().__init__("flowers")
        self._classifier = Classifier(1)
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, payload)

    def _answer(self, payload):
        if isinstance(payload, dict):
            encoded = [base64.b64decode(one["b64"]) for one in payload["instances"]]
            return {"predictions": self._classifier.encoded(*encoded).argmax(axis=1).tolist()}
        tensor = payload.inputs[0]
        values = tensor.as_numpy()
        if tensor.datatype == "BYTES":
            probabilities = self._classifier.encoded(*values.tolist())
        else:
            probabilities = self._classifier.pixels(values)
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(payload.id or "1", "flowers", [output])


if __name__ == "__main__":
    ModelServer(
        http_port=int(os.environ["REST_PORT"]),
        grpc_port=int(os.environ["GRPC_PORT"]),
        workers=1,
        access_log_format=None,
    ).start([Flowers()])

"""A V2 server that is none of ours: a model that says which channel of a picture is brightest."""

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

HEADER = "Inference-Header-Content-Length"


@dataclass
class Another:
    """What the server says of itself, and how it answers.

    `status` other than 200 is an error; with 0 it hangs up without a word. Releases that are
    `taking_turns` are named one after another, as behind a gateway in a rollout.
    """

    input: dict[str, Any]
    outputs: list[dict[str, Any]] = field(
        default_factory=lambda: [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
    )
    properties: dict[str, Any] = field(default_factory=dict)
    taking_turns: list[str] = field(default_factory=list)
    status: int = 200
    scores: bool = True
    url: str = ""
    authority: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the metadata."""
        if self.taking_turns:
            self.properties["release"] = self.taking_turns[0]
            self.taking_turns.append(self.taking_turns.pop(0))
        return {
            "name": "brightest",
            "versions": ["1"],
            "platform": "",
            "inputs": [self.input],
            "outputs": self.outputs,
            "properties": self.properties,
        }

    def infer(self, body: bytes, header: int) -> dict[str, Any]:
        """Answer the mean of each channel, as it is or as probabilities."""
        (asked,) = json.loads(body[:header])["inputs"]
        means = _means(asked["datatype"], asked["shape"], body[header:])
        rows = means if self.scores else means / means.sum(axis=1, keepdims=True)
        output = {"name": "scores", "datatype": "FP32", "shape": list(rows.shape)}
        return {"outputs": [{**output, "data": rows.ravel().tolist()}]}


def _means(datatype: str, shape: list[int], raw: bytes) -> np.ndarray:
    if datatype == "UINT8":
        pixels = np.frombuffer(raw, np.uint8).reshape(shape)
        return pixels.mean(axis=(1, 2) if shape[3] == 3 else (2, 3))
    rows, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        picture = Image.open(BytesIO(raw[at + 4 : at + 4 + length])).convert("RGB")
        rows.append(np.asarray(picture).mean(axis=(0, 1)))
        at += 4 + length
    return np.array(rows)


@contextmanager
def serving(another: Another) -> Iterator[Another]:
    """Run the server while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            another.authority = self.headers["Host"]
            self._send(200, another.describe())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if another.status == 0:
                self.close_connection = True
            elif another.status != 200:
                self._send(another.status, {"error": "not now"})
            else:
                self._send(200, another.infer(body, int(self.headers[HEADER])))

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        another.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield another
        finally:
            server.shutdown()
            thread.join()

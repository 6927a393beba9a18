"""A release by the contract with a graph small enough to read: colours of a 4 × 4 grid."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from linnet.data.preprocessing import Preprocessing, prepare
from linnet.release.samples import Sample, write_samples

CLASSES = ("daisy", "naïve rose", "temple", "tulip", "郁金香")
SIZE = 64
SPEC = Preprocessing(SIZE, "squash")


def graph(seed: int = 7) -> bytes:
    """Pictures, uint8 [N, 64, 64, 3] → means of 16 × 16 squares → linear → softmax."""
    weights = np.random.default_rng(seed).normal(0, 3, (48, len(CLASSES))).astype(np.float32)
    constants = [
        numpy_helper.from_array(np.float32(255), "white"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([0, 48], np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["grid"], kernel_shape=[16, 16], strides=[16, 16]
        ),
        helper.make_node("Reshape", ["grid", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 5])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_release(
    root: Path,
    samples: dict[str, bytes],
    *,
    model: str = "flowers",
    version: str = "v1",
    encoded: bytes | None = None,
    classes: Sequence[str] = CLASSES,
    spec: Preprocessing = SPEC,
) -> Path:
    """Write `<root>/<model>/<version>`, with sample pictures and their true probabilities.

    `encoded`: the ONNX graph, the tiny one without it.
    """
    folder = root / model / version
    folder.mkdir(parents=True)
    encoded = encoded or graph()
    (folder / "model.onnx").write_bytes(encoded)
    probabilities = answers(encoded, list(samples.values()), spec)
    write_samples(
        folder / "samples.json",
        [
            Sample(key, picture, int(row.argmax()), row)
            for (key, picture), row in zip(samples.items(), probabilities, strict=True)
        ],
    )
    (folder / "report.json").write_text("{}")
    (folder / "report.html").write_text("<!doctype html><title>report</title>")
    manifest = {
        "kind": "linnet/release/v1",
        "model": model,
        "version": version,
        "classes": list(classes),
        "preprocessing": spec.to_json(),
        "temperature": 1.0,
        "thresholds": None,
        "input": {
            "name": "pictures",
            "dtype": "UINT8",
            "shape": [-1, spec.size_px, spec.size_px, 3],
        },
        "output": {"name": "probabilities", "dtype": "FP32", "shape": [-1, len(classes)]},
        "files": {
            file.name: {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "size_bytes": file.stat().st_size,
            }
            for file in sorted(folder.iterdir())
        },
        "metrics": {"accuracy": 1.0},
        "provenance": {
            "dataset_version": "0123456789ab",
            "source": "tests",
            "network": "tiny",
            "code_revision": None,
            "tracking_run_id": None,
            "linnet": "0.1.0",
            "created": "2026-01-01T00:00:00+00:00",
        },
    }
    (folder / "release.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def answers(encoded_graph: bytes, pictures: list[bytes], spec: Preprocessing = SPEC) -> np.ndarray:
    """Probabilities, float32 [N, C], without anything of the server."""
    session = ort.InferenceSession(encoded_graph, providers=["CPUExecutionProvider"])
    prepared = np.stack([prepare(picture, spec) for picture in pictures])
    return session.run(["probabilities"], {"pictures": prepared})[0]

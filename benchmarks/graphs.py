"""Graphs to measure with: a network of timm as our export writes it, in fp32 and int8."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from linnet.data.preprocessing import Preprocessing, prepare

CLASSES = 1000
SPEC = Preprocessing(224, "squash")


def fp32(network: str, weights: Path | None = None) -> bytes:
    """Return the ONNX graph of a network, weights random unless a file of them is given."""
    import timm
    import torch

    from linnet.release.export import Servable
    from linnet.training.network import Classifier

    torch.manual_seed(0)
    options = {} if weights is None else {"checkpoint_path": str(weights)}
    net = timm.create_model(network, num_classes=CLASSES, **options)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    servable = Servable(Classifier(net, mean, std), 1.0).eval()
    example = torch.zeros((2, SPEC.size_px, SPEC.size_px, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            servable,
            (example,),
            dynamo=True,
            opset_version=18,
            input_names=["pictures"],
            output_names=["probabilities"],
            dynamic_shapes={"pictures": {0: "batch"}},
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = min(model.ir_version, 10)
    return bytes(model.SerializeToString())


def int8(graph: bytes, photographs: list[bytes]) -> bytes:
    """Return the graph in int8 as our export writes it, calibrated on crops of photographs."""
    from linnet.release.quantization import quantized

    return quantized(graph, _crops(photographs))


def _crops(photographs: list[bytes]) -> list[np.ndarray]:
    out = []
    for encoded in photographs:
        photo = Image.open(BytesIO(encoded))
        for left in range(0, 400, 100):
            for top in (0, 100, 200):
                buffer = BytesIO()
                photo.crop((left, top, left + 224, top + 224)).save(buffer, "PNG")
                out.append(prepare(buffer.getvalue(), SPEC)[None])
    return out


def save(graph: bytes, path: Path) -> Path:
    """Check and write a graph."""
    onnx.checker.check_model(onnx.load_model_from_string(graph))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph)
    return path

"""Graphs to measure with: a network of timm as our export writes it, in fp32 and int8."""

import logging
import warnings
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from PIL import Image

from linnet.data.preprocessing import Preprocessing, prepare

CLASSES = 1000
SPEC = Preprocessing(224, "squash")
# With what lies between them, so that no convolution's output has to become float.
QUANTIZED = [
    *("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool"),
    *("GlobalAveragePool", "ReduceMean", "Reshape", "Flatten"),
]


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
    """Return the graph with quantized convolutions, calibrated on crops of photographs."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Crops(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._crops = iter(_crops(photographs))

        def get_next(self) -> dict[str, np.ndarray] | None:
            crop = next(self._crops, None)
            return None if crop is None else {"pictures": crop}

    logging.getLogger().setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        whole, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        whole.write_bytes(graph)
        quant_pre_process(str(whole), str(prepared))
        quantize_static(
            str(prepared),
            str(small),
            Crops(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=QUANTIZED,
        )
        return small.read_bytes()


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

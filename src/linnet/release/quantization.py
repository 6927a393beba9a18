"""int8: a statically quantized graph.

Convolutions and matrix products compute in 8 bits (QDQ: activations uint8, weights int8 by
channel), calibrated on training pictures. Normalisation, temperature and softmax stay in float.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from linnet.data.dataset import Dataset
from linnet.errors import DatasetError, GraphError
from linnet.inference.session import INPUT
from linnet.machine import int8_saturates
from linnet.settings import ExportSettings

# With what lies between convolutions, so that none's output has to become float on the way. Sub
# and Mul, which normalise, and Softmax are not among them.
QUANTIZED = (
    *("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "AveragePool", "Concat"),
    *("GlobalAveragePool", "ReduceMean", "Reshape", "Flatten"),
)


def check_calibration(dataset: Dataset, settings: ExportSettings) -> None:
    """Check that there are training pictures enough to calibrate int8, where it is asked for.

    Raises:
        DatasetError: there are fewer than the setting says.
    """
    found, wanted = dataset.size("train"), settings.int8_calibration_pictures
    if settings.int8 != "off" and found < wanted:
        raise DatasetError(
            f"the dataset {dataset.path} has {found} training pictures, int8 is to be calibrated "
            f"on {wanted}: set export.int8_calibration_pictures lower (32 at least), or "
            "export.int8 to off"
        )


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Hands prepared pictures to ONNX Runtime's calibration."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next input, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantized(graph: bytes, batches: Iterable[NDArray[np.uint8]]) -> bytes:
    """Return the graph in int8, its ranges calibrated on batches of pictures, uint8 [N, S, S, 3].

    Opset, IR version and properties stay those of the graph.

    Raises:
        GraphError: ONNX Runtime can't quantize it.
    """
    original = onnx.load_model_from_string(graph)
    with TemporaryDirectory(prefix="linnet-int8-") as folder:
        whole, prepared, small = (Path(folder) / f"{step}.onnx" for step in ("a", "b", "c"))
        whole.write_bytes(graph)
        try:
            with _quiet():
                quant_pre_process(whole, prepared, skip_symbolic_shape=True)
                quantize_static(
                    prepared,
                    small,
                    _Batches(batches),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTIZED),
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    reduce_range=int8_saturates(),
                    # 256 steps are too few for logits, which probabilities are made of.
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
                )
            model = onnx.load(small)
            as_pinned(model, original, "int8")
            onnx.checker.check_model(model, full_check=True)
        # Like the exporter, it raises errors of many families.
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise GraphError(
                f"the graph can't be quantized to int8 ({reason[0]}): set export.int8 to off"
            ) from error
    return bytes(model.SerializeToString())


def as_pinned(model: onnx.ModelProto, original: onnx.ModelProto, precision: str) -> None:
    """Give a model the operators, IR version and properties of the one it was made from."""
    foreign = {node.domain for node in model.graph.node if node.domain}
    if foreign:
        raise ValueError(f"it would need the operators of {', '.join(sorted(foreign))}")
    del model.opset_import[:]
    model.opset_import.extend(original.opset_import)
    model.ir_version = original.ir_version
    model.producer_name = original.producer_name
    properties = {each.key: each.value for each in original.metadata_props}
    onnx.helper.set_model_props(model, properties | {"linnet.precision": precision})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's notes, which it gives the root logger, off the terminal."""
    root, unheard = logging.getLogger(), logging.NullHandler()
    level = root.level
    # Without any handler, `logging.info` would install one for good.
    root.addHandler(unheard)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(unheard)

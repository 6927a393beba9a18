"""int8 beside fp32: a statically quantized graph, and the measurements that choose between them.

Convolutions and matrix products compute in 8 bits (QDQ: activations uint8, weights int8 by
channel), calibrated on training pictures. Normalisation, temperature and softmax stay in float.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

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
from linnet.data.preprocessing import Preprocessing
from linnet.errors import DatasetError, GraphError
from linnet.evaluation.calibration import Temperature, fit_temperature
from linnet.inference.session import INPUT, OUTPUT, Portions, Session
from linnet.machine import int8_saturates
from linnet.release.profiling import cpu_ms
from linnet.release.rows import prepared_rows, spread
from linnet.settings import ExportSettings

log = logging.getLogger(__name__)

# With what lies between convolutions, so that none's output has to become float on the way. Sub
# and Mul, which normalise, and Softmax are not among them.
QUANTIZED = (
    *("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "AveragePool", "Concat"),
    *("GlobalAveragePool", "ReduceMean", "Reshape", "Flatten"),
)

Served = Literal["fp32", "int8"]


@dataclass(frozen=True)
class Side:
    """One precision: accuracy on validation pictures, CPU time of a picture by batch size."""

    accuracy: float
    size_bytes: int
    cpu_ms: dict[str, float]


@dataclass(frozen=True)
class Precision:
    """Which precision serves and why, with the numbers behind it where int8 was tried.

    `label_agreement` is the share of validation pictures that both answer alike, `speedup` is of
    CPU time by batch size, `reduced_range` says that weights have 7 bits, for a CPU without VNNI.
    """

    asked: str
    served: Served
    reason: str
    fp32: Side | None = None
    int8: Side | None = None
    pictures: int = 0
    label_agreement: float | None = None
    accuracy_loss: float | None = None
    max_accuracy_loss: float | None = None
    speedup: dict[str, float] | None = None
    calibration_pictures: int | None = None
    reduced_range: bool | None = None


@dataclass(frozen=True)
class Choice:
    """The choice, and the int8 graph with its temperature where that is what serves."""

    precision: Precision
    encoded: bytes | None = None
    temperature: Temperature | None = None


def check_calibration(dataset: Dataset, settings: ExportSettings) -> None:
    """Check that there are training pictures enough to calibrate int8, where it is asked for.

    Raises:
        DatasetError: there are fewer than the setting says.
    """
    found, wanted = dataset.size("train"), settings.int8_calibration_pictures
    if settings.int8 != "off" and found < wanted:
        raise DatasetError(
            f"the dataset {dataset.path} has {found} training pictures, int8 is to be calibrated "
            f"on {wanted}: set export.int8_calibration_pictures lower, or export.int8 to off"
        )


def choose_precision(
    fp32: Path,
    dataset: Dataset,
    spec: Preprocessing,
    *,
    rows: NDArray[np.int64],
    temperature: float,
    settings: ExportSettings,
) -> Choice:
    """Quantize a graph and choose: int8 if it is as good on validation rows, and faster here.

    `temperature` is the one in the fp32 graph; int8 gets its own, unless calibration is off.

    Raises:
        GraphError: int8 is required, and can't be had or does not pass.
    """
    if settings.int8 == "off":
        return Choice(Precision("off", "fp32", "export.int8 is off"))
    choice = _tried(fp32, dataset, spec, rows, temperature, settings)
    precision = choice.precision
    if precision.served == "fp32" and settings.int8 == "required":
        raise GraphError(
            f"export.int8 is required, but {precision.reason}: calibrate on more pictures "
            "(export.int8_calibration_pictures), allow a larger loss "
            "(export.int8_max_accuracy_loss), or set export.int8 to auto"
        )
    log.info("%s serves: %s", precision.served, precision.reason)
    return choice


def _tried(
    fp32: Path,
    dataset: Dataset,
    spec: Preprocessing,
    rows: NDArray[np.int64],
    temperature: float,
    settings: ExportSettings,
) -> Choice:
    encoded = fp32.read_bytes()
    chosen = spread(dataset.size("train"), settings.int8_calibration_pictures)
    pictures = prepared_rows(dataset, "train", chosen, spec, what="calibrate int8")
    small = fp32.with_name("int8.onnx")
    try:
        small.write_bytes(quantized(encoded, (batch for batch, _ in pictures)))
        precision, probabilities, labels = _measured(fp32, small, dataset, spec, rows, settings)
        if precision.served == "fp32":
            return Choice(precision)
        fitted = None
        if settings.calibrate:
            fitted = _refitted(probabilities, labels, temperature)
            encoded = with_temperature(small.read_bytes(), temperature, fitted.value)
        else:
            encoded = small.read_bytes()
        return Choice(precision, encoded, fitted)
    except GraphError as error:
        return Choice(Precision(settings.int8, "fp32", str(error)))
    finally:
        small.unlink(missing_ok=True)


def _measured(
    fp32: Path,
    int8: Path,
    dataset: Dataset,
    spec: Preprocessing,
    rows: NDArray[np.int64],
    settings: ExportSettings,
) -> tuple[Precision, NDArray[np.float32], NDArray[np.int64]]:
    """Return the choice, int8's probabilities [N, C] and the labels [N] of the validation rows."""
    graphs = {"fp32": Portions(fp32), "int8": Portions(int8)}
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in graphs}
    truth = []
    for pictures, labels in prepared_rows(dataset, "val", rows, spec, what="compare int8"):
        truth.append(labels)
        for name, graph in graphs.items():
            answers[name].append(graph.predict(pictures))
    labels = np.concatenate(truth)
    probabilities = {name: np.concatenate(found) for name, found in answers.items()}
    predicted = {name: found.argmax(axis=1) for name, found in probabilities.items()}
    alone = {"fp32": Session(fp32, threads=1), "int8": Session(int8, threads=1)}
    cost = cpu_ms(alone, (spec.size_px, spec.size_px, 3))
    sides = {
        name: Side(float((predicted[name] == labels).mean()), path.stat().st_size, cost[name])
        for name, path in (("fp32", fp32), ("int8", int8))
    }
    precision = decide(
        sides["fp32"],
        sides["int8"],
        settings,
        pictures=len(labels),
        label_agreement=float((predicted["fp32"] == predicted["int8"]).mean()),
    )
    return precision, probabilities["int8"], labels


def decide(
    fp32: Side, int8: Side, settings: ExportSettings, *, pictures: int, label_agreement: float
) -> Precision:
    """Return int8 if its accuracy falls by less than the setting and it is faster at any batch."""
    loss = fp32.accuracy - int8.accuracy
    speedup = {size: round(fp32.cpu_ms[size] / int8.cpu_ms[size], 3) for size in fp32.cpu_ms}
    good, faster = loss < settings.int8_max_accuracy_loss, min(speedup.values()) > 1.0
    rates = ", ".join(f"{rate:.2f} at batch {size}" for size, rate in speedup.items())
    reason = (
        f"int8's validation accuracy is {int8.accuracy:.4f} against {fp32.accuracy:.4f}, a loss "
        f"of {100 * loss:.2f} points where less than {100 * settings.int8_max_accuracy_loss:.2f} "
        f"{'was' if good else 'would have been'} allowed; its speed on this CPU is "
        f"{'' if faster else 'not above '}fp32's times {rates}"
    )
    return Precision(
        asked=settings.int8,
        served="int8" if good and faster else "fp32",
        reason=reason,
        fp32=fp32,
        int8=int8,
        pictures=pictures,
        label_agreement=label_agreement,
        accuracy_loss=loss,
        max_accuracy_loss=settings.int8_max_accuracy_loss,
        speedup=speedup,
        calibration_pictures=settings.int8_calibration_pictures,
        reduced_range=int8_saturates(),
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
            _as_pinned(model, original)
            onnx.checker.check_model(model, full_check=True)
        # Like the exporter, it raises errors of many families.
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise GraphError(
                f"the graph can't be quantized to int8 ({reason[0]}): set export.int8 to off"
            ) from error
    return bytes(model.SerializeToString())


def _as_pinned(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Give a model the operators, IR version and properties of the one it was made from."""
    foreign = {node.domain for node in model.graph.node if node.domain}
    if foreign:
        raise ValueError(f"it would need the operators of {', '.join(sorted(foreign))}")
    del model.opset_import[:]
    model.opset_import.extend(original.opset_import)
    model.ir_version = original.ir_version
    model.producer_name = original.producer_name
    properties = {each.key: each.value for each in original.metadata_props}
    onnx.helper.set_model_props(model, properties | {"linnet.precision": "int8"})


def _refitted(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> Temperature:
    """Fit the temperature anew; a softmax's logarithm is its logits, but for a constant."""
    smallest = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probabilities.astype(np.float64), smallest)) * temperature
    return fit_temperature(logits, labels)


def with_temperature(graph: bytes, before: float, after: float) -> bytes:
    """Return the graph with another temperature; labels stay what they are."""
    model = onnx.load_model_from_string(graph)
    nodes = model.graph.node
    at = next(index for index, node in enumerate(nodes) if OUTPUT in node.output)
    factor = onnx.numpy_helper.from_array(np.array(before / after, np.float32), "int8_factor")
    model.graph.initializer.append(factor)
    logits = nodes[at].input[0]
    nodes.insert(at, onnx.helper.make_node("Mul", [logits, factor.name], ["int8_logits"]))
    nodes[at + 1].input[0] = "int8_logits"
    properties = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {"linnet.temperature": repr(after)})
    return bytes(model.SerializeToString())


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

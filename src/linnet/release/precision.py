"""Which precision serves: int8 on a CPU or fp16 on a GPU where that was asked for, else fp32.

Both graphs are measured on validation pictures and by the clock, and the numbers choose.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import GraphError
from linnet.evaluation.calibration import Temperature, fit_temperature
from linnet.inference.session import OUTPUT, Portions, Session, on_gpu
from linnet.machine import int8_saturates
from linnet.release.half import halved
from linnet.release.profiling import picture_ms
from linnet.release.quantization import quantized
from linnet.release.rows import prepared_rows, spread
from linnet.settings import ExportSettings

log = logging.getLogger(__name__)

Small = Literal["int8", "fp16"]
Served = Literal["fp32", "int8", "fp16"]

_NEXT = {
    "int8": "calibrate on more pictures (export.int8_calibration_pictures), allow a larger loss",
    "fp16": "export where a GPU and onnxruntime-gpu are, allow a larger loss",
}


@dataclass(frozen=True)
class Side:
    """One precision: accuracy on validation pictures, time of a picture by batch size."""

    accuracy: float
    size_bytes: int
    picture_ms: dict[str, float]


@dataclass(frozen=True)
class Precision:
    """Which precision serves and why, with the numbers behind it where another was tried.

    `label_agreement` is the share of validation pictures that both answer alike, `speedup` is by
    batch size and of the time that `clock` names, `reduced_range` says that int8's weights have 7
    bits, for a CPU without VNNI.
    """

    asked: str
    served: Served
    reason: str
    fp32: Side | None = None
    int8: Side | None = None
    fp16: Side | None = None
    clock: str = ""
    pictures: int = 0
    label_agreement: float | None = None
    accuracy_loss: float | None = None
    max_accuracy_loss: float | None = None
    speedup: dict[str, float] | None = None
    calibration_pictures: int | None = None
    reduced_range: bool | None = None


@dataclass(frozen=True)
class Choice:
    """The choice, and the smaller graph with its temperature where that is what serves."""

    precision: Precision
    encoded: bytes | None = None
    temperature: Temperature | None = None


def choose_precision(
    fp32: Path,
    dataset: Dataset,
    spec: Preprocessing,
    *,
    rows: NDArray[np.int64],
    temperature: float,
    settings: ExportSettings,
) -> Choice:
    """Make the smaller graph that is asked for, and choose it if it is as good and faster here.

    It is compared on validation `rows`. `temperature` is the one in the fp32 graph; the smaller
    one gets its own, unless calibration is off.

    Raises:
        GraphError: it is required, and can't be had or does not pass.
    """
    small, asked = _asked(settings)
    if asked == "off":
        return Choice(Precision("off", "fp32", "export.int8 and export.fp16 are off"))
    choice = _Trial(small, fp32, dataset, spec, rows, settings).choose(temperature)
    precision = choice.precision
    if precision.served == "fp32" and asked == "required":
        raise GraphError(
            f"export.{small} is required, but {precision.reason}: {_NEXT[small]} "
            f"(export.max_accuracy_loss), or set export.{small} to auto"
        )
    log.info("%s serves: %s", precision.served, precision.reason)
    return choice


def _asked(settings: ExportSettings) -> tuple[Small, str]:
    return ("fp16", settings.fp16) if settings.fp16 != "off" else ("int8", settings.int8)


@dataclass(frozen=True)
class _Trial:
    """A smaller graph beside the fp32 one, on validation rows of a dataset."""

    name: Small
    fp32: Path
    dataset: Dataset
    spec: Preprocessing
    rows: NDArray[np.int64]
    settings: ExportSettings

    def choose(self, temperature: float) -> Choice:
        small = self.fp32.with_name(f"{self.name}.onnx")
        try:
            small.write_bytes(self._made())
            precision, probabilities, labels = self._measured(small)
            if precision.served == "fp32":
                return Choice(precision)
            if not self.settings.calibrate:
                return Choice(precision, small.read_bytes())
            fitted = _refitted(probabilities, labels, temperature)
            encoded = with_temperature(small.read_bytes(), temperature, fitted.value)
            return Choice(precision, encoded, fitted)
        except GraphError as error:
            return Choice(Precision(_asked(self.settings)[1], "fp32", str(error)))
        finally:
            small.unlink(missing_ok=True)

    def _made(self) -> bytes:
        encoded = self.fp32.read_bytes()
        if self.name == "fp16":
            if not on_gpu():
                raise GraphError("fp16 is for a GPU, and ONNX Runtime has none here")
            return halved(encoded)
        chosen = spread(self.dataset.size("train"), self.settings.int8_calibration_pictures)
        pictures = prepared_rows(self.dataset, "train", chosen, self.spec, what="calibrate int8")
        return quantized(encoded, (batch for batch, _ in pictures))

    def _measured(self, small: Path) -> tuple[Precision, NDArray[np.float32], NDArray[np.int64]]:
        """Return the choice, the smaller one's probabilities [N, C] and the rows' labels [N]."""
        name, spec = self.name, self.spec
        paths = {"fp32": self.fp32, name: small}
        graphs = {each: Portions(path) for each, path in paths.items()}
        answers: dict[str, list[NDArray[np.float32]]] = {each: [] for each in paths}
        truth = []
        what = f"compare {name}"
        for pictures, labels in prepared_rows(self.dataset, "val", self.rows, spec, what=what):
            truth.append(labels)
            for each, graph in graphs.items():
                answers[each].append(graph.predict(pictures))
        labels = np.concatenate(truth)
        probabilities = {each: np.concatenate(found) for each, found in answers.items()}
        predicted = {each: found.argmax(axis=1) for each, found in probabilities.items()}
        alone = {each: Session(path, threads=1) for each, path in paths.items()}
        # A CPU is shared with others, who don't count; a GPU's work is no thread's time.
        clock = time.perf_counter if on_gpu() else time.thread_time
        cost = picture_ms(alone, (spec.size_px, spec.size_px, 3), clock)
        sides = {
            each: Side(float((predicted[each] == labels).mean()), path.stat().st_size, cost[each])
            for each, path in paths.items()
        }
        agreement = float((predicted["fp32"] == predicted[name]).mean())
        precision = decide(
            name, sides, self.settings, pictures=len(labels), label_agreement=agreement
        )
        return precision, probabilities[name], labels


def decide(
    name: Small,
    sides: dict[str, Side],
    settings: ExportSettings,
    *,
    pictures: int,
    label_agreement: float,
) -> Precision:
    """Return the one of the `sides` that serves.

    The smaller one, if its accuracy falls by less than the setting and every batch is faster.
    """
    fp32, small, most = sides["fp32"], sides[name], settings.max_accuracy_loss
    loss = fp32.accuracy - small.accuracy
    speedup = {
        size: round(fp32.picture_ms[size] / small.picture_ms[size], 3) for size in fp32.picture_ms
    }
    good, faster = loss < most, min(speedup.values()) > 1.0
    rates = ", ".join(f"{rate:.2f} at batch {size}" for size, rate in speedup.items())
    reason = (
        f"{name}'s validation accuracy is {small.accuracy:.4f} against {fp32.accuracy:.4f}, a loss "
        f"of {100 * loss:.2f} points where less than {100 * most:.2f} "
        f"{'was' if good else 'would have been'} allowed; its speed here is "
        f"{'' if faster else 'not above '}fp32's times {rates}"
    )
    return Precision(
        asked=_asked(settings)[1],
        served=name if good and faster else "fp32",
        reason=reason,
        fp32=fp32,
        int8=small if name == "int8" else None,
        fp16=small if name == "fp16" else None,
        clock="time on the GPU" if on_gpu() else "CPU time on one thread",
        pictures=pictures,
        label_agreement=label_agreement,
        accuracy_loss=loss,
        max_accuracy_loss=most,
        speedup=speedup,
        calibration_pictures=settings.int8_calibration_pictures if name == "int8" else None,
        reduced_range=int8_saturates() if name == "int8" else None,
    )


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
    factor = onnx.numpy_helper.from_array(np.array(before / after, np.float32), "refitted_factor")
    model.graph.initializer.append(factor)
    logits = nodes[at].input[0]
    nodes.insert(at, onnx.helper.make_node("Mul", [logits, factor.name], ["refitted_logits"]))
    nodes[at + 1].input[0] = "refitted_logits"
    properties = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {"linnet.temperature": repr(after)})
    return bytes(model.SerializeToString())

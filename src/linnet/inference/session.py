"""A graph on ONNX Runtime: uint8 pictures in, probabilities out.

Normalisation, temperature and softmax are part of the graph, so this is all that evaluation, batch
prediction and the server need.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from linnet.data.preprocessing import Preprocessing
from linnet.errors import DatasetError, GraphError
from linnet.machine import available_cpus
from linnet.manifest import read_manifest

KIND = "linnet/graph/v1"
MANIFEST = "graph.json"
MODEL = "model.onnx"
FP32_MODEL = "model.fp32.onnx"
INPUT = "pictures"
OUTPUT = "probabilities"
# Microseconds that a session's idle threads look for work before they sleep. With 0, each step of
# a graph has to wake them; by default they eat the CPU that others need.
_SPIN_US = "50"
_GPU = "CUDAExecutionProvider"
# Decision 6 has the CPU of a picture by the size of a batch: 4 is near the best of each network.
_PORTION = 4
_AGAIN = "export the checkpoint again, or copy the folder whole"


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's answers are from torch's on real validation pictures."""

    pictures: int
    largest_difference: float
    label_agreement: float
    passed: bool


@dataclass(frozen=True)
class GraphManifest:
    """What `graph.json` says about the `model.onnx` beside it.

    `parity` is of the fp32 graph, which is `model.fp32.onnx` where another serves; `precision` says
    which of them serves and why, `profile` what it costs, `flip` if it answers mirror images too,
    `training` where the time of training went. Older graphs have none of these.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float
    network: str
    dataset_version: str
    code_revision: str | None
    tracking_run_id: str | None
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    parity: Parity
    flip: str = "none"
    calibration: dict[str, float] | None = None
    precision: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    linnet: str = ""
    kind: str = field(default=KIND)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a graph's folder.

        Raises:
            GraphError: the folder holds no finished graph, or one of another kind.
        """
        path = folder / MANIFEST
        values = read_manifest(path, KIND, step="export", error=GraphError)
        try:
            return cls(
                **{
                    **values,
                    "classes": tuple(values["classes"]),
                    "preprocessing": Preprocessing.from_json(values["preprocessing"]),
                    "mean": tuple(values["mean"]),
                    "std": tuple(values["std"]),
                    "parity": Parity(**values["parity"]),
                }
            )
        except (KeyError, TypeError, AttributeError, DatasetError) as error:
            raise GraphError(f"{path} is damaged ({error!r}): {_AGAIN}") from error

    @property
    def served_precision(self) -> str:
        """Return what `model.onnx` computes in: fp32, int8 or fp16."""
        return str((self.precision or {}).get("served", "fp32"))

    def to_json(self) -> dict[str, Any]:
        """Return the form that `graph.json` carries."""
        return asdict(self)


class Graph:
    """An opened graph. Safe to call from several threads.

    Args:
        path: folder with `model.onnx` and `graph.json`.
        threads: portions of a call that are answered at once; null: one per CPU this process may
            use.

    Raises:
        GraphError: the folder is incomplete, damaged, or its model is not the manifest's.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.manifest = GraphManifest.load(path)
        self.classes = self.manifest.classes
        self.preprocessing = self.manifest.preprocessing
        self._portions = Portions(path / MODEL, sha256=self.manifest.sha256, threads=threads)

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, H, W, 3], RGB."""
        return self._portions.predict(pictures)


class Portions:
    """A bare `model.onnx` that answers many pictures in portions, each on a thread of its own.

    That takes less CPU a picture than all of them at once on all CPUs: the numbers in between stay
    in the caches, and no thread waits for another. A portion's size is fixed, so that the same
    pictures get the same answers to the last bit. Safe to call from several threads.

    Raises:
        GraphError: as `Session`.
    """

    def __init__(
        self, model: Path, *, sha256: str | None = None, threads: int | None = None
    ) -> None:
        self._session = Session(model, sha256=sha256, threads=1)
        self._pool = ThreadPoolExecutor(threads or available_cpus(), thread_name_prefix="answer")

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, H, W, 3], RGB.

        Raises:
            GraphError, MemoryError: as `Session.predict`.
        """
        starts = range(0, max(1, len(pictures)), _PORTION)
        portions = [pictures[start : start + _PORTION] for start in starts]
        return np.concatenate(list(self._pool.map(self._session.predict, portions)))


class Session:
    """A bare `model.onnx` on ONNX Runtime, without a manifest.

    `threads` compute inside one call; null: one per CPU this process may use.

    Raises:
        GraphError: the file is absent, is not the one with this digest, or can't be run here.
    """

    def __init__(
        self, model: Path, *, sha256: str | None = None, threads: int | None = None
    ) -> None:
        try:
            encoded = model.read_bytes()
        except OSError as error:
            raise GraphError(f"{model} can't be read ({error.strerror}): {_AGAIN}") from error
        found = hashlib.sha256(encoded).hexdigest()
        if sha256 is not None and found != sha256:
            raise GraphError(
                f"{model} has the digest {found[:12]}…, its manifest says {sha256[:12]}…: "
                f"the file was damaged or replaced, {_AGAIN}"
            )
        self.model = model
        self._session = _session(encoded, model, threads)

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, H, W, 3], RGB.

        Raises:
            GraphError: the pictures are not of the shape or type that the graph takes.
            MemoryError: there is not enough memory for so many.
        """
        try:
            (probabilities,) = self._session.run([OUTPUT], {INPUT: pictures})
        except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
            if "allocate memory" in str(error) or "bad allocation" in str(error):
                raise MemoryError(str(error)) from error
            raise
        except (ort.capi.onnxruntime_pybind11_state.InvalidArgument, ValueError) as error:
            wanted = self._session.get_inputs()[0]
            raise GraphError(
                f"{self.model} takes {wanted.type} of shape {wanted.shape}, got {pictures.dtype} "
                f"of shape {list(pictures.shape)}: prepare pictures with its own preprocessing"
            ) from error
        return np.asarray(probabilities, dtype=np.float32)


def on_gpu() -> bool:
    """Return whether graphs compute on a GPU here, as they do with onnxruntime-gpu."""
    return _GPU in ort.get_available_providers()


def _providers() -> list[str]:
    return [*([_GPU] if on_gpu() else []), "CPUExecutionProvider"]


def _session(encoded: bytes, model: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    try:
        session = ort.InferenceSession(encoded, options, providers=_providers())
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        first = re.sub(r"\s+", " ", str(error))[:300]
        raise GraphError(
            f"ONNX Runtime {ort.__version__} can't load {model} ({first}): {_AGAIN}"
        ) from error
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    if inputs != [INPUT] or outputs != [OUTPUT]:
        raise GraphError(
            f"{model} has inputs {inputs} and outputs {outputs}, expected {[INPUT]} and "
            f"{[OUTPUT]}: give a graph that `linnet export` wrote"
        )
    return session

"""From a checkpoint to an ONNX graph that takes uint8 pictures and gives probabilities."""

import contextlib
import csv
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import linnet
from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import DatasetError, GraphError
from linnet.evaluation import baselines
from linnet.evaluation.calibration import Temperature, fit_temperature
from linnet.folders import written_whole
from linnet.inference.session import (
    FP32_MODEL,
    INPUT,
    KIND,
    MANIFEST,
    MODEL,
    OUTPUT,
    GraphManifest,
    Parity,
    Portions,
    Session,
)
from linnet.machine import available_cpus
from linnet.release.precision import choose_precision
from linnet.release.profiling import Profile, latency
from linnet.release.quantization import check_calibration
from linnet.release.rows import prepared_rows, spread
from linnet.settings import ExportSettings
from linnet.stores.objects import sha256_of
from linnet.training.checkpoint import HISTORY, CheckpointManifest
from linnet.training.clock import profile, slowest
from linnet.training.network import Classifier, load_checkpoint

log = logging.getLogger(__name__)

OPSET = 18
LARGEST_IR = 10
CALIBRATION_PICTURES = 2048

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportReport:
    """What the export found out; `largest_difference` is of probabilities, torch against ONNX."""

    temperature: float
    pictures: int
    largest_difference: float
    label_agreement: float
    passed: bool
    precision: str
    size_bytes: int
    sha256: str


class Mirrored(nn.Module):
    """A classifier that takes the mean of its logits for a picture and for its mirror image.

    Both go through the network as one batch, so that the graph has every layer once.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits, `[N, classes]`, of pictures, uint8 `[N, S, S, 3]`."""
        both = self.classifier(torch.cat([pictures, pictures.flip(2)]))
        # A sum and not a mean: int8 would round what a ReduceMean gives.
        logits: Tensor = both.unflatten(0, (2, -1)).sum(0) / 2
        return logits


class Servable(nn.Module):
    """All that serving needs in one network: uint8 `[N, S, S, 3]` in, probabilities out."""

    def __init__(self, classifier: nn.Module, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pictures: Tensor) -> Tensor:
        """Return probabilities, `[N, classes]`."""
        return torch.softmax(self.classifier(pictures) / self.temperature, dim=1)


def export(
    checkpoint: Path, dataset: Path, destination: Path, settings: ExportSettings
) -> ExportReport:
    """Write the checkpoint's graph, calibrated and compared with torch on validation pictures.

    Failed parity raises nothing: it is recorded in `graph.json`, and the gate refuses. Parity is of
    the fp32 graph, which is kept beside where another precision was chosen.

    Raises:
        CheckpointError: the checkpoint is absent or damaged.
        DatasetError: the dataset is, or it has other classes, no validation pictures, or too few
            training pictures to calibrate int8.
        GraphError: the network can't be expressed in ONNX, or ONNX Runtime can't run it; or int8 or
            fp16 is required and does not pass.
        StoreError: `destination` is taken or can't be written.
    """
    network, manifest = load_checkpoint(checkpoint)
    data = Dataset.open(dataset)
    _check_fits(manifest, data)
    check_calibration(data, settings)
    classifier: nn.Module = Classifier(network, manifest.mean, manifest.std)
    if settings.flip == "horizontal":
        classifier = Mirrored(classifier)
    classifier.eval()
    spec = manifest.preprocessing
    wanted = CALIBRATION_PICTURES if settings.calibrate else 0
    chosen = spread(data.size("val"), max(wanted, settings.parity_pictures))
    logits, labels = _answers(_torch(classifier), data, chosen, spec, "answer with torch")
    temperature = fit_temperature(logits, labels) if settings.calibrate else None
    servable = Servable(classifier, temperature.value if temperature else 1.0).eval()
    encoded, opset, ir_version = _onnx(servable, manifest, settings)
    with written_whole(destination, MANIFEST) as folder:
        if (checkpoint / baselines.FILE).exists():
            shutil.copyfile(checkpoint / baselines.FILE, folder / baselines.FILE)
        (folder / MODEL).write_bytes(encoded)
        proof = spread(len(chosen), settings.parity_pictures)
        expected = torch.softmax(torch.from_numpy(logits[proof]) / servable.temperature, dim=1)
        answer = Portions(folder / MODEL).predict
        found, _ = _answers(answer, data, chosen[proof], spec, "answer with ONNX")
        parity = compare_answers(expected.numpy(), found, settings)
        _log_parity(parity)
        choice = choose_precision(
            folder / MODEL,
            data,
            spec,
            rows=chosen,
            temperature=servable.temperature,
            settings=settings,
        )
        if choice.encoded is not None:
            (folder / MODEL).rename(folder / FP32_MODEL)
            (folder / MODEL).write_bytes(choice.encoded)
            temperature = choice.temperature
        graph = GraphManifest(
            classes=manifest.classes,
            preprocessing=manifest.preprocessing,
            mean=manifest.mean,
            std=manifest.std,
            temperature=temperature.value if temperature else 1.0,
            network=manifest.network,
            dataset_version=manifest.dataset_version,
            code_revision=manifest.code_revision,
            tracking_run_id=manifest.tracking_run_id,
            sha256=sha256_of(folder / MODEL),
            size_bytes=(folder / MODEL).stat().st_size,
            opset=opset,
            ir_version=ir_version,
            parity=parity,
            flip=settings.flip,
            calibration=asdict(temperature) if temperature else None,
            precision=asdict(choice.precision),
            profile=asdict(_profile(servable, folder / MODEL, spec)),
            training=_training(checkpoint),
            linnet=linnet.__version__,
        )
        text = json.dumps(graph.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    if temperature is not None:
        _log_temperature(temperature)
    return ExportReport(
        temperature=graph.temperature,
        pictures=parity.pictures,
        largest_difference=parity.largest_difference,
        label_agreement=parity.label_agreement,
        passed=parity.passed,
        precision=choice.precision.served,
        size_bytes=graph.size_bytes,
        sha256=graph.sha256,
    )


def _check_fits(manifest: CheckpointManifest, dataset: Dataset) -> None:
    if manifest.classes != dataset.classes or manifest.dataset_version != dataset.version:
        raise DatasetError(
            f"the checkpoint was trained on version {manifest.dataset_version} of a dataset with "
            f"{len(manifest.classes)} classes, {dataset.path} is version {dataset.version} with "
            f"{len(dataset.classes)}: give the dataset that it was trained on"
        )
    if not dataset.size("val"):
        raise DatasetError(
            f"the dataset {dataset.path} has no validation pictures to prove parity on: ingest "
            "again with ingest.val_fraction above 0"
        )


def _torch(classifier: nn.Module) -> Answer:
    def answer(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = classifier(torch.from_numpy(pictures)).float().numpy()
        return logits

    return answer


def _answers(
    answer: Answer, dataset: Dataset, chosen: NDArray[np.int64], spec: Preprocessing, what: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the answers `[N, classes]` for chosen rows of the validation split, and labels."""
    answers, labels = [], []
    for pictures, truth in prepared_rows(dataset, "val", chosen, spec, what=what):
        answers.append(answer(pictures))
        labels.append(truth)
    return np.concatenate(answers), np.concatenate(labels)


def compare_answers(
    expected: NDArray[np.float32], found: NDArray[np.float32], settings: ExportSettings
) -> Parity:
    """Return how far two sets of probabilities `[N, classes]` are apart, and if that will do."""
    difference = float(np.abs(found - expected).max())
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    finite = bool(np.isfinite(difference))
    return Parity(
        pictures=len(expected),
        # A probability that is no number is as far from torch's as one can be.
        largest_difference=difference if finite else 1.0,
        label_agreement=agreement,
        passed=finite
        and difference <= settings.max_probability_difference
        and agreement >= settings.min_label_agreement,
    )


def _onnx(
    servable: Servable, manifest: CheckpointManifest, settings: ExportSettings
) -> tuple[bytes, int, int]:
    """Return the serialized graph, its opset and IR version."""
    side = manifest.preprocessing.size_px
    # Two pictures: with one, the exporter would take the batch for a constant.
    pictures = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                servable,
                (pictures,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"pictures": {0: "batch"}},
                external_data=False,
                verbose=False,
            )
        model = program.model_proto  # type: ignore[union-attr]
        model.ir_version = min(model.ir_version, LARGEST_IR)
        onnx.helper.set_model_props(model, _properties(servable, manifest, settings))
        model.producer_name = f"linnet {linnet.__version__}"
        onnx.checker.check_model(model, full_check=True)
    # The exporter and the checker raise errors of many families.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise GraphError(
            f"{manifest.network} can't be exported to ONNX at opset {OPSET} ({reason[0]}): "
            "choose another network (train.network)"
        ) from error
    opset = next(each.version for each in model.opset_import if not each.domain)
    return model.SerializeToString(), opset, model.ir_version


def _properties(
    servable: Servable, manifest: CheckpointManifest, settings: ExportSettings
) -> dict[str, str]:
    """Return what the graph says of itself, should it ever be parted from its manifest."""
    return {
        "linnet.kind": KIND,
        "linnet.classes": json.dumps(manifest.classes, ensure_ascii=False),
        "linnet.preprocessing": json.dumps(manifest.preprocessing.to_json()),
        "linnet.temperature": repr(servable.temperature),
        "linnet.flip": settings.flip,
        "linnet.network": manifest.network,
        "linnet.dataset_version": manifest.dataset_version,
        "linnet.code_revision": manifest.code_revision,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own progress off the terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _profile(servable: Servable, model: Path, spec: Preprocessing) -> Profile:
    """Return the network's work per picture, and what the graph that serves costs here."""
    shape = (spec.size_px, spec.size_px, 3)
    counter = FlopCounterMode(display=False)
    # Attention as plain matrix products: the counter does not know the CPU's fused ones.
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        servable(torch.zeros((1, *shape), dtype=torch.uint8))
    threads = available_cpus()
    return Profile(
        parameters=sum(parameter.numel() for parameter in servable.parameters()),
        flops=counter.get_total_flops(),
        size_bytes=model.stat().st_size,
        threads=threads,
        latency=latency(Session(model, threads=threads), shape),
    )


def _training(checkpoint: Path) -> dict[str, Any] | None:
    """Return where the time of training went, by the checkpoint's history."""
    path = checkpoint / HISTORY
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = profile(rows)
    return {"epochs": len(rows), "seconds": seconds, "slowest": slowest(seconds)}


def _log_temperature(temperature: Temperature) -> None:
    log.info(
        "temperature %.3f: validation log loss %.4f, before %.4f",
        temperature.value,
        temperature.log_loss_after,
        temperature.log_loss_before,
    )


def _log_parity(parity: Parity) -> None:
    log.log(
        logging.INFO if parity.passed else logging.WARNING,
        "parity with torch on %d validation pictures %s: probabilities differ by at most %.1e, "
        "%.2f%% of the labels agree",
        parity.pictures,
        "held" if parity.passed else "FAILED",
        parity.largest_difference,
        100 * parity.label_agreement,
    )

"""Measure what will serve: the exported graph on ONNX Runtime, on the test split. No torch."""

import logging
import platform
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime as ort

import linnet
from linnet.data.dataset import Dataset
from linnet.errors import EvaluationError
from linnet.evaluation import metrics
from linnet.evaluation.baselines import measure_probe
from linnet.evaluation.calibration import Labels, reliability
from linnet.evaluation.panels import choose, explain_panels
from linnet.evaluation.report import Mistake, Report
from linnet.evaluation.robustness import measure_robustness
from linnet.evaluation.slices import measure_slices, values_of
from linnet.evaluation.thresholds import Thresholds, thresholds
from linnet.evaluation.writing import write
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions, predict_split
from linnet.inference.session import Graph, GraphManifest
from linnet.settings import EvaluateSettings, Split

log = logging.getLogger(__name__)

SPLIT: Split = "test"
ROC_POINTS = 200


def evaluate(
    graph: Path, dataset: Path, destination: Path, settings: EvaluateSettings, *, model: str
) -> Report:
    """Answer the test split with the graph and write the report's folder.

    Raises:
        GraphError: the graph is incomplete or damaged.
        DatasetError: the dataset is.
        EvaluationError: the graph was made from another dataset, or the test split is empty.
        StoreError: `destination` is taken or can't be written.
    """
    opened, data = Graph(graph), Dataset.open(dataset)
    check_same_dataset(opened.manifest, data)
    predictions = predict_split(opened, data, SPLIT, batch_size=settings.batch_size)
    fitted = _thresholds(opened, data, predictions, settings)
    report = measured(predictions, opened.manifest, data, settings, model=model, fitted=fitted)
    rule = report.rule
    answers = rule.labels(predictions.probabilities)
    panels = choose(predictions, answers, settings.explain)
    shown = report.shown | {predictions.keys[row] for row in panels}
    pictures = pictures_of(data, shown)
    report = replace(
        report,
        probe=measure_probe(graph, predictions, bins=settings.calibration_bins),
        robustness=measure_robustness(
            opened,
            data,
            SPLIT,
            pictures=settings.robustness_pictures,
            rule=rule,
            batch_size=settings.batch_size,
            seed=settings.seed,
        ),
        slices=measure_slices(
            predictions.labels,
            answers,
            values_of(data, SPLIT, settings.slices),
            confidence=settings.confidence,
        ),
        panels=explain_panels(
            opened,
            pictures,
            predictions,
            answers,
            panels,
            classes=data.classes,
            batch_size=settings.batch_size,
        ),
    )
    write(destination, report, predictions, pictures)
    log.info("%s", report.headline())
    return report


def check_same_dataset(graph: GraphManifest, dataset: Dataset) -> None:
    """Check that a graph may be measured on a dataset.

    Raises:
        EvaluationError: the dataset has other classes or is another version than the graph's, or
            has no test pictures.
    """
    if graph.classes != dataset.classes:
        raise EvaluationError(
            f"the graph knows the classes {_named(graph.classes)}, the dataset {dataset.path} has "
            f"{_named(dataset.classes)}: give the dataset that the checkpoint was trained on"
        )
    if graph.dataset_version != dataset.version:
        raise EvaluationError(
            f"the graph was made from dataset version {graph.dataset_version}, {dataset.path} is "
            f"version {dataset.version}, so its test pictures may have been trained on: "
            "give the dataset that the checkpoint was trained on, or train on this one"
        )
    if not dataset.size(SPLIT):
        raise EvaluationError(
            f"the dataset {dataset.path} has no test pictures: ingest again with "
            "ingest.test_fraction above 0, or give the source a test split"
        )


def _thresholds(
    graph: Graph, dataset: Dataset, test: Predictions, settings: EvaluateSettings
) -> Thresholds | None:
    """Fit the decision on the graph's own answers to the validation split, if one is asked for."""
    if not settings.decision.changes_answers:
        return None
    validation = predict_split(graph, dataset, "val", batch_size=settings.batch_size)
    return thresholds(validation, test, dataset.classes, settings.decision)


def measured(
    predictions: Predictions,
    graph: GraphManifest,
    dataset: Dataset,
    settings: EvaluateSettings,
    *,
    model: str,
    fitted: Thresholds | None = None,
) -> Report:
    """Return the report of these predictions, answered by the fitted thresholds."""
    labels, probabilities = predictions.labels, predictions.probabilities
    rule = Rule() if fitted is None else fitted.rule(dataset.classes)
    predicted = rule.labels(probabilities)
    trained = np.array([dataset.counts["train"].get(name, 0) for name in dataset.classes])
    prior = trained / trained.sum()
    return Report(
        model=model,
        classes=dataset.classes,
        dataset_version=dataset.version,
        split=SPLIT,
        pictures=len(labels),
        prior=tuple(prior.tolist()),
        confidence=settings.confidence,
        metrics=metrics.headlines(
            labels, probabilities, prior=prior, settings=settings, predicted=predicted
        ),
        per_class=tuple(
            metrics.per_class(labels, probabilities, dataset.classes, predicted=predicted)
        ),
        confusion=tuple(
            map(tuple, metrics.confusion(labels, probabilities, predicted=predicted).tolist())
        ),
        calibration=reliability(
            labels, probabilities, bins=settings.calibration_bins, predicted=predicted
        ),
        roc=_overall_roc(predictions, dataset.classes),
        parity=graph.parity,
        graph={
            "flip": graph.flip,
            "precision": graph.precision,
            "profile": graph.profile,
            "training": graph.training,
        },
        temperature=graph.temperature,
        mistakes=_mistakes(predictions, predicted, dataset.classes, settings.mistakes),
        thresholds=fitted,
        settings=settings.model_dump(mode="json"),
        provenance=_provenance(graph, dataset),
    )


def pictures_of(dataset: Dataset, keys: Iterable[str]) -> dict[str, bytes]:
    """Return the encoded test pictures with these keys."""
    wanted = set(keys)
    found: dict[str, bytes] = {}
    if not wanted:
        return found
    for rows in dataset.rows(SPLIT, columns=("key", "image.bytes")):
        encoded = rows.column("image").field("bytes")
        for index, key in enumerate(rows.column("key").to_pylist()):
            if key in wanted:
                found[key] = encoded[index].as_py()
        if len(found) == len(wanted):
            break
    return found


def _overall_roc(predictions: Predictions, classes: tuple[str, ...]) -> metrics.RocCurve:
    """Return the second of two classes' curve, else the micro average over all classes."""
    labels, probabilities = predictions.labels, predictions.probabilities
    if len(classes) == 2:
        return metrics.roc_curve(probabilities[:, 1], labels == 1, classes[1], points=ROC_POINTS)
    truth: np.ndarray[tuple[int], np.dtype[np.bool_]] = (
        labels[:, None] == np.arange(len(classes))
    ).ravel()
    return metrics.roc_curve(
        np.asarray(probabilities.ravel()), truth, "micro average", points=ROC_POINTS
    )


def _mistakes(
    predictions: Predictions, predicted: Labels, classes: tuple[str, ...], most: int
) -> tuple[Mistake, ...]:
    """Return the wrong answers with the highest confidence first."""
    confidence = predictions.probabilities[np.arange(len(predicted)), predicted]
    wrong = np.flatnonzero(predicted != predictions.labels)
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return tuple(
        Mistake(
            key=predictions.keys[index],
            label=classes[predictions.labels[index]],
            predicted=classes[predicted[index]],
            confidence=float(confidence[index]),
        )
        for index in ranked
    )


def _provenance(graph: GraphManifest, dataset: Dataset) -> dict[str, object]:
    return {
        "network": graph.network,
        "graph_sha256": graph.sha256,
        "graph_size_bytes": graph.size_bytes,
        "preprocessing": graph.preprocessing.to_json(),
        "dataset_version": dataset.version,
        "source": dataset.manifest.get("source"),
        "counts": {split: dataset.size(split) for split in dataset.counts},
        "code_revision": graph.code_revision,
        "tracking_run_id": graph.tracking_run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "linnet": linnet.__version__,
        "onnxruntime": ort.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _named(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:6])
    return shown if len(classes) <= 6 else f"{shown}, … ({len(classes)} in all)"

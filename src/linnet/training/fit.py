"""Fit a classifier to a dataset: head first, then the whole network, resumable at any moment.

This module imports no torch, so `from linnet.training import fit` is cheap; what it calls does.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from linnet import __version__
from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import TrainingError
from linnet.provenance import code_revision
from linnet.settings import Monitor, TrainSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import folder_errors, open_store, sha256_of
from linnet.stores.tracking import Tracker
from linnet.training import checkpoint
from linnet.training.checkpoint import CheckpointManifest

if TYPE_CHECKING:
    from linnet.training.record import Best, Record
    from linnet.training.stage import Pictures

log = logging.getLogger(__name__)

StageName = Literal["head", "whole"]


@dataclass(frozen=True)
class TrainReport:
    """The chosen epoch, which is the best by `monitor`, and what it took to find it.

    `metrics` are those of the validation split (`val_…`); `best_epoch` counts from 1 in its stage;
    `seconds` are those of this process.
    """

    metrics: dict[str, float]
    best_stage: str
    best_epoch: int
    epochs: int
    seconds: float
    resumed: bool


def fit(
    dataset: Path,
    destination: Path,
    settings: TrainSettings,
    *,
    workspace: Path,
    tracker: Tracker | None = None,
    connections: Connections | None = None,
) -> TrainReport:
    """Train a network and write its checkpoint folder; return the metrics of the chosen epoch.

    A run that was killed goes on where it was when it is started again with the same dataset and
    settings, to the same result: its state is in `workspace/training/`. Decoded pictures and
    features stay in `workspace/cache/`, for the next run.

    Raises:
        DatasetError: there is no finished dataset.
        NetworkError: the network is unknown, or its weights can't be had or don't fit.
        TrainingError: a split is empty, or the loss is no longer a number.
        StoreFullError: no space is left.
    """
    began = time.monotonic()
    opened = Dataset.open(dataset)
    _check_splits(opened)
    state = workspace / "training" / _fingerprint(opened, settings)
    resumed = any(state.glob("*/last.ckpt"))
    if resumed:
        log.info("going on with the training in %s", state)
    weights = _local_weights(settings.weights, state, connections)
    if tracker is not None:
        tracker.params({"train": settings.model_dump(mode="json")})
        tracker.tags({"dataset_version": opened.version, "code_revision": code_revision()})
    records, mean_std = _train(opened, settings, weights, state, workspace / "cache", tracker)
    manifest, report = _conclude(
        opened, settings, records, mean_std, tracker, time.monotonic() - began, resumed
    )
    best, history = _best_files(settings, records, state), _history(records)
    checkpoint.write(destination, manifest, best=best, monitor=settings.monitor, history=history)
    if tracker is not None:
        from linnet.training.tracked import track_result

        track_result(tracker, destination, _best(records, settings.monitor)[1], opened.classes)
    shutil.rmtree(state, ignore_errors=True)
    return report


def _train(
    dataset: Dataset,
    settings: TrainSettings,
    weights: str | Path,
    state: Path,
    cache: Path,
    tracker: Tracker | None,
) -> "tuple[dict[StageName, Record], tuple[Any, Any]]":
    """Run the stages one after another, each from the best weights of the one before."""
    import torch

    from linnet.training.network import Classifier, build, load_weights, normalisation
    from linnet.training.record import best_file, track_epoch
    from linnet.training.stage import read_record, train_stage

    torch.manual_seed(settings.seed)
    network = build(
        settings.network,
        len(dataset.classes),
        weights=weights,
        dropout=settings.dropout,
        size_px=settings.size_px,
    )
    mean, std = (dataset.mean, dataset.std)
    if settings.normalisation == "network":
        mean, std = normalisation(settings.network)
    pictures = _pictures(dataset, settings, cache)
    model: Classifier = Classifier(network, mean, std).to(memory_format=torch.channels_last)
    records: dict[StageName, Record] = {}
    for name in _stages(settings):
        folder = state / name
        earlier = read_record(folder)
        if earlier is not None and tracker is not None:
            for row in earlier.history:
                track_epoch(tracker, row)
        records[name] = train_stage(
            name,
            model,
            pictures,
            settings,
            folder=folder,
            cache=cache,
            epochs_before=sum(len(record.history) for record in records.values()),
            tracker=tracker,
        )
        load_weights(network, best_file(folder, settings.monitor), settings.network)
    return records, (mean, std)


def _pictures(dataset: Dataset, settings: TrainSettings, cache: Path) -> "Pictures":
    from linnet.training.cache import decoded_pictures
    from linnet.training.stage import Pictures

    preprocessing = Preprocessing(settings.size_px, settings.fit)
    return Pictures(
        train=decoded_pictures(dataset, "train", preprocessing, folder=cache),
        train_labels=dataset.labels("train"),
        val=decoded_pictures(dataset, "val", preprocessing, folder=cache),
        val_labels=dataset.labels("val"),
        classes=len(dataset.classes),
        key=f"{dataset.version}-{settings.size_px}px-{settings.fit}",
    )


def _stages(settings: TrainSettings) -> list[StageName]:
    names: list[StageName] = []
    if settings.head is not None:
        names.append("head")
    if settings.whole is not None:
        names.append("whole")
    return names


def _check_splits(dataset: Dataset) -> None:
    for split in ("train", "val"):
        if dataset.size(split) < 2:
            raise TrainingError(
                f"the dataset {dataset.path} has {dataset.size(split)} {split} pictures, at least "
                "2 are needed: ingest it with a larger ingest.val_fraction, or more pictures"
            )


def _fingerprint(dataset: Dataset, settings: TrainSettings) -> str:
    """Return a name for the result: of the same one a killed run is resumed.

    It has what the numbers depend on, so a weights file counts by its content.
    """
    values = settings.model_dump(mode="json", exclude={"workers"})
    weights = Path(settings.weights)
    if weights.is_file():
        values["weights"] = sha256_of(weights)
    text = json.dumps([dataset.version, dataset.classes, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _local_weights(weights: str, state: Path, connections: Connections | None) -> str | Path:
    """Return `hub`, `none` or a file, fetched from S3 if need be; a resumed run has it already."""
    if weights in ("hub", "none"):
        return weights
    if not weights.startswith("s3://"):
        return Path(weights)
    store, key = open_store(weights, connections)
    path = state / f"weights{Path(key).suffix}"
    if not path.exists():
        with folder_errors("write", state):
            state.mkdir(parents=True, exist_ok=True)
        store.download(key, path)
    return path


def _best(records: "dict[StageName, Record]", metric: Monitor) -> "tuple[StageName, Best]":
    """Return the stage and epoch that were best by a metric; the earlier one if they tie."""
    from linnet.training.record import is_better

    chosen: tuple[StageName, Best] | None = None
    for name, record in records.items():
        best = record.best[metric]
        if chosen is None or is_better(metric, best.value, chosen[1].value):
            chosen = name, best
    assert chosen is not None
    return chosen


def _best_files(
    settings: TrainSettings, records: "dict[StageName, Record]", state: Path
) -> dict[Monitor, Path]:
    from linnet.training.record import best_file

    return {m: best_file(state / _best(records, m)[0], m) for m in settings.keep}


def _history(records: "dict[StageName, Record]") -> list[dict[str, Any]]:
    return [row for record in records.values() for row in record.history]


def _conclude(
    dataset: Dataset,
    settings: TrainSettings,
    records: "dict[StageName, Record]",
    mean_std: tuple[Any, Any],
    tracker: Tracker | None,
    seconds: float,
    resumed: bool,
) -> tuple[CheckpointManifest, TrainReport]:
    stage, best = _best(records, settings.monitor)
    manifest = CheckpointManifest(
        network=settings.network,
        classes=dataset.classes,
        preprocessing=Preprocessing(settings.size_px, settings.fit),
        mean=mean_std[0],
        std=mean_std[1],
        dropout=settings.dropout,
        dataset_version=dataset.version,
        code_revision=code_revision(),
        settings=settings.model_dump(mode="json"),
        metrics=best.metrics,
        tracking_run_id=None if tracker is None else tracker.run_id,
        linnet=__version__,
    )
    report = TrainReport(
        metrics=best.metrics,
        best_stage=stage,
        best_epoch=best.epoch,
        epochs=len(_history(records)),
        seconds=seconds,
        resumed=resumed,
    )
    return manifest, report

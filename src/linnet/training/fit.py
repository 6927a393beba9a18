"""Fit a classifier to a dataset: head first, then the whole network, resumable at any moment.

This module imports no torch, so `from linnet.training import fit` is cheap; what it calls does.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from linnet import __version__
from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import DivergedError, TrainingError
from linnet.evaluation import baselines
from linnet.provenance import code_revision
from linnet.settings import SPLITS, Monitor, TrainSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import folder_errors, open_store, sha256_of
from linnet.stores.outcome import note_quarantine
from linnet.stores.tracking import Tracker
from linnet.training import checkpoint
from linnet.training.checkpoint import CheckpointManifest

if TYPE_CHECKING:
    from linnet.training.clock import Part
    from linnet.training.network import Classifier
    from linnet.training.record import Best, Record, Row
    from linnet.training.stage import Pictures

log = logging.getLogger(__name__)

StageName = Literal["head", "whole"]


@dataclass(frozen=True)
class TrainReport:
    """The chosen epoch, which is the best by `monitor`, and what it took to find it.

    `metrics` are those of the validation split (`val_…`); `best_epoch` counts from 1 in its stage;
    `seconds` are those of this process. `profile` has the seconds that all epochs spent waiting
    for data, forward, backward, on updates and on validation; `slowest` names the longest.
    """

    metrics: dict[str, float]
    best_stage: str
    best_epoch: int
    epochs: int
    seconds: float
    resumed: bool
    profile: "dict[Part, float]"
    slowest: "Part"


def fit(
    dataset: Path,
    destination: Path,
    settings: TrainSettings,
    *,
    workspace: Path,
    tracker: Tracker | None = None,
    connections: Connections | None = None,
    watch: "Callable[[Row], None] | None" = None,
) -> TrainReport:
    """Train a network and write its checkpoint folder; return the metrics of the chosen epoch.

    A run that was killed goes on where it was when it is started again with the same dataset and
    settings, to the same result: its state is in `workspace/training/`. Decoded pictures and
    features stay in `workspace/cache/`, for the next run. `watch` is called with each epoch's row
    of the history once the epoch can be resumed from; what it raises ends the training.

    Raises:
        DatasetError: there is no finished dataset.
        NetworkError: the network is unknown, or its weights can't be had or don't fit.
        TrainingError: a split is empty or a class has no pictures to learn from.
        DivergedError: the loss is no longer a number; the best checkpoint so far is kept, and
            the message says where.
        StoreFullError: no space is left.
    """
    began = time.monotonic()
    opened = Dataset.open(dataset)
    _check_splits(opened)
    _check_monitors(opened, settings)
    state = state_folder(opened, settings, workspace)
    resumed = any(state.glob("*/last.ckpt"))
    if resumed:
        log.info("going on with the training in %s", state)
    weights = _local_weights(settings.weights, state, connections)
    if tracker is not None:
        tracker.params({"train": settings.model_dump(mode="json")})
        tracker.tags({"dataset_version": opened.version, "code_revision": code_revision()})
        note_quarantine(tracker, _quarantined_share(opened))
    training = _Training(opened, settings, weights, state, workspace / "cache", tracker, watch)
    try:
        records = _train(training)
        _probe(training)
    except DivergedError as error:
        raise DivergedError(f"{error}. {_keep_best_so_far(training)}") from error
    report = _report(training, records, time.monotonic() - began, resumed)
    _write(training, records, destination)
    log.info("slowest part of training: %s, %s", report.slowest, _shares(report.profile))
    if tracker is not None:
        from linnet.training.tracked import track_result

        track_result(tracker, destination, _best(records, settings.monitor)[1], opened.classes)
        tracker.metrics({f"train_{part}_s": s for part, s in report.profile.items()})
    shutil.rmtree(state, ignore_errors=True)
    return report


def _quarantined_share(dataset: Dataset) -> float:
    """Return the share of the source's pictures that ingest put aside."""
    aside = sum(dataset.manifest.get("quarantined", {}).values())
    return float(aside / (aside + sum(dataset.size(split) for split in SPLITS)))


def state_folder(dataset: Dataset, settings: TrainSettings, workspace: Path) -> Path:
    """Return where a training of these keeps its state until it is finished."""
    return workspace / "training" / _fingerprint(dataset, settings)


@dataclass(frozen=True)
class _Training:
    """What all parts of one training need."""

    dataset: Dataset
    settings: TrainSettings
    weights: str | Path
    state: Path
    cache: Path
    tracker: Tracker | None
    watch: "Callable[[Row], None] | None"

    def mean_std(self) -> tuple[Any, Any]:
        """Return the mean and standard deviation that pictures are normalised with."""
        if self.settings.normalisation == "dataset":
            return self.dataset.mean, self.dataset.std
        from linnet.training.network import normalisation

        return normalisation(self.settings.network)


def _train(training: _Training) -> "dict[StageName, Record]":
    """Run the stages one after another, each from the best weights of the one before."""
    from linnet.training.network import load_weights
    from linnet.training.record import best_file, track_epoch
    from linnet.training.stage import read_record, train_stage

    settings, tracker = training.settings, training.tracker
    pictures = _pictures(training.dataset, settings, training.cache)
    model = _untrained(training)
    records: dict[StageName, Record] = {}
    for name in _stages(settings):
        folder = training.state / name
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
            cache=training.cache,
            epochs_before=sum(len(record.history) for record in records.values()),
            tracker=tracker,
            watch=training.watch,
        )
        load_weights(model.network, best_file(folder, settings.monitor), settings.network)
    return records


def _untrained(training: _Training) -> "Classifier":
    """Return the network as it is before training, the same each time."""
    import torch

    from linnet.training.network import Classifier, build

    settings = training.settings
    torch.manual_seed(settings.seed)
    network = build(
        settings.network,
        len(training.dataset.classes),
        weights=training.weights,
        dropout=settings.dropout,
        size_px=settings.size_px,
        hidden=settings.hidden,
        head_init=settings.head_init,
    )
    return Classifier(network, *training.mean_std()).to(memory_format=torch.channels_last)


def _probe(training: _Training) -> None:
    """Put what a linear probe on the untrained network answers beside the stages' files."""
    from linnet.training.probe import linear_probe

    settings = training.settings
    linear_probe(
        training.state / baselines.FILE,
        training.dataset,
        _pictures(training.dataset, settings, training.cache),
        _untrained(training),
        settings,
        cache=training.cache,
    )


def _keep_best_so_far(training: _Training) -> str:
    """Write a checkpoint of the best epoch so far and return words that say where it is."""
    from linnet.training.stage import read_record

    found = {name: read_record(training.state / name) for name in _stages(training.settings)}
    records = {name: record for name, record in found.items() if record is not None}
    if not records:
        return "No epoch was finished, so there is no checkpoint to keep"
    kept = training.state / "last-good"
    _write(training, records, kept)
    stage, best = _best(records, training.settings.monitor)
    return (
        f"The checkpoint of stage {stage}, epoch {best.epoch}, the best so far, is kept in {kept}"
    )


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
        positive=_positive(dataset.classes, settings),
    )


def _shares(profile: "dict[Part, float]") -> str:
    whole = sum(profile.values()) or 1.0
    return ", ".join(f"{part.replace('_', ' ')} {s / whole:.0%}" for part, s in profile.items())


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
    unlearnt = [name for name in dataset.classes if not dataset.counts["train"].get(name)]
    if unlearnt:
        raise TrainingError(
            f"the dataset {dataset.path} has no train pictures of {', '.join(unlearnt)}: add some, "
            "ingest it with another split, or leave the class out"
        )
    unseen = [name for name in dataset.classes if not dataset.counts["val"].get(name)]
    if unseen:
        log.warning(
            "no validation picture shows %s: the metrics that choose the epoch say nothing of it; "
            "ingest with a larger ingest.val_fraction or add pictures",
            " or ".join(unseen),
        )


def _check_monitors(dataset: Dataset, settings: TrainSettings) -> None:
    """Check that what `monitor` and `keep` name can be measured on the validation split."""
    positive = _positive(dataset.classes, settings)
    shown = [name for name in dataset.classes if dataset.counts["val"].get(name)]
    for metric in (settings.monitor, *settings.keep):
        if not metric.startswith("val_positive"):
            needed = dataset.classes[:2] if metric == "val_roc_auc" and len(shown) < 2 else ()
        elif positive is None:
            raise TrainingError(
                f"{metric} is of one class of two, the dataset {dataset.path} has "
                f"{len(dataset.classes)}: set train.monitor and train.keep to val_macro_… metrics"
            )
        else:
            needed = (dataset.classes[positive],)
        unseen = [name for name in needed if name not in shown]
        if unseen:
            raise TrainingError(
                f"{metric} can't be measured: no validation picture of {dataset.path} shows "
                f"{' or '.join(unseen)}: ingest with a larger ingest.val_fraction, or follow "
                "another metric (train.monitor, train.keep)"
            )


def _positive(classes: tuple[str, ...], settings: TrainSettings) -> int | None:
    """Return the index of the class that is looked for, None with more than two classes."""
    if settings.positive is not None and settings.positive not in classes:
        raise TrainingError(
            f"train.positive names the class {settings.positive!r}, the dataset has "
            f"{', '.join(classes[:12])}: name one of them"
        )
    if len(classes) != 2:
        return None
    return 1 if settings.positive is None else classes.index(settings.positive)


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


def _write(training: _Training, records: "dict[StageName, Record]", destination: Path) -> None:
    """Write the checkpoint of the best epoch."""
    settings, dataset, tracker = training.settings, training.dataset, training.tracker
    mean, std = training.mean_std()
    manifest = CheckpointManifest(
        network=settings.network,
        classes=dataset.classes,
        preprocessing=Preprocessing(settings.size_px, settings.fit),
        mean=mean,
        std=std,
        dropout=settings.dropout,
        dataset_version=dataset.version,
        code_revision=code_revision(),
        settings=settings.model_dump(mode="json"),
        metrics=_best(records, settings.monitor)[1].metrics,
        tracking_run_id=None if tracker is None else tracker.run_id,
        linnet=__version__,
    )
    checkpoint.write(
        destination,
        manifest,
        best=_best_files(settings, records, training.state),
        monitor=settings.monitor,
        history=_history(records),
        more=_range_tests(training.state, records) | _answers_of_probe(training.state),
    )


def _answers_of_probe(state: Path) -> dict[str, Path]:
    path = state / baselines.FILE
    return {path.name: path} if path.exists() else {}


def _range_tests(state: Path, records: "dict[StageName, Record]") -> dict[str, Path]:
    """Return the files of the stages' range tests, and draw their curves."""
    from linnet.training import rates

    files: dict[str, Path] = {}
    for name in records:
        table = state / name / rates.FILE
        if table.exists():
            picture = table.with_suffix(".svg")
            rates.RangeTest.read(table).figure().savefig(picture, metadata={"Date": None})
            files |= {f"rates-{name}{file.suffix}": file for file in (table, picture)}
    return files


def _report(
    training: _Training, records: "dict[StageName, Record]", seconds: float, resumed: bool
) -> TrainReport:
    from linnet.training.clock import profile, slowest

    history = _history(records)
    stage, best = _best(records, training.settings.monitor)
    parts = profile(history)
    return TrainReport(
        metrics=best.metrics,
        best_stage=stage,
        best_epoch=best.epoch,
        epochs=len(history),
        seconds=seconds,
        resumed=resumed,
        profile=parts,
        slowest=slowest(parts),
    )

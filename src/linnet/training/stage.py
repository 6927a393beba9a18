"""Train one stage with Lightning, from the beginning or from where it was cut off."""

import logging
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from linnet.errors import CheckpointError, TrainingError
from linnet.machine import available_cpus
from linnet.progress import track
from linnet.settings import StageSettings, TrainSettings
from linnet.stores.tracking import Tracker
from linnet.training import rates
from linnet.training.arithmetic import precision, spare_strided_depthwise
from linnet.training.augmentation import augment
from linnet.training.cache import computed_once
from linnet.training.loading import Batch, Batches, Order, loader
from linnet.training.module import Stage
from linnet.training.network import Classifier, Head, digest, find_head
from linnet.training.record import LAST, Record, Recorder, Row

log = logging.getLogger(__name__)

_LOWEST_RATE = 1e-6
_EXIT_AFTER_SIGTERM = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Pictures:
    """What a stage learns from: pictures, uint8 `[N, S, S, 3]`, and labels, int64 `[N]`.

    `key` tells apart what the pictures were made from, for whatever is computed from them;
    `positive` is the class that is looked for, of two.
    """

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    classes: int
    key: str
    positive: int | None = None


def read_record(folder: Path) -> Record | None:
    """Return what a stage that was begun in this folder has recorded, None if it wasn't.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / LAST
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Record.from_state(state["callbacks"][Recorder.__qualname__])
    except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} can't be resumed from ({error}): delete {folder} to begin the stage again"
        ) from error


def train_stage(
    name: Literal["head", "whole"],
    model: Classifier,
    pictures: Pictures,
    settings: TrainSettings,
    *,
    folder: Path,
    cache: Path,
    epochs_before: int = 0,
    tracker: Tracker | None = None,
    watch: Callable[[Row], None] | None = None,
) -> Record:
    """Train a stage to its end and return its record; its best weights are in `folder`.

    What a process that was killed has left in `folder` is gone on from: the result is the same,
    bit for bit, as without the interruption.

    Raises:
        TrainingError: the loss is no longer a number, or the hardware asked for isn't there.
    """
    stage = settings.head if name == "head" else settings.whole
    assert stage is not None
    record = read_record(folder)
    if record is not None and record.finished:
        return record
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(
        folder,
        monitor=settings.monitor,
        keep=settings.keep,
        pictures=len(pictures.train),
        epochs_before=epochs_before,
        tracker=tracker,
        watch=watch,
    )
    with quiet_lightning():
        trainer = make_trainer(stage, settings, folder, recorder)
        if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu":
            spare_strided_depthwise(model)
        head = find_head(model, settings.size_px) if name == "head" else None
        cached = head is not None and not stage.augments
        if name == "head" and not cached:
            log.info("features of the frozen backbone are not cached: %s", _why(head))
        train, val = _loaders(
            name, model, pictures, stage, settings, head if cached else None, trainer, cache
        )
        module = Stage(
            name,
            model,
            stage,
            settings,
            counts=np.bincount(pictures.train_labels, minlength=pictures.classes).tolist(),
            lr=_LOWEST_RATE if stage.lr == "auto" else stage.lr,
            steps_per_epoch=len(train),
            head=head,
            cached=cached,
            positive=pictures.positive,
        )
        if stage.lr == "auto":
            module.lr = _found_rate(module, train, trainer, folder)
        assert isinstance(train.sampler, Order)
        train.sampler.set_epoch(0 if record is None else len(record.history))
        _run(trainer, module, train, val, None if record is None else folder / LAST)
    return recorder.record


def _found_rate(
    module: Stage, train: DataLoader[Batch], trainer: pl.Trainer, folder: Path
) -> float:
    """Return the learning rate of the stage's range test, which a resumed run doesn't repeat."""
    path = folder / rates.FILE
    if not path.exists():
        found = rates.range_test(
            module,
            train,
            device=trainer.strategy.root_device,
            arithmetic=trainer.precision_plugin.forward_context,
        )
        found.write(path)
    chosen = rates.RangeTest.read(path).chosen
    log.info("stage %s: the range test chose learning rate %g", module.name, chosen)
    return chosen


def make_trainer(
    stage: StageSettings, settings: TrainSettings, folder: Path, recorder: Recorder | None
) -> pl.Trainer:
    """Return a Lightning trainer that leaves writing to `recorder` and talking to us.

    Raises:
        TrainingError: the accelerator, devices or precision can't be had.
    """
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    # Threads that spin for each other halve the speed of two trainings side by side: whoever
    # starts several says how many each may have.
    if not on_gpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    progress = [RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else []
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=precision(settings, on_gpu=on_gpu),
            max_epochs=stage.epochs,
            gradient_clip_val=settings.gradient_clip,
            deterministic="warn" if on_gpu else None,
            callbacks=[*([] if recorder is None else [recorder]), *progress],
            enable_progress_bar=bool(progress),
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError) as error:
        raise TrainingError(
            f"train.accelerator {settings.accelerator} with train.devices {settings.devices} "
            f"can't be had on this machine: {error}"
        ) from error


def features_of(
    model: Classifier, pictures: NDArray[np.uint8], trainer: pl.Trainer, batch_size: int, what: str
) -> Iterator[NDArray[np.float32]]:
    """Yield the frozen network's features of all pictures, float32 `[n, features]` a batch."""
    model.to(trainer.strategy.root_device).eval()
    starts = range(0, len(pictures), batch_size)
    for start in track(starts, f"Features of {what} pictures", len(starts)):
        yield features_of_batch(model, np.array(pictures[start : start + batch_size]), trainer)


def features_of_batch(
    model: Classifier, pictures: NDArray[np.uint8], trainer: pl.Trainer
) -> NDArray[np.float32]:
    """Return features, float32 `[n, features]`, by a network in eval mode on the device."""
    batch = torch.from_numpy(pictures).to(trainer.strategy.root_device)
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        features: NDArray[np.float32] = model.features(batch).float().cpu().numpy()
    return features


def kept_features(
    split: Literal["train", "val"],
    model: Classifier,
    pictures: Pictures,
    trainer: pl.Trainer,
    settings: TrainSettings,
    cache: Path,
) -> NDArray[np.float32] | None:
    """Return the features of a split that a stage on this frozen network has kept, if one has."""
    head = find_head(model, settings.size_px)
    if head is None:
        return None
    path = _features_folder(model, pictures, head, trainer, cache) / f"{split}.npy"
    found: NDArray[np.float32] | None = np.load(path, mmap_mode="r") if path.exists() else None
    return found


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips out of the log while it runs; warnings of real trouble stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _TIPS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_TIPS = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*GPU available but not used.*",
    r".*isinstance\(treespec, LeafSpec\).*",
)


def _loaders(
    name: str,
    model: Classifier,
    pictures: Pictures,
    stage: StageSettings,
    settings: TrainSettings,
    head: Head | None,
    trainer: pl.Trainer,
    cache: Path,
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Return the loaders of training and validation; with `head`, of its cached features."""
    train: NDArray[Any] = pictures.train
    val: NDArray[Any] = pictures.val
    if head is not None:
        folder = _features_folder(model, pictures, head, trainer, cache)
        train, val = (
            _cached_features(model, of, head, trainer, folder, split, settings.batch_size)
            for split, of in (("train", pictures.train), ("val", pictures.val))
        )
    change = None
    if stage.augments:
        change = augment(
            stage.augmentation,
            size_px=settings.size_px,
            classes=pictures.classes,
            randaugment=stage.randaugment,
            mixup=stage.mixup,
            cutmix=stage.cutmix,
        )
    ranks: dict[str, Any] = {"rank": trainer.global_rank, "ranks": trainer.world_size}
    seed = f"{settings.seed}/{name}"
    balanced = pictures.train_labels if settings.imbalance == "oversample" else None
    options: dict[str, Any] = {
        "workers": settings.workers if head is None else 0,
        "pin": trainer.strategy.root_device.type == "cuda",
    }
    return (
        loader(
            Batches(train, pictures.train_labels, change),
            Order(len(train), settings.batch_size, seed=seed, balanced=balanced, **ranks),
            **options,
        ),
        loader(
            Batches(val, pictures.val_labels),
            Order(len(val), settings.batch_size, seed=None, **ranks),
            **options,
        ),
    )


def _cached_features(
    model: Classifier,
    pictures: NDArray[np.uint8],
    head: Head,
    trainer: pl.Trainer,
    folder: Path,
    split: str,
    batch_size: int,
) -> NDArray[np.float32]:
    first = next(iter(features_of(model, pictures[:1], trainer, 1, split)))
    return computed_once(
        folder / f"{split}.npy",
        (len(pictures), *first.shape[1:]),
        np.float32,
        lambda: features_of(model, pictures, trainer, batch_size, split),
    )


def _features_folder(
    model: Classifier, pictures: Pictures, head: Head, trainer: pl.Trainer, cache: Path
) -> Path:
    """Return where the features of these pictures by this backbone and arithmetic are kept."""
    tensors = model.network.state_dict()
    backbone = {k: v for k, v in tensors.items() if not k.startswith(f"{head.name}.")}
    backbone |= {"mean": model.mean, "scale": model.scale}
    return cache / "features" / f"{pictures.key}-{trainer.precision}-{digest(backbone)[:16]}"


def _why(head: Head | None) -> str:
    if head is None:
        return "the network's classifier is more than its last layer"
    return "stage head augments its pictures (train.head.augmentation: none would cache them)"


def _run(
    trainer: pl.Trainer,
    module: Stage,
    train: DataLoader[Batch],
    val: DataLoader[Batch],
    resume_from: Path | None,
) -> None:
    """Run Lightning's loop; what it makes of Ctrl-C and SIGTERM becomes itself again."""
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train, val, ckpt_path=resume_from)
    except SIGTERMException as error:
        raise SystemExit(_EXIT_AFTER_SIGTERM) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from error
        raise

"""What a stage leaves behind after every epoch: history, best weights, and where to resume."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import save_file

from linnet.settings import Monitor
from linnet.stores.objects import folder_errors
from linnet.stores.tracking import Tracker
from linnet.training.module import Stage

log = logging.getLogger(__name__)

LAST = "last.ckpt"
Row = dict[str, Any]


@dataclass
class Best:
    """The best epoch of a stage by one metric, counted from 1."""

    epoch: int
    value: float
    metrics: dict[str, float]
    confusion: list[list[int]]


@dataclass
class Record:
    """What is known of a stage so far; it travels in `last.ckpt`."""

    history: list[Row] = field(default_factory=list)
    best: dict[Monitor, Best] = field(default_factory=dict)
    finished: bool = False

    def to_state(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        best = {metric: vars(found).copy() for metric, found in self.best.items()}
        return {"history": self.history, "best": best, "finished": self.finished}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Record":
        """Return the record that a checkpoint carries."""
        best = {metric: Best(**found) for metric, found in state["best"].items()}
        return cls(list(state["history"]), best, state["finished"])


class Recorder(Checkpoint):
    """Write down each epoch, keep the best weights by each metric, and stop early.

    A `Checkpoint` because Lightning calls those last, when the epoch's metrics are there. The
    files of an epoch are written before the `last.ckpt` that knows of them, so an epoch that was
    cut off is done again and writes the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monitor: Monitor,
        keep: tuple[Monitor, ...],
        pictures: int,
        epochs_before: int = 0,
        tracker: Tracker | None = None,
        watch: Callable[[Row], None] | None = None,
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.keep = keep
        self.pictures = pictures
        self.epochs_before = epochs_before
        self.tracker = tracker
        self.watch = watch
        self.record = Record()
        self._began = self._learnt = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the record for `last.ckpt`."""
        return self.record.to_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record of a run that was cut off."""
        self.record = Record.from_state(state_dict)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of learning, which speed in pictures per second goes by."""
        self._learnt = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch."""
        assert isinstance(pl_module, Stage)
        stage = pl_module
        row = self._row(stage)
        self.record.history.append(row)
        with folder_errors("write", self.folder):
            for metric in self.keep:
                if self._is_best(metric, row):
                    self._keep(metric, row, stage, trainer)
            self._stop_or_go_on(stage, trainer)
            partial = self.folder / f".{LAST}"
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                partial.replace(self.folder / LAST)
        if trainer.is_global_zero:
            self._tell(row)
        trainer.strategy.barrier("recorded")
        if self.watch is not None:
            self.watch(row)

    def _row(self, stage: Stage) -> Row:
        now = time.monotonic()
        return {
            "epoch": self.epochs_before + len(self.record.history) + 1,
            "stage": stage.name,
            "stage_epoch": len(self.record.history) + 1,
            "lr": stage.learning_rate(),
            "train_loss": float(stage.train_loss.compute()),
            **stage.validation,
            "seconds": round(now - self._began, 3),
            "pictures_per_s": round(self.pictures / (self._learnt - self._began), 1),
            **{f"{part}_s": round(s, 3) for part, s in stage.clock.seconds().items()},
            "validation_s": round(now - self._learnt, 3),
        }

    def _is_best(self, metric: Monitor, row: Row) -> bool:
        found = self.record.best.get(metric)
        return found is None or is_better(metric, row[metric], found.value)

    def _keep(self, metric: Monitor, row: Row, stage: Stage, trainer: pl.Trainer) -> None:
        self.record.best[metric] = Best(
            epoch=row["stage_epoch"],
            value=row[metric],
            metrics=dict(stage.validation),
            confusion=stage.confusion,
        )
        if trainer.is_global_zero:
            partial = self.folder / ".best"
            save_file(stage.weights(), partial)
            partial.replace(best_file(self.folder, metric))

    def _stop_or_go_on(self, stage: Stage, trainer: pl.Trainer) -> None:
        done = len(self.record.history)
        patience = stage.stage.patience
        tired = patience is not None and done - self.record.best[self.monitor].epoch >= patience
        if tired and done < stage.stage.epochs:
            log.info(
                "stage %s stops early: %d epochs without a better %s",
                stage.name,
                patience,
                self.monitor,
            )
        self.record.finished = tired or done >= stage.stage.epochs
        trainer.should_stop = self.record.finished

    def _tell(self, row: Row) -> None:
        log.info(
            "%s epoch %d: train loss %.4f, val loss %.4f, accuracy %.4f, macro F1 %.4f, "
            "%.1f s, %.0f pictures/s",
            row["stage"],
            row["stage_epoch"],
            row["train_loss"],
            row["val_loss"],
            row["val_accuracy"],
            row["val_macro_f1"],
            row["seconds"],
            row["pictures_per_s"],
        )
        if self.tracker is not None:
            track_epoch(self.tracker, row)


def is_better(metric: Monitor, value: float, than: float) -> bool:
    """Return whether a metric's value is better; a smaller loss is."""
    return value < than if metric == "val_loss" else value > than


def best_file(folder: Path, metric: Monitor) -> Path:
    """Return where a stage keeps its best weights by a metric."""
    return folder / f"best-{metric}.safetensors"


def track_epoch(tracker: Tracker, row: Row) -> None:
    """Send an epoch's numbers to the run, so that its curves grow while it trains."""
    numbers = {k: v for k, v in row.items() if k not in ("epoch", "stage", "stage_epoch")}
    renamed = {"seconds": "epoch_seconds"}
    tracker.metrics({renamed.get(k, k): v for k, v in numbers.items()}, step=row["epoch"])

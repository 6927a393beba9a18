"""The end of a training in MLflow: the confusion matrix, the history and the chosen metrics."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from linnet.stores.tracking import Tracker
from linnet.training.checkpoint import HISTORY
from linnet.training.record import Best

_MOST_NUMBERS = 20


def track_result(tracker: Tracker, checkpoint: Path, best: Best, classes: Sequence[str]) -> None:
    """Record what belongs to the chosen epoch, under `best_val_…` and `training/`."""
    tracker.metrics({f"best_{name}": value for name, value in best.metrics.items()})
    for file in (checkpoint / HISTORY, *sorted(checkpoint.glob("rates-*"))):
        tracker.artifact(file, folder="training")
    tracker.figure(confusion_figure(best.confusion, classes), "training/confusion.svg")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.json"
        values = {"split": "val", "classes": list(classes), "confusion": best.confusion}
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        tracker.artifact(path, folder="training")


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Return a confusion matrix as a picture: true classes down, predicted ones across."""
    side = min(12.0, 3.0 + 0.4 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Validation, share of the true class")
    if len(classes) <= _MOST_NUMBERS:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for true, row in enumerate(confusion):
            for predicted, count in enumerate(row):
                colour = "white" if shares[true][predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour)
    return figure

"""Try settings without a look at test: `python -m recipes.trying SET --set KEY=VALUE --data DIR`.

Of the pictures that a set's best settings have for training and validation a quarter is held back,
another one for each seed, and the rest is learnt from. What the network says of the held back ones,
mirrored too where its release would, is a line of `recipes/tried.csv`.
"""

import argparse
import csv
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.data.preprocessing import Preprocessing
from linnet.evaluation.calibration import fit_temperature
from linnet.inference.predict import predict_split
from linnet.release.export import Mirrored
from linnet.settings import CsvSettings, IngestSettings, RunSettings
from linnet.training import fit
from linnet.training.network import Classifier, load_checkpoint
from recipes.plan import FOLDER, overrides, placed, read_plan

log = logging.getLogger(__name__)

TRIED = FOLDER / "tried.csv"
HELD_BACK = 0.25


@dataclass(frozen=True)
class Trial:
    """What was set, in short, and the means over all held back pictures, of all seeds."""

    pictures: str
    settings: str
    seeds: int
    held_back: int
    accuracy: float
    log_loss: float | None


@dataclass(frozen=True)
class Trained:
    """A network that answers as its release would, before the temperature."""

    network: nn.Module
    preprocessing: Preprocessing

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities `[N, classes]` of pictures, uint8 `[N, S, S, 3]`."""
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(pictures))
        answers: NDArray[np.float32] = logits.softmax(1).numpy()
        return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", help="a set that recipes/best has settings for")
    parser.add_argument("--data", default="data", help="folder with the unpacked sets")
    parser.add_argument("--weights", default="hub", help="weights of mobilenetv2_100")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of what is held back")
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan, name = read_plan(), f"best-{wanted.pictures}"
    places = {"data": wanted.data, "weights": wanted.weights}
    given = overrides(placed(plan.changes(name, {}), places))
    settings = RunSettings.load(plan.runs[name].file, (*given, *wanted.more))
    right, losses = [], []
    for seed in wanted.seeds:
        hits, loss = held_back(settings, seed, wanted.workspace)
        log.info("%s, seed %d: %.4f", wanted.pictures, seed, hits.mean())
        right.append(hits)
        losses.append(loss)
    hits, loss = np.concatenate(right), np.concatenate(losses)
    write(
        Trial(
            pictures=wanted.pictures,
            settings=in_short(settings),
            seeds=len(wanted.seeds),
            held_back=len(hits),
            accuracy=round(float(hits.mean()), 4),
            log_loss=round(float(loss.mean()), 4),
        )
    )


def in_short(settings: RunSettings) -> str:
    """Return what tells trials apart, in a line."""
    train = settings.train
    said = [f"{train.size_px} px"]
    for name, stage in (("head", train.head), ("whole", train.whole)):
        if stage is not None:
            said.append(f"{name} {stage.epochs} epochs at {stage.lr}")
            said += [f"by layer {stage.layer_decay}"] * (stage.layer_decay < 1)
            said += [f"frozen up to {last}" for last in stage.frozen[-1:]]
            said += [f"{stage.augmentation} augmentation"] * stage.augments
            mixed = {"mixup": stage.mixup, "cutmix": stage.cutmix, "randaugment": stage.randaugment}
            said += [f"{what} {strength}" for what, strength in mixed.items() if strength]
    said += [f"averaged {train.average_weights}"] * (train.average_weights > 0)
    said += [f"smoothed {train.label_smoothing}"] * (train.label_smoothing > 0)
    said += ["answers to mirror images too"] * (settings.export.flip == "horizontal")
    return ", ".join(said)


def held_back(
    settings: RunSettings, seed: int, workspace: Path
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Train on three quarters of what is not test; return which others are right, and their loss.

    Near duplicates, and pictures of one group, are all held back or all learnt from. The loss is
    after a temperature, as in a release, so that smoothed labels don't weigh in.
    """
    train = settings.train.model_copy(update={"probe_pictures": 0})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ingest(settings.source, folder / "all", settings.ingest)
        table = folder / "pictures.csv"
        grouped = _list(Dataset.open(folder / "all"), table)
        listed = CsvSettings(path=str(table), group_column="group" if grouped else None)
        source = settings.source.model_copy(update={"csv": listed, "splits": {}})
        shares = IngestSettings(val_fraction=HELD_BACK, test_fraction=0.0, seed=seed)
        ingest(source, folder / "part", shares)
        fit(folder / "part", folder / "checkpoint", train, workspace=workspace)
        network, manifest = load_checkpoint(folder / "checkpoint")
        classifier: nn.Module = Classifier(network, manifest.mean, manifest.std)
        if settings.export.flip == "horizontal":
            classifier = Mirrored(classifier)
        trained = Trained(classifier.eval(), manifest.preprocessing)
        seen = predict_split(trained, Dataset.open(folder / "part"), "val")
    logits = np.log(np.maximum(seen.probabilities, np.finfo(np.float32).tiny))
    logits /= fit_temperature(logits, seen.labels).value
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), seen.labels]
    return logits.argmax(axis=1) == seen.labels, loss


def tried(path: Path = TRIED) -> Iterator[Trial]:
    """Yield what was tried, in order."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts = {key: int(row[key]) for key in ("seeds", "held_back")}
            loss = float(row["log_loss"]) if row["log_loss"] else None
            accuracy = float(row["accuracy"])
            yield Trial(
                row["pictures"], row["settings"], **counts, accuracy=accuracy, log_loss=loss
            )


def write(trial: Trial, path: Path = TRIED) -> None:
    """Add a line to what was tried."""
    first = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(asdict(trial)), lineterminator="\n")
        if first:
            rows.writeheader()
        rows.writerow(asdict(trial))


def _list(dataset: Dataset, path: Path) -> bool:
    """Write the files of what is not test; return whether pictures have groups."""
    rows = [row for split in ("train", "val") for row in dataset.pictures(split)]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "group"])
        table.writerows((row.key, dataset.classes[row.label], row.group) for row in rows)
    return any(row.group for row in rows)


if __name__ == "__main__":
    main()

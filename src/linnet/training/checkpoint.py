"""A checkpoint folder: weights that torch alone can load, and a manifest that is written last."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linnet.data.preprocessing import Preprocessing
from linnet.errors import CheckpointError
from linnet.folders import written_whole
from linnet.manifest import read_manifest
from linnet.settings import Monitor

KIND = "linnet/checkpoint/v1"
MANIFEST = "model.json"
WEIGHTS = "model.safetensors"
HISTORY = "history.csv"


@dataclass(frozen=True)
class CheckpointManifest:
    """What has to be known to use the weights. `mean` and `std` are RGB, 0 to 1."""

    network: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dropout: float
    dataset_version: str
    code_revision: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    tracking_run_id: str | None
    linnet: str

    def to_json(self) -> dict[str, Any]:
        """Return the form that `model.json` has."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def read(cls, checkpoint: Path) -> "CheckpointManifest":
        """Return a checkpoint folder's manifest.

        Raises:
            CheckpointError: the folder is absent, holds no finished checkpoint or one of another
                kind.
        """
        path = checkpoint / MANIFEST
        values = read_manifest(path, KIND, step="train", error=CheckpointError)
        del values["kind"]
        try:
            values["classes"] = tuple(values["classes"])
            values["preprocessing"] = Preprocessing.from_json(values["preprocessing"])
            values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}): train again") from error


def write(
    destination: Path,
    manifest: CheckpointManifest,
    *,
    best: Mapping[Monitor, Path],
    monitor: Monitor,
    history: Sequence[Mapping[str, Any]],
    more: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint folder that appears whole or not at all, in place of an earlier one.

    `best` has the weights file of each metric's best epoch; the one of `monitor` is the model.
    `more` are files to copy beside it, by name.

    Raises:
        StoreError: something else is at the destination, or no space is left (StoreFullError);
            the destination is as it was.
    """
    with written_whole(destination, MANIFEST) as partial:
        for metric, weights in best.items():
            shutil.copyfile(weights, partial / f"best-{metric}.safetensors")
        shutil.copyfile(best[monitor], partial / WEIGHTS)
        write_history(partial / HISTORY, history)
        for name, file in (more or {}).items():
            shutil.copyfile(file, partial / name)
        (partial / MANIFEST).write_text(
            json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(history[0]))
        table.writeheader()
        table.writerows(history)

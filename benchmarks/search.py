"""What stopping bad trials early saves: `python -m benchmarks.search [--trials 20] [--epochs 12]`.

Searches the same space on the handwritten digits twice, in one process and one workspace: to the
end of every trial, and with each pruner. The sampler is random, so the trials are the same, and
what differs is how far they are trained. Prints the ratios of the CPU time and of the time that
all trials took (of these the first stands on a busy machine), and the best value of both; a first
trial pays for decoding before either is measured.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from linnet.data.ingest import ingest
from linnet.settings import IngestSettings, SearchSettings, SourceSettings, TrainSettings
from linnet.training.search import Search, run_trials
from linnet.training.search_report import SearchReport, conclude

TARGET = 0.5
SPACE = {
    "batch_size": [32, 64, 128],
    "whole": {
        "lr": {"low": 1e-5, "high": 0.3, "log": True},
        "optimizer": ["adamw", "sgd", "rmsprop"],
        "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="test_resnet")
    parser.add_argument("--size-px", type=int, default=16)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pruner", nargs="*", default=["median", "hyperband"])
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("linnet.training.search").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(wanted, Path(scratch)), indent=1))


def measure(wanted: argparse.Namespace, workspace: Path) -> dict[str, object]:
    dataset = workspace / "dataset"
    if not dataset.exists():
        ingest(SourceSettings(uri="digits"), dataset, IngestSettings())
    found(wanted, workspace, pruner="none", trials=1, seed=1)
    to_the_end, cpu_s = found(wanted, workspace, pruner="none", trials=wanted.trials)
    results: dict[str, object] = {
        "trials": wanted.trials,
        "target": f"<= {TARGET}, best no worse",
        "to the end": _words(to_the_end),
    }
    for pruner in wanted.pruner:
        stopped, stopped_cpu_s = found(wanted, workspace, pruner=pruner, trials=wanted.trials)
        results[pruner] = _words(stopped) | {
            "CPU time / to the end": round(stopped_cpu_s / cpu_s, 3),
            "time / to the end": round(stopped.seconds / to_the_end.seconds, 3),
            "epochs / to the end": round(_epochs(stopped) / _epochs(to_the_end), 3),
            "best - to the end": round(stopped.value - to_the_end.value, 4),
        }
    return results


def found(
    wanted: argparse.Namespace, workspace: Path, *, pruner: str, trials: int, seed: int = 42
) -> tuple[SearchReport, float]:
    base = TrainSettings.parse(
        {
            "network": wanted.network,
            "weights": "none",
            "normalisation": "dataset",
            "size_px": wanted.size_px,
            "head": "skip",
            "whole": {"epochs": wanted.epochs, "augmentation": "none"},
            "accelerator": "cpu",
        }
    )
    settings = SearchSettings.parse(
        {"space": SPACE, "trials": trials, "sampler": "random", "pruner": pruner, "seed": seed}
    )
    search = Search(workspace / "dataset", base, settings, "digits", workspace)
    began = time.process_time()
    run_trials(search)
    cpu_s = time.process_time() - began
    return conclude(search, workspace / f"found-{pruner}-{seed}"), cpu_s


def _epochs(report: SearchReport) -> int:
    return sum(len(row.by_epoch) for row in report.trials)


def _words(report: SearchReport) -> dict[str, object]:
    outcomes: Sequence[str] = [row.outcome for row in report.trials]
    return {
        "seconds": report.seconds,
        "epochs": _epochs(report),
        "best": round(report.value, 4),
        "stopped early": outcomes.count("stopped early"),
    }


if __name__ == "__main__":
    main()

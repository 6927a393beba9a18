"""What stopping bad trials early saves: `python -m benchmarks.search [--trials 20] [--epochs 12]`.

Searches the same space on the handwritten digits to the end of every trial and with each pruner, in
one process and one workspace, by turns: a trial of one, then the same of the others, so that a busy
moment of the machine meets all of them. The sampler is random, so the trials are the same, and what
differs is how far they are trained. Prints the ratios of the CPU time and of the time that all
trials took, and the best value of each; a first trial pays for decoding before any is measured.
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
    run_trials(search(wanted, workspace, pruner="none", trials=1, seed=1))
    cpu_s = dict.fromkeys(("none", *wanted.pruner), 0.0)
    for trials in range(1, wanted.trials + 1):
        for pruner in cpu_s:
            began = time.process_time()
            run_trials(search(wanted, workspace, pruner=pruner, trials=trials))
            cpu_s[pruner] += time.process_time() - began
    reports = {
        pruner: conclude(
            search(wanted, workspace, pruner=pruner, trials=wanted.trials),
            workspace / f"found-{pruner}",
        )
        for pruner in cpu_s
    }
    to_the_end = reports.pop("none")
    results: dict[str, object] = {
        "trials": wanted.trials,
        "target": f"<= {TARGET}, best no worse",
        "to the end": _words(to_the_end),
    }
    for pruner, stopped in reports.items():
        results[pruner] = _words(stopped) | {
            "CPU time / to the end": round(cpu_s[pruner] / cpu_s["none"], 3),
            "time / to the end": round(stopped.seconds / to_the_end.seconds, 3),
            "epochs / to the end": round(_epochs(stopped) / _epochs(to_the_end), 3),
            "best - to the end": round(stopped.value - to_the_end.value, 4),
        }
    return results


def search(
    wanted: argparse.Namespace, workspace: Path, *, pruner: str, trials: int, seed: int = 42
) -> Search:
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
    return Search(workspace / "dataset", base, settings, "digits", workspace)


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

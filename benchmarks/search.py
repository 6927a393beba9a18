"""What stopping bad trials early saves: `python -m benchmarks.search [--trials 20] [--epochs 12]`.

Searches the same space on the handwritten digits to the end of every trial and with each pruner, in
one process and one workspace, by turns: a trial of one, then the same of the others, so that a busy
moment of the machine meets all of them. The sampler is random, so the trials are the same, and what
differs is how far they are trained. How much is saved depends on the draw: one search of 20 says
little, so several seeds are searched. Prints of each, and of all together, the ratios of the CPU
time and of the time that all trials took, and the best value; a first trial pays for decoding
before any is measured.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    parser.add_argument("--pruner", nargs="*", default=["median", "halving", "hyperband"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[42, 43, 44])
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("linnet.training.search").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(wanted, Path(scratch)), indent=1))


def measure(wanted: argparse.Namespace, workspace: Path) -> dict[str, object]:
    ingest(SourceSettings(uri="digits"), workspace / "dataset", IngestSettings())
    run_trials(search(wanted, workspace, pruner="none", trials=1, seed=1))
    searched = {seed: by_turns(wanted, workspace, seed) for seed in wanted.seeds}
    results: dict[str, object] = {
        "trials": wanted.trials,
        "target": f"<= {TARGET}, best no worse",
    }
    for pruner in wanted.pruner:
        pairs = {seed: (found[pruner], found["none"]) for seed, found in searched.items()}
        results[pruner] = {
            "all": _ratios(list(pairs.values())),
            **{f"seed {seed}": _ratios([pair]) for seed, pair in pairs.items()},
        }
    return results


@dataclass(frozen=True)
class Searched:
    """What a whole search took and found. `cpu_s` is of this process alone."""

    cpu_s: float
    report: SearchReport

    @property
    def epochs(self) -> int:
        return sum(len(row.by_epoch) for row in self.report.trials)


def by_turns(wanted: argparse.Namespace, workspace: Path, seed: int) -> dict[str, Searched]:
    """Return the search of a seed by each pruner, and by none."""
    cpu_s = dict.fromkeys(("none", *wanted.pruner), 0.0)
    for trials in range(1, wanted.trials + 1):
        for pruner in cpu_s:
            began = time.process_time()
            run_trials(search(wanted, workspace, pruner=pruner, trials=trials, seed=seed))
            cpu_s[pruner] += time.process_time() - began
    found = {}
    for pruner in cpu_s:
        finished = search(wanted, workspace, pruner=pruner, trials=wanted.trials, seed=seed)
        report = conclude(finished, workspace / f"found-{pruner}-{seed}")
        found[pruner] = Searched(cpu_s[pruner], report)
    return found


def _ratios(pairs: Sequence[tuple[Searched, Searched]]) -> dict[str, float]:
    """Return pruned searches against the same to their end, their sums and their mean best."""

    def ratio(of: Callable[[Searched], float]) -> float:
        return round(
            sum(of(pruned) for pruned, _ in pairs) / sum(of(whole) for _, whole in pairs), 3
        )

    lost = sum(pruned.report.value - whole.report.value for pruned, whole in pairs)
    return {
        "CPU time / to the end": ratio(lambda searched: searched.cpu_s),
        "time / to the end": ratio(lambda searched: searched.report.seconds),
        "epochs / to the end": ratio(lambda searched: searched.epochs),
        "best - to the end": round(lost / len(pairs), 4),
    }


def search(
    wanted: argparse.Namespace, workspace: Path, *, pruner: str, trials: int, seed: int
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


if __name__ == "__main__":
    main()

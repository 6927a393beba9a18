"""Run recipes and record what came of them: `python -m recipes.record --data DIR --weights FILE`.

A run is `linnet run` with the settings that its record's command has. `recipes/results/<name>.json`
is the record: the numbers that docs/recipes.md shows. What the steps wrote stays in the workspace.
Names of runs, recipes or studies choose some; `--set` changes a setting of all of them, as for
other pictures.
"""

import argparse
import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from linnet import launch
from linnet.evaluation.calibration import Labels
from linnet.evaluation.report import Report, load_predictions
from linnet.inference.predict import Predictions
from linnet.launch import RunResult
from linnet.provenance import code_revision
from linnet.settings import RunSettings, apply_override
from recipes.plan import FOLDER, Plan, overrides, placed, read_plan, settings_of

log = logging.getLogger(__name__)

RESULTS = FOLDER / "results"
THRESHOLDS = (0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.1)
HISTORY = ("stage", "stage_epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1")
SAMPLES = 2000

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Record:
    """What is kept of a run. Intervals and baselines are the report's, of the test split.

    `positive` is of the class that is looked for, where there are two, answered as the release
    answers; `thresholds` are what answers by a threshold on its probability would be. `busy` is
    the machine's load average when the run began, per CPU.
    """

    run: str
    command: str
    monitor: str
    settings: dict[str, Any]
    dataset: dict[str, Any]
    validation: dict[str, float]
    epochs: list[dict[str, float | str]]
    metrics: dict[str, Numbers]
    decision: str
    positive: dict[str, Any] | None
    fitted: dict[str, Any] | None
    thresholds: list[Numbers]
    search: dict[str, Any] | None
    seconds: dict[str, float]
    busy: float
    revision: str
    date: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="runs, recipes or studies; all without")
    parser.add_argument("--data", default="data", help="folder with the unpacked sets")
    parser.add_argument("--weights", default="hub", help="weights of mobilenetv2_100")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--missing", action="store_true", help="leave out what is recorded")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = {"data": wanted.data, "weights": wanted.weights}
    plan = read_plan()
    for name in plan.named(wanted.names):
        if not (wanted.missing and (wanted.results / f"{name}.json").exists()):
            record(plan, name, places, wanted.workspace, results=wanted.results, more=wanted.more)


def record(
    plan: Plan,
    name: str,
    places: Mapping[str, str],
    workspace: Path,
    *,
    results: Path = RESULTS,
    more: Iterable[str] = (),
    runner: Callable[[RunSettings, Path], RunResult] = launch.run,
) -> Record:
    """Do one of the plan's runs, as `linnet run` does, and write its record."""
    run = plan.runs[name]
    changes = plan.changes(name, best_of_studies(plan, read_records(results)))
    for override in more:
        # A change of a whole section leaves nothing of what the plan sets in it.
        asked: dict[str, Any] = {}
        apply_override(asked, override)
        key = override.partition("=")[0].strip()
        changes = {k: v for k, v in changes.items() if not f"{k}.".startswith(f"{key}.")}
        changes[key] = _at(asked, key)
    settings = settings_of(run, changes, places)
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    shown = {"data": "DIR", "weights": "WEIGHTS"}
    file = run.file.relative_to(FOLDER.parent)
    words = " ".join(f"--set '{change}'" for change in overrides(placed(changes, shown)))
    command = f"linnet run {file} {words}".strip()
    log.info("%s: %s", name, command)
    # A workspace of its own: what another run has released must not be in the gate's way.
    done = runner(settings, workspace / name)
    made = recorded(name, command, settings, done, busy)
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(made), indent=1, ensure_ascii=False)
    # Where files lie on this machine is nobody else's business, in what a search drew either.
    text = text.replace(places["weights"], Path(places["weights"]).name)
    (results / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return made


def recorded(
    name: str,
    command: str,
    settings: RunSettings,
    done: RunResult,
    busy: float,
) -> Record:
    """Return the record of a finished run."""
    report, predictions = Report.load(done.report), load_predictions(done.report)
    (checkpoint,) = done.folder.glob("**/train/checkpoint")
    model = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
    found = list(done.folder.glob("**/choose/found/search.json"))
    history = _rows(checkpoint / "history.csv")
    # A training or search that was resumed took longer than this process knows.
    learnt = sum(float(row["seconds"]) for row in history)
    seconds = {step: round(took, 1) for step, took in done.seconds.items()}
    seconds["train"] = round(max(learnt, seconds["train"]), 1)
    searched = _searched(found[0]) if found else None
    if searched is not None:
        tried = sum(trial["seconds"] or 0.0 for trial in searched["trials"])
        seconds["search"] = round(max(tried, seconds.get("search", 0.0)), 1)
    trained = {**model["settings"], "weights": Path(model["settings"]["weights"]).name}
    positive = settings.evaluate.decision.positive or settings.train.positive
    two = len(report.classes) == 2
    looked_for = report.classes.index(positive) if two and positive else 1
    return Record(
        run=name,
        command=command,
        monitor=settings.train.monitor,
        settings=trained,
        dataset={
            "version": report.dataset_version,
            "classes": list(report.classes),
            **report.provenance["counts"],
        },
        validation=_rounded(model["metrics"]),
        epochs=[_epoch(row) for row in history],
        metrics={key: _rounded(asdict(value)) for key, value in report.metrics.items()},
        decision=report.gate.decision if report.gate else "",
        positive=_positive(report, predictions, looked_for) if two else None,
        fitted=_fitted(report),
        thresholds=at_thresholds(predictions, looked_for) if two else [],
        search=searched,
        seconds=seconds,
        busy=round(busy, 1),
        revision=code_revision(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def at_thresholds(predictions: Predictions, positive: int) -> list[Numbers]:
    """Return what answering the positive class from a probability on would give, by threshold.

    `answers_auc` is the area under the ROC curve of the answers themselves, which has one corner:
    the mean of the recall and of one less the false positive rate.
    """
    labels, scores = predictions.labels, predictions.probabilities[:, positive]
    truth = labels == positive
    rows: list[Numbers] = []
    for threshold in THRESHOLDS:
        answered = scores >= threshold
        recall = float(answered[truth].mean())
        false = float(answered[~truth].mean())
        f1 = 2 * float((answered & truth).sum()) / max(1, int(answered.sum() + truth.sum()))
        rows.append(
            _rounded(
                {
                    "threshold": threshold,
                    "recall": recall,
                    "false_positive_rate": false,
                    "f1": f1,
                    "answers_auc": (recall + 1 - false) / 2,
                }
            )
        )
    return rows


def interval_of_f1(hits: int, answered: int, support: int, pictures: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a class's F1, from its counts.

    Drawing pictures anew draws the four cells of its table from a multinomial distribution.
    """
    cells = np.array([hits, answered - hits, support - hits, pictures - answered - support + hits])
    drawn = np.random.default_rng(42).multinomial(pictures, cells / pictures, SAMPLES)
    f1 = 2 * drawn[:, 0] / np.maximum(1, 2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2])
    low, high = np.quantile(f1, (0.025, 0.975))
    return float(low), float(high)


def best_of_studies(plan: Plan, records: Mapping[str, Record]) -> dict[str, str]:
    """Return the best run by validation of every study that is recorded whole."""
    best: dict[str, str] = {}
    for study in plan.studies:
        names = members(plan, study, best)
        if names and all(name in records for name in names):
            best[study] = max(names, key=lambda name: _reached(records[name]))
    return best


def members(plan: Plan, study: str, best: Mapping[str, str]) -> list[str]:
    """Return a study's runs: first the one that it goes on from."""
    earlier = plan.studies[study].after
    first = [best[earlier]] if earlier is not None and earlier in best else []
    return first + [name for name, run in plan.runs.items() if run.study == study]


def read_records(folder: Path = RESULTS) -> dict[str, Record]:
    """Return the records in a folder by the run's name."""
    files = sorted(folder.glob("*.json"))
    records = (Record(**json.loads(file.read_text(encoding="utf-8"))) for file in files)
    return {record.run: record for record in records}


def _reached(record: Record) -> float:
    value = record.validation[record.monitor]
    return -value if record.monitor == "val_loss" else value


def _positive(report: Report, predictions: Predictions, positive: int) -> dict[str, Any]:
    row = report.per_class[positive]
    hits = report.confusion[positive][positive]
    low, high = interval_of_f1(hits, row.predicted, row.support, report.pictures)
    naive = np.full(report.pictures, positive)
    return {
        "class": row.name,
        **_rounded(
            {
                "f1": row.f1,
                "low": low,
                "high": high,
                "naive_f1": _f1(predictions.labels, naive, positive),
            }
        ),
        **_rounded({"precision": row.precision, "recall": row.recall}),
    }


def _f1(labels: Labels, answers: Labels, positive: int) -> float:
    hits = int(((labels == positive) & (answers == positive)).sum())
    return 2 * hits / int((labels == positive).sum() + (answers == positive).sum())


def _fitted(report: Report) -> dict[str, Any] | None:
    fitted = report.thresholds
    if fitted is None:
        return None
    return {
        "words": fitted.words,
        "thresholds": fitted.thresholds and _rounded(fitted.thresholds),
        "before": _rounded(fitted.before),
        "after": _rounded(fitted.after),
    }


def _searched(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    names = ("number", "outcome", "value", "drawn", "by_epoch", "seconds")
    trials = [{name: trial[name] for name in names} for trial in found["trials"]]
    return {name: found[name] for name in ("monitor", "best", "value", "importance")} | {
        "trials": trials
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _epoch(row: Mapping[str, str]) -> dict[str, float | str]:
    return {k: row[k] if k == "stage" else round(float(row[k]), 4) for k in HISTORY}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


if __name__ == "__main__":
    main()

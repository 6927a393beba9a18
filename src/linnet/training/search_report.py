"""What a search found: the best trial's settings, and a page that shows all trials."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
import optuna
import yaml
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from linnet import __version__
from linnet.folders import written_whole
from linnet.provenance import code_revision
from linnet.search_space import Choices, Space
from linnet.settings import RunSettings, TrainSettings
from linnet.training import search_plots
from linnet.training.record import is_better
from linnet.training.search import SAME_AS, SECONDS, SETTINGS, Search, all_failed, tracker_of
from linnet.training.trials import ERROR, TRACKING_RUN, counted, shown

log = logging.getLogger(__name__)

KIND = "linnet/search/v1"
MANIFEST = "search.json"
BEST = "best.json"
PAGE = "search.html"
TRIALS = "trials.csv"

Outcome = Literal["complete", "stopped early", "failed", "running"]
_OUTCOMES: dict[TrialState, Outcome] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial. `value` is its best epoch's, or its last one's where it was stopped early.

    `by_epoch` has every epoch's, from the first.
    """

    number: int
    outcome: Outcome
    value: float | None
    drawn: dict[str, Any]
    by_epoch: tuple[float, ...]
    seconds: float | None
    same_as: int | None
    error: str | None


@dataclass(frozen=True)
class SearchReport:
    """The outcome of a search. `settings` are the train settings of the best trial.

    `importance` is the share of the values' variance that each dimension explains (fANOVA).
    """

    study: str
    storage: str
    monitor: str
    best: int
    value: float
    drawn: dict[str, Any]
    settings: dict[str, Any]
    importance: dict[str, float]
    trials: tuple[TrialRow, ...]
    seconds: float
    tracking_run_id: str | None


def conclude(search: Search, destination: Path) -> SearchReport:
    """Write a finished search's folder, and return what it found.

    `best.json` is a settings file for `linnet train`, with the best trial's settings in it.

    Raises:
        SearchError: no trial could be trained.
        StoreError: the storage can't be reached; something else is at the destination.
    """
    with search.study() as (study, _):
        report = _report(search, study)
    unfinished = [row.number for row in report.trials if row.outcome == "running"]
    if unfinished or len(report.trials) < search.settings.trials:
        log.warning(
            "the search is not finished: %d of %d trials are there, %d of them still running or "
            "cut off; start it again to do the rest",
            len(report.trials),
            search.settings.trials,
            len(unfinished),
        )
    space = search.space()
    as_read = named(report, space)
    plots = search_plots.draw(as_read.trials, report.importance, report.monitor)
    with written_whole(destination, MANIFEST) as partial:
        best = {"model": search.model, "train": report.settings}
        (partial / BEST).write_text(_json(best), encoding="utf-8")
        _write_table(partial / TRIALS, report.trials)
        (partial / PAGE).write_text(_page(as_read, plots, _groups(space)), encoding="utf-8")
        for name, svg in plots.items():
            (partial / f"{name}.svg").write_text(svg, encoding="utf-8")
        manifest = {
            "kind": KIND,
            **asdict(report),
            "base": search.base.model_dump(mode="json"),
            "search": search.settings.model_dump(mode="json", exclude={"storage"}),
            "code_revision": code_revision(),
            "linnet": __version__,
        }
        (partial / MANIFEST).write_text(_json(manifest), encoding="utf-8")
    _track(search, report, destination)
    return report


def _report(search: Search, study: optuna.Study) -> SearchReport:
    trials = counted(study)
    rows = tuple(_row(number, trial) for number, trial in enumerate(trials, start=1))
    monitor = search.base.monitor
    best: TrialRow | None = None
    for row in rows:
        if row.outcome != "complete" or row.value is None:
            continue
        if best is None or best.value is None or is_better(monitor, row.value, best.value):
            best = row
    if best is None or best.value is None:
        raise all_failed(trials)
    chosen = TrainSettings.parse(json.loads(trials[best.number - 1].user_attrs[SETTINGS]))
    return SearchReport(
        study=study.study_name,
        storage=shown(search.storage),
        monitor=monitor,
        best=best.number,
        value=best.value,
        drawn=best.drawn,
        settings=RunSettings(train=chosen).section("train"),
        importance=_importance(study, search.settings.seed),
        trials=rows,
        seconds=round(sum(row.seconds or 0.0 for row in rows), 1),
        tracking_run_id=study.user_attrs.get(TRACKING_RUN),
    )


def _row(number: int, trial: FrozenTrial) -> TrialRow:
    by_epoch = trial.intermediate_values
    return TrialRow(
        number=number,
        outcome=_OUTCOMES[trial.state],
        value=trial.value,
        drawn=dict(trial.params),
        by_epoch=tuple(by_epoch[epoch] for epoch in sorted(by_epoch)),
        seconds=trial.user_attrs.get(SECONDS),
        same_as=trial.user_attrs.get(SAME_AS),
        error=trial.user_attrs.get(ERROR),
    )


def _importance(study: optuna.Study, seed: int) -> dict[str, float]:
    """Return each dimension's importance; nothing where the trials can't tell."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in done}) < 2:
        return {}
    try:
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))
    except (ValueError, RuntimeError) as error:
        log.info("no importance of the dimensions can be told: %s", error)
        return {}


def _write_table(path: Path, rows: Sequence[TrialRow]) -> None:
    names = sorted({name for row in rows for name in row.drawn})
    fixed = ("number", "outcome", "value", "seconds", "same_as", "error")
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow((*fixed, "epochs", *names))
        for row in rows:
            cells = (getattr(row, name) for name in fixed)
            table.writerow((*cells, len(row.by_epoch), *(row.drawn.get(name) for name in names)))


def named(report: SearchReport, space: Space) -> SearchReport:
    """Return a report as people read it: with words for the groups of settings drawn."""
    words = {name: each.words for name, each in space.items() if isinstance(each, Choices)}

    def told(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {name: words.get(name, {}).get(value, value) for name, value in drawn.items()}

    trials = tuple(replace(row, drawn=told(row.drawn)) for row in report.trials)
    return replace(report, drawn=told(report.drawn), trials=trials)


def _groups(space: Space) -> list[tuple[str, str, str]]:
    """Return the groups of settings in a space: the dimension, the words for it, the YAML."""
    return [
        (name, words, yaml.safe_dump(json.loads(label)))
        for name, each in space.items()
        if isinstance(each, Choices)
        for label, words in each.words.items()
    ]


def _page(
    report: SearchReport, plots: Mapping[str, str], groups: Sequence[tuple[str, str, str]]
) -> str:
    loaders = [jinja2.PackageLoader("linnet.training"), jinja2.PackageLoader("linnet.data")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    template = environment.get_template("search.html.j2")
    names = sorted({name for row in report.trials for name in row.drawn})
    return template.render(report=report, plots=plots, groups=groups, names=names, json=_json)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _track(search: Search, report: SearchReport, folder: Path) -> None:
    """Keep the search's files and values with its run in MLflow, and end the run."""
    if search.connections is None or report.tracking_run_id is None:
        return
    tracker = tracker_of(search, report.tracking_run_id)
    tracker.artifacts(folder, folder="search")
    tracker.metrics({f"best_{report.monitor}": report.value, "best_trial": report.best})
    for row in report.trials:
        if row.value is not None:
            tracker.metrics({"trial_value": row.value}, step=row.number)
    if search.connections.tracking_run_id != report.tracking_run_id:
        tracker.end()

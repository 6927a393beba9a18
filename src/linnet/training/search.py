"""Search for train settings: many short trainings, the bad ones stopped early.

Trials share the decoded pictures in the workspace, and a database in which workers, here or
elsewhere, draw from what all of them have found. A trial that was killed is done again, and goes
on from its last epoch where it can.
"""

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from linnet.data.dataset import Dataset
from linnet.errors import NetworkError, SearchError, SettingsError, TrainingError
from linnet.search_space import (
    Choices,
    Dimension,
    Space,
    is_active,
    most_epochs,
    read_space,
    settings_of,
)
from linnet.settings import SearchSettings, TrainSettings
from linnet.stores.connections import Connections
from linnet.stores.tracking import Tracker
from linnet.training.fit import fit, state_folder
from linnet.training.loading import seed_of
from linnet.training.record import Row, is_better
from linnet.training.trials import (
    ERROR,
    SURPLUS,
    TAKEN_OVER_AFTER_S,
    TRACKING_RUN,
    WORKER,
    counted,
    open_study,
    running,
    storage_errors,
    take_over_dead,
    this_worker,
)

log = logging.getLogger(__name__)

SETTINGS, SAME_AS, SECONDS = "settings", "same_as", "seconds"
# How long a worker waits for the one that began the study to begin its run in MLflow.
_RUN_WAIT_S = 60.0


class _Surplus(Exception):
    """Another worker has claimed the last trial."""


@dataclass(frozen=True)
class Search:
    """One search: what is trained, in which space, and where its trials are kept."""

    dataset: Path
    base: TrainSettings
    settings: SearchSettings
    model: str
    workspace: Path
    connections: Connections | None = None

    @property
    def storage(self) -> str:
        """Return the database's URL; it may hold a password."""
        given = self.settings.storage
        if given is None and self.connections is not None:
            given = self.connections.search_storage
        return given or f"sqlite:///{(self.workspace / 'search.db').absolute()}"

    def space(self) -> Space:
        """Return the dimensions.

        Raises:
            SettingsError: there are none, or one is wrong.
        """
        if not self.settings.space:
            raise SettingsError(
                "search.space is empty: name train settings to search, such as "
                "{batch_size: [32, 64], whole: {lr: {low: 1e-5, high: 1e-2, log: true}}}"
            )
        return read_space(self.settings.space, self.base)

    def name(self) -> str:
        """Return the study's name: of the same one a search is gone on with."""
        apart = {"trials", "workers", "storage"}
        parts = [
            Dataset.open(self.dataset).version,
            self.base.model_dump(mode="json", exclude={"workers"}),
            self.settings.model_dump(mode="json", exclude=apart),
        ]
        text = json.dumps(parts, sort_keys=True)
        return f"{self.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @contextmanager
    def study(self) -> Iterator[tuple[optuna.Study, bool]]:
        """Open the study, and say whether it is new; what its database raises becomes ours."""
        better_if_small = is_better(self.base.monitor, 0.0, 1.0)
        with storage_errors(self.storage):
            yield open_study(
                self.storage,
                self.name(),
                direction="minimize" if better_if_small else "maximize",
                sampler=_sampler(self.settings, 0),
                pruner=_pruner(self.settings, most_epochs(self.base, self.space())),
            )


def run_trials(search: Search) -> int:
    """Work on a search until all its trials are done or at work; return how many we ran.

    Started again after it was killed, or beside others, it goes on with the same search. The same
    seed gives one worker the same trials, whether it was killed in between or not.

    Raises:
        SettingsError: the space is wrong.
        SearchError: trials fail from the beginning.
        StoreError: the storage can't be reached, or is locked.
    """
    space = search.space()
    with search.study() as (study, new):
        tracker = _tracker(search, study, new)
        worker = _Worker(search, space, study, tracker)
        worker.work()
        return worker.ran


class _Worker:
    """One process's part in a search."""

    def __init__(
        self, search: Search, space: Space, study: optuna.Study, tracker: Tracker | None
    ) -> None:
        self.search = search
        self.space = space
        self.study = study
        self.tracker = tracker
        self.ran = 0

    def work(self) -> None:
        waited_since = time.monotonic()
        while True:
            take_over_dead(self.study)
            if len(counted(self.study)) < self.search.settings.trials:
                self.study.optimize(self._objective, n_trials=1, catch=(TrialFailed, _Surplus))
                gc.collect()
                self._stop_if_all_fail()
                waited_since = time.monotonic()
            elif not running(self.study) or time.monotonic() - waited_since > TAKEN_OVER_AFTER_S:
                return
            else:
                time.sleep(1)

    def _objective(self, trial: optuna.Trial) -> float:
        trial.set_user_attr(WORKER, this_worker())
        before = [t for t in counted(self.study) if t.number < trial.number]
        if len(before) >= self.search.settings.trials:
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus
        # By place, not by what this process drew before: the same after a kill, and never the same
        # for two workers.
        self.study.sampler = _sampler(self.search.settings, len(before))
        self.ran += 1
        try:
            drawn = draw(trial, self.space, self.search.base)
            settings = settings_of(self.search.base, drawn)
            log.info("trial %d of %d: %s", len(before) + 1, self.search.settings.trials, drawn)
            return self._value(trial, settings, drawn)
        except (TrainingError, NetworkError, SettingsError, torch.OutOfMemoryError) as error:
            reason = str(error.__cause__ or error)
            log.warning("trial %d failed: %s", len(before) + 1, reason)
            trial.set_user_attr(ERROR, reason)
            raise TrialFailed(reason) from error

    def _value(
        self, trial: optuna.Trial, settings: TrainSettings, drawn: Mapping[str, Any]
    ) -> float:
        text = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
        earlier = self._earlier(text)
        trial.set_user_attr(SETTINGS, text)
        if earlier is not None and earlier.value is not None:
            trial.set_user_attr(SAME_AS, earlier.number)
            log.info("the same settings as before: %s %.4f", settings.monitor, earlier.value)
            return earlier.value
        began = time.monotonic()
        try:
            if self.tracker is None:
                return self._train(trial, settings, None)
            return self._tracked(trial, settings, drawn)
        finally:
            trial.set_user_attr(SECONDS, round(time.monotonic() - began, 2))

    def _tracked(
        self, trial: optuna.Trial, settings: TrainSettings, drawn: Mapping[str, Any]
    ) -> float:
        """Train in a run of MLflow's below the search's; a trial stopped early is no failure."""
        assert self.tracker is not None
        with self.tracker.child(f"trial {trial.number}") as run:
            run.tags({"trial": str(trial.number)} | {k: str(v) for k, v in drawn.items()})
            try:
                return self._train(trial, settings, run)
            except optuna.TrialPruned as pruned:
                run.tags({"stopped": "early"})
                stopped = pruned
        raise stopped

    def _train(self, trial: optuna.Trial, settings: TrainSettings, run: Tracker | None) -> float:
        search = self.search
        # The baseline is the same for every trial of a network, and none is judged by it.
        settings = settings.model_copy(update={"probe_pictures": 0})
        place = search.workspace / "search" / self.study.study_name / f"trial-{trial.number}"

        def watch(row: Row) -> None:
            trial.report(row[settings.monitor], row["epoch"])
            if trial.should_prune():
                log.info("stopped early after epoch %d", row["epoch"])
                raise optuna.TrialPruned

        state = state_folder(Dataset.open(search.dataset), settings, search.workspace)
        finished: tuple[type[BaseException], ...] = (optuna.TrialPruned, TrainingError)
        try:
            report = fit(
                search.dataset,
                place,
                settings,
                workspace=search.workspace,
                tracker=run,
                connections=search.connections,
                watch=watch,
            )
        except finished:
            shutil.rmtree(state, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return report.metrics[settings.monitor]

    def _earlier(self, settings: str) -> FrozenTrial | None:
        """Return a finished trial of the very same settings."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((t for t in done if t.user_attrs.get(SETTINGS) == settings), None)

    def _stop_if_all_fail(self) -> None:
        done = [t for t in counted(self.study) if t.state != TrialState.RUNNING]
        enough = min(self.search.settings.startup_trials, self.search.settings.trials)
        if len(done) >= enough and all(t.state == TrialState.FAIL for t in done):
            raise all_failed(done)


class TrialFailed(Exception):
    """A trial can't be trained; the search goes on with others."""


def all_failed(trials: list[FrozenTrial]) -> SearchError:
    """Return the error of a search in which no trial could be trained."""
    reasons = dict.fromkeys(str(t.user_attrs.get(ERROR)) for t in trials)
    return SearchError(
        f"every one of {len(trials)} trials failed:\n  "
        + "\n  ".join(reasons)
        + "\nPut that right, or change search.space or the train settings below it; a changed "
        "search begins anew"
    )


def draw(trial: optuna.Trial, space: Space, base: TrainSettings) -> dict[str, Any]:
    """Return a value for each dimension that matters, given those above it."""
    drawn: dict[str, Any] = {}
    for name, dimension in space.items():
        if is_active(name, drawn, base):
            drawn[name] = _drawn(trial, name, dimension)
    return drawn


def _drawn(trial: optuna.Trial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        by_label = dict(zip(dimension.labels, dimension.values, strict=True))
        return by_label[trial.suggest_categorical(name, list(by_label))]
    low, high, step = dimension.low, dimension.high, dimension.step
    if step is not None:
        # What Optuna would do with a warning: the range ends at its last step.
        high = low + step * int((high - low) / step + 1e-9)
    if dimension.whole:
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=dimension.log)
    return trial.suggest_float(name, low, high, step=step, log=dimension.log)


def _sampler(settings: SearchSettings, place: int) -> optuna.samplers.BaseSampler:
    seed = seed_of(settings.seed, "trial", place) % 2**32
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=seed)


def _pruner(settings: SearchSettings, epochs: int) -> optuna.pruners.BasePruner:
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    least = min(settings.startup_epochs, epochs)
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=epochs)
    return optuna.pruners.MedianPruner(settings.startup_trials, settings.startup_epochs)


def _tracker(search: Search, study: optuna.Study, new: bool) -> Tracker | None:
    """Return the search's own run in MLflow, which the first worker begins for all."""
    if search.connections is None:
        return None
    until = time.monotonic() + _RUN_WAIT_S
    while not new and TRACKING_RUN not in study.user_attrs and time.monotonic() < until:
        time.sleep(0.5)
    run_id = study.user_attrs.get(TRACKING_RUN)
    if run_id is None:
        begun = Tracker.begin(search.connections, experiment=search.model, run_name="search")
        run_id = begun.run_id
        begun.params({"search": search.settings.model_dump(mode="json", exclude={"storage"})})
        study.set_user_attr(TRACKING_RUN, run_id)
    return tracker_of(search, str(run_id))


def tracker_of(search: Search, run_id: str) -> Tracker:
    """Return a run of MLflow's that somebody has begun."""
    assert search.connections is not None
    joined = replace(search.connections, tracking_run_id=run_id)
    return Tracker.begin(joined, experiment=search.model, run_name=None)

"""Where a search keeps its trials: an Optuna study in a database that workers share."""

import copy
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from linnet.errors import SettingsError, StoreError, StoreUnreachableError
from linnet.stores.tracking import tables_locked, with_driver

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.ERROR)

# A worker shows that it lives so often; its trial is taken over when it hasn't for so long.
_HEARTBEAT_S = 20
TAKEN_OVER_AFTER_S = 60
_RETRIES = 3
_SQLITE_WAIT_S = 30
_CONNECT_S = 10

# What we note with a trial.
ERROR, WORKER, SURPLUS = "error", "worker", "surplus"
TRACKING_RUN = "tracking_run_id"


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what the database's drivers raise into an error that says what to check.

    Raises:
        StoreUnreachableError: nothing answers at the address.
        StoreError: the database is locked, or refuses.
        SettingsError: the URL is of no known kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(
            f"search storage {shown(url)} is no database URL ({error}): expected "
            "postgresql://user:password@host/database or sqlite:///file"
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _explained(url, error) from error


def open_study(
    url: str,
    name: str,
    *,
    direction: Literal["minimize", "maximize"],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> tuple[optuna.Study, bool]:
    """Return the study of this name, and whether it was begun just now.

    Raises:
        StoreError: as `storage_errors`.
    """
    sqlite = url.startswith("sqlite:")
    if sqlite:
        _make_folder(url)
    uri = with_driver(url)
    options: dict[str, Any] = {"connect_args": {"connect_timeout": _CONNECT_S}}
    if sqlite:
        options = {"connect_args": {"timeout": _SQLITE_WAIT_S}}
    with storage_errors(url):
        with tables_locked(uri):
            storage = RDBStorage(
                uri,
                engine_kwargs=options | {"pool_pre_ping": not sqlite},
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=TAKEN_OVER_AFTER_S,
                heartbeat_stale_trial_callback=_do_again,
            )
        wanted: dict[str, Any] = {"storage": storage, "sampler": sampler, "pruner": pruner}
        try:
            return optuna.create_study(study_name=name, direction=direction, **wanted), True
        except DuplicatedStudyError:
            return optuna.load_study(study_name=name, **wanted), False


def _make_folder(url: str) -> None:
    """Make the folder that a SQLite file is to lie in."""
    path = Path(urlsplit(url).path.removeprefix("/"))
    if not path.name:
        raise SettingsError(
            f"search storage {url} names no file: write sqlite:///search.db, or four slashes "
            "before a path from the root"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnreachableError(
            f"search storage {url}: the folder {path.parent} can't be made ({error.strerror}): "
            "name a file in a folder that can be written to"
        ) from error


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: running, finished, stopped early, or failed by themselves.

    A trial whose worker was killed doesn't, because it is done again.
    """
    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in states or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)
        if SURPLUS not in trial.user_attrs
    ]


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that a worker is at, or was when it was killed."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def take_over_dead(study: optuna.Study) -> None:
    """Put trials back into the queue whose worker has died.

    On this machine that is seen at once; elsewhere by its silence.
    """
    fail_stale_trials(study)
    for trial in running(study):
        if _alive(trial.user_attrs.get(WORKER)):
            continue
        # Another worker may have seen it too, and been quicker.
        with suppress(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            _do_again(study, trial)


def _do_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a trial that was cut off into the queue, with its parameters; three times at most."""
    log.info("a trial was cut off (%s): it is done again", trial.params)
    cut_off = copy.deepcopy(trial)
    cut_off.user_attrs.pop(WORKER, None)
    RetryHeartbeatStaleTrialCallback(_RETRIES)(study, cut_off)


def this_worker() -> list[str | int]:
    """Return what tells this process apart from any other, on this machine and elsewhere."""
    return [*_place(), os.getpid(), _started(os.getpid())]


def shown(url: str) -> str:
    """Return a URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def _place() -> list[str]:
    return [socket.gethostname(), os.readlink("/proc/self/ns/pid")]


def _started(process: int) -> str:
    """Return when a process was started, in the kernel's ticks; empty if there is none."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # The name, in brackets, may hold anything; the start is the 22nd field.
    return status.rpartition(")")[2].split()[19]


def _alive(worker: list[Any] | None) -> bool:
    """Return whether a worker may be alive; of another machine's we don't know."""
    if worker is None or worker[:2] != _place():
        return True
    _, _, process, started = worker
    return bool(started) and _started(process) == started


def _explained(url: str, error: Exception) -> StoreError:
    causes = [str(error), str(error.__cause__ or ""), str(error.__context__ or "")]
    if any("locked" in cause for cause in causes):
        return StoreError(
            f"search storage {shown(url)} is locked by another process for more than "
            f"{_SQLITE_WAIT_S} s: end what holds it, or use PostgreSQL for many workers"
        )
    cause = next((c for c in reversed(causes) if c), type(error).__name__).strip().splitlines()[0]
    return StoreUnreachableError(
        f"search storage {shown(url)} can't be used ({cause}): check that the database runs, its "
        "address, user and password, or leave search.storage out to use a file in the workspace"
    )

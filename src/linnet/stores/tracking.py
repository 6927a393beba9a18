"""Runs in MLflow: parameters, metrics and files of a training, on any backend that MLflow has."""

import fcntl
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit

from linnet.errors import TrackingError
from linnet.stores.connections import Connections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_PARAM_CHARACTERS = 6000
# Any number of ours: it names the lock that PostgreSQL holds while the tables are made.
_TABLES_LOCK = 7_203_501


class MeasuredReport(Protocol):
    """What is recorded of a report; `linnet.evaluation.report.Report` has it."""

    @property
    def model(self) -> str:
        """Return the model's name."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Return what the graph came from, with `tracking_run_id`."""

    def values(self) -> Mapping[str, float]:
        """Return the metrics by name."""


@dataclass(frozen=True)
class Tracker:
    """One run of one experiment. Every call is one request, so give it many values at once."""

    run_id: str
    experiment: str
    connections: Connections
    _client: Any

    @classmethod
    @contextmanager
    def start(
        cls, connections: Connections, *, experiment: str, run_name: str | None = None
    ) -> Iterator[Self]:
        """Begin a run, or join the one that `connections` names, and end what was begun.

        The run ends as finished, as failed when an error leaves the block, and as killed on
        Ctrl-C. A joined run is left open for whoever began it.

        Raises:
            TrackingError: MLflow can't be reached or refuses; says what to check.
        """
        tracker = cls.begin(connections, experiment=experiment, run_name=run_name)
        if connections.tracking_run_id is not None:
            yield tracker
        else:
            with tracker._ending():
                yield tracker

    @classmethod
    def begin(cls, connections: Connections, *, experiment: str, run_name: str | None) -> Self:
        """Begin a run, or join the one that `connections` names, and leave it open.

        Raises:
            TrackingError: MLflow can't be reached or refuses; says what to check.
        """
        client = open_client(connections)
        joined = connections.tracking_run_id
        with tracking_errors(connections, "begin a run"):
            if joined is not None:
                run = client.get_run(joined)
            else:
                run = client.create_run(
                    _experiment_id(client, connections, experiment), run_name=run_name
                )
        return cls(run.info.run_id, experiment, connections, client)

    @contextmanager
    def child(self, run_name: str) -> Iterator[Self]:
        """Begin a run that is shown below this one, and end it as `start` does.

        Raises:
            TrackingError: MLflow can't be reached or refuses.
        """
        with tracking_errors(self.connections, "begin a run"):
            parent = self._client.get_run(self.run_id)
            run = self._client.create_run(
                parent.info.experiment_id,
                run_name=run_name,
                tags={"mlflow.parentRunId": self.run_id},
            )
        child = type(self)(run.info.run_id, self.experiment, self.connections, self._client)
        with child._ending():
            yield child

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; nested ones become `train.head.epochs`."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_PARAM_CHARACTERS]) for name, value in _flat("", values)]
        with tracking_errors(self.connections, "record parameters"):
            for first in range(0, len(params), _PARAMS_PER_CALL):
                batch = params[first : first + _PARAMS_PER_CALL]
                self._client.log_batch(self.run_id, params=batch)

    def tags(self, values: Mapping[str, str | None]) -> None:
        """Record what the run came from, such as the dataset's version; None is left out."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in values.items() if value is not None]
        with tracking_errors(self.connections, "record tags"):
            self._client.log_batch(self.run_id, tags=tags)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at a step, which is an epoch unless the name says otherwise."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        with tracking_errors(self.connections, "record metrics"):
            for first in range(0, len(metrics), _METRICS_PER_CALL):
                batch = metrics[first : first + _METRICS_PER_CALL]
                self._client.log_batch(self.run_id, metrics=batch)

    def artifact(self, file: Path, *, folder: str | None = None) -> None:
        """Keep a copy of a file with the run."""
        with tracking_errors(self.connections, f"store {file.name}"):
            self._client.log_artifact(self.run_id, str(file), folder)

    def artifacts(self, path: Path, *, folder: str | None = None) -> None:
        """Keep a copy of all files below a folder with the run."""
        with tracking_errors(self.connections, f"store {path.name}"):
            self._client.log_artifacts(self.run_id, str(path), folder)

    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a matplotlib figure under a name such as `plots/confusion.svg`."""
        with tracking_errors(self.connections, f"store {name}"):
            self._client.log_figure(self.run_id, figure, name)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.end(status)

    def end(self, status: str = "FINISHED") -> None:
        """End the run; that it can't be is a warning, because the work is done."""
        try:
            self._client.set_terminated(self.run_id, status=status)
        except Exception as error:
            logger.warning(
                "MLflow at %s did not take the end (%s) of run %s: %s",
                self.connections.tracking_shown,
                status,
                self.run_id,
                error,
            )


def log_report(connections: Connections, report: MeasuredReport, page: Path) -> None:
    """Record a report's metrics as `test_…`, and its page, with the run that trained the model.

    A graph whose training was not tracked has no such run, and nothing is recorded.

    Raises:
        TrackingError: MLflow can't be reached, or does not know the run.
    """
    run_id = report.provenance.get("tracking_run_id")
    if run_id is None:
        return
    client = open_client(connections)
    tracker = Tracker(str(run_id), report.model, connections, client)
    tracker.metrics({f"test_{name}": value for name, value in report.values().items()})
    tracker.artifact(page)


def open_client(connections: Connections) -> Any:
    """Return an MLflow client whose tables exist and whose store has answered.

    Raises:
        TrackingError: the store can't be reached within some seconds or refuses.
    """
    # MLflow reads some of these when it is imported.
    os.environ.update(connections.for_mlflow())
    with tracking_errors(connections, "open the tracking store"):
        from mlflow.tracking import MlflowClient

        for chatty in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        uri = with_driver(connections.tracking_uri)
        with tables_locked(uri):
            return MlflowClient(uri, registry_uri=uri)


@contextmanager
def tracking_errors(connections: Connections, doing: str) -> Iterator[None]:
    """Turn whatever MLflow and its drivers raise into one error that says what to check.

    Raises:
        TrackingError: with the address, the cause and the next move.
    """
    try:
        with warnings.catch_warnings():
            # MLflow's own use of SQLAlchemy, which nobody here can put right.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except TrackingError:
        raise
    except ImportError as error:
        raise TrackingError(
            f"MLflow can't be imported ({error}): install linnet[tracking]"
        ) from error
    except Exception as error:
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrackingError(
            f"can't {doing} in MLflow at {connections.tracking_shown}: {cause}. Check that it "
            "runs and is reachable, MLFLOW_TRACKING_URI with its user and password and, for files "
            "in S3, AWS_ENDPOINT_URL and the credentials"
        ) from error


def _experiment_id(client: Any, connections: Connections, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    root = connections.artifact_root
    location = None if root is None else f"{root.rstrip('/')}/{name}"
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Somebody else made it in between, or it can't be made.
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def with_driver(uri: str) -> str:
    """Name the PostgreSQL driver that linnet[tracking] has; SQLAlchemy's default has changed."""
    scheme, separator, rest = uri.partition("://")
    return f"postgresql+psycopg2{separator}{rest}" if scheme == "postgresql" else uri


@contextmanager
def tables_locked(uri: str) -> Iterator[None]:
    """Let one process at a time make a database's tables; MLflow itself takes no care.

    For a database server this connection also finds out within seconds whether it answers, where
    MLflow would try for minutes.
    """
    if uri.startswith(("http://", "https://")):
        yield
    elif uri.startswith("sqlite:"):
        database = Path(urlsplit(uri).path.removeprefix("/"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(f".{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    else:
        with _connected(uri) as connection:
            if uri.startswith("postgresql"):
                from sqlalchemy import text

                connection.execute(text(f"SELECT pg_advisory_lock({_TABLES_LOCK})"))
            yield


@contextmanager
def _connected(uri: str) -> Iterator[Any]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    engine = create_engine(uri, connect_args={"connect_timeout": 10})
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                connection = engine.connect()
                break
            except OperationalError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.5 * 2**attempt)
        with connection:
            yield connection
    finally:
        engine.dispose()


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value

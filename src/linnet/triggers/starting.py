"""From a trigger to a run, on this machine or on a cluster, with who and why kept in MLflow."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from linnet.errors import LinnetError, TrackingError
from linnet.launch import StepEvent
from linnet.settings import RunSettings
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker
from linnet.triggers.ledger import Ledger, State, Trigger
from linnet.triggers.settings import ClusterSettings, WatchSettings

logger = logging.getLogger(__name__)

Watch = Callable[[StepEvent], None]


@dataclass(frozen=True)
class Fired:
    """What became of a trigger; `number` is the entry's in the ledger."""

    outcome: Literal["duplicate", "too soon"] | State
    number: int
    run: str = ""
    words: str = ""


class Starter:
    """Starts one model's runs. `folder` is where the settings' paths are relative to."""

    def __init__(
        self,
        settings: WatchSettings,
        folder: Path,
        connections: Connections,
        *,
        workspace: Path,
        watch: Watch = lambda event: None,
    ) -> None:
        """Read the run's settings.

        Raises:
            SettingsError: they can't be used.
        """
        self.settings = settings
        self.run = RunSettings.load(folder / settings.run, settings.overrides)
        self.connections = connections
        self.ledger = Ledger(self.run.model, connections)
        self._folder = folder
        self._workspace = workspace
        self._watch = watch

    def fire(self, trigger: Trigger) -> Fired:
        """Start a run, unless this trigger did so already or another one just has.

        Raises:
            LinnetError: the run can't be started; the same trigger may try again.
        """
        claim = self.ledger.claim(trigger, at_least_s=self.settings.at_least_s)
        if claim.outcome != "claimed":
            return Fired(claim.outcome, claim.number, words=claim.words)
        try:
            if self.settings.cluster is None:
                return self._here(trigger, claim.number)
            return self._there(trigger, claim.number, self.settings.cluster)
        except KeyboardInterrupt:
            self.ledger.note(claim.number, "interrupted")
            raise
        except LinnetError as error:
            self.ledger.note(claim.number, "not started", words=str(error))
            raise

    def _here(self, trigger: Trigger, number: int) -> Fired:
        from linnet import launch
        from linnet.errors import RunFailedError

        with self._tracked(trigger, number) as tracker, _joined(tracker.run_id):
            self.ledger.note(number, "started", run=tracker.run_id)
            try:
                result = launch.run(self.run, self._workspace, watch=self._watch)
            except RunFailedError as error:
                return self._ended(number, "failed", tracker.run_id, str(error))
        if result.release is None:
            return self._ended(number, "refused", tracker.run_id, str(result.report))
        return self._ended(number, "released", tracker.run_id, str(result.release["uri"]))

    def _ended(self, number: int, state: State, run: str, words: str) -> Fired:
        self.ledger.note(number, state, run=run, words=words)
        return Fired(state, number, run, words)

    def _there(self, trigger: Trigger, number: int, cluster: ClusterSettings) -> Fired:
        from linnet import submission
        from linnet.kubeflow import Kubeflow
        from linnet.rollout.settings import RolloutSettings

        more: dict[str, Any] = {}
        if cluster.roll_out is not None:
            steps = RolloutSettings.load(self._folder / cluster.roll_out)
            more = {
                "after_release": "rollout",
                "rollout_settings": steps.model_dump(mode="json", exclude_none=True),
            }
        submitted = submission.submit(
            self.run,
            Kubeflow(
                cluster.endpoint,
                namespace=cluster.namespace,
                token=os.environ.get("KF_PIPELINES_TOKEN"),
            ),
            pipeline=None if cluster.pipeline is None else self._folder / cluster.pipeline,
            run_name=f"{trigger.model} {trigger.kind} {number}",
            parameters=more,
            service_account=cluster.service_account,
            ui=cluster.ui,
            description=f"{trigger.why} (by {trigger.by}, {trigger.key}, number {number})",
        )
        self.ledger.note(number, "started", run=submitted.run_id, words=submitted.url)
        try:
            with self._tracked(trigger, number) as tracker:
                tracker.tags({"trigger_run": submitted.run_id, "trigger_url": submitted.url})
        except TrackingError as error:
            logger.warning("the run is started, and its trigger is not in MLflow: %s", error)
        return Fired("started", number, submitted.run_id, submitted.url)

    @contextmanager
    def _tracked(self, trigger: Trigger, number: int) -> Iterator[Tracker]:
        """Yield a run of MLflow that says who and why; the model says so of its last one."""
        about = {
            "trigger": trigger.kind,
            "trigger_by": trigger.by,
            "trigger_why": trigger.why,
            "trigger_key": trigger.key,
            "trigger_number": str(number),
        }
        name = f"{trigger.kind} {number}"
        with Tracker.start(self.connections, experiment=trigger.model, run_name=name) as tracker:
            tracker.tags(about)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            told = {f"last_{key}": value for key, value in about.items()}
            Registry(self.connections).note(trigger.model, {**told, "last_trigger_at": at})
            yield tracker


@contextmanager
def _joined(run_id: str) -> Iterator[None]:
    """Let the steps, which are processes of their own, track in this run of MLflow."""
    before = os.environ.get("MLFLOW_RUN_ID")
    os.environ["MLFLOW_RUN_ID"] = run_id
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_RUN_ID"]
        else:
            os.environ["MLFLOW_RUN_ID"] = before

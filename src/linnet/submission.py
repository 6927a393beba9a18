"""Run a compiled pipeline on a cluster: submit it to Kubeflow Pipelines and follow it to its end.

The images and where tasks run are in the compiled pipeline, the settings travel as its parameters.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from linnet.errors import (
    GateRefusedError,
    KubeflowDeniedError,
    KubeflowError,
    RunFailedError,
    SettingsError,
)
from linnet.kubeflow import Kubeflow
from linnet.launch import StepEvent, packaged_pipeline, parameters_for
from linnet.settings import RunSettings
from linnet.step_log import StepLog

logger = logging.getLogger(__name__)

Watch = Callable[[StepEvent], None]

_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
# A pod takes longer than this to start; what took less was taken from the cache.
_CACHED_WITHIN_S = 1.0
_POD_TEMPLATES = ("system-container-impl", "retry-system-container-impl")


@dataclass(frozen=True)
class Pipeline:
    """A compiled pipeline: Kubeflow's IR, and what of it is for Kubernetes alone."""

    spec: dict[str, Any]
    platform: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `make compile` wrote.

        Raises:
            SettingsError: it isn't there, or is something else.
        """
        wrong = f"pipeline {path} can't be used: give a file that `make compile` wrote"
        try:
            documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
            spec = documents[0]
            if not spec["pipelineInfo"]["name"] or "dag" not in spec["root"]:
                raise KeyError("pipelineInfo")
        except OSError as error:
            raise SettingsError(f"{wrong} ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, IndexError) as error:
            raise SettingsError(f"{wrong} (it is no compiled pipeline)") from error
        return cls(spec, documents[1] if len(documents) > 1 else {})

    @property
    def name(self) -> str:
        """The pipeline's own name."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that it takes, by name."""
        return dict(self.spec["root"].get("inputDefinitions", {}).get("parameters", {}))

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The steps, in an order they can run in."""
        return tuple(self._walk(self.spec["root"]))

    def without_cache(self) -> Self:
        """Return the pipeline with every step run anew, at any depth."""
        spec = yaml.safe_load(yaml.safe_dump(self.spec))
        for part in (spec["root"], *spec["components"].values()):
            for task in part.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {}
        return replace(self, spec=spec)

    def to_json(self) -> dict[str, Any]:
        """Return what the API takes."""
        if not self.platform:
            return self.spec
        return {"pipeline_spec": self.spec, "platform_spec": self.platform}

    def _walk(self, part: dict[str, Any]) -> Iterator[str]:
        tasks = part["dag"]["tasks"]
        after = {name: tasks[name].get("dependentTasks", ()) for name in sorted(tasks)}
        try:
            order = list(TopologicalSorter(after).static_order())
        except CycleError as error:
            raise SettingsError(f"pipeline {self.name}: its tasks wait in a circle") from error
        for name in order:
            component = self.spec["components"][tasks[name]["componentRef"]["name"]]
            if "dag" in component:
                yield from self._walk(component)
            else:
                yield name


@dataclass(frozen=True)
class Submitted:
    """A run on a cluster: its id, the page that shows it, and its pipeline."""

    run_id: str
    url: str
    pipeline: Pipeline = field(repr=False)


@dataclass(frozen=True)
class Scheduled:
    """A recurring run on a cluster: its id, its schedule and the page that shows it."""

    recurring_run_id: str
    cron: str
    url: str


@dataclass(frozen=True)
class Outcome:
    """How a run on a cluster ended. `why` is the failed step's own words, or the gate's."""

    run_id: str
    url: str
    state: str
    decision: Literal["release", "refuse"] | None
    failed: str | None
    why: str
    seconds: dict[str, float]

    def require_release(self) -> None:
        """Raise an error unless the run came to its end and its gate, if any, let it pass.

        Raises:
            RunFailedError: a step failed, or the run was stopped.
            GateRefusedError: nothing failed, and nothing was released.
        """
        if self.state != "SUCCEEDED":
            what = f"step {self.failed} failed" if self.failed else f"the run is {self.state}"
            raise RunFailedError(f"{what}: {self.why or 'it left no words'}\nsee {self.url}")
        if self.decision == "refuse":
            raise GateRefusedError(
                f"the gate refused the model, nothing was released:\n  {self.why}\nsee {self.url}"
            )


def submit(
    settings: RunSettings,
    server: Kubeflow,
    *,
    pipeline: Path | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    parameters: dict[str, Any] | None = None,
    cache: bool = True,
    service_account: str | None = None,
    ui: str | None = None,
    description: str = "",
) -> Submitted:
    """Start a run; `ui` is the address of Kubeflow's pages where it isn't the server's.

    Raises:
        SettingsError: a setting names a place that no pod can see, or the pipeline's file is wrong.
        KubeflowError: or a subclass: the server can't be reached or refuses.
    """
    compiled = _compiled(pipeline or packaged_pipeline(settings), cache)
    body = _body(settings, compiled, parameters or {}, service_account)
    server.check_namespace()
    run_id = server.start(
        {
            **body,
            "display_name": run_name or f"{settings.model} {datetime.now():%Y-%m-%d %H:%M:%S}",
            "experiment_id": server.experiment(experiment or settings.model),
            **({"description": description} if description else {}),
        }
    )
    return Submitted(run_id, f"{ui or server.endpoint}/#/runs/details/{run_id}", compiled)


def schedule(
    settings: RunSettings,
    server: Kubeflow,
    cron: str,
    *,
    pipeline: Path | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    parameters: dict[str, Any] | None = None,
    cache: bool = True,
    service_account: str | None = None,
    ui: str | None = None,
) -> Scheduled:
    """Start runs again and again, one at a time; what was missed is not caught up with.

    `cron` has the usual five fields, or six with the seconds first, as Kubeflow has it.

    Raises:
        SettingsError: as `submit` does, or `cron` has another number of fields.
        KubeflowError: or a subclass: the server can't be reached or refuses.
    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise SettingsError(
            f"--recurring {cron!r} has {len(fields)} fields: expected minute, hour, day of the "
            "month, month and day of the week, such as '0 3 * * 1'"
        )
    with_seconds = " ".join(fields if len(fields) == 6 else ["0", *fields])
    compiled = _compiled(pipeline or packaged_pipeline(settings), cache)
    body = _body(settings, compiled, parameters or {}, service_account)
    server.check_namespace()
    made = server.schedule(
        {
            **body,
            "display_name": run_name or settings.model,
            "experiment_id": server.experiment(experiment or settings.model),
            "mode": "ENABLE",
            "max_concurrency": "1",
            "no_catchup": True,
            "trigger": {"cron_schedule": {"cron": with_seconds}},
        }
    )
    return Scheduled(made, with_seconds, f"{ui or server.endpoint}/#/recurringrun/details/{made}")


def follow(
    submitted: Submitted,
    server: Kubeflow,
    watch: Watch = lambda event: None,
    *,
    poll_s: float = 3.0,
    patience_s: float = 600.0,
) -> Outcome:
    """Tell `watch` what happens until the run ends, and return how it ended.

    The run does not depend on it: whoever stops following leaves it running.

    Raises:
        KubeflowError: or a subclass: the server has been out of reach for `patience_s` seconds.
    """
    follower = _Follower(submitted, server, watch)
    lost_since: float | None = None
    while True:
        try:
            run = server.run(submitted.run_id)
            lost_since = None
        except KubeflowDeniedError:
            raise
        except KubeflowError as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > patience_s:
                raise type(error)(f"{error}. The run goes on: {submitted.url}") from error
            logger.debug("asking again: %s", error)
        else:
            follower.look(run)
            if run.get("state") in _ENDED:
                return follower.outcome(run)
        time.sleep(poll_s)


def _compiled(path: Path, cache: bool) -> Pipeline:
    compiled = Pipeline.load(path)
    return compiled if cache else compiled.without_cache()


def _body(
    settings: RunSettings,
    pipeline: Pipeline,
    parameters: dict[str, Any],
    service_account: str | None,
) -> dict[str, Any]:
    """Return what a run and a recurring run have in common."""
    check_reachable(settings)
    values = parameters_for(pipeline.parameters, settings)
    values |= parameters
    if unknown := sorted(values.keys() - pipeline.parameters.keys()):
        raise SettingsError(
            f"pipeline {pipeline.name} takes no parameter {', '.join(unknown)}: it takes "
            f"{', '.join(pipeline.parameters)}"
        )
    needed = {name for name, of in pipeline.parameters.items() if not of.get("isOptional")}
    if missing := sorted(needed - values.keys()):
        raise SettingsError(f"pipeline {pipeline.name} needs a value of {', '.join(missing)}")
    body = {"pipeline_spec": pipeline.to_json(), "runtime_config": {"parameters": values}}
    return body | ({"service_account": service_account} if service_account else {})


def check_reachable(settings: RunSettings) -> None:
    """Refuse places on this machine, which the pods of a cluster don't see.

    Raises:
        SettingsError: with the setting and what to do.
    """
    places = {
        "source.uri": (settings.source.uri, ("digits",)),
        **{
            f"source.more.{name}.uri": (place.uri, ("digits",))
            for name, place in settings.source.more.items()
        },
        "train.weights": (settings.train.weights, ("hub", "none")),
        "release.root": (settings.release.root, (None,)),
    }
    for name, (place, fine) in places.items():
        if place not in fine and "://" not in str(place):
            raise SettingsError(
                f"{name} is {place!r}, a place on this machine, which no pod of the cluster sees: "
                "copy it to S3 and give s3://bucket/prefix"
            )


class _PodLog:
    """What of a pod's log has been heard."""

    def __init__(self) -> None:
        self.heard = StepLog()
        self._read = 0

    def new(self, text: str) -> Iterator[str]:
        """Yield what the step has said since; a line that isn't whole yet is left for later."""
        lines = text.split("\n")[:-1]
        for line in lines[self._read :]:
            if said := self.heard.hear(line):
                yield said
        self._read = len(lines)


class _Follower:
    """What of a run has been told, so that each look tells what is new."""

    def __init__(self, submitted: Submitted, server: Kubeflow, watch: Watch) -> None:
        self._submitted = submitted
        self._server = server
        self._watch = watch
        self._told: dict[str, str] = {}
        self._logs: dict[str, dict[str, _PodLog]] = {}
        self._said: dict[str, list[str]] = {}
        self._seconds: dict[str, float] = {}

    def look(self, run: dict[str, Any]) -> None:
        """Tell what has changed since the last look, step by step."""
        tasks, names = _by_name(run), _node_names(run)
        for step in self._submitted.pipeline.steps:
            if step not in tasks or self._told.get(step) == "ended":
                continue
            state, seconds = _state(tasks[step]), _took(tasks[step])
            cached = state == "SUCCEEDED" and seconds <= _CACHED_WITHIN_S
            if state in ("RUNNING", "SUCCEEDED", "FAILED") and not cached:
                if step not in self._told:
                    self._watch(StepEvent("started", step))
                    self._told[step] = "started"
                self._listen(step, names)
            if state in _ENDED:
                self._end(step, state, seconds)

    def outcome(self, run: dict[str, Any]) -> Outcome:
        """Return how the run, which has ended, did so."""
        tasks = _by_name(run)
        steps = self._submitted.pipeline.steps
        failed = next((step for step in steps if _failed(step, tasks)), None)
        decision: Literal["release", "refuse"] | None = None
        if "release" in steps and run["state"] == "SUCCEEDED":
            released = _state(tasks.get("release", [])) == "SUCCEEDED"
            decision = "release" if released else "refuse"
        why = str(run.get("error", {}).get("message", ""))
        if failed is not None:
            logs = reversed(self._logs.get(failed, {}).values())
            why = next(filter(None, (log.heard.own_words() for log in logs)), why)
        elif decision == "refuse":
            said = [line for line in self._said.get("gate", ()) if not line.startswith("passed")]
            why = "\n  ".join(said) or "its report says why"
        return Outcome(
            run_id=self._submitted.run_id,
            url=self._submitted.url,
            state=run["state"],
            decision=decision,
            failed=failed,
            why=why,
            seconds=dict(self._seconds),
        )

    def _end(self, step: str, state: str, seconds: float) -> None:
        began = step in self._told
        self._told[step] = "ended"
        self._seconds[step] = seconds
        if state == "FAILED":
            self._watch(StepEvent("failed", step, seconds=seconds))
        elif state == "SUCCEEDED" and began:
            self._watch(StepEvent("finished", step, seconds=seconds))
        else:
            self._watch(StepEvent("cached" if state == "SUCCEEDED" else "skipped", step))

    def _listen(self, step: str, names: list[str]) -> None:
        """Tell the lines that the step's pods have logged since they were listened to last."""
        logs = self._logs.setdefault(step, {})
        for candidates in _pods(step, names):
            for pod in candidates:
                text = self._server.log(self._submitted.run_id, pod)
                if text is not None:
                    for said in logs.setdefault(pod, _PodLog()).new(text):
                        self._said.setdefault(step, []).append(said)
                        self._watch(StepEvent("line", step, text=said))
                    break


def _by_name(run: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    tasks: dict[str, list[dict[str, Any]]] = {}
    for task in run.get("run_details", {}).get("task_details", ()):
        tasks.setdefault(task.get("display_name", ""), []).append(task)
    return tasks


def _state(tasks: list[dict[str, Any]]) -> str:
    """Return the state of a step, which has several tasks when it is in a loop."""
    states = {task.get("state", "") for task in tasks}
    for state in ("FAILED", "RUNNING", "PENDING", "SUCCEEDED", "SKIPPED", "CANCELED"):
        if state in states:
            return "RUNNING" if state == "PENDING" and "SUCCEEDED" in states else state
    return "SKIPPED" if tasks else ""


def _failed(step: str, tasks: dict[str, list[dict[str, Any]]]) -> bool:
    """Return whether a step failed, or what Kubeflow does before it."""
    return "FAILED" in (_state(tasks.get(name, [])) for name in (step, f"{step}-driver"))


def _took(tasks: list[dict[str, Any]]) -> float:
    """Return the seconds from the first start to the last end."""
    starts = [_time(task["start_time"]) for task in tasks if task.get("start_time")]
    ends = [_time(task["end_time"]) for task in tasks if task.get("end_time")]
    return max(0.0, max(ends) - min(starts)) if starts and ends else 0.0


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _pods(step: str, names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the names that each pod of a step may have: of every attempt, in every round.

    Argo names a pod after workflow, template and the hash of its node's name.
    """
    own = re.compile(rf"\.{re.escape(step)}(\(\d+\))?\.executor(\(\d+\))?$")
    nodes = [name for name in names if own.search(name)]
    for node in nodes:
        if not any(other.startswith(f"{node}(") for other in nodes):
            yield tuple(f"{names[0]}-{template}-{_fnv(node)}" for template in _POD_TEMPLATES)


def _node_names(run: dict[str, Any]) -> list[str]:
    """Return the full names of a run's nodes, the workflow's first; the API has but the last part.

    A node's id, which its parent has, is `<workflow>-<hash of the full name>`: so names are found
    by trying what may follow those that are known: a task, an attempt `(0)`, a hook `.onExit`.
    """
    tasks = run.get("run_details", {}).get("task_details", ())
    ids = {str(c.get("pod_name", "")) for task in tasks for c in task.get("child_tasks", ())}
    last = {str(task.get("display_name", "")) for task in tasks}
    attempts = {found[0] for name in last if (found := re.search(r"\([^()]*\)$", name))}
    follow = [".onExit", *sorted(attempts), *(f".{name}" for name in sorted(last))]
    workflow = next(iter(ids), "").rpartition("-")[0]
    known = [workflow]
    for name in known:
        longer = (name + more for more in follow if f"{workflow}-{_fnv(name + more)}" in ids)
        known.extend(one for one in longer if one not in known)
    return known


def _fnv(text: str) -> int:
    """Return the 32-bit FNV-1a hash (http://www.isthe.com/chongo/tech/comp/fnv)."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value

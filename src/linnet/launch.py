"""Run a compiled pipeline on this machine with Kubeflow's local runner.

The only module of the library that knows kfp. Steps run one after another in processes of this
interpreter, or in containers of the built images; what they print goes to the run's log, and the
lines that matter to the person watching go to `watch`.
"""

import contextlib
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from linnet.errors import GateRefusedError, RunFailedError, SettingsError
from linnet.settings import RunSettings, SourceSettings
from linnet.step_log import StepLog

logger = logging.getLogger(__name__)

Runner = Literal["process", "docker"]

_EXECUTOR = "kfp.dsl.executor_main"


@dataclass(frozen=True)
class StepEvent:
    """What a step says: it started, printed a line, or ended after `seconds`.

    `cached` and `skipped` steps never started: their results were there, or were not wanted.
    """

    kind: Literal["started", "line", "finished", "failed", "cached", "skipped"]
    step: str
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its results. `release` is None when the gate refused."""

    folder: Path
    decision: Literal["release", "refuse"]
    report: Path
    card: Path
    release: dict[str, Any] | None
    seconds: dict[str, float]

    def require_release(self) -> None:
        """Raise GateRefusedError with the gate's reasons unless the run released its model."""
        if self.decision == "refuse":
            gate = json.loads((self.report / "report.json").read_text(encoding="utf-8"))["gate"]
            reasons = [check["words"] for check in gate["checks"] if not check["passed"]]
            raise GateRefusedError(
                "the gate refused the model, nothing was released:\n  "
                + "\n  ".join(reasons)
                + f"\nthe evidence is in {self.report / 'report.html'}"
            )


def packaged_pipeline(settings: RunSettings | None = None) -> Path:
    """Return the compiled pipeline that is shipped with the library: with a space, a search's."""
    name = "search_and_release" if settings and settings.search.space else "train_and_release"
    with resources.as_file(resources.files("linnet") / f"packaged/{name}.yaml") as path:
        return path


def packaged_settings() -> Path:
    """Return the settings of the built-in run on handwritten digits."""
    with resources.as_file(resources.files("linnet") / "packaged/digits.yaml") as path:
        return path


def parameters_for(taken: Collection[str], settings: RunSettings) -> dict[str, Any]:
    """Return the settings as a pipeline's parameters, those of them that it takes.

    Raises:
        SettingsError: a search is asked for, and the pipeline has none.
    """
    if settings.search.space and "search_settings" not in taken:
        raise SettingsError(
            "search.space is set, but this pipeline does not search: leave the space out, or take "
            "the pipeline search_and_release"
        )
    return {name: value for name, value in settings.parameters().items() if name in taken}


def run(
    settings: RunSettings,
    workspace: Path,
    *,
    pipeline: Path | None = None,
    runner: Runner = "process",
    watch: Callable[[StepEvent], None] = lambda event: None,
) -> RunResult:
    """Run the pipeline to its end and return where its results lie.

    Raises:
        RunFailedError: a step failed; carries the step's own error and the log's path.
        SettingsError: the pipeline's file can't be used.
    """
    from kfp import components, local

    workspace = workspace.resolve()
    folder = workspace / "runs" / f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    folder.mkdir(parents=True)
    pipeline = pipeline or packaged_pipeline(settings)
    try:
        task = components.load_component_from_text(_for_here(pipeline, runner))
    except Exception as error:
        raise SettingsError(
            f"pipeline {pipeline} can't be loaded ({error}): give a file that `make compile` wrote"
        ) from error
    settings = with_absolute_paths(settings)
    arguments = parameters_for(task.component_spec.inputs or {}, settings)
    arguments["workspace"] = str(workspace)
    local.init(
        runner=_containers(pipeline, workspace, settings)
        if runner == "docker"
        else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder),
        raise_on_error=True,
    )
    log = folder / "run.log"
    with log.open("w", encoding="utf-8") as file:
        printer = _StepPrinter(file, watch)
        try:
            with contextlib.redirect_stdout(printer), _quiet_kfp():
                task(**arguments)
        except RuntimeError as error:
            raise RunFailedError(
                f"step {printer.failed or 'none'} failed: {printer.words or error}\n"
                f"the whole log is {log}"
            ) from error
    return _collect(folder, printer.seconds)


def _for_here(pipeline: Path, runner: Runner) -> str:
    """Return the pipeline's YAML without retries, and with steps that end at once.

    A step that fails here would fail again.
    """
    import yaml

    text = pipeline.read_text(encoding="utf-8")
    if runner == "process":
        text = text.replace(f"-m {_EXECUTOR}", f"-m linnet.step_process {_EXECUTOR}")
    documents = list(yaml.safe_load_all(text))
    parts = [documents[0]["root"], *documents[0]["components"].values()]
    for task in (task for part in parts for task in part.get("dag", {}).get("tasks", {}).values()):
        task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents)


def with_absolute_paths(settings: RunSettings) -> RunSettings:
    """Return settings whose local paths mean the same wherever a step runs."""

    def absolute(place: str, names: tuple[str, ...] = ()) -> str:
        return place if place in names or "://" in place else str(Path(place).absolute())

    def in_space(space: Any, name: str = "") -> Any:
        if isinstance(space, list):
            return [in_space(choice, name) for choice in space]
        if isinstance(space, dict):
            return {below: in_space(value, below) for below, value in space.items()}
        return absolute(space, ("hub", "none")) if name == "weights" else space

    def places(source: SourceSettings) -> SourceSettings:
        more = {
            name: place.model_copy(update={"uri": absolute(place.uri, ("digits",))})
            for name, place in source.more.items()
        }
        uri = absolute(source.uri, ("digits",))
        return source.model_copy(update={"uri": uri, "more": more})

    train, release = settings.train, settings.release
    root = None if release.root is None else absolute(release.root)
    return settings.model_copy(
        update={
            "source": places(settings.source),
            "train": train.model_copy(update={"weights": absolute(train.weights, ("hub", "none"))}),
            "search": settings.search.model_copy(update={"space": in_space(settings.search.space)}),
            "release": release.model_copy(update={"root": root}),
        }
    )


def _containers(pipeline: Path, workspace: Path, settings: RunSettings) -> Any:
    """Return kfp's runner of containers without a network that see what the run needs."""
    import docker
    import yaml
    from docker.errors import DockerException, ImageNotFound
    from kfp import local

    definition = next(yaml.safe_load_all(pipeline.read_text(encoding="utf-8")))
    executors = definition["deploymentSpec"]["executors"].values()
    image = ""
    try:
        client = docker.from_env()
        for image in sorted({executor["container"]["image"] for executor in executors}):
            client.images.get(image)
        client.close()
    except ImageNotFound as error:
        raise RunFailedError(
            f"image {image} of {pipeline} is not here: `make images compile` builds it, then give "
            "--pipeline build/pipelines/train_and_release.yaml"
        ) from error
    except DockerException as error:
        raise RunFailedError(
            f"Docker does not answer ({error}): start it, or run without --runner docker"
        ) from error
    places = [str(workspace)]
    sources = [place.uri for place in settings.source.places]
    for place in (*sources, settings.train.weights, settings.release.root):
        if place is not None and Path(place).exists():
            places.append(place)
    return local.DockerRunner(
        network_mode="none",
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=[docker.types.Mount(target=p, source=p, type="bind") for p in places],
        environment={"HOME": "/tmp"},
    )


@contextlib.contextmanager
def _quiet_kfp() -> Iterator[None]:
    """Silence kfp's doubts about the image's name and about requests, which count on clusters."""
    with warnings.catch_warnings():
        for category in (RuntimeWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"kfp\.local")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"kfp")
        yield


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_INDENT = "    "


class _StepPrinter(io.TextIOBase):
    """Stand where kfp prints: everything goes to the log, what a step says goes to `watch`."""

    def __init__(self, log: io.TextIOBase, watch: Callable[[StepEvent], None]) -> None:
        self._log = log
        self._watch = watch
        self._rest = ""
        self._started = 0.0
        self._heard = StepLog()
        self.step = ""
        # The first step that failed, and why; the last step runs after it.
        self.failed = ""
        self.words = ""
        self.seconds: dict[str, float] = {}

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(_COLOUR.sub("", text))
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line).rstrip())
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def _line(self, line: str) -> None:
        if started := _STARTED.search(line):
            self.step, self._heard, self._started = started[1], StepLog(), time.perf_counter()
            self._watch(StepEvent("started", self.step))
        elif ended := _ENDED.search(line):
            self._end(ended[1], succeeded=ended[2] == "SUCCESS")
        elif self.step and " - INFO - " not in line:
            said = self._heard.hear(line.removeprefix(_INDENT))
            if said is not None:
                self._watch(StepEvent("line", self.step, text=said))

    def _end(self, step: str, *, succeeded: bool) -> None:
        took = time.perf_counter() - self._started
        self.seconds[step] = took
        self._watch(StepEvent("finished" if succeeded else "failed", step, seconds=took))
        if not succeeded and not self.failed:
            self.failed, self.words = step, self._heard.own_words()
        # What kfp lists after it, the outputs, is in the log.
        self.step = ""


def _collect(folder: Path, seconds: dict[str, float]) -> RunResult:
    report = _output(folder, "gate", "gated_report")
    decision = json.loads((report / "report.json").read_text(encoding="utf-8"))["gate"]["decision"]
    released = None
    if decision == "release":
        released = json.loads(_output(folder, "release", "released").read_text(encoding="utf-8"))
    return RunResult(
        folder=folder,
        decision=decision,
        report=report,
        card=_output(folder, "ingest", "dataset") / "card.html",
        release=released,
        seconds=seconds,
    )


def _output(folder: Path, step: str, name: str) -> Path:
    found = sorted(folder.glob(f"**/{step}/{name}"))
    if not found:
        raise RunFailedError(
            f"step {step} reported success but left no {name} below {folder}: "
            f"see {folder / 'run.log'}"
        )
    return found[-1]


def report_folder(path: Path) -> Path:
    """Return the newest folder with a `report.json` at or below `path`, gated before ungated.

    Raises:
        SettingsError: there is none.
    """
    if (path / "report.json").is_file():
        return path
    found = sorted(path.glob("**/report.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SettingsError(
            f"no report.json at or below {path}: give the folder of a report, a release or a run"
        )
    return found[-1].parent

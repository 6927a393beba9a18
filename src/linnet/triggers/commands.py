"""`linnet watch` and `linnet trigger`."""

import dataclasses
import getpass
import json
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.errors import SettingsError
from linnet.terminal import WORKSPACE, AsJson, Workspace, connections_of, err

if TYPE_CHECKING:
    from linnet.triggers.starting import Starter


# Exit code of a trigger that came too soon after the last one: nothing went wrong.
TOO_SOON = 3

SettingsFile = Annotated[Path, typer.Argument(help="Watch settings (YAML).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as poll_s=10. Repeatable.")
]


def watch(settings: SettingsFile, overrides: Set = None, workspace: Workspace = WORKSPACE) -> None:
    """Start the pipeline by itself: for new pictures or labels, drift, the registry, a schedule.

    Each reason starts one run, however many watch at once and however often they are started again;
    who and why is kept beside the model's releases and in MLflow. Ctrl-C or SIGTERM ends it; a run
    on this machine that it interrupts goes on when the watch is started again.
    """
    from linnet.triggers.exposition import Exposition
    from linnet.triggers.watching import Watching

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    starter = _starter(settings, overrides, workspace)
    port = starter.settings.metrics_port
    exposition = None if port is None else Exposition(port)
    watching = Watching(
        starter, starter.connections, workspace=workspace.resolve(), exposition=exposition
    )
    watching.forever()


def trigger(
    settings: SettingsFile,
    why: Annotated[str, typer.Option(help="The reason, for people; it is recorded.")] = "",
    kind: Annotated[
        str, typer.Option(help="dataset, annotations, drift, schedule, registry or manual.")
    ] = "manual",
    key: Annotated[
        str | None,
        typer.Option(
            help="What makes it the same trigger again. [default: of dataset, the content of the "
            "source, once it has settled; else the present time]"
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who asks. [default: this machine's user]")] = None,
    settle_s: Annotated[
        float, typer.Option("--settle", help="Of dataset: how long no file may change, seconds.")
    ] = 10.0,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Start the pipeline for a reason, unless it was started for it already.

    For whatever sees events: a bucket's notifications, a webhook, cron. The same trigger ten times
    at once starts one run.

    Exit codes: 0 started, or started for it already; 1 it can't be started; 2 wrong settings or
    usage; 3 too soon after the last one, try again later.
    """
    from linnet.triggers.ledger import KINDS, Trigger

    if kind not in KINDS:
        raise SettingsError(f"--kind {kind!r} is not known: expected one of {', '.join(KINDS)}")
    starter = _starter(settings, overrides, workspace)
    who = by or getpass.getuser()
    if key is None and kind in ("dataset", "annotations"):
        asked = _of_content(starter, settle_s, who)
        asked = dataclasses.replace(asked, why=why or asked.why)
    else:
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        asked = Trigger(starter.run.model, kind, f"{kind}:{key or at}", who, why or "asked for")
    fired = starter.fire(asked)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(fired), indent=2) + "\n")
    else:
        err.print(f"{asked.key}: {fired.outcome} (number {fired.number})", end=" ", highlight=False)
        err.print(fired.words, markup=False, highlight=False, soft_wrap=True)
    if fired.outcome == "too soon":
        raise typer.Exit(TOO_SOON)
    if fired.outcome == "failed":
        raise typer.Exit(1)


def _starter(settings: Path, overrides: list[str] | None, workspace: Path) -> "Starter":
    from linnet.triggers.settings import WatchSettings
    from linnet.triggers.starting import Starter

    return Starter(
        WatchSettings.load(settings, tuple(overrides or ())),
        settings.parent,
        connections_of(workspace),
        workspace=workspace.resolve(),
        watch=_say,
    )


def _of_content(starter: "Starter", settle_s: float, by: str) -> Any:
    from linnet.triggers.content import settled
    from linnet.triggers.watching import source_trigger

    content = settled(starter.run.source, starter.connections, settle_s=settle_s)
    if content.pictures is None:
        raise SettingsError(
            f"source {starter.run.source.uri} never changes: give --key, or another kind"
        )
    return source_trigger(starter, content, by=by)


_SAID: dict[str, Callable[[Any], str]] = {
    "started": lambda event: f"[bold]{event.step}[/bold]",
    "finished": lambda event: f"   done in {event.seconds:.1f} s",
    "failed": lambda event: f"   [red]failed[/red] after {event.seconds:.1f} s",
}


def _say(event: Any) -> None:
    if event.kind in _SAID:
        err.print(_SAID[event.kind](event))
    elif event.kind == "line":
        err.print(f"   {event.text}", style="dim", markup=False, highlight=False, soft_wrap=True)

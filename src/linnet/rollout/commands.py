"""`linnet rollout`: the commands, and how a rollout looks on a terminal."""

import json
import signal
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from linnet.errors import RolloutAbortedError
from linnet.terminal import WORKSPACE, AsJson, Workspace, connections_of, err, out

if TYPE_CHECKING:
    from linnet.rollout.journal import Entry, Record
    from linnet.rollout.rollout import Rollouts, Status

app = typer.Typer(
    name="rollout",
    help="Move a model's traffic on KServe to a release step by step, or back.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)

ModelName = Annotated[str, typer.Argument(help="The model, and its InferenceService's name.")]
SettingsOption = Annotated[
    Path | None, typer.Option("--settings", "-s", help="Rollout settings (YAML).")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, such as analysis.hold_s=300. Repeatable."),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the InferenceService.")
]
Kubeconfig = Annotated[
    str | None, typer.Option(envvar="KUBECONFIG", help="Kubeconfig; in a pod, the pod's own.")
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]

_COLOURS = {
    "abort": "red",
    "aborted": "red",
    "hold": "yellow",
    "promoted": "green",
    "advance": "green",
    "done": "green",
}


@app.command()
def start(
    model: ModelName,
    release: Annotated[
        str | None,
        typer.Argument(help="Version, s3://… or model@alias. [default: the registry's candidate]"),
    ] = None,
    settings: SettingsOption = None,
    overrides: Set = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Put a release beside the champion and give it more and more of the traffic.

    Interrupted, it goes on where it was when it is started again. The first release of a model gets
    an InferenceService of its own.

    Exit codes: 0 promoted; 1 it can't start or go on; 2 wrong settings or usage; 3 the candidate
    was taken back; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rollouts = _rollouts(model, settings, overrides, namespace, kubeconfig, context, workspace)
    _show_end(rollouts.start(release), as_json)


@app.command()
def status(
    model: ModelName,
    settings: SettingsOption = None,
    overrides: Set = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show who serves with which share, and everything that the rollout judged."""
    rollouts = _rollouts(model, settings, overrides, namespace, kubeconfig, context, workspace)
    found = rollouts.status()
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
        return
    _show_status(found)


@app.command()
def watch(
    model: ModelName,
    settings: SettingsOption = None,
    overrides: Set = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Follow a rollout that another process carries out. Exits with 3 when it ends in an abort."""
    rollouts = _rollouts(model, settings, overrides, namespace, kubeconfig, context, workspace)
    record = rollouts.follow()
    _show_end(record, as_json=False)
    if record.phase == "aborted":
        raise typer.Exit(RolloutAbortedError.exit_code)


@app.command()
def promote(
    model: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    settings: SettingsOption = None,
    overrides: Set = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Give the candidate all the traffic now, without the rest of the analysis."""
    if not yes:
        typer.confirm(f"Skip the rest of the analysis and promote {model}'s candidate?", abort=True)
    rollouts = _rollouts(model, settings, overrides, namespace, kubeconfig, context, workspace)
    record = rollouts.promote()
    _show_end(record, as_json)
    if record.phase == "aborted":
        raise typer.Exit(RolloutAbortedError.exit_code)


@app.command()
def abort(
    model: ModelName,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it is recorded.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Take the candidate back: weight 0, then away."""
    rollouts = _rollouts(model, settings, overrides, namespace, kubeconfig, context, workspace)
    record = rollouts.abort(reason)
    _show_end(record, as_json)
    if record.phase != "aborted":
        raise typer.Exit(1)


def _rollouts(
    model: str,
    settings: Path | None,
    overrides: list[str] | None,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    workspace: Path,
) -> "Rollouts":
    from linnet.rollout.rollout import Rollouts
    from linnet.rollout.settings import RolloutSettings

    given = [] if namespace is None else [f"namespace={json.dumps(namespace)}"]
    return Rollouts.connect(
        model,
        RolloutSettings.load(settings, (*(overrides or ()), *given)),
        connections=connections_of(workspace),
        kubeconfig=kubeconfig,
        context=context,
        watch=_Printer(),
    )


class _Printer:
    """Prints entries on standard error; holds that only go on are told once a minute."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None
        self._told = 0.0

    def __call__(self, entry: "Entry") -> None:
        """Print an entry."""
        one = (entry.at, entry.verdict)
        if one == self._last and time.monotonic() - self._told < 60.0:
            return
        self._last, self._told = one, time.monotonic()
        colour = _COLOURS.get(entry.verdict, "cyan")
        err.print(
            f"[dim]{_clock(entry.until or entry.at)}[/dim] {entry.weight:>3} % "
            f"[{colour}]{entry.verdict:<8}[/{colour}]",
            end=" ",
            highlight=False,
        )
        err.print(entry.reason, markup=False, highlight=False, soft_wrap=True)


def _show_end(record: "Record", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(record), indent=2) + "\n")
    elif record.phase == "done":
        out.print(f"[green]{record.candidate}[/green] is the champion of {record.model}")
    else:
        out.print(f"[red]{record.candidate}[/red] of {record.model} was taken back: ", end="")
        out.print(record.reason, markup=False, highlight=False, soft_wrap=True)


def _show_status(found: "Status") -> None:
    shown = found.shown
    table = Table("", "version", "traffic", "release", title=found.model)
    if shown.champion is not None:
        share = f"{100 - shown.weight} %"
        table.add_row("champion", shown.champion.version, share, shown.champion.uri)
    if shown.candidate is not None:
        share = f"{shown.weight} %"
        table.add_row("candidate", shown.candidate.version, share, shown.candidate.uri)
    out.print(table if shown.champion else f"{found.model} is not served")
    record = found.record
    if record is None:
        err.print(f"no rollout yet: `linnet rollout start {found.model}` begins one")
        return
    if shown.champion is None:
        err.print("was its rollout by the other `traffic`? Then `--set traffic=route`, or canary")
    out.print(_log(record))
    if record.reason:
        out.print(record.reason, markup=False, highlight=False)
    if not record.finished and found.holder is None:
        err.print(f"nobody carries it on: `linnet rollout start {found.model}` does")


def _log(record: "Record") -> Table:
    """Return the judge's log as a table: one row an entry, its checks below the reason."""
    table = Table(
        "time (UTC)",
        Column("weight", justify="right"),
        "verdict",
        Column("times", justify="right"),
        Column("why", overflow="fold"),
        title=f"rollout of {record.candidate} beside {record.champion or 'nothing'}: "
        f"{record.phase}",
    )
    for entry in record.entries:
        colour = _COLOURS.get(entry.verdict, "cyan")
        table.add_row(
            _clock(entry.at) + (f" – {_clock(entry.until)}" if entry.until else ""),
            f"{entry.weight} %",
            f"[{colour}]{entry.verdict}[/{colour}]",
            str(entry.times) if entry.times > 1 else "",
            _why(entry),
        )
    return table


def _why(entry: "Entry") -> Any:
    from rich.text import Text

    text = Text(entry.reason if not entry.checks else "")
    for check in entry.checks:
        colour = _COLOURS.get(check["verdict"], "cyan")
        text.append(f"{'' if not text else chr(10)}{check['name']} ", style=colour)
        text.append(check["words"])
    return text


def _clock(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%H:%M:%S")

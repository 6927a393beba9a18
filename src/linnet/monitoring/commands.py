"""`linnet drift`: the command, and how a look is shown on a terminal."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from linnet.terminal import WORKSPACE, AsJson, Workspace, connections_of, err, out

if TYPE_CHECKING:
    from linnet.monitoring.drift import DriftReport


# Exit code of a look that found drift: nothing went wrong.
DRIFTED = 3
_SHOWN_CLASSES = 20


def drift(
    source: Annotated[
        str,
        typer.Argument(help="Prediction log, folder of pictures or dataset; a path or s3://…"),
    ],
    release: Annotated[str, typer.Option("--release", "-r", help="Folder, s3://… or model@alias.")],
    reference: Annotated[
        str | None,
        typer.Option(help="What to compare with. [default: the release's own test pictures]"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for drift.json and drift.html.")
    ] = Path("drift"),
    settings: Annotated[
        Path | None, typer.Option("--settings", "-s", help="Drift settings (YAML).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, such as pictures=1000. Repeatable."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the look in MLflow, for `linnet watch`.")
    ] = False,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Compare new pictures with those that a release was measured on.

    The release answers the pictures; answers and pictures are then held against its test pictures
    by a test that finds drift where there is none in 1 of 100 looks (false_alarms).

    Exit codes: 0 no drift; 1 the look failed; 2 wrong settings or usage; 3 drift.
    """
    from linnet.monitoring.drift import look
    from linnet.monitoring.drift import record as keep
    from linnet.monitoring.settings import DriftSettings

    wanted = DriftSettings.load(settings, tuple(overrides or ()))
    connections = connections_of(workspace)
    report = look(source, release, output, wanted, reference=reference, connections=connections)
    if record:
        keep(report, output, connections)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        _show(report, output)
    if report.verdict == "drift":
        raise typer.Exit(DRIFTED)


def _show(report: "DriftReport", folder: Path) -> None:
    from linnet.monitoring.drift import PAGE

    table = Table(
        "what",
        *(Column(name, justify="right") for name in ("before", "now", "distance", "chance")),
        "",
        title=report.headline(),
    )
    numbers = [shift for shift in report.shifts if shift.kind != "answers"]
    answers = [shift for shift in report.shifts if shift.kind == "answers"]
    answers.sort(key=lambda shift: (shift.chance, -shift.distance))
    for shift in (*numbers, *answers[:_SHOWN_CLASSES]):
        of_answers = shift.kind == "answers"
        middle = (
            f"{each:.1%}" if of_answers else f"{each:.3f}" for each in (shift.before, shift.now)
        )
        table.add_row(
            f"answers {shift.name}" if of_answers else shift.name,
            *middle,
            f"{shift.distance:.3f}",
            f"{shift.chance:.4f}",
            "[red]drift[/red]" if shift.drifted else "",
        )
    out.print(table)
    if hidden := len(answers[_SHOWN_CLASSES:]):
        err.print(f"{hidden} more classes are in drift.json", style="dim")
    out.print(f"[bold]page[/bold]  {folder / PAGE}", soft_wrap=True, highlight=False)

"""`linnet feedback` and `linnet monitor`: true labels in, accuracy in use out."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from linnet.terminal import WORKSPACE, AsJson, connections_of, err, out

Place = Annotated[
    str,
    typer.Option("--log", envvar="LINNET_LOG_TO", help="Folder or s3://… that servers log to."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Name that the model is served under.")]


def feedback(
    file: Annotated[
        Path, typer.Argument(help="CSV: request_id, label and, of several pictures, number.")
    ],
    log: Place,
    model: Model,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out requests that were not logged.")
    ] = False,
) -> None:
    """Give true labels of pictures that a server answered and logged."""
    from linnet.monitoring.accuracy import give

    connections = connections_of(WORKSPACE)
    count = give(file, log, model, skip_unknown=skip_unknown, connections=connections)
    out.print(f"{count} labels are taken; `linnet monitor` shows the accuracy", highlight=False)


def monitor(
    log: Place,
    model: Model,
    days: Annotated[float, typer.Option(min=0.0, help="Labels that came in the last days.")] = 7.0,
    as_json: AsJson = False,
) -> None:
    """Show how often each release was right in use, by the true labels that came back."""
    from linnet.monitoring.accuracy import live_accuracy

    connections = connections_of(WORKSPACE)
    found = live_accuracy(log, model, days=days, connections=connections)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
        return
    names = ("labelled", "right", "accuracy", "95% interval")
    table = Table("release", *(Column(name, justify="right") for name in names))
    for row in found.releases:
        interval = f"{row.low:.3f} – {row.high:.3f}"
        shown = (f"{row.labelled:,}", f"{row.right:,}", f"{row.accuracy:.3f}", interval)
        table.add_row(row.release, *shown)
    if found.releases:
        out.print(table)
    else:
        err.print(f"no labels of {model} came in the last {days:g} days")
    if found.unknown:
        ids = ", ".join(id for id, _ in found.unknown[:5])
        err.print(f"{len(found.unknown)} labels are of requests that were not logged: {ids}")

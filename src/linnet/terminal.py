"""What the commands share: their consoles, and options that mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from linnet.stores.connections import Connections

out = Console()
err = Console(stderr=True)

WORKSPACE = Path("workspace")
Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace", "-w", envvar="LINNET_WORKSPACE", help="Folder of runs, releases, tracking."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def connections_of(workspace: Path) -> Connections:
    """Return what the environment says of stores and services, for a workspace.

    Raises:
        SettingsError: a variable is wrong.
    """
    return Connections.from_environment(workspace.resolve())

"""`linnet annotate`: the commands, and how their results look on a terminal."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from linnet.terminal import WORKSPACE, AsJson, Workspace, connections_of, err, out

app = typer.Typer(
    name="annotate",
    help="Let people label what a release is unsure of, in Label Studio, and train on it.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)

Studio = Annotated[
    str,
    typer.Option("--label-studio", "-l", envvar="LABEL_STUDIO_URL", help="Label Studio's address."),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="LABEL_STUDIO_API_KEY",
        help="Its token, a personal access token or a legacy one; better by the variable.",
        show_default=False,
    ),
]
ProjectName = Annotated[str, typer.Argument(help="The project's title.")]
ADDRESS = "http://127.0.0.1:8080"


@app.command()
def setup(
    release: Annotated[
        str, typer.Argument(help="Whose classes are asked for: a folder, s3://… or model@alias.")
    ],
    label_studio: Studio = ADDRESS,
    token: Token = None,
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Title. [default: the model's name]")
    ] = None,
    votes: Annotated[int, typer.Option(min=1, help="How many people label each picture.")] = 1,
    backend: Annotated[
        str | None, typer.Option(help="Where `linnet annotate backend` listens, to pre-label.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="What Label Studio calls when annotations change.")
    ] = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Make a project for a release's classes, or check that the one there fits."""
    from linnet.annotation.setup import set_up

    prepared = set_up(
        _studio(label_studio, token),
        release,
        title=project,
        votes=votes,
        backend=backend,
        webhook=webhook,
        connections=connections_of(workspace),
    )
    _show(prepared, as_json)


@app.command("import")
def import_(
    project: ProjectName,
    place: Annotated[
        str,
        typer.Argument(help="Output of `linnet batch`, a prediction log or, with -r, pictures."),
    ],
    label_studio: Studio = ADDRESS,
    token: Token = None,
    release: Annotated[
        str | None,
        typer.Option("--release", "-r", help="Answers the pictures first: folder, s3://…, alias."),
    ] = None,
    order: Annotated[
        Literal["margin", "entropy", "confidence"],
        typer.Option(help="What comes first: a small margin, much entropy, little confidence."),
    ] = "margin",
    limit: Annotated[int, typer.Option(min=1, help="How many pictures at most.")] = 200,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Of a log: whose answers.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Of a log: only the last hours, as after a drift alert.")
    ] = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Send the pictures that a release is least sure of, with its answers chosen already."""
    from linnet.annotation.importing import import_pictures

    imported = import_pictures(
        _studio(label_studio, token),
        project,
        place,
        order=order,
        limit=limit,
        release=release,
        model=model,
        hours=hours,
        connections=connections_of(workspace),
    )
    _show(imported, as_json)


@app.command()
def export(
    project: ProjectName,
    destination: Annotated[str, typer.Argument(help="Folder or s3://… of the source to write.")],
    label_studio: Studio = ADDRESS,
    token: Token = None,
    least_votes: Annotated[
        int, typer.Option(min=1, help="Put pictures with fewer votes aside.")
    ] = 1,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Write the annotations as a source for `linnet ingest`, and how far people agree.

    Where nothing has changed since the last time, nothing is written.
    """
    from linnet.annotation.exporting import export

    exported = export(
        _studio(label_studio, token),
        project,
        destination,
        least_votes=least_votes,
        connections=connections_of(workspace),
    )
    _show(exported, as_json)


@app.command()
def backend(
    server: Annotated[
        str, typer.Option(help="V2 endpoint: http://host:8080 or grpc://host:8081.")
    ] = "http://127.0.0.1:8080",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Name that the model is served under.")
    ] = None,
    label_studio: Studio = ADDRESS,
    token: Token = None,
    server_token: Annotated[
        str | None,
        typer.Option(envvar="LINNET_TOKEN", help="The endpoint's token.", show_default=False),
    ] = None,
    authority: Annotated[
        str | None,
        typer.Option(help="Host to ask the endpoint for, where a gateway tells models by it."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any.")] = 9090,
) -> None:
    """Pre-label in Label Studio by a served model, as its ML backend, until SIGTERM."""
    from linnet.annotation.backend import serve_backend
    from linnet.client import Client

    studio = _studio(label_studio, token)
    with Client(server, model=model, token=server_token, authority=authority) as client:
        serve_backend(
            client,
            studio,
            host=host,
            port=port,
            ready=lambda address: err.print(f"{client.model} pre-labels at {address}"),
        )


def _studio(address: str, token: str | None) -> Any:
    from linnet.annotation.label_studio import LabelStudio

    return LabelStudio(address, token)


def _show(result: Any, as_json: bool) -> None:
    values = asdict(result)
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return
    for name, value in values.items():
        out.print(f"[bold]{name.replace('_', ' '):>12}[/bold]  ", end="")
        out.print(_text(value), markup=False, highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_text(below)}" for key, below in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(below) for below in value)
    return str(value)

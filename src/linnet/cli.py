"""The `linnet` command: each step's command calls the library function that its component calls."""

import dataclasses
import getpass
import json
import logging
import os
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.table import Column, Table

from linnet import __version__, launch, settings_table
from linnet.annotation import commands as annotation_commands
from linnet.errors import LinnetError, SettingsError
from linnet.monitoring.commands import drift
from linnet.monitoring.label_commands import feedback as give_feedback
from linnet.monitoring.label_commands import monitor
from linnet.rollout import commands as rollout_commands
from linnet.settings import RunSettings
from linnet.terminal import WORKSPACE, AsJson, Workspace, connections_of, err, out
from linnet.triggers.commands import trigger, watch

app = typer.Typer(
    name="linnet",
    help="From labelled pictures to a gated, registered ONNX release.\n\n"
    "Start with [bold]linnet run[/bold]: it takes the built-in handwritten digits through every "
    "step. Then write a settings file for your own pictures ([bold]linnet settings[/bold] shows "
    "all there is to set) and run [bold]linnet run my.yaml[/bold].",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PIPELINE = "The whole pipeline"
STEPS = "One step at a time"
RESULTS = "Releases"
IN_USE = "A release in use"
DAY_TWO = "Day two"

SettingsFile = Annotated[
    Path | None,
    typer.Argument(
        help="Run settings (YAML). Without it: the built-in digits.", show_default=False
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", "-s", help="Run settings (YAML); its defaults without it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, such as train.whole.epochs=3. Repeatable."),
]
Pictures = Annotated[list[Path], typer.Argument(help="Pictures: JPEG, PNG, WebP, TIFF, …")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Registered model's name.")]


def _version(asked: bool) -> None:
    if asked:
        out.print(f"linnet {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_path=False, show_time=False, show_level=verbose)],
    )
    logging.getLogger("linnet").setLevel(logging.DEBUG if verbose else logging.INFO)
    # It warns of each try again; what comes of them is in our errors.
    logging.getLogger("urllib3").setLevel(logging.DEBUG if verbose else logging.ERROR)


@app.command(rich_help_panel=PIPELINE)
def run(
    settings: SettingsFile = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    pipeline: Annotated[
        Path | None, typer.Option(help="Another compiled pipeline (from `make compile`).")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="process: this interpreter; docker: the built images.")
    ] = "process",
    as_json: AsJson = False,
) -> None:
    """Run ingest, train, export, evaluate, gate and release on this machine.

    The same compiled Kubeflow pipeline that runs on a cluster. A run that was interrupted in
    training goes on where it was when it is started again with the same settings.

    Exit codes: 0 released; 1 a step failed; 2 wrong settings or usage; 3 refused by the gate;
    130 interrupted.
    """
    if runner not in ("process", "docker"):
        raise SettingsError(f"--runner {runner!r} is not known: expected process or docker")
    wanted = RunSettings.load(settings or launch.packaged_settings(), tuple(overrides or ()))
    if settings is None and not as_json:
        err.print("no settings given: running the built-in handwritten digits\n", style="dim")
    result = launch.run(
        wanted,
        workspace,
        pipeline=pipeline,
        runner="docker" if runner == "docker" else "process",
        watch=_watcher(),
    )
    _show(result, as_json, _show_run)
    result.require_release()


@app.command(rich_help_panel=PIPELINE)
def submit(
    settings: SettingsFile = None,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint",
            "-e",
            envvar="KF_PIPELINES_ENDPOINT",
            help="Kubeflow Pipelines: the address of its UI or of its API.",
        ),
    ] = "http://127.0.0.1:8888",
    overrides: Set = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Profile, where Kubeflow is shared.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Default: the model's name.")] = None,
    run_name: Annotated[str | None, typer.Option(help="Default: model, date and time.")] = None,
    pipeline: Annotated[
        Path | None,
        typer.Option(help="Compiled pipeline (from `make compile`); default: the one shipped."),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="One more parameter of the pipeline: name=value."),
    ] = None,
    roll_out: Annotated[
        Path | None,
        typer.Option(
            help="Then move the traffic to the release, by these rollout settings (YAML)."
        ),
    ] = None,
    recurring: Annotated[
        str | None, typer.Option(help="Run on a schedule, in cron's five fields, instead of now.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step anew.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Don't follow the run.")] = False,
    token: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token.")
    ] = None,
    cookie: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_COOKIE", help="Cookie of a log-in.")
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(help="ServiceAccount of the run's pods.")
    ] = None,
    ui: Annotated[
        str | None,
        typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="UI's address, if another."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the pipeline on a cluster and follow it to its end.

    What stops following it, as Ctrl-C, leaves it running. The images are those that the pipeline
    was compiled with: `make images compile`, then `--pipeline build/pipelines/….yaml`.

    Exit codes: 0 released; 1 a step failed; 2 wrong settings or usage; 3 refused by the gate.
    """
    from linnet import submission
    from linnet.kubeflow import Kubeflow
    from linnet.rollout.settings import RolloutSettings
    from linnet.settings import apply_override

    wanted = RunSettings.load(settings or launch.packaged_settings(), tuple(overrides or ()))
    more: dict[str, Any] = {}
    if roll_out is not None:
        steps = RolloutSettings.load(roll_out).model_dump(mode="json", exclude_none=True)
        more = {"after_release": "rollout", "rollout_settings": steps}
    for parameter in parameters or ():
        apply_override(more, parameter)
    server = Kubeflow(endpoint, namespace=namespace, token=token, cookie=cookie)
    options: dict[str, Any] = {
        "pipeline": pipeline,
        "experiment": experiment,
        "run_name": run_name,
        "parameters": more,
        "cache": not no_cache,
        "service_account": service_account,
        "ui": ui,
    }
    if recurring is not None:
        _show(submission.schedule(wanted, server, recurring, **options), as_json)
        return
    submitted = submission.submit(wanted, server, **options)
    err.print(f"{submitted.pipeline.name} is submitted: ", end="")
    err.print(submitted.url, markup=False, highlight=False, soft_wrap=True)
    if no_wait:
        if as_json:
            row = {"run_id": submitted.run_id, "url": submitted.url}
            sys.stdout.write(json.dumps(row, indent=2) + "\n")
        return
    try:
        with err.status("waiting for the first step") as status:
            outcome = submission.follow(submitted, server, _watcher(status.update))
    except KeyboardInterrupt:
        err.print(f"no longer following; the run goes on: {submitted.url}", soft_wrap=True)
        raise
    _show(outcome, as_json, _show_outcome)
    outcome.require_release()


@app.command(rich_help_panel=STEPS)
def ingest(
    destination: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    source: Annotated[
        str | None,
        typer.Argument(help="digits | folder | archive | s3://… | torchvision://NAME."),
    ] = None,
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Check, split and store labelled pictures as a versioned dataset."""
    from linnet.data.ingest import ingest

    extra = () if source is None else (f"source.uri={json.dumps(source)}",)
    wanted = _settings(settings, (*extra, *(overrides or ())))
    summary = ingest(
        wanted.source, destination, wanted.ingest, connections=connections_of(workspace)
    )
    _show(summary, as_json)


@app.command(rich_help_panel=STEPS)
def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Fit a network to a dataset's training split. Killed, it resumes when started again."""
    from linnet.stores.tracking import Tracker
    from linnet.training import fit

    wanted = _settings(settings, overrides)
    connections = connections_of(workspace)
    with Tracker.start(connections, experiment=wanted.model) as tracker:
        report = fit(
            dataset,
            destination,
            wanted.train,
            workspace=workspace,
            tracker=tracker,
            connections=connections,
        )
    _show(report, as_json)


@app.command(rich_help_panel=STEPS)
def search(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the findings to.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Search train settings, and write the best ones to DESTINATION/best.json for `linnet train`.

    Killed, it goes on when started again; started several times, the processes share the trials.
    """
    wanted = _settings(settings, overrides)
    # After the settings, because this imports torch, and a wrong space is told at once.
    from linnet.training.search import Search, run_trials
    from linnet.training.search_report import conclude, named

    about = Search(
        dataset, wanted.train, wanted.search, wanted.model, workspace, connections_of(workspace)
    )
    run_trials(about)
    found = conclude(about, destination)
    _show(found, as_json, lambda _: _show_search(named(found, about.space()), destination))


@app.command(rich_help_panel=STEPS)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder that train wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the graph to.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Make the ONNX graph of a checkpoint and prove that it agrees with torch."""
    from linnet.release.export import export

    report = export(checkpoint, dataset, destination, _settings(settings, overrides).export)
    _show(report, as_json)


@app.command(rich_help_panel=STEPS)
def evaluate(
    graph: Annotated[Path, typer.Argument(help="Graph folder that export wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the report to.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Measure a graph on the test split, as it will serve, and write the report."""
    from linnet.evaluation.evaluate import evaluate

    wanted = _settings(settings, overrides)
    result = evaluate(graph, dataset, destination, wanted.evaluate, model=wanted.model)
    _show(result, as_json, _show_report)


@app.command(rich_help_panel=STEPS)
def gate(
    graph: Annotated[Path, typer.Argument(help="Graph folder that export wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    report: Annotated[Path, typer.Argument(help="Report folder that evaluate wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the gated report to.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Hold a report against the settings and the champion. Exits with 3 when it refuses."""
    from linnet.evaluation.gate import gate
    from linnet.evaluation.report import PAGE, Report
    from linnet.release.bundle import open_champion
    from linnet.stores.tracking import log_report

    wanted = _settings(settings, overrides)
    connections = connections_of(workspace)
    with open_champion(wanted.model, connections) as champion:
        decision = gate(graph, dataset, report, destination, wanted.gate, champion=champion)
    log_report(connections, Report.load(destination), destination / PAGE)
    _show(decision, as_json, _show_decision)
    if decision.decision == "refuse":
        raise typer.Exit(3)


@app.command(rich_help_panel=STEPS)
def release(
    graph: Annotated[Path, typer.Argument(help="Graph folder that export wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that ingest wrote.")],
    report: Annotated[Path, typer.Argument(help="Gated report folder that gate wrote.")],
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Write an immutable release to a folder or S3 and register it as candidate."""
    from linnet.release.bundle import release

    wanted = _settings(settings, overrides)
    result = release(
        graph,
        report,
        dataset,
        model=wanted.model,
        settings=wanted.release,
        connections=connections_of(workspace),
    )
    _show(result, as_json)


@app.command(rich_help_panel=RESULTS)
def releases(
    model: Annotated[str | None, typer.Argument(help="Only this model's.")] = None,
    root: Annotated[
        str | None, typer.Option(help="Folder or s3://… of releases; default: the workspace's.")
    ] = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """List releases with their metrics, registry aliases and approvals."""
    from linnet.release.bundle import releases

    rows = releases(connections_of(workspace), root=root, model=model)
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        return
    table = Table(
        *("model", "version", "aliases", "approval", "accuracy", "macro F1", "created", "where")
    )
    for row in rows:
        table.add_row(
            row.model,
            row.version,
            ", ".join(row.aliases),
            row.approval or "–",
            _number(row.metrics.get("accuracy")),
            _number(row.metrics.get("macro_f1")),
            row.created,
            row.uri,
        )
    if rows:
        out.print(table)
    else:
        err.print("no releases yet: `linnet run` makes the first")


@app.command(rich_help_panel=RESULTS)
def sign(
    release: Annotated[str, typer.Argument(help="Folder, s3://… or model@alias.")],
    workspace: Workspace = WORKSPACE,
) -> None:
    """Sign a release with LINNET_SIGNING_KEY, for those who set LINNET_TRUSTED_KEY."""
    from linnet.release.opening import sign_release

    uri = sign_release(release, connections_of(workspace))
    err.print(f"signed {uri}", soft_wrap=True, highlight=False)


@app.command(rich_help_panel=RESULTS)
def approve(
    model: Annotated[str, typer.Argument(help="The registered model's name.")],
    version: Annotated[str, typer.Argument(help="The release's version, such as v3, or alias.")],
    by: Annotated[
        str | None, typer.Option(help="Who decides. [default: this machine's user]")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it is recorded.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse the release instead.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take an earlier approval back.")
    ] = False,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Approve a release that needs a person's yes before it gets traffic, or refuse it.

    Who decided, when and why stay with the model's version in the registry. A release needs it when
    it was made with `release.approval: required`.
    """
    from linnet.release.approval import decide

    if refuse and withdraw:
        raise SettingsError("--refuse and --withdraw are two decisions: give one of them")
    made = decide(
        model,
        version,
        "refused" if refuse else "withdrawn" if withdraw else "approved",
        by=by or getpass.getuser(),
        reason=reason,
        connections=connections_of(workspace),
    )
    _show(made, as_json)


@app.command(rich_help_panel=IN_USE)
def serve(
    releases: Annotated[
        list[str],
        typer.Argument(
            help="Folder, s3://… or model@champion of each release; name=… serves it under "
            "another name."
        ),
    ],
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = None,
    rest_port: Annotated[int | None, typer.Option(help="Port of REST; 0: any. [8080]")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0: any. [8081]")] = None,
    repository_api: Annotated[
        bool, typer.Option("--repository-api", help="Let clients load and unload models.")
    ] = False,
    fetch_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that pictures may be fetched from by URL. Repeatable."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="LINNET_TOKEN", help="Bearer token or API key to ask for."),
    ] = None,
    log_to: Annotated[
        str | None,
        typer.Option(
            envvar="LINNET_LOG_TO",
            help="Folder or s3://… for a sample of requests and answers, by default pictures too.",
        ),
    ] = None,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Take true labels at /feedback/<model>.")
    ] = False,
    settings: Annotated[
        Path | None, typer.Option("--settings", "-s", help="Server settings (YAML).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, such as max_batch=16. Repeatable."),
    ] = None,
    workspace: Workspace = WORKSPACE,
    json_log: Annotated[
        bool | None,
        typer.Option("--json-log/--text-log", help="Form of the log; JSON unless on a terminal."),
    ] = None,
) -> None:
    """Serve releases over REST and gRPC (Open Inference Protocol, V2) until SIGTERM."""
    from linnet.inference.logs import log_json
    from linnet.inference.server import serve
    from linnet.inference.settings import ServeSettings

    given = {
        "host": host,
        "rest_port": rest_port,
        "grpc_port": grpc_port,
        "repository_api": repository_api or None,
        "fetch_hosts": fetch_host or None,
        "token": token or None,
        "prediction_log.to": log_to or None,
        "feedback": feedback or None,
    }
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    wanted = ServeSettings.load(settings, (*(overrides or ()), *flags))
    if json_log or (json_log is None and not sys.stdout.isatty()):
        log_json()
    serve(releases, wanted, connections=connections_of(workspace))


@app.command(rich_help_panel=IN_USE)
def ui(
    server: Annotated[
        str, typer.Option(help="V2 endpoint: http://host:8080 or grpc://host:8081.")
    ] = "http://127.0.0.1:8080",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Its name there; default: the only one.")
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            "--release",
            "-r",
            help="Folder, s3://… or model@alias of the release that answers, for examples and the "
            "model page; default: the one that the server names, if it lies where releases go.",
        ),
    ] = None,
    authority: Annotated[
        str | None,
        typer.Option(help="Host to ask the endpoint for, where a gateway tells models by it."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the page; 0: any.")] = 8090,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, such as max_picture_bytes=8000000. Repeatable."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Show a web page where people drop pictures and see what a served model answers.

    A server that asks for a token gets the one in LINNET_TOKEN.
    """
    from linnet.ui.server import serve_page
    from linnet.ui.settings import PageSettings

    flags = (f"host={json.dumps(host)}", f"port={port}")
    wanted = PageSettings.load(overrides=(*flags, *(overrides or ())))

    def ready(address: str) -> None:
        err.print(f"the page is at {address} (Ctrl-C stops it)", highlight=False)
        if open_page:
            webbrowser.open(address)

    serve_page(
        server,
        wanted,
        connections=connections_of(workspace),
        model=model,
        release=release,
        token=os.environ.get("LINNET_TOKEN") or None,
        authority=authority,
        ready=ready,
    )


@app.command(rich_help_panel=RESULTS)
def report(
    path: Annotated[Path, typer.Argument(help="A report's, release's or run's folder.")],
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the HTML page in the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a report's numbers, or open its page."""
    from linnet.evaluation.report import Report

    folder = launch.report_folder(path)
    if open_page:
        webbrowser.open((folder / "report.html").resolve().as_uri())
    _show(Report.load(folder), as_json, _show_report)


@app.command(rich_help_panel=PIPELINE)
def settings(
    section: Annotated[str | None, typer.Argument(help="Only this section, such as train.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema for editors.")
    ] = False,
) -> None:
    """List every setting with its default, bounds and meaning."""
    if schema:
        sys.stdout.write(json.dumps(RunSettings.model_json_schema(), indent=2) + "\n")
        return
    rows = settings_table.rows(section or "")
    if not rows:
        raise SettingsError(
            f"no section {section!r}: expected one of {', '.join(RunSettings.model_fields)}"
        )
    # What is cut can't be typed, and a table in a pipe is 80 wide.
    others = (Column(name, overflow="fold") for name in ("default", "values", "meaning"))
    table = Table(Column("setting", no_wrap=True), *others)
    for row in rows:
        table.add_row(row.name, row.default, row.values, row.meaning)
    out.print(table)


@app.command(rich_help_panel=IN_USE)
def predict(
    pictures: Pictures,
    release: Annotated[
        str | None,
        typer.Option("--release", "-r", help="Folder, s3://… or model@alias: answer here."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="http://host:8080 or grpc://host:8081: ask a running server."),
    ] = None,
    model: Model = None,
    token: Annotated[
        str | None, typer.Option(envvar="LINNET_TOKEN", help="The server's bearer token.")
    ] = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Say what pictures show, with a release on this machine or by asking a server."""
    from linnet.inference.local import read_pictures

    if (release is None) == (server is None):
        raise SettingsError(
            "`linnet predict` needs either --release (such as flowers@champion) or --server "
            "(such as http://localhost:8080)"
        )
    encoded = read_pictures(pictures)
    if server is not None:
        answers = _ask_server(server, model, token, encoded)
    else:
        answers = _answer_here(str(release), workspace, encoded)
    if as_json:
        rows = [_answer_row(*one) for one in zip(pictures, answers, strict=True)]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(Column("picture", overflow="fold"), "label", "score", "release")
    for path, answer in zip(pictures, answers, strict=True):
        label = f"({answer.label})" if answer.abstain else answer.label
        table.add_row(str(path), label, _number(answer.score), answer.release)
    out.print(table)
    if any(answer.abstain for answer in answers):
        err.print("a label in brackets: the model would rather not say", style="dim")


@app.command(rich_help_panel=IN_USE)
def batch(
    source: Annotated[
        str, typer.Argument(help="Pictures: folder | archive | s3://… | torchvision://NAME.")
    ],
    release: Annotated[
        str, typer.Option("--release", "-r", help="Folder, s3://… or model@alias that answers.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder or s3://bucket/prefix of the answers.")
    ],
    shard: Annotated[
        str, typer.Option(help="This process's share, such as 2/8: the second of eight.")
    ] = "1/1",
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV beside Parquet.")] = False,
    part_pictures: Annotated[
        int, typer.Option(help="Pictures in one file of answers; a kill costs that much at most.")
    ] = 2048,
    threads: Annotated[
        int | None, typer.Option(help="Threads that decode and answer. Default: one per CPU.")
    ] = None,
    settings: SettingsOption = None,
    overrides: Set = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Answer any number of pictures with a release, into Parquet files of answers.

    Killed, it goes on when the same command is given again. Pictures need no labels; where there
    are labels (class folders, or --set source.csv.path=labels.csv), the summary has the confusion
    matrix. What can't be read is in quarantine.csv with the reason.
    """
    from linnet.batch.predicting import batch
    from linnet.batch.settings import BatchSettings, Shard

    wanted = _settings(settings, (f"source.uri={json.dumps(source)}", *(overrides or ())))
    how = BatchSettings.parse(
        {"csv": csv, "part_pictures": part_pictures, "threads": threads}, "batch"
    )
    summary = batch(
        wanted.source,
        release,
        output,
        how,
        shard=Shard.parse(shard),
        connections=connections_of(workspace),
    )
    _show(summary, as_json, _show_batch)


@app.command(rich_help_panel=IN_USE)
def explain(
    pictures: Pictures,
    release: Annotated[
        str | None,
        typer.Option("--release", "-r", help="Folder, s3://… or model@alias."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder that train wrote, instead of a release.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="occlusion; of a checkpoint also integrated_gradients or grad_cam."),
    ] = "occlusion",
    label: Annotated[
        str | None, typer.Option(help="Class to explain; default: the model's answer.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer of grad_cam; default: the last with maps.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG to write, or a folder; default: here."),
    ] = None,
    workspace: Workspace = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show which parts of pictures speak for an answer, as an overlay of each."""
    from linnet.explaining import explain_files

    found = explain_files(
        pictures,
        release=release,
        checkpoint=checkpoint,
        method=method,
        label=label,
        layer=layer,
        output=output,
        connections=connections_of(workspace),
    )
    if as_json:
        sys.stdout.write(json.dumps([_plain(one) for one in found], indent=2) + "\n")
        return
    path = Column("overlay", overflow="fold")
    table = Table(Column("picture", overflow="fold"), "label", "probability", path)
    for one in found:
        table.add_row(str(one.picture), one.label, _number(one.probability), str(one.overlay))
    out.print(table)


app.add_typer(rollout_commands.app, rich_help_panel=IN_USE)
app.command(rich_help_panel=DAY_TWO)(monitor)
app.command(rich_help_panel=DAY_TWO)(drift)
app.command(rich_help_panel=DAY_TWO)(watch)
app.command(rich_help_panel=DAY_TWO)(trigger)
app.command("feedback", rich_help_panel=DAY_TWO)(give_feedback)
app.add_typer(annotation_commands.app, rich_help_panel=DAY_TWO)


def _ask_server(
    server: str, model: str | None, token: str | None, encoded: list[bytes]
) -> list[Any]:
    from linnet.client import Client

    with Client(server, model=model, token=token) as client:
        return list(client.predict(encoded))


def _answer_here(release: str, workspace: Path, encoded: list[bytes]) -> list[Any]:
    from linnet.inference.local import LocalModel
    from linnet.release.opening import open_release

    with TemporaryDirectory(prefix="linnet-predict-") as scratch:
        opened = open_release(release, scratch=Path(scratch), connections=connections_of(workspace))
        return list(LocalModel(opened).predict(encoded))


def _answer_row(path: Path, answer: Any) -> dict[str, Any]:
    return {
        "picture": str(path),
        "label": answer.label,
        "score": answer.score,
        "abstain": answer.abstain,
        "release": answer.release,
        "probabilities": [float(value) for value in answer.probabilities],
    }


def _settings(path: Path | None, overrides: Any) -> RunSettings:
    return RunSettings.load(path, tuple(overrides or ()))


def _show(result: Any, as_json: bool, view: Callable[[Any], None] | None = None) -> None:
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), indent=2) + "\n")
    elif view is not None:
        view(result)
    else:
        table = Table(show_header=False, box=None)
        for field in dataclasses.fields(result):
            table.add_row(field.name.replace("_", " "), _text(getattr(result, field.name)))
        out.print(table)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "  ".join(f"{key} {_text(below)}" for key, below in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(below) for below in value)
    return str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _watcher(
    now: Callable[[str], None] = lambda step: None,
) -> Callable[[launch.StepEvent], None]:
    """Return a printer of a run's steps, their lines and durations, on standard error.

    `now` is told what runs, for a line that changes on a terminal.
    """
    order = iter(range(1, 100))

    def watch(event: launch.StepEvent) -> None:
        if event.kind == "started":
            now(event.step)
            err.print(f"[bold]{next(order)}  {event.step}[/bold]")
        elif event.kind in ("cached", "skipped"):
            why = "taken from the cache" if event.kind == "cached" else "skipped"
            err.print(f"[bold]{next(order)}  {event.step}[/bold]\n   {why}\n")
        elif event.kind == "line":
            text = f"   {event.text}"
            err.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
        elif event.kind == "finished":
            err.print(f"   [green]done[/green] in {event.seconds:.1f} s\n")
        else:
            err.print(f"   [red]failed[/red] after {event.seconds:.1f} s\n")

    return watch


def _show_run(result: launch.RunResult) -> None:
    from linnet.evaluation.report import PAGE, Report

    _show_report(Report.load(result.report))
    if result.release is not None:
        aliases = " ".join(f"@{alias}" for alias in result.release["aliases"])
        _line("released", f"{result.release['model']} {result.release['version']} {aliases}")
        _line("where", result.release["uri"])
    _line("report", result.report / PAGE)
    _line("data card", result.card)
    _line("log", result.folder / "run.log")
    _line("seconds", "  ".join(f"{step} {took:.1f}" for step, took in result.seconds.items()))


def _show_outcome(outcome: Any) -> None:
    _line("run", outcome.run_id)
    _line("where", outcome.url)
    _line("state", outcome.state)
    _line("seconds", "  ".join(f"{step} {took:.1f}" for step, took in outcome.seconds.items()))


def _line(name: str, value: object) -> None:
    """Print a name and a value that may be copied whole: it is never cut or wrapped."""
    out.print(f"[bold]{name:>10}[/bold]  ", end="")
    out.print(str(value), markup=False, highlight=False, soft_wrap=True)


def _show_report(result: Any) -> None:
    from linnet.evaluation.metrics import label

    probe = [] if result.probe is None else ["linear probe"]
    table = Table("metric", "value", "interval", "majority class", *probe, title=result.headline())
    for name, metric in result.metrics.items():
        interval = "" if metric.low is None else f"{metric.low:.4f} – {metric.high:.4f}"
        beside = [_number(result.probe.metrics[name])] if probe else []
        table.add_row(
            label(name), _number(metric.value), interval, _number(metric.baseline), *beside
        )
    out.print(table)


def _show_batch(summary: Any) -> None:
    out.print(summary.headline())
    table = Table("label", "pictures", "share")
    for name, count in sorted(summary.labels.items(), key=lambda each: -each[1])[:_MOST_LABELS]:
        table.add_row(name, f"{count:,}", f"{count / max(1, summary.answered):.1%}")
    out.print(table)
    if summary.metrics:
        _line("of labelled", f"{summary.labelled:,}  {_text(summary.metrics)}")
    if summary.unknown_labels:
        shown = _text(dict(list(summary.unknown_labels.items())[:5]))
        err.print(f"labels that {summary.release} does not know: {shown}", style="dim")
    if summary.left_out:
        _line("quarantine", _text(summary.left_out))
    _line("where", summary.output)
    _line("seconds", f"{summary.seconds:.1f}")


def _show_search(found: Any, folder: Path) -> None:
    names = sorted({name for row in found.trials for name in row.drawn})
    table = Table("trial", "outcome", found.monitor, "epochs", *names, title=found.study)
    for row in found.trials:
        drawn = (_text(row.drawn.get(name, "–")) for name in names)
        style = "bold" if row.number == found.best else None
        epochs = str(len(row.by_epoch))
        table.add_row(str(row.number), row.outcome, _number(row.value), epochs, *drawn, style=style)
    out.print(table)
    _line("best", folder / "best.json")
    _line("page", folder / "search.html")


def _show_decision(decision: Any) -> None:
    table = Table("check", "passed", "why", title=f"decision: {decision.decision}")
    for check in decision.checks:
        mark = "[green]yes[/green]" if check.passed else "[red]no[/red]"
        table.add_row(check.name, mark, check.words)
    out.print(table)


# Lines of a batch's table.
_MOST_LABELS = 20
# What typer makes of Ctrl-C.
_INTERRUPTED = 130


def main() -> None:
    """Run the command: errors of ours as one message, their exit code, and no traceback."""
    started = time.monotonic()
    try:
        app()
    except LinnetError as error:
        err.print("[bold red]error[/bold red]", end=" ")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from error
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            err.print(
                f"interrupted after {time.monotonic() - started:.0f} s: nothing half written is "
                "kept; training, a batch or a rollout goes on where it was when the same command "
                "is given again"
            )
        raise


if __name__ == "__main__":
    main()

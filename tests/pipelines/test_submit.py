"""`linnet submit` against a stand-in of Kubeflow Pipelines' API server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linnet import cli
from linnet.errors import KubeflowError, KubeflowUnreachableError
from linnet.kubeflow import Kubeflow
from linnet.launch import StepEvent, packaged_pipeline
from linnet.settings import RunSettings
from linnet.submission import Outcome, Pipeline, follow, submit
from tests.pipelines.kubeflow_stand_in import (
    RUN,
    WORKFLOW,
    Serving,
    StandIn,
    frame,
    identity,
    log,
    pod,
    step,
    task,
)

Submit = Callable[..., int]
BEFORE_THE_GATE = [step(name, "SUCCEEDED") for name in ("ingest", "train", "export", "evaluate")]
RELEASED = [
    *BEFORE_THE_GATE,
    step("gate", "SUCCEEDED"),
    step("release", "SUCCEEDED", inside="root.exit-handler-1.condition-2"),
    step("conclude", "SUCCEEDED", inside="root"),
]


@pytest.fixture
def kubeflow() -> Iterator[StandIn]:
    with Serving() as stand_in:
        yield stand_in


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, kubeflow: StandIn) -> Submit:
    """Run `linnet submit` and return its exit code."""

    def run(*arguments: str) -> int:
        endpoint = () if "--endpoint" in arguments else ("--endpoint", kubeflow.url)
        monkeypatch.setattr(sys, "argv", ["linnet", "submit", *endpoint, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def followed(kubeflow: StandIn) -> tuple[list[tuple[str, str, str]], Outcome]:
    events: list[StepEvent] = []
    server = Kubeflow(kubeflow.url)
    submitted = submit(RunSettings(), server)
    outcome = follow(submitted, server, events.append, poll_s=0.001, patience_s=5)
    return [(event.kind, event.step, event.text) for event in events], outcome


def test_a_run_that_releases_exits_with_0_and_its_settings_were_parameters(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.frames = [frame("SUCCEEDED", *RELEASED)]
    assert command("--set", "train.seed=7", "--run-name", "seven", "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["state"] == "SUCCEEDED"
    assert outcome["decision"] == "release"
    assert outcome["url"] == f"{kubeflow.url}/#/runs/details/{RUN}"
    assert list(outcome["seconds"])[:2] == ["ingest", "train"]
    paths = [path for path, _ in kubeflow.sent]
    assert paths == ["/apis/v2beta1/experiments", "/apis/v2beta1/runs"]
    sent = kubeflow.sent[-1][1]
    assert (sent["display_name"], sent["experiment_id"]) == ("seven", "experiment-1")
    parameters = sent["runtime_config"]["parameters"]
    assert parameters["model"] == "digits"
    assert parameters["train_settings"]["seed"] == 7
    assert sent["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "train-and-release"
    assert "kubernetes" in sent["pipeline_spec"]["platform_spec"]["platforms"]


def test_steps_are_told_as_they_go_with_their_own_lines(kubeflow: StandIn) -> None:
    kubeflow.logs[pod("train")] = log("train", "epoch 1")
    kubeflow.frames = [
        frame("PENDING"),
        frame("RUNNING", step("ingest", "RUNNING")),
        frame("RUNNING", step("ingest", "SUCCEEDED"), step("train", "RUNNING")),
        frame("RUNNING", step("ingest", "SUCCEEDED"), step("train", "RUNNING")),
        frame("SUCCEEDED", *RELEASED),
    ]
    told, outcome = followed(kubeflow)
    assert told[:5] == [
        ("started", "ingest", ""),
        ("finished", "ingest", ""),
        ("started", "train", ""),
        ("line", "train", "epoch 1"),
        ("finished", "train", ""),
    ]
    assert outcome.seconds["train"] == 40.0


def test_a_step_from_the_cache_is_told_as_such(kubeflow: StandIn) -> None:
    kubeflow.frames = [frame("SUCCEEDED", step("ingest", "SUCCEEDED", 0), *RELEASED[1:])]
    told, _ = followed(kubeflow)
    assert told[0] == ("cached", "ingest", "")


def test_a_failed_step_is_told_in_its_own_words_with_the_run_s_address(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = "linnet.errors.SourceError: source 's3://no/where' is not there"
    kubeflow.logs[pod("ingest")] = log("ingest", "reading", raised=raised)
    kubeflow.frames = [
        frame("FAILED", step("ingest", "FAILED"), step("conclude", "SUCCEEDED", inside="root"))
    ]
    assert command() == 1
    said = capsys.readouterr().err
    assert "step ingest failed: source 's3://no/where' is not there" in said
    assert f"{kubeflow.url}/#/runs/details/{RUN}" in said
    assert "Traceback" not in said


def test_a_step_that_left_no_log_is_told_in_the_server_s_words(kubeflow: StandIn) -> None:
    error = "ImagePullBackOff: linnet/cpu:0.1.0"
    kubeflow.frames = [frame("FAILED", step("ingest", "FAILED"), error=error)]
    _, outcome = followed(kubeflow)
    assert (outcome.failed, outcome.why) == ("ingest", error)


def test_a_step_whose_driver_failed_is_the_failed_one(kubeflow: StandIn) -> None:
    steps = [*step("ingest", "SUCCEEDED"), task("train-driver", "FAILED")]
    kubeflow.frames = [frame("FAILED", steps, error="driver: no such parameter")]
    _, outcome = followed(kubeflow)
    assert (outcome.failed, outcome.why) == ("train", "driver: no such parameter")


def test_of_a_retried_step_the_last_attempt_says_why(kubeflow: StandIn) -> None:
    for attempt, words in (("(0)", "the first"), ("(1)", "the second")):
        text = log("train", f"try {attempt}", raised=f"RuntimeError: {words}")
        kubeflow.logs[pod("train", attempt=attempt)] = text
    steps = [step("ingest", "SUCCEEDED"), step("train", "FAILED", attempts=2)]
    kubeflow.frames = [frame("FAILED", *steps)]
    told, outcome = followed(kubeflow)
    assert [text for kind, _, text in told if kind == "line"] == ["try (0)", "try (1)"]
    assert (outcome.failed, outcome.why) == ("train", "the second")


def test_where_every_node_may_be_tried_again_its_pods_are_found_too(kubeflow: StandIn) -> None:
    """As Argo has it where a default makes a node of attempts of each."""
    parts = ["root", "(0)", ".exit-handler-1", "(0)", ".ingest", "(0)", ".executor", "(0)"]
    names = [f"{WORKFLOW}." + "".join(parts[: end + 1]) for end in range(len(parts))]
    last = ["root", "root(0)", "exit-handler-1", "exit-handler-1(0)", "ingest", "ingest(0)"]
    tasks = [task(WORKFLOW, "FAILED", 40, (identity(names[0]),))]
    for own, below in zip([*last, "executor"], names[1:], strict=True):
        tasks.append(task(own, "FAILED", 40, (identity(below),)))
    tasks.append(task("executor(0)", "FAILED"))
    name = f"{WORKFLOW}-system-container-impl-{identity(names[-1]).rpartition('-')[2]}"
    kubeflow.logs[name] = log("ingest", raised="RuntimeError: found")
    kubeflow.frames = [frame("FAILED", tasks)]
    _, outcome = followed(kubeflow)
    assert (outcome.failed, outcome.why) == ("ingest", "found")


def test_of_a_step_in_a_loop_every_pod_is_heard(kubeflow: StandIn) -> None:
    rounds = [f"iteration(0:{number})" for number in (0, 1)]
    places = [f"root.exit-handler-1.{name}" for name in rounds]
    for name, place in zip(rounds, places, strict=True):
        kubeflow.logs[pod("train", inside=place)] = log("train", name)
    steps = [step("train", "SUCCEEDED", 30 + 2 * n, inside=p) for n, p in enumerate(places)]
    kubeflow.frames = [frame("SUCCEEDED", *steps)]
    told, outcome = followed(kubeflow)
    assert sorted(text for kind, _, text in told if kind == "line") == rounds
    assert outcome.seconds["train"] == 32.0


def test_a_refusal_of_the_gate_exits_with_3_and_says_why(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("passed: it beats chance", "failed: accuracy is 0.7, at least 0.9 is needed")
    kubeflow.logs[pod("gate")] = log("gate", *lines)
    steps = [step("gate", "SUCCEEDED"), step("conclude", "SUCCEEDED", inside="root")]
    kubeflow.frames = [frame("SUCCEEDED", *BEFORE_THE_GATE, *steps)]
    assert command() == 3
    said = capsys.readouterr().err.partition("the gate refused the model")[2]
    assert "at least 0.9 is needed" in said
    assert "beats chance" not in said


def test_a_run_that_was_stopped_exits_with_1(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.frames = [frame("CANCELED", step("ingest", "CANCELED"))]
    assert command() == 1
    assert "the run is CANCELED" in capsys.readouterr().err


def test_a_server_that_is_away_for_a_moment_is_asked_again(kubeflow: StandIn) -> None:
    kubeflow.failures = 3
    kubeflow.frames = [frame("SUCCEEDED", *RELEASED)]
    _, outcome = followed(kubeflow)
    assert outcome.state == "SUCCEEDED"


def test_a_server_that_stays_away_is_told_with_the_run_s_address(kubeflow: StandIn) -> None:
    kubeflow.failures = 10_000
    server = Kubeflow(kubeflow.url)
    submitted = submit(RunSettings(), server)
    with pytest.raises(KubeflowError, match=f"The run goes on: .*{RUN}"):
        follow(submitted, server, poll_s=0.001, patience_s=0.05)


def test_without_waiting_the_run_s_address_is_all(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.frames = [frame("RUNNING")]
    assert command("--no-wait", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == RUN


def test_ctrl_c_leaves_the_run_alone(kubeflow: StandIn) -> None:
    kubeflow.frames = [frame("RUNNING", step("ingest", "RUNNING"))]
    linnet = str(Path(sys.executable).with_name("linnet"))
    process = subprocess.Popen(
        [linnet, "submit", "--endpoint", kubeflow.url],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    with process.stderr as said:
        for line in said:
            if "ingest" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = said.read()
    assert process.wait(timeout=30) == 130
    assert f"the run goes on: {kubeflow.url}" in rest.replace("\n", " ")
    assert not [path for path, _ in kubeflow.sent if "terminate" in path]


def test_a_schedule_has_the_five_fields_of_cron_and_runs_one_at_a_time(
    kubeflow: StandIn, command: Submit
) -> None:
    kubeflow.experiments["nightly"] = "experiment-7"
    assert command("--recurring", "0 3 * * 1", "--experiment", "nightly") == 0
    path, sent = kubeflow.sent[-1]
    assert path == "/apis/v2beta1/recurringruns"
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (sent["mode"], sent["max_concurrency"], sent["no_catchup"]) == ("ENABLE", "1", True)
    assert sent["experiment_id"] == "experiment-7"
    assert sent["runtime_config"]["parameters"]["model"] == "digits"


def test_a_schedule_of_another_form_is_refused(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--recurring", "daily") == 2
    assert "expected minute, hour" in capsys.readouterr().err
    assert not kubeflow.sent


def test_without_the_cache_every_step_at_any_depth_runs_anew(
    kubeflow: StandIn, command: Submit
) -> None:
    command("--no-cache", "--no-wait")
    spec = kubeflow.sent[-1][1]["pipeline_spec"]["pipeline_spec"]
    parts = [spec["root"], *spec["components"].values()]
    tasks = [task for part in parts for task in part.get("dag", {}).get("tasks", {}).values()]
    assert len(tasks) > 8
    assert all(task["cachingOptions"] == {} for task in tasks)


def test_a_release_is_rolled_out_where_that_is_asked_for(
    kubeflow: StandIn, command: Submit, tmp_path: Path
) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text("steps: [20, 100]\n")
    assert command("--roll-out", str(file), "--no-wait") == 0
    parameters = kubeflow.sent[-1][1]["runtime_config"]["parameters"]
    assert parameters["after_release"] == "rollout"
    assert parameters["rollout_settings"]["steps"] == [20, 100]


@pytest.mark.parametrize(
    ("name", "value"),
    [("source.uri", "pictures/"), ("train.weights", "w.pth"), ("release.root", "out")],
)
def test_a_place_that_no_pod_sees_is_refused_before_anything_is_sent(
    kubeflow: StandIn,
    command: Submit,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    assert command("--set", f"{name}={value}") == 2
    said = capsys.readouterr().err
    assert f"{name} is '{value}', a place on this machine" in said
    assert "s3://bucket/prefix" in said
    assert not kubeflow.headers


@pytest.mark.parametrize("content", [None, "no: pipeline\n", "[", "- 1\n", "\0"])
def test_a_file_that_is_no_pipeline_is_refused(
    command: Submit, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_text(content)
    assert command("--pipeline", str(file)) == 2
    assert "give a file that `make compile` wrote" in capsys.readouterr().err


def test_a_parameter_that_the_pipeline_lacks_is_refused_with_those_it_has(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--parameter", "sise=3") == 2
    said = capsys.readouterr().err
    assert "takes no parameter sise: it takes after_release" in said
    assert not kubeflow.sent


def test_an_endpoint_without_a_server_is_told_with_the_next_move(
    command: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linnet.rest_pool._RETRY.backoff_factor", 0)
    assert command("--endpoint", "http://127.0.0.1:9") == 1
    said = capsys.readouterr().err
    assert "Kubeflow does not answer at http://127.0.0.1:9" in said
    assert "kubectl port-forward" in said


def test_an_endpoint_that_is_no_url_is_refused(
    command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--endpoint", "kubeflow:8888") == 2
    assert "is not a URL" in capsys.readouterr().err


def test_what_is_not_kubeflow_is_named(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.answer = (200, "text/html", "<html>welcome</html>")
    assert command() == 1
    assert "is not Kubeflow Pipelines" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403, 302])
def test_who_is_not_let_in_is_told_how_to_log_in(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    kubeflow.answer = (status, "application/json", '{"code": 16, "message": "who are you?"}')
    assert command() == 1
    said = capsys.readouterr().err
    assert "who are you?" in said
    assert "Give --token or --cookie" in said


def test_token_and_cookie_go_with_every_request(kubeflow: StandIn, command: Submit) -> None:
    command("--token", "secret", "--cookie", "session=1", "--no-wait")
    assert kubeflow.headers
    for headers in kubeflow.headers:
        assert headers["Authorization"] == "Bearer secret"
        assert headers["Cookie"] == "session=1"


def test_a_namespace_is_for_a_shared_kubeflow_alone(
    kubeflow: StandIn, command: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-n", "team") == 2
    assert "leave out --namespace" in capsys.readouterr().err
    kubeflow.multi_user = True
    assert command("--no-wait") == 2
    assert "give yours with --namespace" in capsys.readouterr().err
    assert not kubeflow.sent
    assert command("-n", "team", "--no-wait") == 0
    assert kubeflow.sent[0][1] == {"display_name": "digits", "namespace": "team"}


def test_a_refused_run_is_told_in_the_server_s_words(
    kubeflow: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = kubeflow.respond

    def refuse(method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if path.endswith("/runs"):
            return 400, {"code": 3, "message": "unknown template"}
        return answered(method, path, body)

    monkeypatch.setattr(kubeflow, "respond", refuse)
    with pytest.raises(KubeflowError, match=r"refused POST .*/runs \(HTTP 400\): unknown template"):
        submit(RunSettings(), Kubeflow(kubeflow.url))


def test_a_server_that_goes_away_is_unreachable() -> None:
    with Serving() as stand_in:
        server = Kubeflow(stand_in.url)
        server.check_namespace()
    with pytest.raises(KubeflowUnreachableError, match="check the endpoint"):
        server.start({})


def test_steps_come_in_an_order_that_they_can_run_in() -> None:
    assert list(Pipeline.load(packaged_pipeline()).steps) == [
        "ingest",
        "train",
        "export",
        "evaluate",
        "gate",
        "release",
        "rollout",
        "conclude",
    ]

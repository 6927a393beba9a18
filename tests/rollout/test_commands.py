import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from linnet.cli import app
from linnet.stores.connections import Connections
from tests.rollout.bucket import Bucket
from tests.rollout.conftest import FAST, MODEL
from tests.rollout.kube import Kube
from tests.rollout.scripted import Scripted

Run = Callable[..., Result]


@pytest.fixture
def run(
    kube: Kube,
    bucket: Bucket,
    connections: Connections,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Return a runner of `linnet rollout` on the cluster and registry of this test."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(kube.kubeconfig()))
    settings = tmp_path / "rollout.yaml"
    settings.write_text(json.dumps(FAST))
    for name, value in {
        "KUBECONFIG": str(kubeconfig),
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def command(*arguments: str) -> Result:
        given = ["rollout", *arguments, "-s", str(settings), "-w", str(tmp_path)]
        return CliRunner().invoke(app, given)

    return command


def test_a_rollout_is_started_and_its_log_shown_as_a_table_and_as_json(
    kube: Kube, run: Run
) -> None:
    kube.serve(MODEL, "v1")
    started = run("start", MODEL)
    assert started.exit_code == 0, started.output
    assert "v2 is the champion of flowers" in started.output
    shown = run("status", MODEL).output
    assert "rollout of v2 beside v1: done" in shown
    assert "every pod answers the release's samples rightly" in shown
    found = json.loads(run("status", MODEL, "--json").stdout)
    assert found["record"]["phase"] == "done"
    assert found["shown"]["champion"]["version"] == "v2"
    watched = run("watch", MODEL)
    assert watched.exit_code == 0
    assert "promoted" in watched.output


def test_a_candidate_that_was_taken_back_ends_the_command_with_3(
    kube: Kube, run: Run, servers: dict[str, Scripted]
) -> None:
    kube.serve(MODEL, "v1")
    servers["v2"].wrong = True
    result = run("start", MODEL)
    assert getattr(result.exception, "exit_code", None) == 3
    assert run("watch", MODEL).exit_code == 3


def test_abort_says_what_it_did_and_promote_asks_first(kube: Kube, run: Run) -> None:
    kube.serve(MODEL, "v1")
    asked = run("promote", MODEL)
    assert asked.exit_code == 1
    assert "Skip the rest of the analysis" in asked.output
    nothing = run("abort", MODEL, "--reason", "why not")
    assert "flowers has no candidate in linnet-serving" in str(nothing.exception)


def test_status_of_a_model_without_a_rollout_says_how_to_begin_one(kube: Kube, run: Run) -> None:
    result = run("status", MODEL)
    assert result.exit_code == 0
    assert "flowers is not served" in result.output
    assert "linnet rollout start flowers" in result.output


def test_status_of_a_rollout_by_a_route_asks_for_its_traffic(kube: Kube, run: Run) -> None:
    assert run("start", MODEL, "v1", "--set", "traffic=route").exit_code == 0
    assert "--set traffic=route" in run("status", MODEL).output
    assert "not served" not in run("status", MODEL, "--set", "traffic=route").output


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(kube: Kube, run: Run) -> None:
    result = run("start", MODEL, "--set", "stepz=[50, 100]")
    assert "did you mean 'steps'" in str(result.exception)


def test_percents_out_of_range_are_refused(kube: Kube, run: Run) -> None:
    result = run("start", MODEL, "--set", "steps=[50, 120]")
    assert "less than or equal to 100" in str(result.exception)

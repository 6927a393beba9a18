import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import KubeflowUnreachableError, SettingsError, TriggerError
from linnet.settings import CsvSettings, SourceSettings
from linnet.stores.connections import Connections
from linnet.stores.outcome import note_quarantine, record_outcome
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker, open_client
from linnet.triggers.content import content_of, settled
from linnet.triggers.exposition import Exposition
from linnet.triggers.ledger import Ledger, Trigger
from linnet.triggers.settings import WatchSettings
from linnet.triggers.starting import Fired, Starter
from linnet.triggers.watching import Watching
from tests.pipelines.kubeflow_stand_in import StandIn
from tests.triggers.conftest import runs

Make = Callable[..., Starter]
LINNET = str(Path(sys.executable).with_name("linnet"))
URI = "s3://linnet/releases/shades/v1"


@pytest.fixture
def registry(connections: Connections) -> Registry:
    found = Registry(connections)
    found.register("shades", URI, tags={"release": "v1"})
    return found


def _watching(starter: Starter, workspace: Path, **more: Any) -> Watching:
    return Watching(starter, starter.connections, workspace=workspace, **more)


def _outcomes(fired: list[Fired]) -> list[str]:
    return [one.outcome for one in fired]


@pytest.fixture
def source(tmp_path: Path, pictures: Path) -> SourceSettings:
    (pictures / "labels.csv").write_text("file,label\n")
    return SourceSettings(uri=str(pictures), csv=CsvSettings(path="labels.csv"))


def test_a_sources_content_changes_with_its_files_and_with_nothing_else(
    source: SourceSettings, pictures: Path, connections: Connections
) -> None:
    before = content_of(source, connections)
    assert content_of(source, connections) == before
    (pictures / "labels.csv").write_text("file,label\na.png,dark\n")
    relabelled = content_of(source, connections)
    assert relabelled.pictures == before.pictures
    assert relabelled.annotations != before.annotations
    (pictures / "dark" / "0.png").write_bytes(b"another")
    replaced = content_of(source, connections)
    assert replaced.pictures != before.pictures
    (pictures / "dark" / "1.png").unlink()
    assert content_of(source, connections).pictures != replaced.pictures


def test_what_comes_with_linnet_never_changes(connections: Connections) -> None:
    for uri in ("digits", "torchvision://CIFAR10"):
        assert content_of(SourceSettings(uri=uri), connections).pictures is None


def test_a_source_that_goes_on_changing_is_not_settled(
    source: SourceSettings,
    pictures: Path,
    connections: Connections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(seconds: float) -> None:
        (pictures / f"{time.monotonic_ns()}.png").write_bytes(b"more")
        waited(seconds)

    waited = time.sleep
    assert settled(source, connections, settle_s=0.01) == content_of(source, connections)
    monkeypatch.setattr(time, "sleep", write)
    with pytest.raises(TriggerError, match="has changed for 0 minutes without a pause"):
        settled(source, connections, settle_s=0.01, patience_s=0.1)


def test_new_pictures_start_a_run_once_they_have_settled(
    cluster: Make,
    pictures: Path,
    workspace: Path,
    kubeflow: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("linnet.submission.check_reachable", lambda settings: None)
    starter = cluster(overrides=[], at_least_s=0.0)
    watching = _watching(starter, workspace)
    assert watching.look() == []
    assert _outcomes(watching.look()) == ["started"]
    assert watching.look() == []
    (pictures / "dark" / "new.png").write_bytes((pictures / "dark" / "0.png").read_bytes())
    assert watching.look() == []
    assert _outcomes(watching.look()) == ["started"]
    assert len(runs(kubeflow)) == 2
    restarted = _watching(starter, workspace)
    assert [restarted.look(), _outcomes(restarted.look())] == [[], ["duplicate"]]
    assert len(runs(kubeflow)) == 2


def test_new_labels_of_the_same_pictures_are_annotations(
    cluster: Make,
    pictures: Path,
    workspace: Path,
    kubeflow: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("linnet.submission.check_reachable", lambda settings: None)
    (pictures / "labels.csv").write_text("file,label\n")
    starter = cluster(overrides=["source.csv.path=labels.csv"], at_least_s=0.0)
    watching = _watching(starter, workspace)
    watching.look(), watching.look()
    (pictures / "labels.csv").write_text("file,label\ndark/0.png,bright\n")
    watching.look(), watching.look()
    assert [e.trigger.kind for e in starter.ledger.entries()] == ["dataset", "annotations"]
    assert runs(kubeflow)[1]["description"].startswith(f"labels of {pictures} are not those of")


def test_an_alias_and_drift_of_the_champion_start_a_run_each_once(
    cluster: Make, workspace: Path, kubeflow: StandIn, registry: Registry
) -> None:
    starter = cluster(at_least_s=0.0)
    watching = _watching(starter, workspace)
    assert watching.look() == []
    registry.tag("shades", URI, {"drift": "none"})
    assert watching.look() == []
    registry.move("shades", "retrain", URI)  # type: ignore[arg-type]
    assert _outcomes(watching.look()) == ["started"]
    registry.tag("shades", URI, {"drift": "drift", "drift_words": "it is darker"})
    assert _outcomes(watching.look()) == ["started"]
    assert watching.look() == []
    kinds = [(e.trigger.kind, e.trigger.why) for e in starter.ledger.entries()]
    assert kinds == [("registry", "shades v1 got the alias retrain"), ("drift", "it is darker")]


def test_a_trigger_that_comes_too_soon_waits_and_is_not_lost(
    cluster: Make, workspace: Path, registry: Registry
) -> None:
    registry.tag("shades", URI, {"drift": "drift"})
    often = {"every_s": 86_400}
    soon = _watching(cluster(**often, at_least_s=3600.0), workspace).look()
    assert _outcomes(soon) == ["started", "too soon"]
    later = _watching(cluster(**often, at_least_s=0.0), workspace).look()
    assert _outcomes(later) == ["duplicate", "started"]


def test_a_schedule_starts_one_run_in_each_of_its_times(cluster: Make, workspace: Path) -> None:
    at = [1_000_800.0]
    starter = cluster(every_s=3600, at_least_s=0.0)
    watching = _watching(starter, workspace, now=lambda: at[0])
    assert _outcomes(watching.look()) == ["started"]
    at[0] += 1000
    assert watching.look() == []
    assert _outcomes(_watching(starter, workspace, now=lambda: at[0]).look()) == ["duplicate"]
    at[0] += 3600
    assert _outcomes(watching.look()) == ["started"]


def test_who_and_why_are_kept_in_mlflow_and_on_the_run(
    cluster: Make, kubeflow: StandIn, connections: Connections, registry: Registry
) -> None:
    starter = cluster()
    fired = starter.fire(Trigger("shades", "manual", "manual:1", "ada", "a better lens"))
    (run,) = runs(kubeflow)
    assert "a better lens (by ada" in run["description"]
    client = open_client(connections)
    experiment = client.get_experiment_by_name("shades").experiment_id
    (kept,) = client.search_runs([experiment])
    tags = kept.data.tags
    assert (tags["trigger"], tags["trigger_by"]) == ("manual", "ada")
    assert (tags["trigger_why"], tags["trigger_run"]) == ("a better lens", fired.run)
    told = client.get_registered_model("shades").tags
    assert (told["last_trigger_by"], told["last_trigger_why"]) == ("ada", "a better lens")


def test_a_cluster_that_is_away_leaves_the_trigger_for_the_next_try(
    cluster: Make, workspace: Path, kubeflow: StandIn, registry: Registry
) -> None:
    registry.tag("shades", URI, {"drift": "drift"})
    away = cluster(cluster={"endpoint": "http://127.0.0.1:9"})
    with pytest.raises(KubeflowUnreachableError):
        away.fire(Trigger("shades", "manual", "manual:1", "ada", "why"))
    assert _watching(away, workspace).look() == []
    assert [e.state for e in away.ledger.entries()] == ["not started", "not started"]
    assert _outcomes(_watching(cluster(), workspace).look()) == ["started"]


def test_metrics_show_the_drift_of_the_champion_and_how_the_last_run_went(
    cluster: Make, workspace: Path, registry: Registry, connections: Connections
) -> None:
    values = {"drift": 1.0, "drift_chance": 0.0005, "drift_pictures": 300.0}
    values |= {"drift_unreadable": 2.0, "drift_sharpness": 0.7}
    tags = {
        "drift": "drift",
        "drift_looked": "2026-11-21T06:00:00+00:00",
        "drift_values": json.dumps(values),
    }
    registry.tag("shades", URI, tags)
    port = _free_port()
    exposition = Exposition(port)
    try:
        watching = _watching(cluster(on_drift=False), workspace, exposition=exposition)
        watching.look()
        assert "linnet_run" not in _metrics(port)
        record_outcome("shades", connections, state="FAILED", run="run-1", error="no space")
        with Tracker.start(connections, experiment="shades") as tracker:
            note_quarantine(tracker, 0.25)
        watching.look()
        text = _metrics(port)
        record_outcome("shades", connections, state="COMPLETE", run="run-2")
        watching.look()
        assert 'linnet_run_failed{model="shades"} 0.0' in _metrics(port)
    finally:
        exposition.close()
    assert 'linnet_run_failed{model="shades"} 1.0' in text
    assert 'linnet_quarantined_share{model="shades"} 0.25' in text
    assert 'linnet_drift{model="shades",release="v1"} 1.0' in text
    assert 'linnet_drift_distance{feature="sharpness",model="shades",release="v1"} 0.7' in text
    assert "linnet_drift_looked_timestamp_seconds" in text


@pytest.mark.parametrize("alias", ["champion", "candidate"])
def test_an_alias_that_runs_move_themselves_is_refused(alias: str) -> None:
    with pytest.raises(SettingsError, match="each run would start the next"):
        WatchSettings.parse({"run": "a.yaml", "registry": [alias]})


def test_a_watch_here_runs_the_pipeline_and_ends_cleanly_on_ctrl_c(
    settings: Callable[..., Path], workspace: Path, connections: Connections
) -> None:
    """What started the run is on the very MLflow run that trained the model."""
    file = settings(poll_s=0.3, overrides=["train.whole.epochs=1"])
    log = workspace.with_name("watch.log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [LINNET, "watch", str(file), "--workspace", str(workspace)],
            stderr=stderr,
            # Whoever started the tests in the background has them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    ledger = Ledger("shades", connections)
    try:
        while not any(entry.state == "released" for entry in ledger.entries()):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert code == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    (champion,) = Registry(connections).releases("shades")
    trained = open_client(connections).get_run(champion.run_id)
    assert trained.data.tags["trigger"] == "dataset"
    assert "linnet watch" in trained.data.tags["trigger_by"]
    assert "test_accuracy" in trained.data.metrics


def test_the_command_tells_what_became_of_a_trigger(
    settings: Callable[..., Path], kubeflow: StandIn, workspace: Path
) -> None:
    from typer.testing import CliRunner

    from linnet.cli import app

    file = settings(cluster={"endpoint": kubeflow.url}, overrides=["source.uri=digits"])
    command = ["trigger", str(file), "-w", str(workspace), "--kind", "registry", "--by", "ada"]
    first = CliRunner().invoke(app, [*command, "--key", "v7", "--json"])
    assert json.loads(first.stdout)["outcome"] == "started"
    again = CliRunner().invoke(app, [*command, "--key", "v7"])
    assert (again.exit_code, "duplicate" in again.stderr) == (0, True)
    soon = CliRunner().invoke(app, [*command, "--key", "v8"])
    assert (soon.exit_code, "not before" in soon.stderr) == (3, True)
    assert len(runs(kubeflow)) == 1


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def _free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])

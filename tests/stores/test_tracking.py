import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from linnet.errors import TrackingError
from linnet.release.bundle import open_champion, register, release, releases
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker
from tests.release_parts import write_dataset, write_graph, write_report


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Undo what a test's connections set for MLflow and boto3."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def connections(tmp_path_factory: pytest.TempPathFactory) -> Connections:
    """Return connections to SQLite and a folder, shared by the tests of this module."""
    return Connections.from_environment(tmp_path_factory.mktemp("workspace"), {})


def test_a_run_keeps_parameters_metrics_files_and_how_it_ended(
    connections: Connections, tmp_path: Path
) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "curve.txt").write_text("up")
    with Tracker.start(connections, experiment="runs", run_name="first") as tracker:
        tracker.params({"seed": 1, "train": {"head": {"epochs": 3}, "whole": None}})
        tracker.params({f"p{number}": number for number in range(250)})
        tracker.tags({"dataset_version": "abc", "code_revision": None})
        for epoch in range(3):
            tracker.metrics({"val_loss": 1.0 - epoch / 10, "lr": float("nan")}, step=epoch)
        tracker.artifacts(tmp_path / "plots", folder="plots")
    run = tracker._client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params["train.head.epochs"] == "3"
    assert run.data.params["train.whole"] == "None"
    assert len(run.data.params) == 253
    assert run.data.tags["dataset_version"] == "abc"
    assert "code_revision" not in run.data.tags
    history = tracker._client.get_metric_history(tracker.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.9), (2, 0.8)]
    kept = Path(str(connections.artifact_root), "runs", tracker.run_id, "artifacts/plots/curve.txt")
    assert kept.read_text() == "up"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_breaks_off_is_marked(
    connections: Connections, error: BaseException, status: str
) -> None:
    with (
        pytest.raises(type(error)),
        Tracker.start(connections, experiment="runs") as tracker,
    ):
        raise error
    assert tracker._client.get_run(tracker.run_id).info.status == status


def test_a_run_that_someone_began_is_joined_and_left_open(connections: Connections) -> None:
    with Tracker.start(connections, experiment="runs") as owner:
        joining = replace(connections, tracking_run_id=owner.run_id)
        with Tracker.start(joining, experiment="other") as guest:
            guest.metrics({"accuracy": 1.0})
        run = owner._client.get_run(owner.run_id)
        assert guest.run_id == owner.run_id
        assert run.info.status == "RUNNING"
        assert run.data.metrics == {"accuracy": 1.0}


def test_a_run_to_join_that_is_unknown_is_an_error(connections: Connections) -> None:
    joining = replace(connections, tracking_run_id="0" * 32)
    with (
        pytest.raises(TrackingError, match=r"Run with id=0{32} not found"),
        Tracker.start(joining, experiment="runs"),
    ):
        pass


def test_a_server_that_is_not_there_is_an_error_that_names_it_and_not_the_password(
    connections: Connections,
) -> None:
    down = replace(connections, tracking_uri="postgresql://linnet:hunter2@127.0.0.1:1/mlflow")
    with pytest.raises(TrackingError, match=r"linnet:\*\*\*@.*MLFLOW_TRACKING_URI") as caught:
        Registry(down).champion("colours")
    assert "hunter2" not in str(caught.value)


def test_the_first_release_is_champion_the_next_candidate_and_again_changes_nothing(
    connections: Connections,
) -> None:
    registry = Registry(connections)
    assert registry.champion("shapes") is None
    first = registry.register("shapes", "/releases/shapes/v1", tags={"release": "v1"})
    second = registry.register("shapes", "/releases/shapes/v2")
    assert (first.number, first.aliases) == (1, ("champion",))
    assert (second.number, second.aliases) == (2, ("candidate",))
    assert registry.register("shapes", "/releases/shapes/v1") == first
    registry.register("shapes", "/releases/shapes/v3")
    assert [found.aliases for found in registry.releases("shapes")] == [
        ("champion",),
        (),
        ("candidate",),
    ]
    assert registry.releases("shap") == []


def test_aliases_move_and_go(connections: Connections) -> None:
    registry = Registry(connections)
    for version in ("v1", "v2"):
        registry.register("moves", version)
    registry.move("moves", "champion", "v2")
    registry.remove("moves", "candidate")
    assert [found.aliases for found in registry.releases("moves")] == [(), ("champion",)]
    assert registry.champion("moves") == "v2"
    with pytest.raises(TrackingError, match="v9 is not registered as moves"):
        registry.move("moves", "champion", "v9")


def test_a_registry_that_was_never_used_is_empty_and_stays_unmade(tmp_path: Path) -> None:
    unused = Connections.from_environment(tmp_path, {})
    assert Registry(unused).releases() == []
    assert Registry(unused).champion("digits") is None
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_registered_found_as_champion_and_listed(
    connections: Connections, tmp_path: Path
) -> None:
    dataset, graph = write_dataset(tmp_path / "dataset"), write_graph(tmp_path / "graph")
    report = write_report(tmp_path / "report", graph, dataset)
    with open_champion("colours", connections) as champion:
        assert champion is None
    for aliases in (("champion",), ("candidate",)):
        done = release(
            graph,
            report,
            dataset,
            model="colours",
            settings=ReleaseSettings(),
            connections=connections,
        )
        assert done.aliases == aliases
        assert register(done.uri, connections).aliases == aliases
    with open_champion("colours", connections) as champion:
        assert champion is not None
        assert champion.version == "v1"
    rows = releases(connections, model="colours")
    assert [(row.version, row.aliases) for row in rows] == [
        ("v1", ("champion",)),
        ("v2", ("candidate",)),
    ]
    assert rows[0].metrics["accuracy"] == 1.0


def test_processes_that_begin_at_once_on_a_new_database_all_succeed(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from linnet.stores.connections import Connections\n"
        "from linnet.stores.tracking import Tracker\n"
        "connections = Connections.from_environment(Path(sys.argv[1]), {})\n"
        "with Tracker.start(connections, experiment='runs') as tracker:\n"
        "    tracker.metrics({'x': 1.0})\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]

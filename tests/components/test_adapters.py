"""Each adapter as a plain function, from made pictures to a release in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from kfp import dsl

from components.choose.component import choose
from components.conclude.component import conclude
from components.evaluate.component import evaluate
from components.export.component import export
from components.gate.component import gate
from components.ingest.component import ingest
from components.release.component import release
from components.search.component import search
from components.train.component import train
from linnet.data.dataset import Dataset
from linnet.release.bundle import open_release
from linnet.settings import TrainSettings
from linnet.stores.connections import Connections
from linnet.stores.tracking import Tracker, open_client
from tests.shades import TRAIN, write_shades


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """MLflow is told where things are by variables of this process: put them back."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Every adapter called once, in order, as the executor calls them."""
    folder = tmp_path_factory.mktemp("adapters")
    write_shades(folder / "pictures", each=24)
    workspace = str(folder / "workspace")
    made = SimpleNamespace(
        folder=folder,
        dataset=dsl.Dataset(uri=str(folder / "dataset")),
        card=dsl.HTML(uri=str(folder / "card.html")),
        checkpoint=dsl.Model(uri=str(folder / "checkpoint")),
        metrics=dsl.Metrics(uri=str(folder / "metrics")),
        graph=dsl.Model(uri=str(folder / "graph")),
        report=dsl.Artifact(uri=str(folder / "report")),
        test_metrics=dsl.Metrics(uri=str(folder / "test_metrics")),
        classification=dsl.ClassificationMetrics(uri=str(folder / "classification")),
        gated=dsl.Artifact(uri=str(folder / "gated")),
        page=dsl.HTML(uri=str(folder / "page.html")),
        released=dsl.Artifact(uri=str(folder / "released")),
    )
    source = {"uri": str(folder / "pictures")}
    made.version = ingest.python_func(
        source, {"near_duplicates": "ignore"}, workspace, made.dataset, made.card
    )
    made.macro_f1 = train.python_func(
        made.dataset, "shades", TRAIN, workspace, made.checkpoint, made.metrics
    )
    made.difference = export.python_func(made.checkpoint, made.dataset, {}, made.graph)
    made.test_macro_f1 = evaluate.python_func(
        made.graph,
        made.dataset,
        "shades",
        {"bootstrap_samples": 100.0},
        made.report,
        made.test_metrics,
        made.classification,
    )
    made.decision = gate.python_func(
        made.graph, made.dataset, made.report, "shades", {}, workspace, made.gated, made.page
    )
    made.uri = release.python_func(
        made.graph, made.dataset, made.gated, "shades", {}, workspace, made.released
    )
    return made


def test_ingest_reports_the_version_of_what_it_wrote(ran: SimpleNamespace) -> None:
    assert ran.version == Dataset.open(Path(ran.dataset.path)).version
    assert ran.dataset.metadata == {"version": ran.version, "pictures": 48}
    assert Path(ran.card.path).read_text().startswith("<!doctype html>")


def test_train_reports_what_its_metrics_artifact_holds(ran: SimpleNamespace) -> None:
    assert ran.macro_f1 == ran.metrics.metadata["val_macro_f1"]
    assert {"val_loss", "val_accuracy"} <= set(ran.metrics.metadata)


def test_search_and_choose_find_settings_that_train_takes(ran: SimpleNamespace) -> None:
    space = {"batch_size": [8.0, 16.0]}
    settings = {"space": space, "trials": 2.0, "pruner": "none"}
    workspace = str(ran.folder / "workspace")
    ran_trials = search.python_func(ran.dataset, "shades", TRAIN, settings, 1, workspace)
    page = dsl.HTML(uri=str(ran.folder / "search.html"))
    found = dsl.Artifact(uri=str(ran.folder / "found"))
    best = choose.python_func(
        ran.dataset, "shades", TRAIN, settings, [ran_trials], workspace, found, page
    )
    assert ran_trials == 2
    assert TrainSettings.parse(best).batch_size in (8, 16)
    assert None not in best["whole"].values()
    assert Path(page.path).read_text().startswith("<!doctype html>")


def test_export_reports_a_small_difference(ran: SimpleNamespace) -> None:
    assert 0 <= ran.difference < 1e-3


def test_evaluate_fills_the_pages_of_kubeflow(ran: SimpleNamespace) -> None:
    assert ran.test_macro_f1 == ran.test_metrics.metadata["macro_f1"]
    matrix = ran.classification.metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["bright", "dark"]
    assert ran.classification.metadata["confidenceMetrics"]


def test_gate_decides_and_shows_the_page(ran: SimpleNamespace) -> None:
    assert ran.decision == "release"
    assert "shades" in Path(ran.page.path).read_text()


def test_release_reports_an_address_that_opens(ran: SimpleNamespace) -> None:
    opened = open_release(ran.uri, scratch=ran.folder / "scratch")
    assert opened.manifest["provenance"]["dataset_version"] == ran.version
    assert ran.uri in Path(ran.released.path).read_text()


def test_conclude_says_how_the_run_ended_and_tags_the_model(ran: SimpleNamespace) -> None:
    workspace = ran.folder / "workspace"
    status = dsl.PipelineTaskFinalStatus("FAILED", "train-and-release-x", "run", 1, "no space")
    said = conclude.python_func(status, "shades", str(workspace))
    assert said == "shades: run train-and-release-x ended as FAILED: no space"
    client = open_client(Connections.from_environment(workspace, {}))
    tags = client.get_registered_model("shades").tags
    assert tags["last_run_state"] == "FAILED"
    assert tags["last_run_error"] == "no space"


def test_conclude_of_a_model_without_releases_leaves_mlflow_alone(tmp_path: Path) -> None:
    status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "run-1", "run", None, None)
    assert conclude.python_func(status, "new", str(tmp_path)).endswith("ended as SUCCEEDED")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "meant"), [("COMPLETE", "SUCCEEDED"), ("RUNNING", "NO_STEP_FAILED")]
)
def test_conclude_promises_no_more_than_kubeflow_told(
    tmp_path: Path, told: str, meant: str
) -> None:
    status = dsl.PipelineTaskFinalStatus(told, "run-1", "run", None, None)
    assert conclude.python_func(status, "new", str(tmp_path)).endswith(f"ended as {meant}")


def test_conclude_ends_well_where_mlflow_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "run-1", "run", None, None)
    conclude.python_func(status, "digits", str(tmp_path))
    assert "the outcome is not in MLflow" in caplog.text


def test_a_run_that_was_begun_for_us_is_joined_and_tagged_with_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections.from_environment(tmp_path, {})
    with Tracker.start(connections, experiment="digits") as begun:
        monkeypatch.setenv("MLFLOW_RUN_ID", begun.run_id)
        status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "run-1", "run", None, None)
        conclude.python_func(status, "digits", str(tmp_path))
    tags = open_client(connections).get_run(begun.run_id).data.tags
    assert tags["last_run"] == "run-1"

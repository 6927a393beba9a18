"""The whole pipeline on this machine, from made pictures to a registered release."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from linnet.release.opening import open_release
from tests.shades import TRAIN, write_shades

STEPS = ["ingest", "train", "export", "evaluate", "gate", "release", "conclude"]
LINNET = str(Path(sys.executable).with_name("linnet"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shades(folder, each=40)
    return folder


@pytest.fixture(scope="module")
def settings(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "shades.yaml"
    values = {
        "model": "shades",
        "source": {"uri": str(pictures)},
        "ingest": {"near_duplicates": "ignore"},
        "train": TRAIN,
        "gate": {"minimum": {"accuracy": 0.8}},
    }
    file.write_text(yaml.safe_dump(values))
    return file


def linnet(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINNET, *arguments, "--workspace", str(workspace)],
        capture_output=True,
        text=True,
        cwd=workspace.parent,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "workspace"


@pytest.fixture(scope="module")
def first(workspace: Path, settings: Path) -> dict[str, Any]:
    """The first run's result, as a script reads it."""
    done = linnet(workspace, "run", str(settings), "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_first_release_is_whole_and_becomes_champion(first: dict[str, Any]) -> None:
    assert first["decision"] == "release"
    assert first["release"]["version"] == "v1"
    assert first["release"]["aliases"] == ["champion"]
    folder = Path(first["release"]["uri"])
    manifest = json.loads((folder / "release.json").read_text())
    assert manifest["classes"] == ["bright", "dark"]
    assert {"model.onnx", "report.json", "report.html"} <= set(manifest["files"])
    assert manifest["provenance"]["dataset_version"]
    assert manifest["provenance"]["tracking_run_id"]


def test_every_step_ran_in_order_and_left_its_artifacts(first: dict[str, Any]) -> None:
    assert list(first["seconds"]) == STEPS
    assert "bright" in Path(first["card"]).read_text()
    page = (Path(first["report"]) / "report.html").read_text()
    assert "shades" in page
    assert "There is no champion yet" in page


def test_a_second_run_is_compared_with_the_champion_and_becomes_candidate(
    first: dict[str, Any], workspace: Path, settings: Path
) -> None:
    done = linnet(workspace, "run", str(settings), "--set", "train.seed=7")
    assert done.returncode == 0, done.stderr
    assert "shades v2 @candidate" in done.stdout
    assert "with the champion v1" in done.stderr
    listed = json.loads(linnet(workspace, "releases", "--json").stdout)
    aliases = {row["version"]: row["aliases"] for row in listed}
    assert aliases == {"v1": ["champion"], "v2": ["candidate"]}


def test_the_run_in_mlflow_has_curves_settings_and_test_metrics(
    first: dict[str, Any], workspace: Path
) -> None:
    program = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.get_run(sys.argv[2]).data
curve = client.get_metric_history(sys.argv[2], "val_loss")
print(json.dumps([run.params, sorted(run.metrics), len(curve)]))
"""
    manifest = json.loads((Path(first["release"]["uri"]) / "release.json").read_text())
    run_id = manifest["provenance"]["tracking_run_id"]
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(
        [*command, f"sqlite:///{workspace / 'mlflow.db'}", run_id],
        capture_output=True,
        text=True,
        check=True,
    )
    parameters, metrics, points = json.loads(done.stdout)
    assert parameters["train.network"] == "test_resnet"
    assert {"val_macro_f1", "test_accuracy", "test_roc_auc"} <= set(metrics)
    assert points == 3


def test_a_model_below_its_minimum_is_refused_and_nothing_is_released(
    workspace: Path, settings: Path, first: dict[str, Any]
) -> None:
    before = sorted((workspace / "releases").rglob("*"))
    done = linnet(workspace, "run", str(settings), "--set", "gate.minimum={accuracy: 1.01}")
    assert done.returncode == 3
    assert "the gate refused the model, nothing was released" in done.stderr
    assert "at least 1.01 is needed" in done.stderr
    assert sorted((workspace / "releases").rglob("*")) == before


def test_a_failing_step_is_told_in_its_own_words(tmp_path: Path, settings: Path) -> None:
    done = linnet(tmp_path / "w", "run", str(settings), "--set", "source.uri=/nowhere/at/all")
    assert done.returncode == 1
    assert "step ingest failed" in done.stderr
    assert "/nowhere/at/all" in done.stderr
    assert "Traceback" not in done.stderr
    assert "run.log" in done.stderr


def test_a_misspelt_setting_ends_before_anything_runs(tmp_path: Path, settings: Path) -> None:
    done = linnet(tmp_path / "w", "run", str(settings), "--set", "train.sise_px=3")
    assert done.returncode == 2
    assert "did you mean 'size_px'" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_at_any_step_ends_cleanly_with_nothing_half_released(
    step: str, tmp_path: Path, settings: Path
) -> None:
    workspace = tmp_path / "workspace"
    command = [LINNET, "run", str(settings), "--workspace", str(workspace)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.split()[-1:] == [step]:
            break
    time.sleep(0.7)
    os.killpg(run.pid, signal.SIGINT)
    rest = run.stderr.read()
    run.stderr.close()
    assert run.wait(timeout=60) == 130, rest
    assert "interrupted" in rest
    for manifest in workspace.glob("releases/*/*/release.json"):
        assert step in ("release", "conclude")
        open_release(manifest.parent, scratch=tmp_path)
    assert not list(workspace.rglob("*.partial*"))

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from linnet.errors import GateRefusedError, SettingsError
from linnet.launch import (
    RunResult,
    StepEvent,
    _StepPrinter,
    packaged_pipeline,
    parameters_for,
    report_folder,
    run,
    with_absolute_paths,
)
from linnet.settings import RunSettings

LOG = """\
03:31:02.701 - INFO - Executing task 'ingest'
03:31:02.704 - INFO - Streamed logs:

    [KFP Executor 2026-11-21 03:31:02,897 INFO]: Looking for component `ingest`
    [KFP Executor 2026-11-21 03:31:02,897 INFO]: Got executor_input:
    {
        "inputs": {
        }
    }
    [KFP Executor 2026-11-21 03:31:12,279 INFO]: 1797 pictures of 10 classes
    Traceback (most recent call last):
      File "x.py", line 1, in <module>
    linnet.errors.SourceError: no folder /nowhere:
      check the path
03:31:13.281 - INFO - Task 'ingest' finished with status \x1b[91mFAILURE\x1b[0m
"""


def test_a_step_is_heard_without_what_kfp_prints_around_it() -> None:
    events: list[StepEvent] = []
    log = io.StringIO()
    printer = _StepPrinter(log, events.append)
    for piece in (LOG[:40], LOG[40:200], LOG[200:]):
        printer.write(piece)
    assert [(event.kind, event.text) for event in events] == [
        ("started", ""),
        ("line", "1797 pictures of 10 classes"),
        ("failed", ""),
    ]
    assert printer.failed == "ingest"
    assert printer.words == "no folder /nowhere:\n  check the path"
    assert "\x1b" not in log.getvalue()
    assert "Got executor_input" in log.getvalue()


def test_local_paths_mean_the_same_wherever_a_step_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RunSettings.parse(
        {
            "source": {"uri": "pictures/"},
            "train": {"weights": "w.safetensors"},
            "release": {"root": "out"},
        }
    )
    moved = with_absolute_paths(settings)
    assert moved.source.uri == str(tmp_path / "pictures")
    assert moved.train.weights == str(tmp_path / "w.safetensors")
    assert moved.release.root == str(tmp_path / "out")


def test_names_and_addresses_stay_as_they_are() -> None:
    settings = RunSettings.parse({"release": {"root": "s3://models/releases"}})
    assert with_absolute_paths(settings) == settings


def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("no: pipeline\n")
    with pytest.raises(SettingsError, match="give a file that `make compile` wrote"):
        run(RunSettings(), tmp_path / "w", pipeline=file)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no report\.json at or below"):
        report_folder(tmp_path)


def test_a_refusal_carries_its_reasons(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(
        '{"gate": {"checks": [{"passed": false, "words": "too low"},'
        ' {"passed": true, "words": "fine"}]}}'
    )
    refused = RunResult(tmp_path, "refuse", tmp_path, tmp_path, None, {})
    with pytest.raises(GateRefusedError, match="too low") as caught:
        refused.require_release()
    assert "fine" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_docker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    linnet = str(Path(sys.executable).with_name("linnet"))
    done = subprocess.run(
        [linnet, "run", "--runner", "docker", "--workspace", str(tmp_path)],
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "run without --runner docker" in done.stderr


def test_a_space_chooses_the_pipeline_that_searches() -> None:
    searching = RunSettings.parse({"search": {"space": {"batch_size": [8]}, "workers": 2}})
    assert packaged_pipeline(searching).name == "search_and_release.yaml"
    assert packaged_pipeline(RunSettings()).name == "train_and_release.yaml"
    taken = ("model", "search_settings", "search_workers")
    assert parameters_for(taken, searching)["search_workers"] == [1, 2]
    with pytest.raises(SettingsError, match="this pipeline does not search"):
        parameters_for(("model",), searching)


def test_weights_in_a_space_mean_the_same_wherever_a_step_runs() -> None:
    space = {"together": [{"weights": "w.pth"}, {"weights": "none"}], "weights": ["a.pth", "hub"]}
    settings = RunSettings.parse({"search": {"space": space}})
    here = with_absolute_paths(settings).search.space
    assert here["weights"] == [str(Path("a.pth").absolute()), "hub"]
    assert here["together"] == [{"weights": str(Path("w.pth").absolute())}, {"weights": "none"}]

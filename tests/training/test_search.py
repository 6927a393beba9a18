import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import SearchError, SettingsError, StoreError, StoreUnreachableError
from linnet.settings import RunSettings, SearchSettings
from linnet.stores.connections import Connections
from linnet.training import search_report, trials
from linnet.training.search import Search, run_trials
from linnet.training.search_report import SearchReport, conclude
from tests.training.test_fit import settings

RATES = {"whole.lr": {"low": 1e-5, "high": 0.3, "log": True}}
SHORT = {"epochs": 3}


def search(dataset: Path, workspace: Path, **changes: Any) -> Search:
    base = settings(whole=changes.pop("whole", SHORT), **changes.pop("train", {}))
    values = {"space": RATES, "trials": 6, "startup_trials": 2, "startup_epochs": 1} | changes
    connections = values.pop("connections", None)
    wanted = SearchSettings.parse(values)
    return Search(dataset, base, wanted, "shades", workspace, connections)


@pytest.fixture(scope="module")
def found(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchReport]:
    """One search, tracked, and what it concluded."""
    place = tmp_path_factory.mktemp("search")
    connections = Connections.from_environment(place / "workspace", {})
    wanted = search(dataset, place / "workspace", trials=6, connections=connections)
    assert run_trials(wanted) == 6
    return place, conclude(wanted, place / "found")


def test_the_best_trial_is_the_best(found: tuple[Path, SearchReport]) -> None:
    _, report = found
    values = [row.value for row in report.trials if row.outcome == "complete"]
    assert report.value == max(value for value in values if value is not None)
    assert report.trials[report.best - 1].drawn == report.drawn


def test_bad_trials_are_stopped_before_their_last_epoch(found: tuple[Path, SearchReport]) -> None:
    _, report = found
    stopped = [row for row in report.trials if row.outcome == "stopped early"]
    assert stopped
    assert all(len(row.by_epoch) < SHORT["epochs"] for row in stopped)
    assert [row.outcome for row in report.trials[:2]] == ["complete"] * 2


def test_the_best_settings_are_a_settings_file(found: tuple[Path, SearchReport]) -> None:
    place, report = found
    best = RunSettings.load(place / "found" / "best.json")
    assert best.model == "shades"
    assert best.train.whole is not None
    assert best.train.whole.lr == report.drawn["whole.lr"]
    assert best.train.network == "test_resnet"


def test_the_page_shows_every_trial_and_plot(found: tuple[Path, SearchReport]) -> None:
    place, report = found
    page = (place / "found" / "search.html").read_text()
    assert page.count("<svg") >= 3
    assert f"trial {report.best} of 6" in page
    with (place / "found" / "trials.csv").open() as file:
        assert [row["number"] for row in csv.DictReader(file)] == [str(n) for n in range(1, 7)]
    manifest = json.loads((place / "found" / "search.json").read_text())
    assert manifest["kind"] == search_report.KIND
    assert len(manifest["trials"]) == 6


def test_settings_that_go_together_have_the_same_short_name_everywhere_on_the_page(
    dataset: Path, tmp_path: Path
) -> None:
    groups = [{"network": "mlp", "hidden": hidden} for hidden in ([8], [16, 8])]
    wanted = search(
        dataset, tmp_path, space={"together": groups}, trials=4, pruner="none", whole={"epochs": 1}
    )
    run_trials(wanted)
    report = conclude(wanted, tmp_path / "found")
    page = (tmp_path / "found" / "search.html").read_text()
    shown, _, settings = page.partition("Settings that were drawn together")
    best = f"hidden {json.loads(report.drawn['together'])['hidden']}"
    assert f"together <b>{best}</b>" in shown
    for hidden in ("hidden [8]", "hidden [16, 8]"):
        assert f"<!-- {hidden} -->" in shown
        assert f'<td class="drawn">{hidden}</td>' in shown
    assert "&#34;network" not in shown
    assert "hidden:\n- 16\n- 8\nnetwork: mlp\n" in settings
    with (tmp_path / "found" / "trials.csv").open() as file:
        assert {row["together"] for row in csv.DictReader(file)} == {
            json.dumps(group, sort_keys=True) for group in groups
        }


def test_trials_are_runs_below_the_searchs_own(found: tuple[Path, SearchReport]) -> None:
    place, report = found
    from linnet.stores.tracking import open_client

    client = open_client(Connections.from_environment(place / "workspace", {}))
    parent = client.get_run(report.tracking_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_val_macro_f1"] == report.value
    runs = client.search_runs(
        [parent.info.experiment_id],
        f"tags.mlflow.parentRunId = '{report.tracking_run_id}'",
    )
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    stopped = sum(row.outcome == "stopped early" for row in report.trials)
    assert sum(run.data.tags.get("stopped") == "early" for run in runs) == stopped
    assert "search/search.html" in [
        file.path for file in client.list_artifacts(report.tracking_run_id, "search")
    ]


def test_trials_leave_nothing_but_the_caches_behind(found: tuple[Path, SearchReport]) -> None:
    place, report = found
    assert not list((place / "workspace" / "training").iterdir())
    assert not list((place / "workspace" / "search" / report.study).iterdir())
    assert len(list((place / "workspace" / "cache" / "pictures").glob("*/train.npy"))) == 1


def test_a_finished_search_has_nothing_left_to_do(
    dataset: Path, found: tuple[Path, SearchReport], tmp_path: Path
) -> None:
    place, report = found
    same = search(dataset, place / "workspace", trials=6)
    assert run_trials(same) == 0
    assert conclude(same, tmp_path / "again").trials == report.trials


def test_a_killed_search_ends_with_the_same_trials(
    dataset: Path, found: tuple[Path, SearchReport], tmp_path: Path
) -> None:
    _, report = found
    in_children(dataset, tmp_path / "workspace")
    again = search(dataset, tmp_path / "workspace", trials=6)
    assert run_trials(again) > 0
    resumed = conclude(again, tmp_path / "found")
    assert [row.drawn for row in resumed.trials] == [row.drawn for row in report.trials]
    assert [row.by_epoch for row in resumed.trials] == [row.by_epoch for row in report.trials]
    with again.study() as (study, _):
        assert len(study.trials) == 7


def test_two_workers_share_the_trials(dataset: Path, tmp_path: Path) -> None:
    in_children(dataset, tmp_path / "workspace", "together")
    shared = search(dataset, tmp_path / "workspace", trials=6)
    report = conclude(shared, tmp_path / "found")
    assert len(report.trials) == 6
    assert len({row.drawn["whole.lr"] for row in report.trials}) == 6
    with shared.study() as (study, _):
        workers = {trial.user_attrs["worker"][2] for trial in study.trials}
    assert len(workers) == 2


def test_settings_that_were_tried_already_cost_nothing(dataset: Path, tmp_path: Path) -> None:
    wanted = search(dataset, tmp_path, space={"seed": [1, 2]}, pruner="none", whole={"epochs": 1})
    run_trials(wanted)
    report = conclude(wanted, tmp_path / "found")
    repeated = [row for row in report.trials if row.same_as is not None]
    assert len(repeated) == 4
    assert len({row.value for row in report.trials}) <= 2


@pytest.mark.parametrize("pruner", ["hyperband", "none"])
def test_every_pruner_runs(dataset: Path, tmp_path: Path, pruner: str) -> None:
    wanted = search(dataset, tmp_path, pruner=pruner, sampler="random", trials=3)
    assert run_trials(wanted) == 3


def test_halving_lets_nothing_past_its_first_look_but_the_best(
    dataset: Path, tmp_path: Path
) -> None:
    wanted = search(dataset, tmp_path, pruner="halving", sampler="random", trials=5)
    run_trials(wanted)
    trials = conclude(wanted, tmp_path / "found").trials
    first = [row.by_epoch[0] for row in trials]
    best_so_far = [value == max(first[: place + 1]) for place, value in enumerate(first)]
    assert [len(row.by_epoch) > 1 for row in trials] == best_so_far
    assert False in best_so_far


def test_a_smaller_loss_is_better(dataset: Path, tmp_path: Path) -> None:
    wanted = search(dataset, tmp_path, trials=3, train={"monitor": "val_loss"}, pruner="none")
    run_trials(wanted)
    report = conclude(wanted, tmp_path / "found")
    assert report.value == min(row.value for row in report.trials if row.value is not None)


def test_a_trial_that_diverges_is_one_failure_among_others(dataset: Path, tmp_path: Path) -> None:
    wanted = search(
        dataset, tmp_path, space={"whole.lr": [1e30, 0.003]}, whole=SHORT | {"optimizer": "sgd"}
    )
    run_trials(wanted)
    report = conclude(wanted, tmp_path / "found")
    failed = [row for row in report.trials if row.outcome == "failed"]
    assert failed
    assert "the loss became" in str(failed[0].error)
    assert report.drawn["whole.lr"] == 0.003
    assert not list((tmp_path / "training").iterdir())


def test_a_search_in_which_every_trial_fails_stops_and_says_why(
    dataset: Path, tmp_path: Path
) -> None:
    wanted = search(dataset, tmp_path, space={"whole.optimizer": ["adamww", "sgdd"]})
    with pytest.raises(SearchError, match=r"every one of 2 trials failed:\n .*not one of timm's"):
        run_trials(wanted)
    with pytest.raises(SearchError, match="every one of 2 trials failed"):
        conclude(wanted, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_search_without_a_space_says_what_one_looks_like(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"search\.space is empty: name train settings"):
        run_trials(search(dataset, tmp_path, space={}))


def test_a_locked_storage_is_an_error_that_says_what_to_do(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_SQLITE_WAIT_S", 0.1)
    wanted = search(dataset, tmp_path)
    with wanted.study():
        pass
    holder = sqlite3.connect(tmp_path / "search.db")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"search\.db is locked by another process"):
        run_trials(wanted)
    holder.close()


def test_an_unreachable_storage_is_an_error_without_its_password(
    dataset: Path, tmp_path: Path
) -> None:
    url = "postgresql://linnet:secret@127.0.0.1:9/search"
    with pytest.raises(StoreUnreachableError, match=r"linnet:\*\*\*@127") as caught:
        run_trials(search(dataset, tmp_path, storage=url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nothing", "mango://somewhere/db"])
def test_a_storage_of_no_known_kind_is_an_error(dataset: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="is no database URL"):
        run_trials(search(dataset, tmp_path, storage=url))


def test_a_storage_in_a_folder_that_cannot_be_made_is_an_error(
    dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    url = f"sqlite:///{tmp_path}/taken/search.db"
    with pytest.raises(StoreUnreachableError, match=r"the folder .*taken can't be made"):
        run_trials(search(dataset, tmp_path, storage=url))


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite://"])
def test_a_storage_without_a_file_is_an_error(dataset: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="names no file"):
        run_trials(search(dataset, tmp_path, storage=url))


def in_children(dataset: Path, workspace: Path, *how: str) -> None:
    script = [sys.executable, "-W", "error", "-m", "tests.training.killed_search"]
    command = [*script, dataset, workspace, *how]
    done = subprocess.run(command, text=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr

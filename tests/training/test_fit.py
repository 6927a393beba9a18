import csv
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from linnet.errors import (
    DatasetError,
    DivergedError,
    NetworkError,
    StoreError,
    StoreFullError,
    TrainingError,
)
from linnet.machine import available_cpus
from linnet.settings import StageSettings, TrainSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import folder_errors
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker
from linnet.training import TrainReport, fit
from linnet.training.cache import check_space, write_array
from linnet.training.checkpoint import CheckpointManifest
from linnet.training.network import load_checkpoint
from linnet.training.rates import RangeTest
from linnet.training.stage import make_trainer
from tests.training.conftest import CLASSES, SIZES, write_dataset

WHOLE = {"epochs": 4, "lr": 0.003}


def settings(**changes: Any) -> TrainSettings:
    values = {
        "network": "test_resnet",
        "weights": "none",
        "normalisation": "dataset",
        "size_px": 16,
        "batch_size": 16,
        "head": "skip",
        "whole": WHOLE,
        "accelerator": "cpu",
    }
    return TrainSettings.parse(values | changes)


def train(dataset: Path, place: Path, **changes: Any) -> TrainReport:
    return fit(dataset, place / "checkpoint", settings(**changes), workspace=place / "workspace")


@pytest.fixture(scope="module")
def place(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    report = train(
        dataset, place, head={"epochs": 2, "lr": 0.01}, keep=["val_macro_f1", "val_loss"]
    )
    (place / "report.json").write_text(json.dumps(vars(report)))
    return place


def test_the_report_is_of_the_best_epoch(place: Path) -> None:
    report = json.loads((place / "report.json").read_text())
    best = max(float(row["val_macro_f1"]) for row in history(place))
    assert report["metrics"]["val_macro_f1"] == best
    assert report["epochs"] == 6
    assert not report["resumed"]


def test_the_networks_learn_what_tells_the_classes_apart(place: Path) -> None:
    assert json.loads((place / "report.json").read_text())["metrics"]["val_accuracy"] > 0.8


def test_the_history_has_a_row_per_epoch_of_both_stages(place: Path) -> None:
    rows = history(place)
    assert [row["stage"] for row in rows] == ["head"] * 2 + ["whole"] * 4
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 7)]
    assert all(float(row["seconds"]) > 0 and float(row["lr"]) >= 0 for row in rows)


def test_a_checkpoint_is_kept_for_each_metric(place: Path) -> None:
    kept = sorted(path.name for path in (place / "checkpoint").iterdir())
    assert kept == [
        "best-val_loss.safetensors",
        "best-val_macro_f1.safetensors",
        "history.csv",
        "model.json",
        "model.safetensors",
        "probe.npz",
    ]


def test_the_checkpoint_loads_with_torch_alone_under_timms_names(place: Path) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=3)
    network.load_state_dict(load_file(place / "checkpoint" / "model.safetensors"))


def test_the_checkpoint_loads_as_a_network_and_its_manifest(place: Path) -> None:
    network, manifest = load_checkpoint(place / "checkpoint")
    assert manifest.classes == CLASSES
    assert manifest.mean == (0.5, 0.5, 0.5)
    assert manifest.preprocessing.size_px == 16
    assert not network.training
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_the_head_stage_leaves_the_backbone_as_it_was(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "a", whole=WHOLE | {"epochs": 1})
    weights = tmp_path / "a" / "checkpoint" / "model.safetensors"
    for augmentation in ("none", "light"):
        place = tmp_path / augmentation
        head = {"epochs": 2, "lr": 0.01, "augmentation": augmentation}
        train(dataset, place, weights=str(weights), head=head, whole="skip", average_weights=0.5)
        before, after = load_file(weights), load_file(place / "checkpoint" / "model.safetensors")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"fc.weight", "fc.bias"}


def test_features_that_cannot_be_cached_are_said_so(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"epochs": 1, "lr": 0.01, "augmentation": "light"}
    with caplog.at_level(logging.INFO, "linnet"):
        train(dataset, tmp_path, head=head, whole=WHOLE | {"epochs": 1})
    assert "features of the frozen backbone are not cached" in caplog.text
    assert not (tmp_path / "workspace" / "cache" / "features").exists()


def test_training_stops_early_when_nothing_gets_better(dataset: Path, tmp_path: Path) -> None:
    stage = {"epochs": 50, "lr": 1e-9, "patience": 2}
    report = train(dataset, tmp_path, whole=stage, monitor="val_accuracy", keep=["val_accuracy"])
    assert report.epochs == report.best_epoch + 2 < 50


@pytest.mark.parametrize("schedule", ["cosine", "step", "poly", "tanh", "constant"])
def test_every_schedule_sets_the_learning_rate(
    dataset: Path, tmp_path: Path, schedule: str
) -> None:
    stage = {"epochs": 3, "lr": 0.01, "schedule": schedule, "warmup_epochs": 1, "optimizer": "sgd"}
    train(dataset, tmp_path, whole=stage)
    rates = [float(row["lr"]) for row in history(tmp_path)]
    assert rates[0] < 0.01
    assert (rates[1] == rates[2]) == (schedule == "constant")


def test_a_loss_that_is_no_number_says_where_and_what_to_do(dataset: Path, tmp_path: Path) -> None:
    stage = {"epochs": 3, "lr": 1e30, "optimizer": "sgd"}
    with pytest.raises(
        TrainingError, match=r"stage whole, epoch 1, step \d of 4.*lower train\.whole"
    ):
        train(dataset, tmp_path, whole=stage)
    assert not (tmp_path / "checkpoint").exists()


def test_an_unknown_optimizer_is_an_error_that_names_the_nearest(
    dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="'adamww' is not one of timm's: did you mean adamw"):
        train(dataset, tmp_path, whole=WHOLE | {"optimizer": "adamww"})


def test_ctrl_c_comes_out_as_itself_and_the_next_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    with interrupted_at(update=7), pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    report = train(dataset, tmp_path)
    assert report.resumed
    assert report.epochs == 4


def test_other_settings_begin_anew(dataset: Path, tmp_path: Path) -> None:
    with interrupted_at(update=7), pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path)
    assert not train(dataset, tmp_path, seed=1).resumed


def test_loader_processes_change_nothing(dataset: Path, tmp_path: Path) -> None:
    stage = WHOLE | {"epochs": 2, "augmentation": "strong"}
    for workers in (0, 1):
        train(dataset, tmp_path / str(workers), whole=stage, workers=workers)
    alone, helped = (tmp_path / w / "checkpoint/model.safetensors" for w in ("0", "1"))
    assert alone.read_bytes() == helped.read_bytes()


def test_pictures_are_decoded_once_for_all_runs(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, whole=WHOLE | {"epochs": 1})
    (cached,) = (tmp_path / "workspace" / "cache" / "pictures").glob("*/train.npy")
    before = cached.stat().st_mtime_ns
    train(dataset, tmp_path, whole=WHOLE | {"epochs": 1}, seed=1)
    assert cached.stat().st_mtime_ns == before
    assert np.load(cached, mmap_mode="r").shape == (60, 16, 16, 3)


def test_a_folder_of_something_else_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"not empty and holds no model\.json"):
        train(dataset, tmp_path, whole=WHOLE | {"epochs": 1})
    assert (tmp_path / "checkpoint" / "thesis.txt").read_text() == "precious"


def test_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        train(tmp_path, tmp_path)


def test_an_empty_validation_split_is_an_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"train": 6, "val": 0, "test": 6})
    with pytest.raises(TrainingError, match=r"0 val pictures.*val_fraction"):
        train(dataset, tmp_path)


def test_an_absent_weights_file_is_an_error(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="is not a file"):
        train(dataset, tmp_path, weights=str(tmp_path / "nothing.pth"))


def test_weights_in_s3_without_connections_say_what_to_set(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        train(dataset, tmp_path, weights="s3://bucket/weights.safetensors")


def test_a_full_disk_is_found_while_writing() -> None:
    batches = [np.zeros((1000, 100), np.uint8)]
    with (
        pytest.raises(StoreFullError),
        folder_errors("write", Path("/dev/full")),
        Path("/dev/full").open("wb") as file,
    ):
        write_array(file, (1000, 100), np.uint8, batches)


def test_too_little_space_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match="free some"):
        check_space(tmp_path, 10**18)


def test_curves_parameters_and_the_confusion_matrix_go_to_mlflow(
    dataset: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    connections = Connections.from_environment(workspace, {})
    registry = Registry(connections)
    registry.register("digits", "s3://linnet/releases/digits/v1")
    with Tracker.start(connections, experiment="digits") as tracker:
        fit(dataset, tmp_path / "checkpoint", settings(), workspace=workspace, tracker=tracker)
        client = tracker._client
    run = client.get_run(tracker.run_id)
    assert run.data.params["train.whole.epochs"] == "4"
    assert run.data.tags["dataset_version"] == "0123456789ab"
    assert run.data.tags["code_revision"]
    for name in ("train_loss", "val_loss", "val_macro_f1", "lr", "epoch_seconds"):
        assert [p.step for p in client.get_metric_history(tracker.run_id, name)] == [1, 2, 3, 4]
    files = {file.path for file in client.list_artifacts(tracker.run_id, "training")}
    assert files == {f"training/{n}" for n in ("confusion.json", "confusion.svg", "history.csv")}
    assert CheckpointManifest.read(tmp_path / "checkpoint").tracking_run_id == tracker.run_id
    assert registry.notes("digits")["last_quarantined_share"] == "0.1000"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, linnet.training; assert not {'torch', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def history(place: Path) -> list[dict[str, str]]:
    with (place / "checkpoint" / "history.csv").open() as file:
        return list(csv.DictReader(file))


@contextmanager
def interrupted_at(*, update: int) -> Iterator[None]:
    """Press Ctrl-C, once, before the n-th update of the weights."""
    left = update

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("imbalance", ["weighted", "focal", "oversample"])
def test_rare_classes_are_answered_with_and_without_cached_features(
    dataset: Path, tmp_path: Path, imbalance: str
) -> None:
    report = train(dataset, tmp_path, head={"epochs": 1, "lr": 0.01}, imbalance=imbalance)
    assert report.metrics["val_accuracy"] > 0.6


def test_a_found_learning_rate_is_used_and_its_curve_is_kept(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, whole={"epochs": 2, "lr": "auto", "schedule": "constant"})
    found = RangeTest.read(tmp_path / "checkpoint" / "rates-whole.csv")
    assert {row["lr"] for row in history(tmp_path)} == {str(found.chosen)}
    assert 1e-5 < found.chosen < 1
    assert len(found.rates) == len(found.losses) > 10
    assert "<svg" in (tmp_path / "checkpoint" / "rates-whole.svg").read_text()


def test_the_range_test_leaves_the_network_as_it_was(dataset: Path, tmp_path: Path) -> None:
    stage = {"epochs": 1, "lr": "auto", "layer_decay": 0.8}
    train(dataset, tmp_path / "found", whole=stage)
    rate = RangeTest.read(tmp_path / "found" / "checkpoint" / "rates-whole.csv").chosen
    train(dataset, tmp_path / "given", whole=stage | {"lr": rate})
    found, given = (tmp_path / p / "checkpoint/model.safetensors" for p in ("found", "given"))
    assert found.read_bytes() == given.read_bytes()


def test_a_range_test_of_the_head_runs_on_cached_features(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, head={"epochs": 1, "lr": "auto"}, whole=WHOLE | {"epochs": 1})
    assert (tmp_path / "checkpoint" / "rates-head.csv").exists()


def test_the_best_checkpoint_is_kept_when_the_loss_is_no_number_any_more(
    dataset: Path, tmp_path: Path
) -> None:
    stage = {"epochs": 3, "lr": 1e30, "optimizer": "sgd"}
    with pytest.raises(
        DivergedError, match=r"stage head, epoch [12], the best so far, is kept"
    ) as no:
        train(dataset, tmp_path, head={"epochs": 2, "lr": 0.01}, whole=stage)
    network, manifest = load_checkpoint(Path(str(no.value).rpartition(" ")[2]))
    assert all(bool(weights.isfinite().all()) for weights in network.parameters())
    assert math.isfinite(manifest.metrics["val_loss"])


def test_a_class_that_validation_does_not_show_is_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"train": 30, "val": 2, "test": 3})
    with caplog.at_level(logging.WARNING, "linnet"):
        train(dataset, tmp_path, whole=WHOLE | {"epochs": 1})
    assert "no validation picture shows light" in caplog.text


def test_a_class_without_train_pictures_is_an_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"train": 2, "val": 6, "test": 3})
    with pytest.raises(TrainingError, match="no train pictures of light"):
        train(dataset, tmp_path)


def test_frozen_layers_stay_as_they_are(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "a", whole=WHOLE | {"epochs": 1})
    weights = tmp_path / "a" / "checkpoint" / "model.safetensors"
    stage = WHOLE | {"epochs": 1, "frozen": ["conv1", "bn1", "layer1"]}
    train(dataset, tmp_path / "b", weights=str(weights), whole=stage)
    before, after = load_file(weights), load_file(tmp_path / "b/checkpoint/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith(("conv1", "bn1", "layer1"))]


def test_a_layer_that_the_network_lacks_is_an_error_that_names_the_nearest(
    dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"train\.whole\.frozen names 'layer9'.*layer\d"):
        train(dataset, tmp_path, whole=WHOLE | {"frozen": ["layer9"]})


def test_a_perceptron_on_pixels_trains_and_loads(dataset: Path, tmp_path: Path) -> None:
    stage = WHOLE | {"layer_decay": 0.9}
    report = train(
        dataset, tmp_path, network="mlp", hidden=[24, 8], head_init="xavier", whole=stage
    )
    assert report.metrics["val_accuracy"] > 0.6
    network, _ = load_checkpoint(tmp_path / "checkpoint")
    assert [p.shape[0] for p in network.parameters()] == [24, 24, 8, 8, 3, 3]


def test_a_probe_on_random_weights_is_told_as_such(place: Path, dataset: Path) -> None:
    with np.load(place / "checkpoint" / "probe.npz") as probe:
        assert probe["keys"].tolist() == [f"test/{row}.png" for row in range(6)]
        assert probe["probabilities"].shape == (6, 3)
        assert probe["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert "drawn at random" in str(probe["words"])
        assert "from 60 training pictures" in str(probe["words"])


def test_a_probe_learns_from_as_many_pictures_as_asked_for(dataset: Path, tmp_path: Path) -> None:
    stage = WHOLE | {"epochs": 1}
    train(dataset, tmp_path / "some", probe_pictures=20, whole=stage)
    with np.load(tmp_path / "some/checkpoint/probe.npz") as probe:
        assert "from 20 training pictures" in str(probe["words"])
    train(dataset, tmp_path / "none", probe_pictures=0, whole=stage)
    assert not (tmp_path / "none/checkpoint/probe.npz").exists()


def test_a_probe_is_the_same_on_features_that_a_stage_has_kept(
    dataset: Path, tmp_path: Path
) -> None:
    stage = {"epochs": 1, "lr": 0.01}
    train(dataset, tmp_path / "kept", head=stage, whole=WHOLE | {"epochs": 1})
    train(dataset, tmp_path / "fresh", whole=WHOLE | {"epochs": 1})
    kept, fresh = (
        np.load(tmp_path / name / "checkpoint/probe.npz")["probabilities"]
        for name in ("kept", "fresh")
    )
    assert kept == pytest.approx(fresh, abs=1e-4)


def test_the_report_says_where_the_time_went(place: Path) -> None:
    report = json.loads((place / "report.json").read_text())
    assert set(report["profile"]) == {"data_wait", "forward", "backward", "update", "validation"}
    assert report["slowest"] == max(report["profile"], key=report["profile"].get)
    for row in history(place):
        parts = sum(float(row[f"{part}_s"]) for part in report["profile"])
        assert 0.5 * float(row["seconds"]) < parts <= float(row["seconds"]) + 0.01


TWO = ("dark", "light")
POSITIVE = ["val_positive_precision", "val_positive_recall", "val_positive_f1", "val_roc_auc"]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("two") / "dataset", SIZES, TWO)


def test_metrics_of_the_class_looked_for_are_followed_and_kept(
    of_two: Path, tmp_path: Path
) -> None:
    stage = WHOLE | {"epochs": 3}
    changes: dict[str, Any] = {"monitor": "val_positive_f1", "keep": POSITIVE, "whole": stage}
    report = train(of_two, tmp_path, positive="dark", **changes)
    best = max(float(row["val_positive_f1"]) for row in history(tmp_path))
    assert report.metrics["val_positive_f1"] == best
    files = {path.name for path in (tmp_path / "checkpoint").glob("best-*")}
    assert files == {f"best-{name}.safetensors" for name in POSITIVE}


def test_metrics_of_the_class_looked_for_need_two_classes(dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"monitor": "val_positive_f1", "keep": ["val_positive_f1"]}
    with pytest.raises(TrainingError, match=r"one class of two, .* has 3: set train\.monitor"):
        train(dataset, tmp_path, **changes)


def test_a_class_looked_for_that_is_unknown_is_an_error(of_two: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.positive names the class 'grey'.*dark, light"):
        train(of_two, tmp_path, positive="grey")


@pytest.mark.parametrize("metric", ["val_positive_f1", "val_roc_auc"])
def test_a_metric_that_validation_cannot_show_is_an_error_before_training(
    tmp_path: Path, metric: str
) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"train": 8, "val": 2, "test": 3}, TWO)
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest["counts"]["val"] = {"dark": 2, "light": 0}
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match=f"{metric} can't be measured: .* shows light: ingest"):
        train(dataset, tmp_path, monitor=metric, keep=[metric])


def test_a_number_of_threads_that_is_given_from_outside_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, given = torch.get_num_threads(), available_cpus() + 1
    settings = TrainSettings(accelerator="cpu")
    try:
        torch.set_num_threads(given)
        monkeypatch.setenv("OMP_NUM_THREADS", str(given))
        make_trainer(StageSettings(), settings, tmp_path, None)
        assert torch.get_num_threads() == given
        monkeypatch.delenv("OMP_NUM_THREADS")
        make_trainer(StageSettings(), settings, tmp_path, None)
        assert torch.get_num_threads() == available_cpus()
    finally:
        torch.set_num_threads(before)

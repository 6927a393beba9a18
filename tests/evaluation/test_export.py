"""Checkpoints of real networks, small and untrained, to ONNX graphs that answer as torch does."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from linnet.data.dataset import Dataset
from linnet.errors import CheckpointError, DatasetError
from linnet.evaluation.evaluate import evaluate
from linnet.inference.session import Graph, GraphManifest
from linnet.release.export import CALIBRATION_PICTURES, Servable, export
from linnet.settings import EvaluateSettings, ExportSettings
from linnet.training.network import Classifier, load_checkpoint
from tests.checkpoints import SIDE, write_checkpoint
from tests.graphs import keep_rows
from tests.release_parts import CLASSES, VERSION, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", per_class=20)


@pytest.mark.parametrize(
    "network", ["resnet18", "mobilenetv2_100", "vit_tiny_patch16_224", "convnext_atto"]
)
def test_a_graph_answers_as_torch_does_for_any_number_of_pictures(
    tmp_path: Path, dataset: Path, network: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", network)
    report = export(checkpoint, dataset, tmp_path / "graph", ExportSettings())
    assert report.passed
    assert report.label_agreement == 1.0
    assert report.largest_difference < 1e-4
    graph = Graph(tmp_path / "graph")
    built, manifest = load_checkpoint(checkpoint)
    classifier = Classifier(built, manifest.mean, manifest.std)
    servable = Servable(classifier, graph.manifest.temperature).eval()
    for count in (1, 3):
        pictures = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        with torch.inference_mode():
            expected = servable(torch.from_numpy(pictures)).numpy()
        assert graph.predict(pictures) == pytest.approx(expected, abs=1e-4)


def test_a_mirroring_graph_gives_torchs_mean_of_a_picture_and_its_mirror_image(
    tmp_path: Path, dataset: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "vit_tiny_patch16_224")
    settings = ExportSettings(flip="horizontal", calibrate=False)
    assert export(checkpoint, dataset, tmp_path / "graph", settings).passed
    graph = Graph(tmp_path / "graph")
    built, manifest = load_checkpoint(checkpoint)
    classifier = Classifier(built, manifest.mean, manifest.std).eval()
    for count in (1, 3):
        pictures = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
        with torch.inference_mode():
            mean = (
                classifier(torch.from_numpy(pictures)) + classifier(torch.from_numpy(mirrored))
            ) / 2
        found = graph.predict(pictures)
        assert found == pytest.approx(torch.softmax(mean, 1).numpy(), abs=1e-4)
        assert found == pytest.approx(graph.predict(mirrored), abs=1e-6)
    assert graph.manifest.flip == "horizontal"
    said = {
        each.key: each.value for each in onnx.load(tmp_path / "graph/model.onnx").metadata_props
    }
    assert said["linnet.flip"] == "horizontal"


def test_a_mirroring_graph_has_its_weights_once_and_works_twice(
    tmp_path: Path, dataset: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, dataset, tmp_path / "once", ExportSettings())
    export(checkpoint, dataset, tmp_path / "twice", ExportSettings(flip="horizontal"))
    once, twice = (GraphManifest.load(tmp_path / name) for name in ("once", "twice"))
    assert once.profile is not None
    assert twice.profile is not None
    assert twice.profile["flops"] == 2 * once.profile["flops"]
    assert twice.size_bytes < 1.01 * once.size_bytes
    assert once.flip == "none"


def test_the_graph_is_pinned_checked_and_says_what_it_is(
    tmp_path: Path, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(write_checkpoint(tmp_path / "c"), dataset, tmp_path / "graph", ExportSettings())
    assert capfd.readouterr().out == ""
    manifest = GraphManifest.load(tmp_path / "graph")
    model = onnx.load(tmp_path / "graph" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert (manifest.opset, manifest.ir_version) == (18, model.ir_version)
    assert model.ir_version <= 10
    (pictures,), (probabilities,) = model.graph.input, model.graph.output
    assert (pictures.name, probabilities.name) == ("pictures", "probabilities")
    assert pictures.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = pictures.type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [side.dim_value for side in shape[1:]] == [SIDE, SIDE, 3]
    said = {each.key: each.value for each in model.metadata_props}
    assert json.loads(said["linnet.classes"]) == list(CLASSES)
    assert said["linnet.dataset_version"] == VERSION
    assert sorted(each.name for each in (tmp_path / "graph").iterdir()) == [
        "graph.json",
        "model.onnx",
    ]
    assert manifest.tracking_run_id == "run"
    assert manifest.size_bytes == (tmp_path / "graph" / "model.onnx").stat().st_size


def test_parity_that_fails_is_recorded_and_raises_nothing(tmp_path: Path, dataset: Path) -> None:
    settings = ExportSettings(max_probability_difference=1e-12, parity_pictures=10)
    report = export(write_checkpoint(tmp_path / "c"), dataset, tmp_path / "graph", settings)
    assert not report.passed
    parity = GraphManifest.load(tmp_path / "graph").parity
    assert (parity.passed, parity.pictures) == (False, 10)


def test_an_overconfident_network_gets_a_temperature_that_changes_no_label(
    tmp_path: Path, dataset: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", sharpness=5.0)
    plain = ExportSettings(calibrate=False)
    assert export(checkpoint, dataset, tmp_path / "plain", plain).temperature == 1.0
    fitted = export(checkpoint, dataset, tmp_path / "fitted", ExportSettings())
    assert fitted.temperature > 1.5
    assert fitted.passed
    calibration = GraphManifest.load(tmp_path / "fitted").calibration
    assert calibration is not None
    assert calibration["log_loss_after"] < calibration["log_loss_before"]
    assert calibration["pictures"] == 60 <= CALIBRATION_PICTURES
    pictures = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    answers = [Graph(tmp_path / name).predict(pictures) for name in ("plain", "fitted")]
    assert (answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).all()
    assert answers[1].max() < answers[0].max()


def test_what_was_exported_can_be_evaluated(tmp_path: Path, dataset: Path) -> None:
    export(write_checkpoint(tmp_path / "c"), dataset, tmp_path / "graph", ExportSettings())
    settings = EvaluateSettings(bootstrap_samples=100)
    report = evaluate(tmp_path / "graph", dataset, tmp_path / "r", settings, model="colours")
    assert report.pictures == Dataset.open(dataset).size("test")
    assert report.parity.passed


def test_a_dataset_that_the_checkpoint_was_not_trained_on_is_an_error(
    tmp_path: Path, dataset: Path
) -> None:
    other = write_dataset(tmp_path / "other")
    values = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(values | {"version": "other"}))
    with pytest.raises(DatasetError, match="trained on version 0123456789ab"):
        export(write_checkpoint(tmp_path / "c"), other, tmp_path / "graph", ExportSettings())
    assert not (tmp_path / "graph").exists()


def test_an_empty_validation_split_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    bare = write_dataset(tmp_path / "bare")
    keep_rows(bare, "val", [])
    with pytest.raises(DatasetError, match=r"ingest\.val_fraction"):
        export(write_checkpoint(tmp_path / "c"), bare, tmp_path / "graph", ExportSettings())


def test_a_damaged_checkpoint_is_an_error_and_leaves_nothing(tmp_path: Path, dataset: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export(checkpoint, dataset, tmp_path / "graph", ExportSettings())
    assert not (tmp_path / "graph").exists()

"""int8 or fp16 beside fp32: made, measured and chosen, or refused with its reason."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.errors import DatasetError, GraphError, SettingsError
from linnet.inference.session import FP32_MODEL, MODEL, Graph, GraphManifest, Session
from linnet.machine import int8_saturates
from linnet.release import precision as precisions
from linnet.release.bundle import release
from linnet.release.export import export
from linnet.release.half import halved
from linnet.release.opening import open_release
from linnet.release.precision import (
    Choice,
    Side,
    choose_precision,
    decide,
    with_temperature,
)
from linnet.release.quantization import check_calibration, quantized
from linnet.settings import ExportSettings, ReleaseSettings
from tests.evaluation.test_export import SIDE, write_checkpoint
from tests.release_parts import write_dataset, write_graph, write_report

AUTO = ExportSettings(int8="auto", int8_calibration_pictures=32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", per_class=20)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Export an untrained network as it is, and return its folder."""
    folder = tmp_path_factory.mktemp("fp32")
    checkpoint = write_checkpoint(folder / "checkpoint")
    export(checkpoint, dataset, folder / "graph", ExportSettings(calibrate=False))
    return folder / "graph"


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def int8(fp32: Path) -> bytes:
    """Quantize that network."""
    return quantized((fp32 / MODEL).read_bytes(), [noise(32)])


def choose(graph: Path, dataset: Path, settings: ExportSettings) -> Choice:
    return choose_precision(
        graph / MODEL,
        Dataset.open(dataset),
        Preprocessing(SIDE),
        rows=np.arange(10),
        temperature=1.0,
        settings=settings,
    )


def kinds_before(model: onnx.ModelProto, tensor: str) -> list[str]:
    """Return the kinds of the nodes on the first inputs' way to a tensor, nearest first."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    kinds = []
    while tensor in made_by:
        kinds.append(made_by[tensor].op_type)
        tensor = made_by[tensor].input[0]
    return kinds


def test_an_int8_graph_answers_nearly_as_the_fp32_one(
    fp32: Path, int8: bytes, tmp_path: Path
) -> None:
    (tmp_path / MODEL).write_bytes(int8)
    pictures = noise(8)
    exact = Session(fp32 / MODEL).predict(pictures)
    assert Session(tmp_path / MODEL).predict(pictures) == pytest.approx(exact, abs=0.1)
    assert len(int8) < 0.4 * (fp32 / MODEL).stat().st_size


def test_an_int8_graph_keeps_its_pins_and_computes_both_ends_in_float(
    fp32: Path, int8: bytes
) -> None:
    model, original = onnx.load_model_from_string(int8), onnx.load(fp32 / MODEL)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.ir_version == original.ir_version <= 10
    said = {each.key: each.value for each in model.metadata_props}
    assert said["linnet.precision"] == "int8"
    assert said["linnet.network"] == "resnet10t"
    order = kinds_before(model, "probabilities")
    first_conv = len(order) - 1 - order[::-1].index("Conv")
    # Uint8 pictures become float once, and only normalised ones are quantized.
    assert order[first_conv + 1 : first_conv + 3] == ["DequantizeLinear", "QuantizeLinear"]
    assert {"Cast", "Sub", "Mul"} <= set(order[first_conv + 3 :])
    assert "QuantizeLinear" not in order[first_conv + 3 :]
    assert order[0] == "Softmax"
    assert "QuantizeLinear" not in order[: order.index("Gemm")]
    weights = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= order.count("Conv")


def test_the_two_answers_of_a_mirroring_graph_are_put_together_in_float(
    dataset: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, dataset, tmp_path / "graph", ExportSettings(flip="horizontal"))
    exact = Session(tmp_path / "graph" / MODEL)
    model = quantized((tmp_path / "graph" / MODEL).read_bytes(), [noise(32)])
    order = kinds_before(onnx.load_model_from_string(model), "probabilities")
    assert "QuantizeLinear" not in order[: order.index("Gemm")]
    (tmp_path / MODEL).write_bytes(model)
    pictures = noise(8)
    small = Session(tmp_path / MODEL)
    assert small.predict(pictures) == pytest.approx(exact.predict(pictures), abs=0.1)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    assert small.predict(pictures) == pytest.approx(small.predict(mirrored), abs=1e-6)


def test_an_fp16_graph_is_half_as_large_and_answers_nearly_as_the_fp32_one(
    fp32: Path, tmp_path: Path
) -> None:
    graph = halved((fp32 / MODEL).read_bytes())
    (tmp_path / MODEL).write_bytes(graph)
    pictures = noise(8)
    exact = Session(fp32 / MODEL).predict(pictures)
    found = Session(tmp_path / MODEL).predict(pictures)
    assert (found.dtype, found.shape) == (np.float32, exact.shape)
    assert found == pytest.approx(exact, abs=0.01)
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    assert len(graph) < 0.55 * (fp32 / MODEL).stat().st_size
    model, original = onnx.load_model_from_string(graph), onnx.load(fp32 / MODEL)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.ir_version == original.ir_version
    assert {each.key: each.value for each in model.metadata_props}["linnet.precision"] == "fp16"


def test_what_fp16_cannot_be_made_of_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(GraphError, match=r"can't be converted to fp16.*set export\.fp16 to off"):
        halved(onnx.ModelProto(ir_version=10).SerializeToString())


def test_fp16_stays_out_where_there_is_no_gpu_and_is_an_error_if_it_is_required(
    dataset: Path, fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "on_gpu", lambda: False)
    choice = choose(fp32, dataset, ExportSettings(fp16="auto"))
    assert (choice.precision.asked, choice.precision.served) == ("auto", "fp32")
    assert "ONNX Runtime has none here" in choice.precision.reason
    with pytest.raises(GraphError, match=r"export\.fp16 is required, but.*onnxruntime-gpu"):
        choose(fp32, dataset, ExportSettings(fp16="required"))


def test_fp16_serves_where_a_gpu_is_faster_with_it_at_its_own_temperature(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no GPU where tests run: the graph is real, and the CPU answers with it.
    costs = {"fp32": {"1": 2.0, "8": 2.0}, "fp16": {"1": 1.0, "8": 1.0}}
    monkeypatch.setattr(precisions, "on_gpu", lambda: True)
    monkeypatch.setattr(precisions, "picture_ms", lambda *_: costs)
    checkpoint = write_checkpoint(tmp_path / "c", sharpness=5.0)
    report = export(checkpoint, dataset, tmp_path / "graph", ExportSettings(fp16="required"))
    assert (report.precision, report.passed) == ("fp16", True)
    opened = Graph(tmp_path / "graph")
    found = opened.manifest.precision
    assert found is not None
    assert (found["int8"], found["calibration_pictures"]) == (None, None)
    assert found["fp16"]["size_bytes"] < 0.6 * found["fp32"]["size_bytes"]
    assert found["accuracy_loss"] < found["max_accuracy_loss"] == 0.005
    assert found["clock"] == "time on the GPU"
    plain = Session(tmp_path / "graph" / FP32_MODEL).predict(noise(4))
    assert opened.predict(noise(4)) == pytest.approx(plain, abs=0.02)


def test_int8_and_fp16_at_once_are_refused() -> None:
    with pytest.raises(SettingsError, match="int8 is for CPUs and fp16 for GPUs"):
        ExportSettings.parse({"int8": "auto", "fp16": "auto"})


def test_the_quantizer_says_nothing_on_the_terminal_and_leaves_logging_alone(
    fp32: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    quantized((fp32 / MODEL).read_bytes(), [noise(2)])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (root.level, list(root.handlers)) == before


def test_another_temperature_changes_probabilities_and_no_label(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", temperature=2.0)
    cooler = with_temperature((graph / MODEL).read_bytes(), 2.0, 0.5)
    (tmp_path / MODEL).write_bytes(cooler)
    pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    expected = Graph(write_graph(tmp_path / "expected", temperature=0.5)).predict(pictures)
    found = Session(tmp_path / MODEL).predict(pictures)
    assert found == pytest.approx(expected, abs=1e-6)
    said = {each.key: each.value for each in onnx.load(tmp_path / MODEL).metadata_props}
    assert said["linnet.temperature"] == "0.5"
    onnx.checker.check_model(onnx.load(tmp_path / MODEL), full_check=True)


def side(accuracy: float, one: float = 4.0, eight: float = 2.0) -> Side:
    return Side(accuracy, 1000, {"1": one, "8": eight})


@pytest.mark.parametrize(
    ("int8", "served"),
    [
        (side(0.900, 2.0, 1.0), "int8"),
        (side(0.950, 2.0, 1.0), "int8"),
        (side(0.896, 2.0, 1.0), "int8"),
        (side(0.890, 2.0, 1.0), "fp32"),
        (side(0.900, 4.0, 1.0), "fp32"),
        (side(0.900, 2.0, 2.1), "fp32"),
        (side(0.500, 8.0, 4.0), "fp32"),
    ],
)
def test_int8_serves_only_if_it_is_as_good_and_faster_at_every_batch(
    int8: Side, served: str
) -> None:
    sides = {"fp32": side(0.9), "int8": int8}
    decided = decide("int8", sides, AUTO, pictures=100, label_agreement=0.98)
    assert decided.served == served
    assert decided.accuracy_loss == pytest.approx(0.9 - int8.accuracy)
    assert f"{int8.accuracy:.4f} against 0.9000" in decided.reason
    assert decided.speedup is not None
    assert f"{decided.speedup['1']:.2f} at batch 1" in decided.reason


def test_a_chosen_int8_graph_is_what_the_folder_serves_with_fp32_beside(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which of them is faster here depends on the machine, so the clock is taken out.
    costs = {"fp32": {"1": 2.0, "8": 2.0}, "int8": {"1": 1.0, "8": 1.0}}
    monkeypatch.setattr(precisions, "picture_ms", lambda *_: costs)
    settings = AUTO.model_copy(update={"max_accuracy_loss": 0.9})
    checkpoint = write_checkpoint(tmp_path / "c", sharpness=5.0)
    report = export(checkpoint, dataset, tmp_path / "graph", settings)
    assert (report.precision, report.passed) == ("int8", True)
    graph = tmp_path / "graph"
    assert sorted(file.name for file in graph.iterdir()) == ["graph.json", FP32_MODEL, MODEL]
    opened = Graph(graph)
    precision = opened.manifest.precision
    assert precision is not None
    assert opened.manifest.served_precision == "int8"
    assert precision["calibration_pictures"] == 32
    assert precision["pictures"] == 60
    assert precision["int8"]["size_bytes"] < precision["fp32"]["size_bytes"]
    assert 0.0 <= precision["label_agreement"] <= 1.0
    said = {each.key: each.value for each in onnx.load(graph / MODEL).metadata_props}
    assert said["linnet.temperature"] == repr(opened.manifest.temperature)
    assert opened.manifest.calibration is not None
    plain = Session(graph / FP32_MODEL).predict(noise(4))
    assert opened.predict(noise(4)).shape == plain.shape
    assert not np.array_equal(opened.predict(noise(4)), plain)


def test_a_graph_in_fp32_says_that_int8_is_off_and_what_it_costs(fp32: Path) -> None:
    manifest = GraphManifest.load(fp32)
    assert manifest.precision is not None
    assert manifest.precision["reason"] == "export.int8 and export.fp16 are off"
    assert manifest.served_precision == "fp32"
    profile = manifest.profile
    assert profile is not None
    assert profile["size_bytes"] == manifest.size_bytes
    assert profile["parameters"] > 1_000_000
    assert profile["flops"] > 2 * profile["parameters"]
    assert "1" in profile["latency"]
    assert all(0 < each["fastest_ms"] <= each["median_ms"] for each in profile["latency"].values())


def test_a_refused_int8_leaves_the_fp32_graph_unless_it_is_required(
    tmp_path: Path, dataset: Path, fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"fp32": {"1": 1.0, "8": 1.0}, "int8": {"1": 1.0, "8": 2.0}}
    monkeypatch.setattr(precisions, "picture_ms", lambda *_: costs)
    choice = choose(fp32, dataset, AUTO)
    assert (choice.precision.served, choice.encoded) == ("fp32", None)
    assert "1.00 at batch 1, 0.50 at batch 8" in choice.precision.reason
    assert sorted(file.name for file in fp32.iterdir()) == ["graph.json", MODEL]
    with pytest.raises(GraphError, match=r"export\.int8 is required.*0\.50 at batch 8.*auto"):
        choose(fp32, dataset, AUTO.model_copy(update={"int8": "required"}))


def test_a_graph_that_cannot_be_quantized_is_served_in_fp32_with_the_reason(
    tmp_path: Path, dataset: Path
) -> None:
    broken = tmp_path / MODEL
    model = onnx.load(write_graph(tmp_path / "graph") / MODEL)
    model.graph.node[0].domain = "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(model, broken)
    choice = choose_precision(
        broken,
        Dataset.open(dataset),
        Preprocessing(8),
        rows=np.arange(10),
        temperature=1.0,
        settings=AUTO,
    )
    assert choice.precision.served == "fp32"
    assert "can't be quantized to int8" in choice.precision.reason


def test_too_few_training_pictures_to_calibrate_on_is_an_error_that_names_the_setting(
    tmp_path: Path, dataset: Path
) -> None:
    with pytest.raises(DatasetError, match=r"60 training pictures.*128.*lower \(32 at least"):
        export(
            write_checkpoint(tmp_path / "c"),
            dataset,
            tmp_path / "graph",
            ExportSettings(int8="auto"),
        )
    assert not (tmp_path / "graph").exists()
    check_calibration(Dataset.open(dataset), ExportSettings())


def test_a_bare_off_in_yaml_means_off() -> None:
    assert ExportSettings.parse({"int8": False}).int8 == "off"


@pytest.mark.parametrize(
    ("cpuinfo", "saturates"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\n", False),
        ("processor: 0\nflags\t\t: fpu avx2 avx_vnni\n", False),
        ("processor: 0\nflags\t\t: fpu avx2 avx512f\n", True),
        ("processor: 0\nFeatures\t: fp asimd asimddp\n", False),
    ],
)
def test_weights_get_seven_bits_only_on_x86_without_vnni(
    tmp_path: Path, cpuinfo: str, saturates: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert int8_saturates(tmp_path / "cpuinfo") is saturates
    assert not int8_saturates(tmp_path / "absent")


def test_an_older_manifest_without_precision_and_profile_still_loads(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph")
    values = json.loads((graph / "graph.json").read_text())
    for name in ("precision", "profile"):
        values.pop(name)
    (graph / "graph.json").write_text(json.dumps(values))
    manifest = GraphManifest.load(graph)
    assert (manifest.precision, manifest.profile) == (None, None)
    assert manifest.served_precision == "fp32"


def test_a_release_of_an_int8_graph_says_so_and_leaves_fp32_behind(
    tmp_path: Path, dataset: Path
) -> None:
    graph = write_graph(tmp_path / "graph")
    (graph / FP32_MODEL).write_bytes(b"the graph that int8 was made of")
    values = json.loads((graph / "graph.json").read_text())
    values["precision"] = {"asked": "auto", "served": "int8", "reason": "faster"}
    (graph / "graph.json").write_text(json.dumps(values))
    report = write_report(tmp_path / "report", graph, dataset)
    settings = ReleaseSettings(root=str(tmp_path / "releases"))
    released = release(graph, report, dataset, model="colours", settings=settings)
    opened = open_release(released.uri, scratch=tmp_path)
    assert opened.manifest["precision"] == "int8"
    assert FP32_MODEL not in opened.manifest["files"]

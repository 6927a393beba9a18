"""Evaluation from a graph and a dataset to a report's folder, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from linnet.cli import app
from linnet.errors import EvaluationError, GraphError, StoreError
from linnet.evaluation.baselines import FILE, write_probe
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.report import Report, load_predictions
from linnet.inference.predict import Predictions
from linnet.settings import DecisionSettings, EvaluateSettings
from tests.graphs import keep_rows, relabel
from tests.release_parts import CLASSES, VERSION, write_dataset, write_graph

SETTINGS = EvaluateSettings(bootstrap_samples=100, mistakes=2, explain=0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four test pictures of each class, three of the twelve under a wrong label."""
    path = write_dataset(tmp_path / "dataset")
    relabel(path, "test", {0: 1, 4: 2, 8: 0})
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "graph", run_id="abc", temperature=2.0)


@pytest.fixture
def report(tmp_path: Path, graph: Path, dataset: Path) -> Path:
    evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    return tmp_path / "report"


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_report_says_what_the_graph_did(report: Path) -> None:
    found = Report.load(report)
    assert found.metrics["accuracy"].value == 0.75
    assert found.pictures == 12
    assert found.confusion == ((3, 0, 1), (1, 3, 0), (0, 1, 3))
    assert found.temperature == 2.0
    assert found.dataset_version == VERSION
    assert found.provenance["tracking_run_id"] == "abc"
    assert found.majority == "blue"
    assert found.headline().startswith("colours: 0.750 accuracy on 12 test pictures, 95% interval ")
    assert set(found.values()) == set(found.metrics)


def test_a_report_survives_saving_and_loading(tmp_path: Path, graph: Path, dataset: Path) -> None:
    made = evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert Report.load(tmp_path / "report") == made


def test_the_confusion_matrix_and_roc_curve_are_what_kfp_logs(report: Path) -> None:
    found = Report.load(report)
    categories, matrix = found.confusion_matrix()
    assert categories == list(CLASSES)
    assert [len(row) for row in matrix] == [3, 3, 3]
    fpr, tpr, threshold = found.roc_curve()
    assert 2 <= len(fpr) == len(tpr) == len(threshold) <= 200
    assert np.isfinite(threshold).all()


def test_predictions_are_a_plain_parquet_table(report: Path) -> None:
    table = pq.read_table(report / "predictions.parquet")
    assert table.column_names == ["key", "label", "probabilities"]
    found = load_predictions(report)
    assert found.probabilities.shape == (12, 3)
    assert found.keys == table["key"].to_pylist()


def test_the_most_confident_mistakes_are_shown_as_pictures(report: Path) -> None:
    found = Report.load(report)
    assert len(found.mistakes) == 2
    assert found.mistakes[0].confidence >= found.mistakes[1].confidence
    assert all(mistake.label != mistake.predicted for mistake in found.mistakes)
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 2


def test_the_page_needs_no_other_file_and_no_script(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "0.750 accuracy on 12 test pictures" in page
    assert not re.search(r"<script|<link|@import|src=\"(?!data:)|url\(", page)


def test_the_page_says_what_each_class_costs(tmp_path: Path, graph: Path, dataset: Path) -> None:
    relabel(dataset, "test", {0: 1, 1: 1, 4: 2, 8: 0})
    cost = {CLASSES[2]: {CLASSES[0]: 1.0}, CLASSES[1]: {CLASSES[0]: 7.5}}
    for aim, words in (
        ("none", f"<b>{CLASSES[1]}</b> costs most: 2 of the 4 mistakes are pictures of it. It has"),
        ("cost", "pictures of it, and 88.2% of what all of them cost by evaluate.decision.cost."),
    ):
        decision = DecisionSettings(aim=aim, cost=cost if aim == "cost" else {}, fewest_pictures=1)
        settings = SETTINGS.model_copy(update={"decision": decision})
        found = evaluate(graph, dataset, tmp_path / "report", settings, model="colours")
        assert found.confusion == ((2, 0, 1), (2, 3, 0), (0, 1, 3))
        page = " ".join((tmp_path / "report" / "report.html").read_text().split())
        assert words in page
        assert ('<th class="n">Cost</th>' in page) is (aim == "cost")


def test_names_from_the_data_are_escaped(tmp_path: Path, graph: Path, dataset: Path) -> None:
    classes = ["<b>blue</b>", "green", "red"]
    counts = {split: dict.fromkeys(classes, 4) for split in ("train", "val", "test")}
    edit(graph / "graph.json", classes=classes)
    edit(dataset / "dataset.json", classes=classes, counts=counts)
    evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert "<b>blue</b>" not in (tmp_path / "report" / "report.html").read_text()


def test_a_test_split_of_one_class_gives_a_report_with_undefined_areas(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    keep_rows(dataset, "test", [1, 2, 3])
    found = evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert found.metrics["roc_auc"].value is None
    assert "roc_auc" not in found.values()
    assert "NaN" not in (tmp_path / "report" / "report.json").read_text()
    assert "one class only" in (tmp_path / "report" / "report.html").read_text()
    assert Report.load(tmp_path / "report") == found


def test_a_linear_probe_stands_beside_the_model(tmp_path: Path, graph: Path, dataset: Path) -> None:
    keys = pq.read_table(dataset / "test-00000.parquet")["key"].to_pylist()
    always_blue = np.tile(np.array([1, 0, 0], np.float32), (12, 1))
    write_probe(graph / FILE, Predictions(keys, np.zeros(12, np.int64), always_blue), "a ruler")
    made = evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert made.probe is not None
    assert made.probe.metrics["accuracy"] == pytest.approx(1 / 3)
    assert made.probe.metrics["roc_auc"] == 0.5
    assert Report.load(tmp_path / "report") == made
    assert "The linear probe is a ruler" in (tmp_path / "report" / "report.html").read_text()
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "report")]).output
    assert "linear probe" in shown
    assert re.search(r"macro F1 .* 0\.1667 +│\n", shown)


def test_a_probe_of_other_pictures_or_a_damaged_one_is_an_error(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    answers = Predictions(["a"], np.zeros(1, np.int64), np.ones((1, 3), np.float32))
    write_probe(graph / FILE, answers, "")
    with pytest.raises(EvaluationError, match="1 pictures that are not the 12 test pictures"):
        evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    (graph / FILE).write_bytes(b"no archive")
    with pytest.raises(EvaluationError, match=r"probe\.npz can't be read"):
        evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")


def test_the_page_tells_what_the_graph_and_its_training_cost(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    latency = {"1": {"median_ms": 4.0, "fastest_ms": 3.0, "calls": 5}}
    profile = {"parameters": 5, "flops": 2_000_000, "size_bytes": 100, "threads": 2}
    side = {"accuracy": 0.5, "size_bytes": 100, "picture_ms": {"1": 4.0, "8": 2.0}}
    precision = {"served": "fp32", "reason": "it is not faster", "fp32": side, "int8": side}
    edit(
        graph / "graph.json",
        flip="horizontal",
        profile=profile | {"latency": latency},
        precision=precision | {"pictures": 9, "label_agreement": 1.0, "clock": "CPU time"},
        training={"epochs": 2, "seconds": {"data_wait": 1.0, "forward": 3.0}, "slowest": "forward"},
    )
    made = evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert made.graph["flip"] == "horizontal"
    page = " ".join((tmp_path / "report" / "report.html").read_text().split())
    for words in (
        "2 million floating-point operations",
        "answered twice, as it is and mirrored",
        "serves in <b>fp32</b>: it is not faster",
        "the slowest part is forward",
        "9 validation pictures; CPU time.",
    ):
        assert words in page


def test_a_faultless_graph_has_no_mistakes_to_show(tmp_path: Path, graph: Path) -> None:
    clean = write_dataset(tmp_path / "clean")
    found = evaluate(graph, clean, tmp_path / "report", SETTINGS, model="colours")
    assert found.mistakes == ()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "every test picture is named rightly" in page
    assert "1.000 accuracy" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "another"}, "made from dataset version 0123456789ab"),
        ({"classes": ["blue", "green", "teal"]}, "knows the classes blue, green, red"),
    ],
)
def test_a_dataset_that_is_not_the_graphs_is_an_error(
    tmp_path: Path, graph: Path, dataset: Path, change: dict[str, object], words: str
) -> None:
    edit(dataset / "dataset.json", **change)
    with pytest.raises(EvaluationError, match=words):
        evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert not (tmp_path / "report").exists()


def test_an_empty_test_split_is_an_error_that_names_the_setting(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    keep_rows(dataset, "test", [])
    with pytest.raises(EvaluationError, match=r"ingest\.test_fraction"):
        evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")


def test_a_damaged_graph_is_an_error_and_leaves_nothing(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    edit(graph / "graph.json", sha256="0" * 64)
    with pytest.raises(GraphError, match="digest"):
        evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dataset", "graph"]


def test_an_empty_destination_and_an_earlier_report_are_replaced_and_nothing_else(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    destination = tmp_path / "report"
    destination.mkdir()
    for _ in range(2):
        evaluate(graph, dataset, destination, SETTINGS, model="colours")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="left alone"):
        evaluate(graph, dataset, precious, SETTINGS, model="colours")
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize("text", ["", "{", '{"kind": "other"}', '{"kind": "linnet/report/v1"}'])
def test_a_half_written_or_foreign_report_is_an_error(report: Path, text: str) -> None:
    (report / "report.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"report\.json"):
        Report.load(report)


def test_a_folder_without_a_report_is_an_error(tmp_path: Path, report: Path) -> None:
    with pytest.raises(EvaluationError, match="linnet evaluate"):
        Report.load(tmp_path)
    (report / "predictions.parquet").unlink()
    with pytest.raises(EvaluationError, match=r"predictions\.parquet"):
        load_predictions(report)


def test_evaluation_and_gate_load_neither_torch_nor_kfp_nor_plotting(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    code = f"""
import sys
from pathlib import Path
from linnet.evaluation.baselines import FILE, write_probe
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import gate
from linnet.settings import EvaluateSettings, GateSettings
root = Path({str(tmp_path)!r})
parts = root / "graph", root / "dataset"
settings = EvaluateSettings(bootstrap_samples=100)
evaluate(*parts, root / "report", settings, model="colours")
gate(*parts, root / "report", root / "gated", GateSettings(), champion=None)
print(*{{"torch", "kfp", "onnx", "sklearn", "matplotlib", "mlflow"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_partial_folder_of_a_killed_run_does_no_harm(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    left = tmp_path / ".report.partial"
    left.mkdir()
    (left / "report.html").write_text("half")
    evaluate(graph, dataset, tmp_path / "report", SETTINGS, model="colours")
    assert not left.exists()
    shutil.rmtree(tmp_path / "report")

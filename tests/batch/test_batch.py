"""Answers for folders of pictures: right, complete, resumable, shared out, in little memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from linnet.batch.predicting import batch
from linnet.batch.settings import BatchSettings, Shard
from linnet.data.dataset import Dataset
from linnet.data.ingest import ingest
from linnet.errors import BatchError, SettingsError, SourceError
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.report import load_predictions
from linnet.inference.session import Graph
from linnet.settings import EvaluateSettings, IngestSettings, SourceSettings
from tests.pictures import bad_pictures, class_folders, good_pictures, jpeg, write_tree
from tests.serving.conftest import launch, wait_until_ready
from tests.serving.tiny_release import CLASSES, answers, graph, write_release

SAMPLES = {"one.jpg": jpeg(1)}
LINNET = str(Path(sys.executable).with_name("linnet"))
FOUR = BatchSettings(part_pictures=4)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("releases"), SAMPLES)


def source(folder: Path) -> SourceSettings:
    return SourceSettings(uri=str(folder))


def answers_in(output: Path) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(path) for path in sorted(output.glob("answers/*.parquet"))]
    ).set_index("key")


def test_a_picture_is_answered_as_by_the_graph_itself(release: Path, tmp_path: Path) -> None:
    pictures = good_pictures()
    write_tree(tmp_path / "in", pictures)
    summary = batch(source(tmp_path / "in"), str(release), str(tmp_path / "out"), FOUR)
    found = answers_in(tmp_path / "out")
    assert summary.answered == len(found) == len(pictures)
    assert list(found.index) == sorted(pictures)
    expected = answers(graph(), [pictures[key] for key in found.index])
    np.testing.assert_allclose(np.stack(found.probabilities), expected, atol=1e-6)
    assert list(found.label) == [CLASSES[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(found.score, expected.max(axis=1), atol=1e-6)
    assert set(found.release) == {"flowers/v1"}
    assert found.true_label.isna().all()


def test_server_and_batch_say_the_same(release: Path, tmp_path: Path) -> None:
    pictures = {name: good_pictures()[name] for name in ("cmyk.jpg", "rgba.png", "photo.webp")}
    write_tree(tmp_path / "in", pictures)
    batch(source(tmp_path / "in"), str(release), str(tmp_path / "out"))
    found = answers_in(tmp_path / "out")
    (tmp_path / "server").mkdir()
    server = launch(tmp_path / "server", release)
    try:
        wait_until_ready(server)
        for name, picture in pictures.items():
            octets = {"Content-Type": "application/octet-stream"}
            status, body = server.send("POST", "/predict/flowers", picture, octets)
            served = json.loads(body)
            assert status == 200
            assert served["label"] == found.label[name]
            probabilities = list(served["probabilities"].values())
            np.testing.assert_allclose(found.probabilities[name], probabilities, atol=1e-6)
    finally:
        server.stop()


def test_evaluate_and_batch_say_the_same(tmp_path: Path) -> None:
    from tests.release_parts import CLASSES, write_graph

    folder = class_folders(tmp_path / "in", dict.fromkeys(CLASSES, 8))
    ingest(source(folder), tmp_path / "dataset", IngestSettings(workers=1))
    graph = write_graph(tmp_path / "graph")
    dataset = Dataset.open(tmp_path / "dataset")
    manifest = json.loads((graph / "graph.json").read_text())
    (graph / "graph.json").write_text(json.dumps(manifest | {"dataset_version": dataset.version}))
    settings = EvaluateSettings(bootstrap_samples=100)
    evaluate(graph, dataset.path, tmp_path / "report", settings, model="colours")
    encoded = (graph / "model.onnx").read_bytes()
    spec = Graph(graph).preprocessing
    released = write_release(tmp_path, SAMPLES, encoded=encoded, classes=CLASSES, spec=spec)
    batch(source(folder), str(released), str(tmp_path / "out"))
    found = answers_in(tmp_path / "out")
    evaluated = load_predictions(tmp_path / "report")
    for key, probabilities in zip(evaluated.keys, evaluated.probabilities, strict=True):
        np.testing.assert_allclose(found.probabilities[key], probabilities, atol=1e-6)


def test_broken_pictures_are_in_quarantine_with_reasons(release: Path, tmp_path: Path) -> None:
    bad = {f"daisy/{name}": content for name, (_, content) in bad_pictures().items()}
    write_tree(tmp_path / "in", bad | {"daisy/good.jpg": jpeg(3), "tulip/good.jpg": jpeg(4)})
    summary = batch(source(tmp_path / "in"), str(release), str(tmp_path / "out"), FOUR)
    left_out = pd.read_csv(tmp_path / "out/quarantine.csv", index_col="key")
    found = answers_in(tmp_path / "out")
    assert sorted([*found.index, *left_out.index]) == sorted(
        [*bad, "daisy/good.jpg", "tulip/good.jpg"]
    )
    assert left_out.reason["daisy/truncated.jpg"] == "broken"
    assert left_out.reason["daisy/bomb.png"] == "too_large"
    assert left_out.detail["daisy/page.jpg"] == "an HTML page"
    assert set(left_out.label) == {"daisy"}
    # As the server has it: the first frame is answered.
    assert "daisy/moving.gif" in found.index
    assert sum(summary.left_out.values()) == len(left_out)


def test_where_there_are_labels_there_is_a_confusion_matrix(release: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 5, "tulip": 7, "weed": 2})
    summary = batch(source(folder), str(release), str(tmp_path / "out"), FOUR)
    found = answers_in(tmp_path / "out").query("true_label in @CLASSES")
    assert summary.labelled == len(found) == 12
    assert summary.unknown_labels == {"weed": 2}
    right = found.label == found.true_label
    assert summary.metrics["accuracy"] == pytest.approx(right.mean())
    recall = right.groupby(found.true_label).mean().mean()
    assert summary.metrics["balanced_accuracy"] == pytest.approx(recall)
    expected = pd.crosstab(found.true_label, found.label).reindex(
        index=CLASSES, columns=CLASSES, fill_value=0
    )
    categories, matrix = summary.confusion_matrix()
    assert categories == list(CLASSES)
    assert np.array_equal(matrix, expected)
    written = json.loads((tmp_path / "out/batch.json").read_text())
    assert written["metrics"] == summary.metrics


def test_labels_come_from_a_csv_too(release: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {f"{n}.jpg": jpeg(n) for n in range(3)})
    (tmp_path / "in/labels.csv").write_text("file,label\n0.jpg,daisy\n1.jpg,\n2.jpg,tulip\n")
    labelled = SourceSettings.parse({"uri": str(tmp_path / "in"), "csv": {"path": "labels.csv"}})
    summary = batch(labelled, str(release), str(tmp_path / "out"))
    assert (summary.answered, summary.labelled) == (3, 2)


def test_csv_files_say_what_parquet_says(release: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 3, "tulip": 3})
    settings = BatchSettings(part_pictures=4, csv=True)
    batch(source(folder), str(release), str(tmp_path / "out"), settings)
    found = answers_in(tmp_path / "out")
    text = pd.concat([pd.read_csv(path) for path in sorted(tmp_path.glob("out/answers/*.csv"))])
    text = text.set_index("key")
    columns = ["label", "abstain", "release", "true_label"]
    assert text[columns].equals(found[columns])
    probabilities = text[[f"probability {name}" for name in CLASSES]]
    np.testing.assert_allclose(probabilities, np.stack(found.probabilities), rtol=1e-5, atol=1e-30)


def test_duckdb_reads_all_answers_as_one_table(release: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 6, "tulip": 3})
    batch(source(folder), str(release), str(tmp_path / "out"), FOUR)
    query = f"select count(*), max(score) from '{tmp_path}/out/answers/*.parquet'"
    count, best = duckdb.sql(query).fetchall()[0]
    assert count == 9
    assert 0 < best <= 1


def test_shards_have_each_picture_once_and_the_last_one_sums_up(
    release: Path, tmp_path: Path
) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 20, "tulip": 13})
    summaries = [
        batch(source(folder), str(release), str(tmp_path / "out"), FOUR, shard=Shard(number, 3))
        for number in (3, 1, 2)
    ]
    assert [s.missing_shards for s in summaries] == [("1-of-3", "2-of-3"), ("2-of-3",), ()]
    whole = batch(source(folder), str(release), str(tmp_path / "whole"), FOUR)
    assert summaries[-1].confusion == whole.confusion
    assert summaries[-1].pictures == 33
    together = answers_in(tmp_path / "out").sort_index()
    pd.testing.assert_frame_equal(together, answers_in(tmp_path / "whole"))
    assert sum(s.pictures for s in summaries[:1]) < 20


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "2/", "a/b", "-1/3", "1/3/5"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not of the form 2/8"):
        Shard.parse(text)


def test_another_release_does_not_mix_into_the_answers(release: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 3, "tulip": 3})
    other = write_release(tmp_path, SAMPLES, version="v2", encoded=graph(seed=8))
    batch(source(folder), str(release), str(tmp_path / "out"))
    with pytest.raises(BatchError, match="its release is 'flowers/v1', asked for is 'flowers/v2'"):
        batch(source(folder), str(other), str(tmp_path / "out"))
    with pytest.raises(BatchError, match="its shards is 1, asked for is 4"):
        batch(source(folder), str(release), str(tmp_path / "out"), shard=Shard(1, 4))


def test_what_changed_is_answered_again_and_what_went_is_dropped(
    release: Path, tmp_path: Path
) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 4, "tulip": 8})
    first = batch(source(folder), str(release), str(tmp_path / "out"), FOUR)
    parts = sorted(tmp_path.glob("out/records/*"))
    times = [part.stat().st_mtime_ns for part in parts]
    (folder / "tulip/000.jpg").write_bytes(jpeg(99, 120, 90))
    for number in (5, 6, 7):
        (folder / f"tulip/{number:03d}.jpg").unlink()
    (folder / "tulip/004.jpg").unlink()
    second = batch(source(folder), str(release), str(tmp_path / "out"), FOUR)
    assert (first.pictures, second.pictures) == (12, 8)
    assert [p.name for p in sorted(tmp_path.glob("out/records/*"))] == [p.name for p in parts[:2]]
    assert len(list(tmp_path.glob("out/answers/*"))) == 2
    assert parts[0].stat().st_mtime_ns == times[0]
    assert parts[1].stat().st_mtime_ns != times[1]


def test_a_damaged_record_is_told(release: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", {"daisy": 3, "tulip": 3})
    batch(source(folder), str(release), str(tmp_path / "out"))
    (record,) = tmp_path.glob("out/records/*")
    record.write_text("{")
    with pytest.raises(BatchError, match=r"is damaged .*: delete it"):
        batch(source(folder), str(release), str(tmp_path / "out"))


def test_no_pictures_and_only_broken_ones_are_errors(release: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no pictures"):
        batch(source(tmp_path / "empty"), str(release), str(tmp_path / "out"))
    write_tree(tmp_path / "bad", {"note.jpg": b"buy milk", "empty.jpg": b""})
    with pytest.raises(BatchError, match=r"none of the 2 pictures .*not_a_picture 2"):
        batch(source(tmp_path / "bad"), str(release), str(tmp_path / "out"))
    assert len((tmp_path / "out/quarantine.csv").read_text().splitlines()) == 3


MOMENTS = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def killed(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    folder = class_folders(root / "in", {"daisy": 5, "tulip": 6})
    script = Path(__file__).with_name("killed_batch.py")
    command = [sys.executable, "-W", "error", script, folder, release, root, *map(str, MOMENTS)]
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_batch_ends_as_one_that_was_not(killed: Path, moment: int) -> None:
    whole, again = killed / "0", killed / str(moment)
    names = files_below(whole)
    assert names == files_below(again)
    for name in names:
        if name.parts[0] in ("answers", "records") or name.name == "quarantine.csv":
            assert (whole / name).read_bytes() == (again / name).read_bytes(), name


def files_below(folder: Path) -> list[Path]:
    """Return what readers see; a kill leaves hidden files."""
    found = (path for path in folder.rglob("*.*") if not path.name.startswith("."))
    return sorted(path.relative_to(folder) for path in found)


def test_finished_parts_are_not_done_again_after_a_kill(killed: Path) -> None:
    kept = {moment: (killed / f"{moment}.kept").read_text().split() for moment in MOMENTS}
    assert kept[1] == kept[2] == ["plan.json"]
    assert sum(name.startswith("part-") for name in kept[4]) == 1
    assert sum(name.startswith("part-") for name in kept[8]) == 3


def test_ctrl_c_leaves_what_is_done_and_the_next_run_goes_on(release: Path, tmp_path: Path) -> None:
    picture = jpeg(1, 1600, 1200)
    write_tree(tmp_path / "in", {f"{n:04d}.jpg": picture for n in range(600)})
    command = [LINNET, "batch", str(tmp_path / "in"), "-r", str(release), "--part-pictures", "20"]
    command += ["-o", str(tmp_path / "out"), "-w", str(tmp_path / "workspace"), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/records/*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "a batch" in said
    assert "Traceback" not in said
    done = {path.stem for path in tmp_path.glob("out/records/*")}
    assert 0 < len(done) < 30
    assert done <= {path.stem for path in tmp_path.glob("out/answers/*.parquet")}
    assert not list(tmp_path.rglob(".partial*"))


def test_ten_times_the_pictures_take_no_more_memory(release: Path, tmp_path: Path) -> None:
    small = [peak_mib(release, tmp_path, count) for count in (150, 1500)]
    assert small[1] < 1.15 * small[0], small


def peak_mib(release: Path, folder: Path, count: int) -> float:
    pictures = folder / f"in-{count}"
    pictures.mkdir()
    (pictures / "0.jpg").write_bytes(jpeg(1, 640, 480))
    for number in range(1, count):
        os.link(pictures / "0.jpg", pictures / f"{number}.jpg")
    program = (
        "import sys, resource\n"
        "from linnet.batch.predicting import batch\n"
        "from linnet.settings import SourceSettings\n"
        "batch(SourceSettings(uri=sys.argv[1]), *sys.argv[2:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    command = [sys.executable, "-c", program, pictures, release, folder / f"out-{count}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return float(done.stdout)

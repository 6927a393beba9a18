import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.errors import ReleaseError, ReleaseExistsError, StoreFullError
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import gate
from linnet.inference.answers import Rule
from linnet.inference.local import LocalModel
from linnet.inference.predict import Predictions
from linnet.inference.session import Session
from linnet.release.bundle import (
    Released,
    list_releases,
    open_release,
    release,
    sample_rows,
)
from linnet.release.samples import read_samples
from linnet.settings import DecisionSettings, EvaluateSettings, GateSettings, ReleaseSettings
from linnet.stores.objects import sha256_of
from tests.release_parts import write_dataset, write_graph, write_report


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `dataset`, `graph` and `report` that belong together."""
    folder = tmp_path_factory.mktemp("parts")
    write_report(
        folder / "report", write_graph(folder / "graph"), write_dataset(folder / "dataset")
    )
    return folder


def _release(parts: Path, root: Path, *, model: str = "colours", **settings: Any) -> Released:
    return release(
        parts / "graph",
        parts / "report",
        parts / "dataset",
        model=model,
        settings=ReleaseSettings(root=str(root), **settings),
    )


def test_a_release_holds_the_graph_its_report_samples_and_a_manifest(
    parts: Path, tmp_path: Path
) -> None:
    released = _release(parts, tmp_path)
    folder = tmp_path / "colours" / "v1"
    assert released == Released("colours", "v1", str(folder), (), released.metrics)
    assert json.loads(released.to_json())["metrics"]["accuracy"] == 1.0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.onnx",
        "report.json",
        "report.html",
        "samples.json",
        "drift.json",
        "release.json",
    }
    manifest = json.loads((folder / "release.json").read_text())
    assert manifest["kind"] == "linnet/release/v1"
    assert manifest["classes"] == ["blue", "green", "red"]
    assert manifest["preprocessing"] == {"size_px": 8, "fit": "squash"}
    assert manifest["precision"] == "fp32"
    assert manifest["input"] == {"name": "pictures", "dtype": "UINT8", "shape": [-1, 8, 8, 3]}
    assert manifest["output"] == {"name": "probabilities", "dtype": "FP32", "shape": [-1, 3]}
    assert manifest["provenance"]["dataset_version"] == "0123456789ab"
    assert set(manifest["files"]) == names - {"release.json"}
    for name, file in manifest["files"].items():
        assert file["sha256"] == sha256_of(folder / name)
        assert file["size_bytes"] == (folder / name).stat().st_size


def test_samples_are_of_every_class_with_the_graphs_own_answers(
    parts: Path, tmp_path: Path
) -> None:
    from linnet.data.preprocessing import Preprocessing, prepare

    opened = open_release(_release(parts, tmp_path, sample_pictures=6).uri, scratch=tmp_path)
    samples = read_samples(opened.samples_path)
    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1, 2]
    spec = Preprocessing.from_json(opened.manifest["preprocessing"])
    pictures = np.stack([prepare(sample.encoded, spec) for sample in samples])
    answers = Session(opened.graph_path).predict(pictures)
    np.testing.assert_allclose(answers, [sample.probabilities for sample in samples], atol=1e-6)


def test_samples_take_the_classes_in_turn_and_right_answers_first() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    predicted = np.array([1, 0, 0, 1, 0, 2])
    predictions = Predictions(
        keys=[str(row) for row in range(6)],
        labels=labels,
        probabilities=np.eye(3, dtype=np.float32)[predicted],
    )
    assert sample_rows(predictions, 4) == [1, 3, 5, 2]
    assert sample_rows(predictions, 100) == [1, 3, 5, 2, 4, 0]


def test_versions_count_up_and_v10_comes_after_v9(parts: Path, tmp_path: Path) -> None:
    versions = [_release(parts, tmp_path).version for _ in range(10)]
    assert versions == [f"v{number}" for number in range(1, 11)]
    _release(parts, tmp_path, version="summer")
    listed = [found.version for found in list_releases(str(tmp_path))]
    assert listed == ["summer", *versions]
    assert _release(parts, tmp_path).version == "v11"


def test_an_existing_version_is_an_error_and_stays_as_it_was(parts: Path, tmp_path: Path) -> None:
    _release(parts, tmp_path, version="v1")
    manifest = tmp_path / "colours" / "v1" / "release.json"
    before = manifest.read_bytes()
    with pytest.raises(ReleaseExistsError, match=r"v1 is already released.*release\.version"):
        _release(parts, tmp_path, version="v1")
    assert manifest.read_bytes() == before


def test_two_at_once_on_one_version_make_one_release(parts: Path, tmp_path: Path) -> None:
    start = threading.Barrier(2)

    def publish(_: int) -> str:
        start.wait()
        try:
            return _release(parts, tmp_path, version="v1").version
        except ReleaseExistsError:
            return "exists"

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(publish, range(2))) == ["exists", "v1"]
    assert [path.name for path in (tmp_path / "colours").iterdir()] == ["v1"]


def test_two_at_once_without_a_version_get_two(parts: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        done = threads.map(lambda _: _release(parts, tmp_path).version, range(2))
        assert set(done) == {"v1", "v2"}


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_release_leaves_nothing_behind(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise trouble

    with monkeypatch.context() as interrupted:
        interrupted.setattr(os, "fsync", fail)
        with pytest.raises((StoreFullError, KeyboardInterrupt)):
            _release(parts, tmp_path)
    assert list((tmp_path / "colours").iterdir()) == []
    assert list_releases(str(tmp_path)) == []
    assert _release(parts, tmp_path).version == "v1"


def test_half_a_release_is_neither_listed_nor_opened_nor_in_the_way(
    parts: Path, tmp_path: Path
) -> None:
    folder = Path(_release(parts, tmp_path).uri)
    (folder / "release.json").unlink()
    assert list_releases(str(tmp_path)) == []
    with pytest.raises(ReleaseError, match=r"is not a finished release .*linnet releases"):
        open_release(folder, scratch=tmp_path)
    assert _release(parts, tmp_path).version == "v2"


def test_an_altered_file_is_refused_with_both_digests(parts: Path, tmp_path: Path) -> None:
    folder = Path(_release(parts, tmp_path).uri)
    released = sha256_of(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(b"altered")
    found = sha256_of(folder / "model.onnx")
    with pytest.raises(ReleaseError, match=f"model.onnx of .* SHA-256 {found}, .* {released}"):
        open_release(folder, scratch=tmp_path)


def test_a_missing_file_is_named(parts: Path, tmp_path: Path) -> None:
    folder = Path(_release(parts, tmp_path).uri)
    (folder / "samples.json").unlink()
    with pytest.raises(ReleaseError, match=r"incomplete, samples.json is gone"):
        open_release(folder, scratch=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "linnet/release/v9"}, "of kind 'linnet/release/v9', expected"),
        ({"files": {"../outside": {}}}, "names the file '../outside' outside it"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(
    parts: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = Path(_release(parts, tmp_path).uri) / "release.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ReleaseError, match=words):
        open_release(path.parent, scratch=tmp_path)


def test_a_manifest_cut_short_is_damaged(parts: Path, tmp_path: Path) -> None:
    path = Path(_release(parts, tmp_path).uri) / "release.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReleaseError, match=r"manifest of .* is damaged"):
        open_release(path.parent, scratch=tmp_path)
    assert list_releases(str(tmp_path)) == []


def test_a_refused_model_is_not_released(parts: Path, tmp_path: Path) -> None:
    strict = GateSettings(maximum={"log_loss": 0.0})
    copy = tmp_path / "copy"
    shutil.copytree(parts, copy, ignore=shutil.ignore_patterns("report*"))
    write_report(copy / "report", copy / "graph", copy / "dataset", settings=strict)
    with pytest.raises(ReleaseError, match=r"the gate refused .*\n.*log loss"):
        _release(copy, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_report_that_was_not_gated_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="has not been through the gate: run `linnet gate`"):
        release(
            parts / "graph",
            parts / "report-measured",
            parts / "dataset",
            model="colours",
            settings=ReleaseSettings(root=str(tmp_path)),
        )


def test_another_graph_than_the_reports_is_refused(parts: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "other", temperature=2.0)
    with pytest.raises(ReleaseError, match=r"the report .* give the very graph"):
        release(
            other,
            parts / "report",
            parts / "dataset",
            model="colours",
            settings=ReleaseSettings(root=str(tmp_path)),
        )


def test_another_models_report_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="is of model 'colours', asked for was 'shapes'"):
        _release(parts, tmp_path, model="shapes")


def test_without_a_root_the_error_names_the_setting(parts: Path) -> None:
    with pytest.raises(ReleaseError, match=r"set release\.root"):
        release(
            parts / "graph",
            parts / "report",
            parts / "dataset",
            model="colours",
            settings=ReleaseSettings(),
        )


def test_a_release_carries_the_thresholds_that_its_report_is_of(tmp_path: Path) -> None:
    graph, dataset = write_graph(tmp_path / "graph"), write_dataset(tmp_path / "dataset")
    decision = DecisionSettings(aim="f1", fewest_pictures=1, coverage=0.75, cross_fit=False)
    settings = EvaluateSettings(bootstrap_samples=100, decision=decision)
    measured = evaluate(graph, dataset, tmp_path / "measured", settings, model="colours")
    gate(graph, dataset, tmp_path / "measured", tmp_path / "report", GateSettings(), champion=None)
    released = _release(tmp_path, tmp_path / "releases", sample_pictures=12)
    opened = open_release(released.uri, scratch=tmp_path)
    assert set(opened.manifest["thresholds"]) == {"blue", "green", "red"}
    assert Rule.of(opened.manifest) == measured.rule
    pictures = [sample.encoded for sample in read_samples(opened.samples_path)]
    labels = measured.rule.labels(
        np.stack([sample.probabilities for sample in read_samples(opened.samples_path)])
    )
    answers = LocalModel(opened).predict(pictures)
    assert [answer.label for answer in answers] == [measured.classes[label] for label in labels]
    assert any(answer.abstain for answer in answers)

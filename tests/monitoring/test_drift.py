import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from components.drift.component import drift as drift_step
from linnet.cli import app
from linnet.data.preprocessing import Preprocessing
from linnet.errors import DriftError
from linnet.inference.answers import Rule
from linnet.inference.session import Session
from linnet.monitoring.drift import look
from linnet.monitoring.features import FEATURES, describe_encoded, measure
from linnet.monitoring.pictures import pictures
from linnet.monitoring.reference import read_reference
from linnet.monitoring.settings import DriftSettings
from linnet.release.opening import open_release
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from tests.monitoring.made import picture, write_pictures, write_release

QUICK = DriftSettings(permutations=199, false_alarms=0.01)
AS_EVER = [picture(seed) for seed in range(50_000, 50_120)]
BLURRED = [picture(seed, blur=1.5) for seed in range(60_000, 60_120)]


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "LINNET_RELEASE_ROOT", "LINNET_WORKSPACE"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def connections(workspace: Path) -> Connections:
    return Connections.from_environment(workspace, {})


@pytest.fixture(scope="module")
def released(workspace: Path, connections: Connections) -> Path:
    return write_release(workspace / "made", connections)


@pytest.mark.parametrize(
    ("made", "moved", "down"),
    [({"blur": 1.5}, "sharpness", True), ({"dark": 0.5}, "brightness", True)],
)
def test_a_picture_that_is_worse_has_other_numbers(
    made: dict[str, float], moved: str, down: bool
) -> None:
    column = FEATURES.index(moved)
    for seed in range(5):
        plain = describe_encoded(picture(seed))[column]
        assert (describe_encoded(picture(seed, **made))[column] < plain) is down


def test_a_release_carries_the_numbers_of_its_own_test_pictures(released: Path) -> None:
    """As they would be measured on the same pictures in use."""
    opened = open_release(released, scratch=Path("unused"))
    kept = read_reference(opened)
    every = DriftSettings(pictures=2000)
    again = measure(
        pictures(str(released.parents[2] / "made" / "dataset"), every, None),
        Session(opened.graph_path),
        Preprocessing.from_json(opened.manifest["preprocessing"]),
        Rule.of(opened.manifest),
    )
    assert len(kept) == len(again) == 192
    np.testing.assert_array_equal(kept.values, again.values)
    assert kept.answers.tolist() == again.answers.tolist()


def test_pictures_as_ever_are_no_drift(released: Path, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "new", AS_EVER)
    report = look(str(source), str(released), tmp_path / "drift", QUICK)
    assert report.verdict == "none"
    assert (report.pictures, report.reference_pictures, report.unreadable) == (120, 192, 0)


@pytest.mark.parametrize(
    ("encoded", "named"),
    [
        (BLURRED, "sharpness"),
        ([picture(seed, 1) for seed in range(70_000, 70_120)], "green"),
        ([picture(seed, dark=0.6) for seed in range(80_000, 80_120)], "brightness"),
    ],
    ids=["blur", "label shift", "darker"],
)
def test_drift_is_found_and_named(
    encoded: list[bytes], named: str, released: Path, tmp_path: Path
) -> None:
    source = write_pictures(tmp_path / "new", encoded)
    report = look(str(source), str(released), tmp_path / "drift", QUICK)
    assert report.verdict == "drift"
    assert named in {shift.name for shift in report.drifted}
    assert named in report.headline()
    kept = json.loads((tmp_path / "drift" / "drift.json").read_text())
    assert kept["verdict"] == "drift"
    page = (tmp_path / "drift" / "drift.html").read_text()
    assert page.count("<svg") == len(FEATURES)
    assert "green" in page


def test_broken_pictures_are_counted_and_other_files_left_out(
    released: Path, tmp_path: Path
) -> None:
    source = write_pictures(tmp_path / "new", [*AS_EVER[:60], AS_EVER[60][:90], b"no picture"])
    (source / "labels.csv").write_text("file,label\n")
    (source / ".hidden").mkdir()
    (source / ".hidden" / "a.png").write_bytes(AS_EVER[0])
    report = look(str(source), str(released), tmp_path / "drift", QUICK)
    assert (report.pictures, report.unreadable) == (60, 2)


def test_too_few_pictures_are_no_look(released: Path, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "new", AS_EVER[:20])
    with pytest.raises(DriftError, match=r"has 20 pictures that can be read .* expected 50"):
        look(str(source), str(released), tmp_path / "drift", QUICK)
    assert not (tmp_path / "drift").exists()


def test_a_place_without_pictures_is_named(released: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DriftError, match="empty holds no pictures: give a folder"):
        look(str(tmp_path / "empty"), str(released), tmp_path / "drift", QUICK)


def test_an_older_release_says_what_to_compare_with_instead(released: Path, tmp_path: Path) -> None:
    old = shutil.copytree(released, tmp_path / "old")
    manifest = json.loads((old / "release.json").read_text())
    del manifest["files"]["drift.json"]
    (old / "release.json").write_text(json.dumps(manifest))
    source = write_pictures(tmp_path / "new", BLURRED)
    with pytest.raises(DriftError, match="release again, or give what to compare with"):
        look(str(source), str(old), tmp_path / "drift", QUICK)
    dataset = str(released.parents[2] / "made" / "dataset")
    report = look(str(source), str(old), tmp_path / "drift", QUICK, reference=dataset)
    assert (report.verdict, report.reference_pictures) == ("drift", 192)


def _write_part(path: Path, encoded: list[bytes | None], *, hours_ago: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    times = pa.array([at] * len(encoded), pa.timestamp("ms", tz="UTC"))
    pq.write_table(pa.table({"time": times, "picture": pa.array(encoded, pa.binary())}), path)


def test_of_a_log_the_newest_pictures_are_looked_at(released: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    _write_part(log / "2026-01-01" / "1.parquet", list(BLURRED), hours_ago=50)
    _write_part(log / "2026-01-02" / "1.parquet", [*AS_EVER, None, None], hours_ago=1)
    few = QUICK.model_copy(update={"pictures": 120})
    assert look(str(log), str(released), tmp_path / "a", few).verdict == "none"
    recent = look(str(log), str(released), tmp_path / "b", QUICK.model_copy(update={"hours": 24}))
    assert (recent.verdict, recent.pictures) == ("none", 120)
    everything = look(str(log), str(released), tmp_path / "c", QUICK)
    assert (everything.verdict, everything.pictures) == ("drift", 240)


def test_a_parquet_of_another_kind_is_no_log(released: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "log" / "1.parquet")
    with pytest.raises(DriftError, match=r"1\.parquet is no part of a prediction log"):
        look(str(tmp_path / "log"), str(released), tmp_path / "drift", QUICK)


@pytest.mark.parametrize(("encoded", "code"), [(AS_EVER, 0), (BLURRED, 3)])
def test_the_command_tells_drift_by_its_exit_code(
    encoded: list[bytes], code: int, released: Path, workspace: Path, tmp_path: Path
) -> None:
    source = write_pictures(tmp_path / "new", encoded)
    command = ["drift", str(source), "-r", "colours@champion", "-w", str(workspace)]
    command += ["-o", str(tmp_path / "drift"), "--set", "permutations=199"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == code, shown.output
    assert "sharpness" in shown.output
    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.stdout)["verdict"] == ("drift" if code else "none")


def test_the_step_keeps_its_look_with_the_release_in_mlflow(
    released: Path, workspace: Path, connections: Connections, tmp_path: Path
) -> None:
    source = write_pictures(tmp_path / "new", BLURRED)
    metrics = SimpleNamespace(metadata={})
    verdict = drift_step.python_func(
        source=str(source),
        release="colours@champion",
        settings={"permutations": 199},
        workspace=str(workspace),
        report=SimpleNamespace(path=str(tmp_path / "report")),
        page=SimpleNamespace(path=str(tmp_path / "page.html")),
        metrics=metrics,
    )
    assert verdict == "drift"
    assert metrics.metadata["drift"] == 1.0
    assert "sharpness" in (tmp_path / "page.html").read_text()
    (known,) = Registry(connections).releases("colours")
    assert known.tags["drift"] == "drift"
    assert "sharpness" in known.tags["drift_words"]
    assert json.loads(known.tags["drift_values"])["drift_sharpness"] > 0.5

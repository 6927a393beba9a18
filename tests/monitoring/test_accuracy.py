"""Accuracy in use: true labels joined with what the server logged, whatever the clocks say."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from linnet.errors import FeedbackError
from linnet.inference.answers import Rule
from linnet.inference.metrics import Metrics
from linnet.inference.prediction_log import PredictionLog, Told
from linnet.inference.settings import PredictionLogSettings
from linnet.monitoring.accuracy import give, live_accuracy

CLASSES = ("daisy", "rose")


def write_log(place: Path, *, skew: timedelta = timedelta(0)) -> None:
    """Log what two releases answered, as the server does: v1 says daisy, v2 says rose."""
    for version, best in (("v1", 0), ("v2", 1)):
        log = open_log(place)
        for number in range(10):
            probabilities = np.float32([[0.1, 0.1], [0.2, 0.2]])
            probabilities[:, best] = 0.8
            log.note(
                "flowers",
                f"flowers/{version}",
                CLASSES,
                request_id=f"{version}-{number}",
                pixels=None,
                encoded=[b"one", b"two"],
                answers=Rule().answer(probabilities),
            )
        log.close(20)
    if skew:
        day = f"{datetime.now(UTC) + skew:date=%Y-%m-%d}"
        folder = place / "predictions" / "flowers"
        (today,) = folder.iterdir()
        if today.name != day:
            shutil.move(today, folder / day)


def open_log(place: Path) -> PredictionLog:
    values = {"to": str(place), "share": 1.0, "per_second": 1e6, "part_s": 600.0}
    return PredictionLog(PredictionLogSettings.parse(values), Metrics(), None)


def tell(place: Path, *told: Told) -> None:
    log = open_log(place)
    assert log.tell(told)
    log.close(20)


def test_accuracy_is_told_by_release_with_an_interval(tmp_path: Path) -> None:
    write_log(tmp_path)
    # Some that the server knew the answer of, some that it did not.
    known = [Told("flowers", f"v1-{n}", 0, "daisy", "flowers/v1", "daisy") for n in range(8)]
    wrong = [Told("flowers", f"v2-{n}", 1, "daisy", None, None) for n in range(3)]
    right = [Told("flowers", f"v2-{n}", 1, "rose", None, None) for n in range(3, 10)]
    tell(tmp_path, *known, *wrong, *right)
    found = live_accuracy(str(tmp_path), "flowers")
    first, second = found.releases
    assert (first.release, first.labelled, first.right) == ("flowers/v1", 8, 8)
    assert (second.release, second.labelled, second.right) == ("flowers/v2", 10, 7)
    assert second.low < second.accuracy == 0.7 < second.high
    assert found.unknown == ()


def test_the_last_label_of_a_picture_counts_once(tmp_path: Path) -> None:
    write_log(tmp_path)
    early = datetime.now(UTC).timestamp() - 100
    tell(tmp_path, Told("flowers", "v1-0", 0, "daisy", None, None))
    tell(tmp_path, Told("flowers", "v1-0", 0, "rose", None, None, time_s=early))
    (only,) = live_accuracy(str(tmp_path), "flowers").releases
    assert (only.labelled, only.right) == (1, 1)


@pytest.mark.parametrize("hours", [-30, -5, 5, 30])
def test_a_clock_that_is_wrong_by_hours_loses_no_label(tmp_path: Path, hours: int) -> None:
    write_log(tmp_path, skew=timedelta(hours=hours))
    tell(tmp_path, Told("flowers", "v1-3", 1, "daisy", None, None))
    skewed = datetime.now(UTC).timestamp() + 3600 * max(hours, -23)
    tell(tmp_path, Told("flowers", "v1-4", 1, "rose", None, None, time_s=skewed))
    found = live_accuracy(str(tmp_path), "flowers", days=1)
    assert [(row.labelled, row.right) for row in found.releases] == [(2, 1)]
    assert not found.unknown


def test_labels_of_requests_that_nobody_logged_are_listed(tmp_path: Path) -> None:
    write_log(tmp_path)
    tell(tmp_path, Told("flowers", "nope", 0, "daisy", None, None))
    found = live_accuracy(str(tmp_path), "flowers")
    assert found.releases == ()
    assert found.unknown == (("nope", 0),)


def test_a_file_of_labels_is_joined_with_the_log(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    file = tmp_path / "labels.csv"
    file.write_text("request_id,label,number\nv1-0,daisy,0\nv1-0,rose,1\nv2-5,rose,\nv2-6,,0\n")
    assert give(file, str(tmp_path / "log"), "flowers") == 4
    found = live_accuracy(str(tmp_path / "log"), "flowers")
    assert [(row.release, row.labelled, row.right) for row in found.releases] == [
        ("flowers/v1", 2, 1),
        ("flowers/v2", 2, 1),
    ]


def test_a_file_with_unknown_requests_is_refused_whole_unless_they_are_to_be_skipped(
    tmp_path: Path,
) -> None:
    write_log(tmp_path / "log")
    file = tmp_path / "labels.csv"
    file.write_text("request_id,label\nv1-0,daisy\nnope,daisy\n")
    with pytest.raises(FeedbackError, match=r"1 of the 2 pictures .* were not logged .*nope \(0\)"):
        give(file, str(tmp_path / "log"), "flowers")
    assert not (tmp_path / "log" / "feedback").exists()
    assert give(file, str(tmp_path / "log"), "flowers", skip_unknown=True) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no lines, or not the columns"),
        (b"id,label\na,b\n", "not the columns request_id and label"),
        (b"request_id,label,number\na,b,x\n", "has a number that is none"),
        (b"\xff\xfe", "can't be read as a table"),
    ],
)
def test_a_wrong_file_says_what_to_change(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(FeedbackError, match=words):
        give(file, str(tmp_path / "log"), "flowers")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "feedback" / "flowers" / f"{datetime.now(UTC):date=%Y-%m-%d}"
    folder.mkdir(parents=True)
    (folder / "000000-abc.parquet").write_bytes(b"no parquet")
    with pytest.raises(FeedbackError, match=r"000000-abc\.parquet is no part of a prediction log"):
        live_accuracy(str(tmp_path), "flowers")


def test_the_commands_take_labels_and_show_the_accuracy(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    (tmp_path / "labels.csv").write_text("request_id,label\nv1-0,daisy\nv1-1,rose\n")
    linnet = str(Path(sys.executable).with_name("linnet"))
    to = ["--log", str(tmp_path / "log"), "--model", "flowers"]
    taken = subprocess.run(
        [linnet, "feedback", str(tmp_path / "labels.csv"), *to], capture_output=True, text=True
    )
    assert taken.stdout.startswith("2 labels are taken"), taken.stderr
    shown = subprocess.run([linnet, "monitor", *to], capture_output=True, text=True)
    assert "flowers/v1" in shown.stdout
    assert "0.500" in shown.stdout
